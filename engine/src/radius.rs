//! Whether two places are within the radius: the haversine's decision, mostly without a haversine.
//!
//! With x and y half the differences of latitude and longitude, the haversine is h = sin²x + cos(a)·cos(b)·sin²y, and the
//! places are near when h ≤ H = sin²(radius / 2R). Since z² − z⁴/3 ≤ sin²z ≤ z², and cos(b) differs from cos(a) by at most
//! the difference of latitude 2x, h is bounded from both sides by a few multiplications once cos(a) is known. Only where the
//! bounds leave it open, in a thin ring along the circle and around the poles, the haversine is asked. The cheap test has no
//! early way out for a great difference of latitude: among friends in one city that branch would be a toss-up.

mod distance;
mod sieve;

use crate::users::{NOWHERE, Slot};
use nearby_schemas::Place;
use nearby_schemas::nearness::{EARTH_RADIUS_M, UNITS_PER_DEGREE, distance_m};
use sieve::Sieve;
use std::f64::consts::{FRAC_PI_2, PI};

/// Half the angle of one unit of a coordinate, in radians.
const HALF_UNIT: f64 = PI / 180.0 / UNITS_PER_DEGREE / 2.0;
/// A little more than a third, for a lower bound; a multiplication takes a fifth of the time of a division.
const THIRD: f64 = 0.333_333_333_334;
/// Once around, in units of a coordinate.
const FULL_CIRCLE_E7: u32 = 3_600_000_000;

/// The radius, prepared for comparisons.
#[derive(Clone, Copy)]
pub(crate) struct Radius {
    radius_m: f64,
    /// sin(radius / 2R), the root of H.
    sine: f64,
    /// Places whose haversine is at most this are near.
    near_max: f64,
    /// Places whose haversine is more than this are far.
    far_min: f64,
}

impl Radius {
    /// # Panics
    /// If the radius is negative or not a number: it would mean nothing.
    pub(crate) fn new(radius_m: f64) -> Radius {
        assert!(radius_m >= 0.0, "a radius is not negative");
        let sine = (radius_m / EARTH_RADIUS_M / 2.0).min(FRAC_PI_2).sin();
        Radius { radius_m, sine, near_max: sine * sine - margin(sine), far_min: sine * sine + margin(sine) }
    }

    /// The places within the radius around `centre`.
    #[inline]
    pub(crate) fn around(self, centre: Place) -> Circle {
        let (sin_lat, cos_lat) = centre.lat().to_radians().sin_cos();
        Circle { radius: self, centre, sin_lat, cos_lat }
    }

    /// The places within the radius around where somebody was, and around where they are now.
    #[inline]
    pub(crate) fn moved(self, old: Option<Place>, new: Option<Place>) -> Circles {
        let (old, new) = (old.map(|old| self.around(old)), new.map(|new| self.around(new)));
        let (mut near_max, mut far_min) = (-1.0, f64::INFINITY);
        if let (Some(old), Some(new)) = (&old, &new) {
            let (_, h_max) = new.bounds(old.centre);
            // Half the angle of the move; up to 0.2 an arc is less than 1 % longer than its sine.
            let step = h_max.sqrt() * 1.01;
            if step < 0.2 {
                // Half the angles to a place from the two centres differ by at most `step`, and sines by less than angles.
                let (inner, outer) = (self.sine - step, self.sine + step);
                far_min = outer * outer + margin(outer);
                // After a longer move no place is surely in both circles.
                if inner > 0.0 {
                    near_max = inner * inner - margin(inner);
                }
            }
        }
        // One circle alone is compared as if nobody had moved; what is in it was or is in one of the two.
        if old.is_none() || new.is_none() {
            (near_max, far_min) = (self.near_max, self.far_min);
        }
        let centre = new.as_ref().or(old.as_ref());
        let sieve =
            centre.and_then(|circle| Sieve::new(circle.centre, (circle.sin_lat, circle.cos_lat), near_max, far_min));
        Circles { old, new, near_max, far_min, sieve }
    }
}

