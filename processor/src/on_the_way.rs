//! Batches that are neither acknowledged nor given up: whether there is room for more of them, which gateways' brokers take
//! nothing, and how fast the others take what they are given. Pure: times are of a clock that only goes forward.

use std::time::Duration;

/// When half of the room is taken, a gateway of whose batches at least so many are on the way gets no more if others' were
/// acknowledged [`SILENCE_MIN`] after its last one, and [`SILENCE_WAITS`] times as long as such a wait is: its topic's
/// broker is away, and the others need the room. Where everything is slow, or nobody hears of anything, nobody is silent.
pub(crate) const SHARE_MAX: usize = 4;
pub(crate) const SILENCE_MIN: Duration = Duration::from_secs(1);
const SILENCE_WAITS: u32 = 4;
/// Of so many acknowledgements the mean wait is.
const WAIT_MEAN_OF: u32 = 16;
/// When half of a round is acknowledged, so many times as long as that took has still to pass before the next one, but at most
/// `PAUSE_MAX`: brokers that take batches at an even pace then have a third of their time for others.
const ROUND_PAUSE: u32 = 2;
/// A round is over, too, when nothing was acknowledged for so long: brokers are away.
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
    /// The round whose end waits for this gateway, if it is the current one.
    round: u64,
}

/// Batches that were closed together. It counts gateways that had nothing on the way before: one whose broker
/// is away is waited for once, and not again until it has moved.
#[derive(Default)]
struct Round {
    number: u64,
    began: Duration,
    counted: usize,
    left: usize,
    /// When half of those counted had been acknowledged.
    half_at: Option<Duration>,
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
        let silence_max = SILENCE_MIN.max(self.mean_wait * SILENCE_WAITS);
        let is_stuck =
            |to: &ToGateway| to.count >= SHARE_MAX && self.acknowledged_at.saturating_sub(to.moved_at) >= silence_max;
        !(is_scarce && self.gateways.get(gateway).is_some_and(is_stuck))
    }

    /// A batch is handed over.
    pub fn leaves(&mut self, gateway: usize, bytes: usize, now: Duration) {
        self.count += 1;
        self.bytes += bytes;
        let number = self.round.number;
        let to = self.of(gateway);
        to.count += 1;
        if to.count == 1 {
            to.moved_at = now;
            to.round = number;
            self.round.counted += 1;
            self.round.left += 1;
            // Some of a round may be acknowledged before the last of it is handed over.
            self.round.half_at = self.round.half_at.filter(|_| self.round.left <= self.round.counted / 2);
        }
    }

    /// It was not handed over after all, because there was no room.
    pub fn stays(&mut self, gateway: usize, bytes: usize, now: Duration) {
        let to = *self.of(gateway);
        self.round.counted -= usize::from(to.count == 1 && to.round == self.round.number);
        self.ends(gateway, bytes, now);
    }

    /// The batch that left at `sent_at` is acknowledged.
    pub fn acknowledged(&mut self, gateway: usize, bytes: usize, sent_at: Duration, now: Duration) {
        self.ends(gateway, bytes, now);
        self.of(gateway).moved_at = now;
        self.acknowledged_at = now;
        self.mean_wait = (self.mean_wait * (WAIT_MEAN_OF - 1) + now.saturating_sub(sent_at)) / WAIT_MEAN_OF;
    }

    /// A batch got lost.
    pub fn lost(&mut self, gateway: usize, bytes: usize, now: Duration) {
        self.ends(gateway, bytes, now);
    }

    /// Batches that were closed together are about to leave. Those that were closed because they were full, before
    /// [`next_round`](OnTheWay::next_round), are no round of their own.
    pub fn begin_round(&mut self, now: Duration) {
        if now >= self.next_round() {
            self.round = Round { number: self.round.number + 1, began: now, ..Round::default() };
        }
    }

    /// Before this time another round would only wait in the brokers' queues. It may be sooner once
    /// [`round_is_open`](OnTheWay::round_is_open) no longer holds.
    pub fn next_round(&self) -> Duration {
        let Round { began, counted, half_at, .. } = self.round;
        match half_at {
            _ if counted == 0 => began,
            Some(half_at) => half_at + (half_at.saturating_sub(began) * ROUND_PAUSE).min(PAUSE_MAX),
            None => began.max(self.acknowledged_at) + PAUSE_MAX,
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

    fn ends(&mut self, gateway: usize, bytes: usize, now: Duration) {
        self.count -= 1;
        self.bytes -= bytes;
        let number = self.round.number;
        let to = self.of(gateway);
        to.count -= 1;
        if to.count == 0 && to.round == number {
            self.round.left -= 1;
            if self.round.left <= self.round.counted / 2 {
                self.round.half_at.get_or_insert(now);
            }
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

    #[test]
    fn a_round_begins_after_half_of_the_last_one_and_twice_as_long() {
        let mut way = OnTheWay::new(100, 1_000);
        assert_eq!((way.next_round(), way.round_is_open()), (ms(0), false), "nothing to wait for");
        round(&mut way, 0..4, 100);
        way.acknowledged(2, 10, ms(100), ms(102));
        assert_eq!((way.next_round(), way.round_is_open()), (ms(1_102), true), "something moves");
        way.acknowledged(0, 10, ms(100), ms(107));
        assert_eq!((way.next_round(), way.round_is_open()), (ms(121), false));
        way.acknowledged(1, 10, ms(100), ms(900));
        assert_eq!(way.next_round(), ms(121), "the slower half does not count");

        // One that is closed before that, because it is full, changes nothing.
        round(&mut way, 0..1, 120);
        assert_eq!(way.next_round(), ms(121));
        round(&mut way, 1..3, 121);
        assert!(way.round_is_open());
        way.lost(2, 10, ms(131));
        assert_eq!(way.next_round(), ms(151), "what is lost is not on the way either");
    }

    #[test]
    fn a_slow_round_is_waited_for_as_long_as_it_moves_and_then_not_much_longer() {
        let mut way = OnTheWay::new(100, 1_000);
        round(&mut way, 0..4, 0);
        way.acknowledged(0, 10, ms(0), ms(900));
        assert_eq!(way.next_round(), ms(1_900));
        way.acknowledged(1, 10, ms(0), ms(1_800));
        assert_eq!(way.next_round(), ms(2_800));
    }

    #[test]
    fn a_gateway_whose_broker_is_away_is_waited_for_once() {
        let mut way = OnTheWay::new(100, 1_000);
        round(&mut way, 0..1, 0);
        assert_eq!((way.next_round(), way.round_is_open()), (PAUSE_MAX, true));
        round(&mut way, 0..1, 1_000);
        assert_eq!((way.next_round(), way.round_is_open()), (ms(1_000), false), "nobody is counted");
        round(&mut way, 0..2, 1_005);
        way.acknowledged(1, 10, ms(1_005), ms(1_008));
        assert_eq!(way.next_round(), ms(1_014), "the other one's pace");
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
        assert_eq!(way.next_round(), ms(40));
    }

    #[test]
    fn room_is_for_so_many_and_so_much() {
        let mut way = OnTheWay::new(2, 100);
        assert!(way.has_room(1_000), "nothing else is on the way");
        way.leaves(0, 60, ms(0));
        assert!(way.has_room(40) && !way.has_room(41));
        way.leaves(1, 10, ms(0));
        assert!(!way.has_room(0));
        way.lost(0, 60, ms(1));
        assert!(way.has_room(90) && !way.has_room(91));
    }

    #[test]
    fn what_finds_no_room_is_as_if_it_had_not_left() {
        let mut way = OnTheWay::new(100, 1_000);
        round(&mut way, 0..2, 0);
        for _ in 0..10 {
            way.leaves(2, 10, ms(1));
            way.stays(2, 10, ms(1));
        }
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
        (0..100).for_each(|_| acknowledge(&mut way, 1, 2_000, 2_000));
        acknowledge(&mut way, 1, 2_000, 7_900);
        assert!(way.is_open(0));
        acknowledge(&mut way, 1, 2_000, 8_000);
        assert!(!way.is_open(0), "four times as long as the others wait");
    }

    #[test]
    fn bytes_are_room_too() {
        let mut way = OnTheWay::new(1_000, 100);
        (0..4).for_each(|_| way.leaves(0, 10, ms(0)));
        acknowledge(&mut way, 1, 5, 5_000);
        assert!(way.is_open(0));
        (0..2).for_each(|_| way.leaves(1, 10, ms(5_000)));
        assert!(!way.is_open(0));
        way.lost(1, 10, ms(5_000));
        assert!(way.is_open(0));
    }
}
