//! Batches that are neither acknowledged nor given up: whether there is room for more of them, which gateways' brokers take
//! nothing, and how fast the others take what they are given. Pure: times are of a clock that only goes forward.

use std::time::Duration;

/// When half of the room is taken, a gateway of whose batches at least so many are on the way gets no more if others' were
/// acknowledged [`SILENCE_MIN`] after its last one, and [`SILENCE_WAITS`] times as long as such a wait is: its topic's
/// broker is away, and the others need the room. Where everything is slow, or nobody hears of anything, nobody is silent.
const SHARE_MAX: usize = 4;
pub(crate) const SILENCE_MIN: Duration = Duration::from_secs(1);
const SILENCE_WAITS: u32 = 4;
/// Half of the time after which what is not acknowledged is lost.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Of so many acknowledgements the mean wait is.
const WAIT_MEAN_OF: u32 = 16;
/// When half of a round is acknowledged, so many times as long as that took has still to pass before the next one, but at most
/// `PAUSE_MAX`: brokers that take batches at an even pace then have a third of their time for others. As long as that took in
/// this round or the one before, whichever is less: one that only stumbled is not waited for three times.
const ROUND_PAUSE: u32 = 2;
/// A round is over, too, when nothing of it was acknowledged for so long: brokers are away.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What is on the way from one engine.
pub(crate) struct OnTheWay {
    count: usize,
    bytes: usize,
    count_max: usize,
    bytes_max: usize,
    /// By index.
    gateways: Vec<ToGateway>,
    /// How long batches waited that were acknowledged: a moving average; and when the last of them was.
    mean_wait: Duration,
    acknowledged_at: Duration,
    round: Round,
}

#[derive(Clone, Copy, Default)]
struct ToGateway {
    count: usize,
    /// When one was acknowledged, or the first of them was sent.
    moved_at: Duration,
    /// The round that waits for this gateway, if it is the current one.
    round: Option<u64>,
    /// The last that was heard of a batch is that it got lost.
    loses: bool,
}

/// Batches that were closed together. It waits for gateways that had nothing on the way before, or of which something was acknowledged since the
/// round before began; and not for one whose broker is away.
#[derive(Default)]
struct Round {
    number: u64,
    began: Duration,
    previous_began: Duration,
    /// How long half of the round before took.
    previous_half: Duration,
    counted: usize,
    left: usize,
    /// What leaves now was closed with it.
    is_leaving: bool,
    /// When half of those counted had been acknowledged, and when the last was.
    half_at: Option<Duration>,
    moved_at: Duration,
}

impl OnTheWay {
    /// Nothing yet, and so much room.
    pub fn new(count_max: usize, bytes_max: usize) -> OnTheWay {
        let (mean_wait, acknowledged_at) = (Duration::ZERO, Duration::ZERO);
        let (gateways, round) = (Vec::new(), Round::default());
        OnTheWay { count: 0, bytes: 0, count_max, bytes_max, gateways, mean_wait, acknowledged_at, round }
    }

    /// Whether there is room for a batch.
    pub fn has_room(&self, bytes: usize) -> bool {
        // One that is larger than all of the room is sent alone.
        self.count < self.count_max && (self.count == 0 || self.bytes + bytes <= self.bytes_max)
    }

    /// Whether there is a way to the gateway's topic, as far as that can be seen.
    pub fn is_open(&self, gateway: usize) -> bool {
        let is_scarce = self.count > self.count_max / 2 || self.bytes > self.bytes_max / 2;
        let silence_max = (self.mean_wait * SILENCE_WAITS).clamp(SILENCE_MIN, SILENCE_MAX);
        let is_stuck =
            |to: &ToGateway| to.count >= SHARE_MAX && self.acknowledged_at.saturating_sub(to.moved_at) >= silence_max;
        !(is_scarce && self.gateways.get(gateway).is_some_and(is_stuck))
    }

    /// A batch is handed over.
    pub fn leaves(&mut self, gateway: usize, bytes: usize, now: Duration) {
        self.count += 1;
        self.bytes += bytes;
        let Round { number, previous_began, is_leaving, .. } = self.round;
        let to = self.of(gateway);
        let moves = to.count == 0 || to.moved_at >= previous_began;
        if to.count == 0 {
            to.moved_at = now;
        }
        to.count += 1;
        if is_leaving && moves && !to.loses && to.round != Some(number) {
            to.round = Some(number);
            self.round.counted += 1;
            self.round.left += 1;
            // Some of a round may be acknowledged before the last of it is handed over.
            self.round.half_at = self.round.half_at.filter(|_| self.round.left <= self.round.counted / 2);
        }
    }