/// Far more than the rounding errors around the square of a sine: 1e-15 relative, and close to a pole, where a cosine of
/// about the size of the radius has an absolute error of 1e-16, as much times the sine.
fn margin(sine: f64) -> f64 {
    1e-9 * sine * sine + 4e-15 * sine
}

/// The places within the radius around one.
#[derive(Clone, Copy)]
pub(crate) struct Circle {
    radius: Radius,
    centre: Place,
    sin_lat: f64,
    cos_lat: f64,
}

impl Circle {
    #[inline]
    pub(crate) fn centre(&self) -> Place {
        self.centre
    }

    /// Whether the haversine distance from the centre to `place` is at most the radius.
    #[inline]
    pub(crate) fn holds(&self, place: Place) -> bool {
        self.estimate(place).unwrap_or_else(|| distance_m(self.centre, place) <= self.radius.radius_m)
    }

    /// The answer, where it can be had cheaply.
    #[inline]
    fn estimate(&self, place: Place) -> Option<bool> {
        let (h_min, h_max) = self.bounds(place);
        if h_min > self.radius.far_min {
            return Some(false);
        }
        (h_max <= self.radius.near_max).then_some(true)
    }

    /// Bounds of the haversine between the centre and `place`.
    #[inline]
    fn bounds(&self, place: Place) -> (f64, f64) {
        let lat_e7 = self.centre.lat_e7.abs_diff(place.lat_e7);
        let lon_e7 = self.centre.lon_e7.abs_diff(place.lon_e7);
        let lon_e7 = lon_e7.min(FULL_CIRCLE_E7 - lon_e7);
        let (x, y) = (f64::from(lat_e7) * HALF_UNIT, f64::from(lon_e7) * HALF_UNIT);
        let (xx, yy) = (x * x, y * y);
        let sine_square_min = |square: f64| square * (1.0 - square * THIRD);
        let cos_lat_min = (self.cos_lat - 2.0 * x).max(0.0);
        let h_min = sine_square_min(xx) + self.cos_lat * cos_lat_min * sine_square_min(yy);
        let h_max = xx + self.cos_lat * (self.cos_lat + 2.0 * x) * yy;
        (h_min, h_max)
    }
}

/// The circles around an old place and a new one, compared at once: somebody who moves a little stays near to nearly all
/// who were near, and far from the others.
pub(crate) struct Circles {
    old: Option<Circle>,
    new: Option<Circle>,
    /// Places whose haversine from the new centre is at most this are in both circles.
    near_max: f64,
    /// Places whose haversine from the new centre is more than this are in neither.
    far_min: f64,
    /// Where both are narrow, and far from the 180th meridian.
    sieve: Option<Sieve>,
}

impl Circles {
    /// Around where somebody is now.
    pub(crate) fn new_circle(&self) -> Option<&Circle> {
        self.new.as_ref()
    }

    /// Calls for each of `slots` whose place was or is in a circle, with the place, and whether it was, and is.
    #[inline]
    pub(crate) fn each_near(&self, slots: &[Slot], places: &[Place], mut call: impl FnMut(Slot, Place, bool, bool)) {
        self.sift(slots, places, false, |slot, place, (was_near, is_near)| {
            if was_near || is_near {
                call(slot, place, was_near, is_near);
            }
        });
    }

    /// Calls for each of `slots` whose place is in one of the circles and not in the other; says whether it is in the new.
    #[inline]
    pub(crate) fn each_changed(&self, slots: &[Slot], places: &[Place], mut call: impl FnMut(Slot, Place, bool)) {
        let both = self.old.is_some() && self.new.is_some();
        self.sift(slots, places, both, |slot, place, (was_near, is_near)| {
            if was_near != is_near {
                call(slot, place, is_near);
            }
        });
    }

