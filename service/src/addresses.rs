//! How fast one address may call.
//!
//! Whoever holds an IPv6 address usually holds 2^64 of them, so these count as one. Behind a proxy every client has the proxy's
//! address, unless the proxy is trusted to say whose request it passes on.

use crate::problem::Problem;
use governor::clock::{Clock, DefaultClock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use http::HeaderMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Addresses that are remembered apart. Beyond it those with the same first 16 bits count as one, so the memory is bounded.
const ADDRESSES_MAX: usize = 500_000;
/// How often addresses are forgotten that have not called for long.
const FORGET_INTERVAL: Duration = Duration::from_secs(2);
const FORWARDED_FOR: &str = "x-forwarded-for";

/// A network of proxies, such as 10.0.0.0/8; a bare address is a network of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    bits: u128,
    prefix: u32,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| format!("{address} is no IP address"))?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let prefix =
            prefix.map_or(Ok(width), |prefix| prefix.parse().map_err(|_| format!("/{prefix} is no number")))?;
        if prefix > width {
            return Err(format!("/{prefix} is more than /{width}"));
        }
        let prefix = prefix + 128 - width;
        Ok(Network { bits: first_bits(address, prefix), prefix })
    }
}

impl Network {
    fn has(&self, address: IpAddr) -> bool {
        first_bits(address, self.prefix) == self.bits
    }
}

/// A bucket per address.
#[derive(Clone)]
pub struct Addresses<C: Clock = DefaultClock> {
    shared: Arc<Shared<C>>,
    trusted_proxies: Vec<Network>,
}

struct Shared<C: Clock> {
    buckets: RateLimiter<u128, DashMapStateStore<u128>, C, NoOpMiddleware<C::Instant>>,
    clock: C,
    full: AtomicBool,
}

impl Addresses {
    /// Forgets idle addresses on a thread that ends with the last clone.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(
        rate_per_s: NonZeroU32,
        burst: NonZeroU32,
        trusted_proxies: Vec<Network>,
    ) -> std::io::Result<Addresses> {
        let addresses = Addresses::new(rate_per_s, burst, trusted_proxies, DefaultClock::default());
        let shared: Weak<_> = Arc::downgrade(&addresses.shared);
        let forget = move || {
            loop {
                std::thread::sleep(FORGET_INTERVAL);
                let Some(shared) = shared.upgrade() else { return };
                shared.forget_idle(ADDRESSES_MAX);
            }
        };
        std::thread::Builder::new().name("forget idle addresses".to_owned()).spawn(forget)?;
        Ok(addresses)
    }
}

impl<C: Clock + Clone> Addresses<C> {
    fn new(rate_per_s: NonZeroU32, burst: NonZeroU32, trusted_proxies: Vec<Network>, clock: C) -> Addresses<C> {
        let quota = Quota::per_second(rate_per_s).allow_burst(burst);
        let buckets = RateLimiter::dashmap_with_clock(quota, clock.clone());
        Addresses { shared: Arc::new(Shared { buckets, clock, full: AtomicBool::new(false) }), trusted_proxies }
    }

    /// Takes one request out of the caller's bucket.
    ///
    /// # Errors
    /// 429 `rate_limited`.
    pub fn take(&self, peer: IpAddr, headers: &HeaderMap) -> Result<(), Problem> {
        let caller = self.caller(peer, headers);
        let prefix = match caller {
            _ if self.shared.full.load(Ordering::Relaxed) && caller.to_canonical().is_ipv4() => 96 + 16,
            _ if self.shared.full.load(Ordering::Relaxed) => 16,
            _ if caller.to_canonical().is_ipv4() => 128,
            _ => 64,
        };
        self.shared.buckets.check_key(&first_bits(caller, prefix)).map_err(|not_until| {
            let wait: Duration = not_until.earliest_possible().duration_since(self.shared.clock.now()).into();
            Problem::too_many("rate_limited", "too many requests from this address: wait before sending again", wait)
        })
    }

    /// Whose request it is: the last address in the list that no proxy of ours has written about itself.
    fn caller(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let trusted = |address: IpAddr| self.trusted_proxies.iter().any(|network| network.has(address));
        if !trusted(peer) {
            return peer;
        }
        let values = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
        let mut caller = peer;
        for address in values.flat_map(|value| value.split(',')).map(str::trim).collect::<Vec<_>>().into_iter().rev() {
            // Anything may stand before the first address that is not trusted: the client wrote it.
            let Ok(address) = address.parse() else { break };
            caller = address;
            if !trusted(address) {
                break;
            }
        }
        caller
    }
}

