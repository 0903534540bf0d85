//! Who is told what: the pure core of the processor.
//!
//! An [`Engine`] hears every user's reports and owns the viewers of some partitions. Each call is one input; what has to be
//! told because of it is appended to `out` as [`Notice`]s. There is no clock, I/O, randomness, async or walk over a hash map
//! in here: the same calls give the same notices, and how the calls are batched cannot matter, because there are no batches.
//!
//! The calls come in six families:
//! - **the log speaks**: [`report`](Engine::report), [`friend_list`](Engine::friend_list), [`session`](Engine::session),
//!   [`heartbeat`](Engine::heartbeat), [`gateway_removed`](Engine::gateway_removed);
//! - **time passes**: [`tick`](Engine::tick), and the `now` of every other call, which never runs backward in here: an earlier
//!   `now` than one before counts as that one;
//! - **ownership**: lists and sessions of a partition are taken in silently until [`serve`](Engine::serve);
//!   [`forget`](Engine::forget) drops them;
//! - **repair**: [`snapshot_again`](Engine::snapshot_again);
//! - **speed**: [`resume`](Engine::resume) does what earlier calls have left, [`prefetch`](Engine::prefetch) announces reports;
//! - **questions**: [`gateway_id`](Engine::gateway_id), [`stale_sessions`](Engine::stale_sessions),
//!   [`counts`](Engine::counts).
//!
//! Invariants, which hold between any two calls:
//! - **Told is true.** The view that the notices gave to a gateway on which a viewer is connected is exactly the friends
//!   that the viewer sees by rule R1, as far as inputs are worked off. So whether a friend was told to be near need not be
//!   remembered: it is what was true before the input, and an evaluation tells the difference between before and after.
//! - A user's place is in the table of places exactly while it counts: shared, and at most `inactive_after_ms` old. That of a
//!   stand-in, and of who has just become inactive, follows when its turn comes.
//! - The index leads from a friend to a viewer exactly when the viewer is connected and has the friend in its list; where a
//!   stand-in is watched instead of a hub, both the list and the index name the stand-in.
//! - A user's time never goes backward, so an entry of the timer wheel may come too early but never too late.
//!
//! # How much one call does
//!
//! Nobody waits long for an input of somebody else: a call looks at about 4,096 edges for its own input, at as many for who
//! has become inactive, and at as many for what earlier ones have left (`looks_at_once_max`; an edge that is added or removed
//! counts as eight, and the last viewer of a slice may be one with very many). A report does no more for others than it did
//! for itself, so that while something waits half of the time goes to reports. What does not fit is done by the calls that
//! follow, whatever they are, turn by turn; [`resume`](Engine::resume) does it while there is no input, and says when nothing
//! is left.
//! - A friend with more watchers is a hub and has stand-ins, each with a place of its own and at most 4,096 watchers. They
//!   follow their hub one after the other, and the hub's latest place only. A viewer is told, and compared, by what its
//!   stand-in says. Who withdraws or becomes inactive is followed before anything else is worked at; until then, a few calls
//!   later, the last watchers may still see where it was.
//! - A partition that is served or forgotten, and a gateway that is lost or returns, are worked off viewer by viewer. For a
//!   forgotten partition nothing is told from then on. A viewer whose record comes in earlier has its turn at once.
//! - Of very many who become inactive at once some have their turn later. Until then they count as before.
//!
//! What is not divided: the list of one viewer, which has at most `FriendList::FRIENDS_MAX` friends; the walk over a hub's
//! stand-ins at each of its reports, one for each 4,096 watchers; the entries of one second in the timer wheel, or of as many
//! seconds as the clock jumps, of some ten nanoseconds each; [`stale_sessions`](Engine::stale_sessions), which is seldom asked.
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

mod backlog;
mod connecting;
mod engine;
mod expiry;
mod gateways;
mod index;
mod lists;
mod newest_first;
mod notice;
mod radius;
mod sessions;
mod settings;
mod telling;
mod users;

pub use engine::{Counts, Engine};
pub use notice::{Address, GatewayIndex, Notice};
pub use settings::EngineSettings;
