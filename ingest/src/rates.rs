//! How fast one user may report. Pure but for its clock, which tests replace.

use governor::clock::{Clock, DefaultClock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use nearby_schemas::UserId;
use nearby_service::problem::Problem;
use nearby_service::settings::EdgeSettings;
use std::num::NonZeroU32;
use std::time::Duration;

/// One bucket per user who reported lately.
pub(crate) struct Rates<C: Clock = DefaultClock> {
    buckets: RateLimiter<UserId, DashMapStateStore<UserId>, C, NoOpMiddleware<C::Instant>>,
    clock: C,
    burst: NonZeroU32,
}

impl<C: Clock + Clone> Rates<C> {
    pub(crate) fn new(edge: &EdgeSettings, clock: C) -> Rates<C> {
        let quota = Quota::per_second(edge.user_rate_per_s).allow_burst(edge.user_burst);
        let buckets = RateLimiter::dashmap_with_clock(quota, clock.clone());
        Rates { buckets, clock, burst: edge.user_burst }
    }

    /// Takes so many reports out of the user's bucket, or none of them.
    pub(crate) fn take(&self, user: UserId, reports: usize) -> Result<(), Problem> {
        let reports = u32::try_from(reports).unwrap_or(u32::MAX);
        let Some(reports) = NonZeroU32::new(reports) else {
            return Ok(());
        };
        match self.buckets.check_key_n(&user, reports) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(not_until)) => {
                let wait = not_until.earliest_possible().duration_since(self.clock.now());
                Err(Problem::too_many("rate_limited", "too many reports: wait before sending again", wait.into()))
            }
            Err(_) => {
                let detail = format!("more than {} reports at once: send them in parts", self.burst);
                Err(Problem::too_many("rate_limited", detail, Duration::ZERO))
            }
        }
    }

    /// Forgets users whose buckets are full again.
    pub(crate) fn forget_idle(&self) {
        self.buckets.retain_recent();
        self.buckets.shrink_to_fit();
    }

    #[cfg(test)]
    fn users(&self) -> usize {
        self.buckets.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use governor::clock::FakeRelativeClock;
    use http::StatusCode;

    const ANN: UserId = UserId(1);
    const BOB: UserId = UserId(2);

    fn rates() -> (Rates<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        let number = |number| NonZeroU32::new(number).expect("not zero");
        let edge = EdgeSettings { allowed_origins: Vec::new(), user_rate_per_s: number(10), user_burst: number(200) };
        (Rates::new(&edge, clock.clone()), clock)
    }

    /// Seconds to wait, or 0 if taken.
    fn take(rates: &Rates<FakeRelativeClock>, user: UserId, reports: usize) -> u32 {
        let Err(problem) = rates.take(user, reports) else { return 0 };
        assert_eq!((problem.status, problem.code), (StatusCode::TOO_MANY_REQUESTS, "rate_limited"));
        problem.retry_after_s.expect("every 429 says when")
    }

    #[test]
    fn the_burst_and_then_the_rate() {
        let (rates, clock) = rates();
        assert_eq!(take(&rates, ANN, 199), 0);
        assert_eq!(take(&rates, ANN, 1), 0);
        assert_eq!(take(&rates, ANN, 1), 1);
        assert_eq!(take(&rates, BOB, 200), 0, "users have their own buckets");
        clock.advance(Duration::from_millis(99));
        assert_eq!(take(&rates, ANN, 1), 1);
        clock.advance(Duration::from_millis(1));
        assert_eq!(take(&rates, ANN, 1), 0);
        assert_eq!(take(&rates, ANN, 15), 2, "1.5 s, rounded up");
        clock.advance(Duration::from_secs(20));
        assert_eq!(take(&rates, ANN, 200), 0, "nothing was taken by what was refused");
    }

    #[test]
    fn more_than_the_burst_never_passes() {
        let (rates, _) = rates();
        assert_eq!(take(&rates, ANN, 201), 1);
        assert_eq!(take(&rates, ANN, 200), 0);
    }

    #[test]
    fn nothing_takes_nothing() {
        let (rates, _) = rates();
        assert_eq!(take(&rates, ANN, 0), 0);
        assert_eq!(rates.users(), 0);
    }

    #[test]
    fn idle_users_are_forgotten_and_busy_ones_are_not() {
        let (rates, clock) = rates();
        assert_eq!(take(&rates, ANN, 1), 0);
        assert_eq!(take(&rates, BOB, 200), 0);
        clock.advance(Duration::from_secs(10));
        rates.forget_idle();
        assert_eq!(rates.users(), 1);
        assert_eq!(take(&rates, BOB, 101), 1, "half of the bucket is still empty");
    }
}