impl<C: Clock> Shared<C> {
    fn forget_idle(&self, addresses_max: usize) {
        self.buckets.retain_recent();
        self.buckets.shrink_to_fit();
        self.full.store(self.buckets.len() >= addresses_max, Ordering::Relaxed);
    }
}

/// The first bits of an address, an IPv4 address being the last 32 of an IPv6 address that stands for it.
fn first_bits(address: IpAddr, prefix: u32) -> u128 {
    let address: Ipv6Addr = match address.to_canonical() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    address.to_bits() & u128::MAX.checked_shl(128 - prefix).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use governor::clock::FakeRelativeClock;

    fn addresses(trusted: &[&str]) -> (Addresses<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        let number = |number| NonZeroU32::new(number).expect("not zero");
        let trusted = trusted.iter().map(|network| network.parse().expect("a network")).collect();
        (Addresses::new(number(1), number(2), trusted, clock.clone()), clock)
    }

    fn from(addresses: &Addresses<FakeRelativeClock>, peer: &str, forwarded: &[&str]) -> u32 {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(FORWARDED_FOR, value.parse().expect("a value"));
        }
        let Err(problem) = addresses.take(peer.parse().expect("an address"), &headers) else { return 0 };
        assert_eq!((problem.status.as_u16(), problem.code), (429, "rate_limited"));
        problem.retry_after_s.expect("every 429 says when")
    }

    #[test]
    fn the_burst_and_then_the_rate_for_each_address() {
        let (addresses, clock) = addresses(&[]);
        let taken: Vec<u32> = (0..3).map(|_| from(&addresses, "10.0.0.1", &[])).collect();
        assert_eq!(taken, [0, 0, 1]);
        assert_eq!(from(&addresses, "::ffff:10.0.0.1", &[]), 1, "the same address, written otherwise");
        assert_eq!(from(&addresses, "10.0.0.2", &[]), 0);
        clock.advance(Duration::from_secs(1));
        assert_eq!(from(&addresses, "10.0.0.1", &[]), 0);
        let networks = ["2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:0:9::", "2001:db8:0:1::1"];
        let taken: Vec<u32> = networks.iter().map(|peer| from(&addresses, peer, &[])).collect();
        assert_eq!(taken, [0, 0, 1, 0], "a /64 is one caller");
    }

    #[test]
    fn a_trusted_proxy_says_whose_request_it_is() {
        let (addresses, _) = addresses(&["10.0.0.0/8", "fd00::/8", "192.0.2.7"]);
        let exhaust = |caller: &str| (0..2).for_each(|_| assert_eq!(from(&addresses, caller, &[]), 0, "{caller}"));
        exhaust("198.51.100.1");
        exhaust("192.0.2.8");
        for (peer, forwarded, expected, why) in [
            ("10.9.9.9", vec!["198.51.100.1"], 1, "the client"),
            ("fd00::1", vec!["203.0.113.9, 198.51.100.1"], 1, "what the client wrote itself does not count"),
            ("192.0.2.7", vec!["203.0.113.9", "198.51.100.1, 10.0.0.2"], 1, "through two proxies"),
            ("10.9.9.9", vec!["198.51.100.1, nonsense"], 0, "the proxy itself"),
            ("10.9.9.9", vec![], 0, "the proxy itself again"),
            ("10.9.9.9", vec![], 1, "the proxy a third time"),
            ("192.0.2.8", vec!["203.0.113.9"], 1, "not trusted"),
        ] {
            assert_eq!(from(&addresses, peer, &forwarded), expected, "{why}");
        }
        for wrong in ["10.0.0.0/33", "x", "10.0.0.0/", "::/129", "10.0.0.1/x"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
        assert!("0.0.0.0/0".parse::<Network>().expect("all").has("1.2.3.4".parse().expect("an address")));
        assert!(!"0.0.0.0/0".parse::<Network>().expect("all").has("2001:db8::1".parse().expect("an address")));
    }

    #[test]
    fn memory_is_bounded() {
        let (addresses, clock) = addresses(&[]);
        for last in 1..=100 {
            assert_eq!(from(&addresses, &format!("10.0.0.{last}"), &[]), 0);
        }
        addresses.shared.forget_idle(50);
        let taken: Vec<u32> = (0..3).map(|last| from(&addresses, &format!("10.0.1.{last}"), &[])).collect();
        assert_eq!(taken, [0, 0, 1], "neighbours count as one");
        assert_eq!(addresses.shared.buckets.len(), 101);
        clock.advance(Duration::from_secs(10));
        addresses.shared.forget_idle(50);
        assert_eq!(addresses.shared.buckets.len(), 0);
        let taken: Vec<u32> = (0..3).map(|last| from(&addresses, &format!("10.0.1.{last}"), &[])).collect();
        assert_eq!(taken, [0, 0, 0]);
    }
}
