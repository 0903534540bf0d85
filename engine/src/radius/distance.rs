//! The distance in decimetres, to the same decimetre as [`nearness::distance_dm`](nearby_schemas::nearness::distance_dm), for
//! a fifth of its price.
//!
//! Up to some kilometres, the sines, the arc sine and the other latitude's cosine are short polynomials, which err by less than
//! 5e-14 of the distance. The cosine has a rounding error of some 2e-16 in both formulas, which moves a distance by at most
//! 2R·y·1e-16, or 2e-10 decimetres. That decides the rounding, unless the distance is within a ten-thousandth of a millimetre
//! of the middle between two decimetres: then the haversine is asked.

use super::{Circle, HALF_UNIT};
use nearby_schemas::Place;
use nearby_schemas::nearness::{EARTH_RADIUS_M, distance_dm};

/// Below, polynomials of the halved difference of latitude have no error to speak of: x⁵ is 1e-15. About 12.7 km.
const X_MAX: f64 = 1e-3;
/// The same for the halved difference of longitude, whose polynomial is longer.
const Y_MAX: f64 = 1e-2;
/// Far more than the error: 7e-8 for a distance that X_MAX and Y_MAX keep below 130 km, which is 1.3e6 decimetres.
const UNSURE_DM: f64 = 1e-6;

impl Circle {
    /// Distance from the centre to `place`: exactly that of `nearness`.
    #[inline]
    pub(crate) fn distance_dm(&self, place: Place) -> i32 {
        self.sure_distance_dm(place).unwrap_or_else(|| self.haversine_dm(place))
    }

    #[cold]
    fn haversine_dm(&self, place: Place) -> i32 {
        distance_dm(self.centre, place)
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "up to 200,151,145 decimetres")]
    fn sure_distance_dm(&self, place: Place) -> Option<i32> {
        let raised_dm = self.short_distance_dm(place)? + 0.5;
        let rounded_dm = raised_dm as i32;
        let above_dm = raised_dm - f64::from(rounded_dm);
        (above_dm > UNSURE_DM && above_dm < 1.0 - UNSURE_DM).then_some(rounded_dm)
    }

    /// The distance with an error far below `UNSURE_DM`, if it is short.
    #[inline]
    fn short_distance_dm(&self, place: Place) -> Option<f64> {
        // Where a difference wraps around, it is more than 60 degrees.
        let x = f64::from(place.lat_e7.wrapping_sub(self.centre.lat_e7)) * HALF_UNIT;
        let y = f64::from(place.lon_e7.wrapping_sub(self.centre.lon_e7)) * HALF_UNIT;
        if x.abs() > X_MAX || y.abs() > Y_MAX {
            return None;
        }
        let (xx, yy) = (x * x, y * y);
        let sine_square_x = xx * (1.0 - xx * (1.0 / 3.0));
        let sine_square_y = yy * (1.0 - yy * (1.0 / 3.0 - yy * (2.0 / 45.0)));
        // The cosine of a sum, of the latitude and the whole difference.
        let cos_difference = 1.0 - xx * (2.0 - xx * (2.0 / 3.0));
        let sin_difference = x * (2.0 - xx * (4.0 / 3.0));
        let other_cos_lat = self.cos_lat * cos_difference - self.sin_lat * sin_difference;
        let h = sine_square_x + self.cos_lat * other_cos_lat * sine_square_y;
        let angle = h.sqrt() * (1.0 + h * (1.0 / 6.0 + h * (3.0 / 40.0)));
        Some(20.0 * EARTH_RADIUS_M * angle)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Radius;
    use super::*;
    use nearby_schemas::nearness::distance_m;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200_000))]

        #[test]
        fn is_the_haversines_to_the_decimetre(
            lat_e7 in prop_oneof![-900_000_000..=900_000_000, 890_000_000..=900_000_000, Just(0)],
            lon_e7 in prop_oneof![-1_800_000_000..=1_800_000_000, 1_799_000_000..=1_800_000_000],
            step_e7 in prop_oneof![Just(100_i32), Just(100_000), Just(1_000_000), Just(12_000_000), Just(i32::MAX)],
            (north, east) in (-1.0..=1.0, -1.0..=1.0),
        ) {
            #[expect(clippy::cast_possible_truncation, reason = "it saturates")]
            let moved = |from: i32, share: f64| from.saturating_add((f64::from(step_e7) * share) as i32);
            let a = Place { lat_e7, lon_e7 };
            let b = Place {
                lat_e7: moved(lat_e7, north).clamp(-900_000_000, 900_000_000),
                lon_e7: moved(lon_e7, east).clamp(-1_800_000_000, 1_800_000_000),
            };
            for (from, to) in [(a, b), (b, a), (a, a)] {
                let circle = Radius::new(0.0).around(from);
                prop_assert_eq!(circle.distance_dm(to), distance_dm(from, to), "{:?} {:?}", from, to);
                let error_dm = circle.short_distance_dm(to).map_or(0.0, |dm| dm - 10.0 * distance_m(from, to));
                prop_assert!(error_dm.abs() < UNSURE_DM / 4.0, "{:?} {:?} {}", from, to, error_dm);
            }
        }
    }

    /// The short way is worth its place only if it decides nearly always.
    #[test]
    fn the_haversine_is_seldom_asked() {
        let circle = Radius::new(8_000.0).around(Place { lat_e7: 377_700_000, lon_e7: -1_224_100_000 });
        let places = (-1_000..1_000).flat_map(|lat| (-1_000..1_000).map(move |lon| (lat * 701, lon * 701)));
        let open = places.filter(|(lat_e7, lon_e7)| {
            let place = Place { lat_e7: circle.centre.lat_e7 + lat_e7, lon_e7: circle.centre.lon_e7 + lon_e7 };
            circle.sure_distance_dm(place).is_none()
        });
        let open = open.count();
        assert!((1..100).contains(&open), "{open} of 4,000,000 distances were left open");
    }
}
