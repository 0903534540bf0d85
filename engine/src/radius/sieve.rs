//! Who of many is in one of two circles: a pass without branches over all of them, and a closer look at the few that remain.
//!
//! Three quarters of the friends in a city are far, in no order that a processor could foretell. So the first pass gathers
//! places and estimates haversines by the block, in single precision, four or more at a time. With x and y half the
//! differences of latitude and longitude, and o the greater circle's sine of half its radius, the estimate is
//! q = x² + cos(a)·(cos(a) − 2x·sin(a))·y².
//!
//! Where a circle is narrow, which means o ≤ 0.01 and cos(a) ≥ 10·o, each place whose haversine h is at most o² has
//! |x| ≤ 1.01·o and |y| ≤ 1.2·o / cos(a), and q differs from h by less than 4·o² / cos²(a) of it: from the squares instead of
//! squared sines (0.45 + 0.34), and from the cosine's tangent (2.7). Single precision adds less than a millionth. Nothing that
//! is far comes out near, even if its difference of coordinates wraps around: it is then more than 60 degrees.

use super::HALF_UNIT;
use crate::users::Slot;
use nearby_schemas::Place;
use std::f64::consts::PI;

const BLOCK: usize = 64;
const LANES: usize = 8;
/// For the rounding errors of single precision.
const SINGLE_MARGIN: f64 = 1e-5;

/// A test of places against two circles, good for narrow ones.
pub(super) struct Sieve {
    centre: Place,
    half_unit: f32,
    cos_lat: f32,
    twice_sin_lat: f32,
    /// Up to this estimate a place is in both circles.
    near_max: f32,
    /// Above this estimate it is in neither.
    far_min: f32,
}

impl Sieve {
    /// By haversines from the centre: up to `near_max` a place is in both circles, above `far_min` it is in neither.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "what is lost is in the margin")]
    pub(super) fn new(centre: Place, (sin_lat, cos_lat): (f64, f64), near_max: f64, far_min: f64) -> Option<Sieve> {
        let outer = far_min.sqrt();
        let reach = 2.4 * outer / cos_lat;
        let narrow = outer <= 0.01 && cos_lat >= 10.0 * outer && centre.lon().abs().to_radians() + reach < PI;
        let margin = SINGLE_MARGIN + 4.0 * far_min / (cos_lat * cos_lat);
        narrow.then_some(Sieve {
            centre,
            half_unit: HALF_UNIT as f32,
            cos_lat: cos_lat as f32,
            twice_sin_lat: (2.0 * sin_lat) as f32,
            near_max: (near_max * (1.0 - margin)) as f32,
            far_min: (far_min * (1.0 + margin)) as f32,
        })
    }

    /// Calls for each of `slots` whose place may be in a circle, or, where `open` is set, in one of them only; says whether it
    /// is surely in both.
    #[inline]
    pub(super) fn sift(&self, slots: &[Slot], places: &[Place], open: bool, mut call: impl FnMut(Slot, Place, bool)) {
        let above = if open { self.near_max } else { -1.0 };
        let (mut lats_e7, mut lons_e7) = ([0; BLOCK], [0; BLOCK]);
        let (mut estimates, mut found) = ([0.0; BLOCK], [0_u8; BLOCK]);
        for block in slots.chunks(BLOCK) {
            for ((slot, lat_e7), lon_e7) in block.iter().zip(&mut lats_e7).zip(&mut lons_e7) {
                let place = places[*slot as usize];
                (*lat_e7, *lon_e7) = (place.lat_e7, place.lon_e7);
            }
            // Full vectors only; what is beyond the block is computed and not looked at.
            let lanes = block.len().next_multiple_of(LANES);
            for ((estimate, lat_e7), lon_e7) in estimates[..lanes].iter_mut().zip(&lats_e7).zip(&lons_e7) {
                *estimate = self.estimate(*lat_e7, *lon_e7);
            }
            let mut count = 0;
            for (lane, estimate) in (0..).zip(&estimates[..block.len()]) {
                found[count % BLOCK] = lane;
                count += usize::from(above < *estimate) & usize::from(*estimate <= self.far_min);
            }
            for lane in &found[..count] {
                let lane = usize::from(*lane) % BLOCK;
                let place = Place { lat_e7: lats_e7[lane], lon_e7: lons_e7[lane] };
                call(block[lane], place, estimates[lane] <= self.near_max);
            }
        }
    }

    #[inline]
    #[expect(clippy::cast_precision_loss, reason = "what is lost is in the margin")]
    fn estimate(&self, lat_e7: i32, lon_e7: i32) -> f32 {
        let x = lat_e7.wrapping_sub(self.centre.lat_e7) as f32 * self.half_unit;
        let y = lon_e7.wrapping_sub(self.centre.lon_e7) as f32 * self.half_unit;
        let other_cos_lat = self.cos_lat - self.twice_sin_lat * x;
        let other_cos_lat = if other_cos_lat > 0.0 { other_cos_lat } else { 0.0 };
        x * x + self.cos_lat * other_cos_lat * y * y
    }
}