    /// The batch that left at `sent_at` is acknowledged.
    pub fn acknowledged(&mut self, gateway: usize, bytes: usize, sent_at: Duration, now: Duration) {
        self.ends(gateway, bytes);
        let to = self.of(gateway);
        (to.moved_at, to.loses) = (now, false);
        self.acknowledged_at = now;
        self.mean_wait = (self.mean_wait * (WAIT_MEAN_OF - 1) + now.saturating_sub(sent_at)) / WAIT_MEAN_OF;
        self.is_over_for(gateway, sent_at, now);
    }

    /// The batch that left at `sent_at` got lost.
    pub fn lost(&mut self, gateway: usize, bytes: usize, sent_at: Duration, now: Duration) {
        self.ends(gateway, bytes);
        self.of(gateway).loses = true;
        self.is_over_for(gateway, sent_at, now);
    }

    /// Batches that were closed together are about to leave. Those that were closed because they were full, before
    /// [`next_round`](OnTheWay::next_round), are no round, nor part of the one before: it would never be over.
    pub fn begin_round(&mut self, now: Duration) {
        self.round.is_leaving = now >= self.next_round();
        if self.round.is_leaving {
            let Round { number, began, half_at, counted, .. } = self.round;
            let ended = if counted == 0 { began } else { half_at.unwrap_or(now) };
            self.round = Round {
                number: number + 1,
                began: now,
                previous_began: began,
                previous_half: ended.saturating_sub(began),
                is_leaving: true,
                moved_at: now,
                ..Round::default()
            };
        }
    }

    /// Before this time another round would only wait in the brokers' queues. It may be sooner once
    /// [`round_is_open`](OnTheWay::round_is_open) no longer holds.
    pub fn next_round(&self) -> Duration {
        let Round { began, counted, half_at, previous_half, moved_at, .. } = self.round;
        match half_at {
            // Nobody moves: as long after it as a round would be.
            _ if counted == 0 => began + (self.mean_wait * (1 + ROUND_PAUSE)).min(PAUSE_MAX),
            Some(half_at) => {
                let half = half_at.saturating_sub(began).min(previous_half);
                half_at + (half * ROUND_PAUSE).min(PAUSE_MAX)
            }
            None => moved_at + PAUSE_MAX,
        }
    }

    /// Whether less than half of the round is acknowledged.
    pub fn round_is_open(&self) -> bool {
        self.round.counted > 0 && self.round.half_at.is_none()
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        (self.count, self.bytes) == (0, 0) && self.gateways.iter().all(|to| to.count == 0)
    }

    fn of(&mut self, gateway: usize) -> &mut ToGateway {
        if self.gateways.len() <= gateway {
            self.gateways.resize(gateway + 1, ToGateway::default());
        }
        &mut self.gateways[gateway]
    }

    fn ends(&mut self, gateway: usize, bytes: usize) {
        self.count -= 1;
        self.bytes -= bytes;
        self.of(gateway).count -= 1;
    }

