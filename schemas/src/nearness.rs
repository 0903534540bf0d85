//! Places on the Earth and the distance between them: the only floating-point numbers of the system's core.
//!
//! Both the engine, which decides who is near, and the gateways, which tell a viewer who moved the new distances,
//! compute here, so that the two never disagree. Distances leave rounded to decimetres.

use serde::{Deserialize, Serialize};

/// Mean radius of the Earth in metres (IUGG, R1), as the rules of nearness fix it.
pub const EARTH_RADIUS_M: f64 = 6_371_008.8;

/// 1e-7 degree, about 11 mm on a meridian, is the unit of fixed-point coordinates.
pub const UNITS_PER_DEGREE: f64 = 1e7;

/// A place on WGS 84 in fixed point, within range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Latitude in 1e-7 degree, within ±900,000,000.
    pub lat_e7: i32,
    /// Longitude in 1e-7 degree, within ±1,800,000,000.
    pub lon_e7: i32,
}

/// A coordinate is not on the globe.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OutOfRange {
    /// Latitude.
    #[error("the latitude is not within -90 to 90 degrees")]
    Lat,
    /// Longitude.
    #[error("the longitude is not within -180 to 180 degrees")]
    Lon,
}

impl Place {
    /// From degrees, rounded to the nearest 1e-7; refuses what is not finite or not on the globe.
    pub fn from_degrees(lat: f64, lon: f64) -> Result<Place, OutOfRange> {
        if !(-90.0..=90.0).contains(&lat) {
            return Err(OutOfRange::Lat);
        }
        if !(-180.0..=180.0).contains(&lon) {
            return Err(OutOfRange::Lon);
        }
        Ok(Place { lat_e7: fixed(lat), lon_e7: fixed(lon) })
    }

    /// Whether both coordinates are on the globe; records from outside may hold anything.
    pub fn check(self) -> Result<Place, OutOfRange> {
        if self.lat_e7.unsigned_abs() > 900_000_000 {
            return Err(OutOfRange::Lat);
        }
        if self.lon_e7.unsigned_abs() > 1_800_000_000 {
            return Err(OutOfRange::Lon);
        }
        Ok(self)
    }

    /// Latitude in degrees.
    pub fn lat(self) -> f64 {
        f64::from(self.lat_e7) / UNITS_PER_DEGREE
    }

    /// Longitude in degrees.
    pub fn lon(self) -> f64 {
        f64::from(self.lon_e7) / UNITS_PER_DEGREE
    }
}

/// Great-circle distance in metres by the haversine formula. Symmetric to the last bit.
pub fn distance_m(a: Place, b: Place) -> f64 {
    let (lat_a, lat_b) = (a.lat().to_radians(), b.lat().to_radians());
    // Differences are taken in fixed point: they are exact, and their squares are the same in both directions.
    let half_lat = half_angle(i64::from(a.lat_e7) - i64::from(b.lat_e7));
    let half_lon = half_angle(i64::from(a.lon_e7) - i64::from(b.lon_e7));
    let h = half_lat.sin().powi(2) + lat_a.cos() * lat_b.cos() * half_lon.sin().powi(2);
    2.0 * EARTH_RADIUS_M * h.min(1.0).sqrt().asin()
}

/// Distance in decimetres, rounded: how distances are told.
pub fn distance_dm(a: Place, b: Place) -> i32 {
    to_decimetres(distance_m(a, b))
}

/// Metres to decimetres, rounded. Half the circumference, 200,151,145 dm, fits an `i32`.
#[expect(clippy::cast_possible_truncation, reason = "half the Earth's circumference in decimetres fits an i32")]
pub fn to_decimetres(distance_m: f64) -> i32 {
    (distance_m * 10.0).round() as i32
}

#[expect(clippy::cast_possible_truncation, reason = "callers checked the range, which fits an i32")]
fn fixed(degrees: f64) -> i32 {
    (degrees * UNITS_PER_DEGREE).round() as i32
}

#[expect(clippy::cast_precision_loss, reason = "differences are below 3.6e9, exact in an f64")]
fn half_angle(difference_e7: i64) -> f64 {
    (difference_e7 as f64 / UNITS_PER_DEGREE).to_radians() / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(lat: f64, lon: f64) -> Place {
        Place::from_degrees(lat, lon).expect("on the globe")
    }

    #[test]
    fn known_distances() {
        // A degree of a meridian is R * pi / 180 = 111,195.08 m; the 180th meridian and the poles are no borders.
        for (a, b, metres) in [
            (place(0.0, 0.0), place(1.0, 0.0), 111_195.08),
            (place(0.0, 179.95), place(0.0, -179.95), 11_119.508),
            (place(90.0, 0.0), place(90.0, 123.0), 0.0),
            (place(89.95, 0.0), place(89.95, 180.0), 11_119.508),
            (place(90.0, 0.0), place(-90.0, 0.0), 20_015_114.4),
            (place(37.77, -122.41), place(37.77, -122.41), 0.0),
        ] {
            let error = (distance_m(a, b) - metres).abs();
            assert!(error < 0.1, "{a:?} {b:?}: {} is not {metres}", distance_m(a, b));
        }
    }

    #[test]
    fn refuses_what_is_not_on_the_globe() {
        for (lat, lon, error) in [
            (90.000_000_1, 0.0, OutOfRange::Lat),
            (f64::NAN, 0.0, OutOfRange::Lat),
            (0.0, -180.1, OutOfRange::Lon),
            (0.0, f64::INFINITY, OutOfRange::Lon),
        ] {
            assert_eq!(Place::from_degrees(lat, lon), Err(error));
        }
        assert_eq!(Place { lat_e7: i32::MIN, lon_e7: 0 }.check(), Err(OutOfRange::Lat));
        assert_eq!(Place { lat_e7: 0, lon_e7: i32::MIN }.check(), Err(OutOfRange::Lon));
    }

    proptest! {
        #[test]
        fn symmetric(lat_a in -900_000_000..=900_000_000, lon_a in -1_800_000_000..=1_800_000_000,
                     lat_b in -900_000_000..=900_000_000, lon_b in -1_800_000_000..=1_800_000_000) {
            let (a, b) = (Place { lat_e7: lat_a, lon_e7: lon_a }, Place { lat_e7: lat_b, lon_e7: lon_b });
            prop_assert_eq!(distance_m(a, b).to_bits(), distance_m(b, a).to_bits());
        }
    }
}
