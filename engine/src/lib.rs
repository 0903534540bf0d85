//! Who is told what: the pure core of the processor.
//!
//! An [`Engine`] hears every user's reports and owns the viewers of some partitions. Each call is one input; what has to be
//! told because of it is appended to `out` as [`Notice`]s. There is no clock, I/O, randomness, async or walk over a hash map
//! in here: the same calls give the same notices, and how the calls are batched cannot matter, because there are no batches.
//!
//! The calls come in five families:
//! - **the log speaks**: [`report`](Engine::report), [`friend_list`](Engine::friend_list), [`session`](Engine::session),
//!   [`heartbeat`](Engine::heartbeat), [`gateway_removed`](Engine::gateway_removed);
//! - **time passes**: [`tick`](Engine::tick), and the `now` of every other call, which never runs backward in here: an earlier
//!   `now` than one before counts as that one;
//! - **ownership**: lists and sessions of a partition are taken in silently until [`serve`](Engine::serve);
//!   [`forget`](Engine::forget) drops them;
//! - **repair**: [`snapshot_again`](Engine::snapshot_again);
//! - **questions**: [`gateway_id`](Engine::gateway_id), [`stale_sessions`](Engine::stale_sessions),
//!   [`counts`](Engine::counts).
//!
//! Invariants, which hold between any two calls:
//! - **Told is true.** The view that the notices gave to a gateway on which a viewer is connected is exactly the friends
//!   that the viewer sees by rule R1. So whether a friend was told to be near need not be remembered: it is what was true
//!   before the input, and an evaluation tells the difference between before and after.
//! - A user's place is in the table of places exactly while it counts: shared, and at most `inactive_after_ms` old.
//! - The index leads from a friend to a viewer exactly when the viewer is connected and has the friend in its list.
//! - A user's time never goes backward, so an entry of the timer wheel may come too early but never too late.
//!
//! Deliberately absent: epochs (R9 is the processor's and the pushers'), encoding, hysteresis, coalescing.
//!
//! ```
//! use nearby_engine::{Engine, EngineSettings, Notice};
//! use nearby_schemas::{GatewayId, Place, TimestampMs, UserId};
//!
//! let mut engine = Engine::new(EngineSettings::default());
//! let (now, mut out) = (TimestampMs(1_000), Vec::new());
//! let gateway = GatewayId::new("g1-a")?;
//! engine.heartbeat(&gateway, now, now, &mut out);
//! engine.friend_list(0, UserId(1), Some(&[UserId(2)]), now, &mut out);
//! engine.session(0, UserId(1), &gateway, Some(0), now, &mut out);
//! engine.report(UserId(1), now, Some(Place::from_degrees(37.77, -122.41)?), now, &mut out);
//! engine.serve(0, now, &mut out);
//! engine.report(UserId(2), now, Some(Place::from_degrees(37.78, -122.41)?), now, &mut out);
//! assert!(matches!(&out[..], [
//!     Notice::Snapshot { snapshot, .. },
//!     Notice::FriendMoved { friend: UserId(2), distance_dm: 11_120, .. },
//! ] if snapshot.friends.is_empty()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod engine;
mod expiry;
mod gateways;
mod index;
mod lists;
mod notice;
mod radius;
mod sessions;
mod settings;
mod telling;
mod users;

pub use engine::{Counts, Engine};
pub use notice::{Address, GatewayIndex, Notice};
pub use settings::EngineSettings;