    /// A batch of the gateway is no longer on the way: the round waits for the gateway no more, if it was of the round.
    fn is_over_for(&mut self, gateway: usize, sent_at: Duration, now: Duration) {
        let Round { number, began, .. } = self.round;
        if sent_at < began || self.of(gateway).round.take_if(|round| *round == number).is_none() {
            return;
        }
        self.round.moved_at = now;
        self.round.left -= 1;
        if self.round.left <= self.round.counted / 2 {
            self.round.half_at.get_or_insert(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// One batch to each of the gateways, closed together.
    fn round(way: &mut OnTheWay, gateways: std::ops::Range<usize>, at_ms: u64) {
        way.begin_round(ms(at_ms));
        gateways.for_each(|gateway| way.leaves(gateway, 10, ms(at_ms)));
    }

    /// A round of these gateways, each of which is acknowledged after so long.
    fn even_round(way: &mut OnTheWay, gateways: std::ops::Range<usize>, at_ms: u64, wait_ms: u64) {
        round(way, gateways.clone(), at_ms);
        gateways.for_each(|gateway| way.acknowledged(gateway, 10, ms(at_ms), ms(at_ms + wait_ms)));
    }

    #[test]
    fn a_round_begins_after_half_of_the_last_one_and_twice_as_long() {
        let mut way = OnTheWay::new(100, 1_000);
        assert_eq!((way.next_round(), way.round_is_open()), (ms(0), false), "nothing to wait for");
        even_round(&mut way, 0..4, 50, 7);
        assert_eq!(way.next_round(), ms(57), "there was none before: it may be a stumble");
        round(&mut way, 0..4, 100);
        way.acknowledged(2, 10, ms(100), ms(102));
        assert_eq!((way.next_round(), way.round_is_open()), (ms(1_102), true), "something moves");
        way.acknowledged(0, 10, ms(100), ms(106));
        assert_eq!((way.next_round(), way.round_is_open()), (ms(118), false));
        way.acknowledged(1, 10, ms(100), ms(900));
        assert_eq!(way.next_round(), ms(118), "the slower half does not count");
        round(&mut way, 1..3, 1_000);
        way.lost(2, 10, ms(1_000), ms(1_004));
        assert_eq!(way.next_round(), ms(1_012), "what is lost is not on the way either");
    }

    #[test]
    fn one_that_stumbles_is_not_waited_for_three_times() {
        let mut way = OnTheWay::new(100, 1_000);
        even_round(&mut way, 0..4, 0, 3);
        even_round(&mut way, 0..4, 50, 3);
        even_round(&mut way, 0..4, 100, 500);
        assert_eq!(way.next_round(), ms(606));
        even_round(&mut way, 0..4, 606, 500);
        assert_eq!(way.next_round(), ms(2_106), "it is slow");
    }

    #[test]
    fn full_batches_in_between_do_not_put_off_the_next_round() {
        let mut way = OnTheWay::new(100, 1_000);
        even_round(&mut way, 0..2, 50, 10);
        even_round(&mut way, 0..2, 100, 10);
        for at_ms in 111..130 {
            even_round(&mut way, 0..1, at_ms, 0);
            assert_eq!((way.next_round(), way.round_is_open()), (ms(130), false));
        }
        // Nor do they keep one open that waits for somebody else.
        round(&mut way, 1..2, 130);
        even_round(&mut way, 0..1, 1_000, 0);
        assert_eq!((way.next_round(), way.round_is_open()), (ms(1_130), true));
    }

    #[test]
    fn a_slow_round_is_waited_for_as_long_as_it_moves_and_then_not_much_longer() {
        let mut way = OnTheWay::new(100, 1_000);
        even_round(&mut way, 0..4, 0, 1_800);
        round(&mut way, 0..4, 2_000);
        way.acknowledged(0, 10, ms(2_000), ms(2_900));
        assert_eq!(way.next_round(), ms(3_900));
        way.acknowledged(1, 10, ms(2_000), ms(3_800));
        assert_eq!(way.next_round(), ms(4_800));
    }

    #[test]
    fn a_gateway_whose_broker_is_away_is_waited_for_once() {
        let mut way = OnTheWay::new(100, 1_000);
        round(&mut way, 0..1, 0);
        assert_eq!((way.next_round(), way.round_is_open()), (PAUSE_MAX, true));
        round(&mut way, 0..1, 1_000);
        assert!(way.round_is_open(), "it might have moved in the round before");
        round(&mut way, 0..1, 2_000);
        assert_eq!((way.next_round(), way.round_is_open()), (ms(2_000), false), "nobody is counted");
        (0..3).for_each(|sent| way.lost(0, 10, ms(sent * 1_000), ms(10_000)));
        round(&mut way, 0..2, 11_000);
        way.acknowledged(1, 10, ms(11_000), ms(11_003));
        assert_eq!(way.next_round(), ms(11_003), "the other one's pace, though the first has nothing on the way");
        acknowledge(&mut way, 0, 5, 12_000);
        round(&mut way, 0..1, 12_000);
        assert!(way.round_is_open(), "it is back");
    }

    /// They have something on the way all the time, and set the pace nevertheless.
    #[test]
    fn brokers_that_are_always_busy_are_waited_for() {
        let mut way = OnTheWay::new(100, 1_000);
        round(&mut way, 0..2, 0);
        for at_ms in (1_000..10_000).step_by(1_000) {
            round(&mut way, 0..2, at_ms);
            assert!(way.round_is_open());
            (0..2).for_each(|gateway| way.acknowledged(gateway, 10, ms(at_ms - 1_000), ms(at_ms + 500)));
            assert!(way.round_is_open(), "that was of the round before");
        }
    }

    #[test]
    fn a_round_is_whole_before_its_half_is_known() {
        let mut way = OnTheWay::new(100, 1_000);
        round(&mut way, 0..1, 10);
        way.acknowledged(0, 10, ms(10), ms(11));
        assert!(!way.round_is_open());
        // The others of the same round were slower to be handed over.
        (1..4).for_each(|gateway| way.leaves(gateway, 10, ms(12)));
        assert!(way.round_is_open());
        way.acknowledged(1, 10, ms(12), ms(20));
        assert_eq!((way.next_round(), way.round_is_open()), (ms(20), false));
    }

    #[test]
    fn room_is_for_so_many_and_so_much() {
        let mut way = OnTheWay::new(2, 100);
        assert!(way.has_room(1_000), "nothing else is on the way");
        way.leaves(0, 60, ms(0));
        assert!(way.has_room(40) && !way.has_room(41));
        way.leaves(1, 10, ms(0));
        assert!(!way.has_room(0));
        way.lost(0, 60, ms(0), ms(1));
        assert!(way.has_room(90) && !way.has_room(91));
    }

    #[test]
    fn what_finds_no_room_is_as_if_it_had_not_left() {
        let mut way = OnTheWay::new(2, 1_000);
        round(&mut way, 0..2, 0);
        assert!((0..10).all(|_| !way.has_room(10)));
        assert!(way.round_is_open());
        assert_eq!((way.count, way.bytes, way.round.counted, way.round.left), (2, 20, 2, 2));
    }

    /// Of one gateway, which has waited for it for so long.
    fn acknowledge(way: &mut OnTheWay, gateway: usize, wait_ms: u64, at_ms: u64) {
        way.leaves(gateway, 10, ms(at_ms - wait_ms));
        way.acknowledged(gateway, 10, ms(at_ms - wait_ms), ms(at_ms));
    }

    #[test]
    fn a_silent_gateway_leaves_the_room_to_the_others_unless_all_are_slow() {
        let mut way = OnTheWay::new(10, 1_000_000);
        (0..5).for_each(|_| way.leaves(0, 10, ms(0)));
        acknowledge(&mut way, 1, 5, 60_000);
        assert!(way.is_open(0), "nobody else needs the room");
        way.leaves(1, 10, ms(60_000));
        assert!(!way.is_open(0));
        way.acknowledged(0, 10, ms(0), ms(61_000));
        way.leaves(0, 10, ms(61_000));
        acknowledge(&mut way, 2, 5, 61_999);
        assert!(way.is_open(0), "it has moved");
        assert!(way.is_open(1), "it has little on the way");
    }

    #[test]
    fn where_all_are_slow_nobody_is_silent() {
        let mut way = OnTheWay::new(10, 1_000_000);
        (0..7).for_each(|_| way.leaves(0, 10, ms(0)));
        assert!(way.is_open(0), "nobody hears of anything");
        (0..100).for_each(|_| acknowledge(&mut way, 1, 1_000, 2_000));
        acknowledge(&mut way, 1, 1_000, 3_900);
        assert!(way.is_open(0));
        acknowledge(&mut way, 1, 1_000, 4_000);
        assert!(!way.is_open(0), "four times as long as the others wait");
        (0..100).for_each(|_| acknowledge(&mut way, 1, 2_000, 4_900));
        assert!(way.is_open(0));
        acknowledge(&mut way, 1, 2_000, 5_000);
        assert!(!way.is_open(0), "before its batches are lost anyhow");
    }

    #[test]
    fn bytes_are_room_too() {
        let mut way = OnTheWay::new(1_000, 100);
        (0..4).for_each(|_| way.leaves(0, 10, ms(0)));
        acknowledge(&mut way, 1, 5, 5_000);
        assert!(way.is_open(0));
        (0..2).for_each(|_| way.leaves(1, 10, ms(5_000)));
        assert!(!way.is_open(0));
        way.lost(1, 10, ms(5_000), ms(5_000));
        assert!(way.is_open(0));
    }
}