    #[inline]
    fn sift(&self, slots: &[Slot], places: &[Place], open: bool, mut call: impl FnMut(Slot, Place, (bool, bool))) {
        if let Some(sieve) = &self.sieve {
            let in_both = (self.old.is_some(), self.new.is_some());
            sieve.sift(slots, places, open, |slot, place, near| {
                call(slot, place, if near { in_both } else { self.held_and_hold_apart(place) });
            });
        } else {
            self.sift_slowly(slots, places, &mut call);
        }
    }

    #[cold]
    fn sift_slowly(&self, slots: &[Slot], places: &[Place], call: &mut dyn FnMut(Slot, Place, (bool, bool))) {
        for slot in slots {
            let place = places[*slot as usize];
            if place != NOWHERE {
                call(*slot, place, self.held_and_hold(place));
            }
        }
    }

    /// Whether `place` was in the old circle, and whether it is in the new one.
    fn held_and_hold(&self, place: Place) -> (bool, bool) {
        if let (Some(_), Some(new)) = (&self.old, &self.new) {
            let (h_min, h_max) = new.bounds(place);
            if h_min > self.far_min {
                return (false, false);
            }
            if h_max <= self.near_max {
                return (true, true);
            }
        }
        self.held_and_hold_apart(place)
    }

    #[inline]
    fn held_and_hold_apart(&self, place: Place) -> (bool, bool) {
        let holds = |circle: &Circle| circle.holds(place);
        (self.old.as_ref().is_some_and(holds), self.new.as_ref().is_some_and(holds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(lat: f64, lon: f64) -> Place {
        let lon = if lon > 180.0 { lon - 360.0 } else { lon };
        Place::from_degrees(lat.clamp(-90.0, 90.0), lon.clamp(-180.0, 180.0)).expect("clamped")
    }

    fn agrees(radius_m: f64, a: Place, b: Place) -> bool {
        let exact = distance_m(a, b) <= radius_m;
        let radius = Radius::new(radius_m);
        radius.around(a).holds(b) == exact
            && radius.around(b).holds(a) == exact
            && radius.around(a).estimate(b).is_none_or(|estimate| estimate == exact)
    }

    /// Where a walk of `angle` radians in direction `bearing` ends.
    fn walk(from: Place, angle: f64, bearing: f64) -> Place {
        let (lat, lon) = (from.lat().to_radians(), from.lon().to_radians());
        let sin_lat = lat.sin() * angle.cos() + lat.cos() * angle.sin() * bearing.cos();
        let y = bearing.sin() * angle.sin() * lat.cos();
        let lon = lon + y.atan2(angle.cos() - lat.sin() * sin_lat);
        place(sin_lat.clamp(-1.0, 1.0).asin().to_degrees(), (lon.to_degrees() + 540.0).rem_euclid(360.0) - 180.0)
    }

    fn compares(radius_m: f64, old: Place, new: Place, place: Place) -> bool {
        let exact = |centre| distance_m(centre, place) <= radius_m;
        [(Some(old), Some(new)), (None, Some(new)), (Some(old), None)].into_iter().all(|(old, new)| {
            let circles = Radius::new(radius_m).moved(old, new);
            sifted(&circles, place) == (old.is_some_and(exact), new.is_some_and(exact))
        })
    }

    /// Whether the place was near and is near, as told by both questions; it is asked about among many that are nowhere.
    fn sifted(circles: &Circles, place: Place) -> (bool, bool) {
        let (mut places, slots): (Vec<Place>, Vec<Slot>) = (vec![NOWHERE; 100], (0..100).rev().collect());
        places[7] = place;
        let (mut near, mut changed) = (Vec::new(), Vec::new());
        circles
            .each_near(&slots, &places, |slot, place, was_near, is_near| near.push((slot, place, was_near, is_near)));
        circles.each_changed(&slots, &places, |slot, place, is_near| changed.push((slot, place, is_near)));
        let found = near.first().map_or((false, false), |(_, _, was_near, is_near)| (*was_near, *is_near));
        let expected = (found != (false, false)).then_some((7, place, found.0, found.1));
        assert_eq!(near, Vec::from_iter(expected));
        assert_eq!(changed, Vec::from_iter((found.0 != found.1).then_some((7, place, found.1))));
        found
    }

    #[test]
    fn poles_and_the_180th_meridian_are_no_borders() {
        for (a, b, near) in [
            (place(90.0, 0.0), place(90.0, 123.0), true),
            (place(89.97, 0.0), place(89.97, 180.0), true),
            (place(-89.97, -90.0), place(-89.97, 90.0), true),
            (place(89.95, 0.0), place(89.95, 180.0), false),
            (place(0.0, 179.97), place(0.0, -179.97), true),
            (place(0.0, 180.0), place(0.0, -180.0), true),
            (place(0.0, 179.95), place(0.0, -179.95), false),
            (place(0.0, 0.0), place(0.0, 180.0), false),
            (place(90.0, 0.0), place(-90.0, 0.0), false),
        ] {
            assert_eq!(Radius::new(8_000.0).around(a).holds(b), near, "{a:?} {b:?}");
            assert!(agrees(8_000.0, a, b), "{a:?} {b:?}");
        }
    }

    #[test]
    fn who_comes_to_the_very_place_was_not_near_before() {
        let here = place(37.77, -122.41);
        for (north, was_near) in [(0.05, true), (0.08, false), (0.2, false), (5.0, false), (50.0, false)] {
            let circles = Radius::new(8_000.0).moved(Some(place(37.77 + north, -122.41)), Some(here));
            assert_eq!(sifted(&circles, here), (was_near, true), "{north}");
            assert!(compares(8_000.0, here, place(37.77 + north, -122.41), here), "{north}");
        }
    }

    #[test]
    fn the_radius_is_strict_and_inclusive() {
        let (a, b) = (place(37.77, -122.41), place(37.80, -122.35));
        let exact = distance_m(a, b);
        assert!(Radius::new(exact).around(a).holds(b));
        assert!(!Radius::new(exact.next_down()).around(a).holds(b));
    }

    #[test]
    fn any_radius_has_a_meaning() {
        let here = place(10.0, 10.0);
        let beside = Place { lat_e7: here.lat_e7, lon_e7: here.lon_e7 + 1 };
        let antipode = place(-10.0, -170.0);
        assert!(Radius::new(0.0).around(here).holds(here));
        assert!(!Radius::new(0.0).around(here).holds(beside));
        for radius_m in [PI * EARTH_RADIUS_M, 1e12, f64::INFINITY] {
            assert!(Radius::new(radius_m).around(here).holds(antipode), "{radius_m}");
        }
    }

    #[test]
    fn everybody_is_looked_at_once_and_in_order() {
        let here = place(37.77, -122.41);
        let places: Vec<Place> = (0..500).map(|step| place(37.77 + f64::from(step) * 0.0004, -122.41)).collect();
        let circles = Radius::new(8_000.0).moved(Some(place(37.80, -122.41)), Some(here));
        for count in [0, 1, 63, 64, 65, 500] {
            let slots: Vec<Slot> = (0..count).map(|nth| nth * 7 % 500).collect();
            let mut near = Vec::new();
            circles.each_near(&slots, &places, |slot, _, was_near, is_near| near.push((slot, was_near, is_near)));
            let exact = slots.iter().map(|slot| {
                let near = |centre| distance_m(centre, places[*slot as usize]) <= 8_000.0;
                (*slot, near(place(37.80, -122.41)), near(here))
            });
            assert_eq!(near, exact.filter(|(_, was_near, is_near)| *was_near || *is_near).collect::<Vec<_>>());
        }
    }

    /// The estimate is worth its place only if it decides nearly always.
    #[test]
    fn the_haversine_is_seldom_asked() {
        for centre_lon in [-122.41, 179.99] {
            let circle = Radius::new(8_000.0).around(place(37.77, centre_lon));
            let grid = |step: i32| f64::from(step) * 0.001;
            let places = (-100..100).flat_map(|lat| (-100..100).map(move |lon| (37.77 + grid(lat), grid(lon))));
            let open = places.filter(|(lat, lon)| circle.estimate(place(*lat, centre_lon + lon)).is_none()).count();
            assert!((1..200).contains(&open), "{open} of 40,000 places were left open");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn decides_as_the_haversine_around_the_circle(
            lat in prop_oneof![-90.0..90.0, 89.8..90.0, -90.0..-89.8, Just(90.0), Just(-90.0), -0.1..0.1],
            lon in prop_oneof![-180.0..180.0, 179.8..180.0, -180.0..-179.8],
            bearing in 0.0..std::f64::consts::TAU,
            radius_m in prop_oneof![Just(8_000.0), 0.0..20.0, 20.0..100_000.0, 1e5..2e7],
            share in prop_oneof![Just(1.0), 0.999_999_9..1.000_000_1, 0.99..1.01, 0.0..2.0],
        ) {
            let a = place(lat, lon);
            let b = walk(a, radius_m / EARTH_RADIUS_M * share, bearing);
            prop_assert!(agrees(radius_m, a, b), "{:?} {:?} {}", a, b, distance_m(a, b));
            // The radius itself: the very distance, and the numbers next to it.
            let exact = distance_m(a, b);
            for radius_m in [exact, exact.next_up(), exact.next_down().max(0.0)] {
                prop_assert!(agrees(radius_m, a, b), "{:?} {:?} {}", a, b, radius_m);
            }
        }

        #[test]
        fn compares_two_places_as_the_haversine(
            lat in prop_oneof![-90.0..90.0, 89.8..90.0, Just(-90.0)],
            lon in prop_oneof![-180.0..180.0, 179.8..180.0],
            bearings in (0.0..std::f64::consts::TAU, 0.0..std::f64::consts::TAU, any::<bool>()),
            radius_m in prop_oneof![3 => Just(8_000.0), 1 => 0.0..100_000.0, 1 => 1e5..2e7],
            step in prop_oneof![Just(0.0), 0.0..0.01, 0.0..0.5, 0.0..3.0],
            share in prop_oneof![0.999..1.001, 0.5..1.5, 0.0..4.0],
        ) {
            let (bearing, aside, in_line) = bearings;
            let new = place(lat, lon);
            let there = walk(new, radius_m / EARTH_RADIUS_M * share, bearing);
            let old = walk(new, radius_m / EARTH_RADIUS_M * step, if in_line { bearing } else { aside });
            prop_assert!(compares(radius_m, old, new, there), "{:?} {:?} {:?}", old, new, there);
            // Where the shortcuts end: as far beyond the radius, or within it, as the move was long.
            for share in [1.0 + step, 1.0 - step, 1.0 + 1.02 * step, 1.0 - 1.02 * step] {
                for bearing in [bearing, aside, aside + PI] {
                    let there = walk(new, (radius_m / EARTH_RADIUS_M * share).abs(), bearing);
                    prop_assert!(compares(radius_m, old, new, there), "{:?} {:?} {:?}", old, new, there);
                }
            }
        }

        #[test]
        fn decides_as_the_haversine_anywhere(
            lat_a in -900_000_000..=900_000_000, lon_a in -1_800_000_000..=1_800_000_000,
            lat_b in -900_000_000..=900_000_000, lon_b in -1_800_000_000..=1_800_000_000,
            radius_m in prop_oneof![Just(8_000.0), 0.0..2.1e7],
        ) {
            let (a, b) = (Place { lat_e7: lat_a, lon_e7: lon_a }, Place { lat_e7: lat_b, lon_e7: lon_b });
            prop_assert!(agrees(radius_m, a, b));
        }
    }
}
