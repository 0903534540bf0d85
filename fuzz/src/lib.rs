//! What strangers can send: WebSocket frames, bodies of requests, records of the log.
//!
//! A target takes bytes and panics when something is untrue that has to hold for any bytes: what is refused has a documented
//! code, what is accepted can be stored and read again as it was. `make fuzz` has libFuzzer look for such bytes, guided by the
//! coverage of our own crates; `cargo test -p nearby-fuzz` replays what it has kept, and mutates that a little.

mod codes;
mod record;

use codes::{assert_refusal, assert_stable};
use nearby_ingest::admission::{self, AGE_MS_MAX, AHEAD_MS_MAX, Report};
use nearby_pusher::client_frame::{self, ClientFrame};
use nearby_schemas::codec::Codec;
use nearby_schemas::{FriendList, LocationEvent, Source, TimestampMs, UserId};
use serde_json::Value;
use std::sync::LazyLock;

pub use record::record;

/// The time of every run: 2023-11-14, so that kept bytes mean the same for ever.
pub const NOW: TimestampMs = TimestampMs(1_700_000_000_000);

/// A target: its name, which is that of its folder in `corpus/`, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 3] = [("client_frame", client_frame), ("body", body), ("record", record)];

/// One text frame from a client. Bytes that are no UTF-8 never get so far.
pub fn client_frame(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let reference = match client_frame::parse(text, NOW) {
        Ok((frame, reference)) => {
            match frame {
                ClientFrame::Location(report) => stored(*report),
                ClientFrame::Unshare(at) => in_time(at),
                ClientFrame::Auth(_) => {}
            }
            reference
        }
        Err(refused) => {
            assert_stable(refused.code);
            assert!(!refused.detail.is_empty(), "a refusal says why");
            refused.reference
        }
    };
    assert!(
        reference.is_none_or(|reference| matches!(reference, Value::String(_) | Value::Number(_))),
        "what is echoed is a string or a number"
    );
}

/// One body: the first byte says of which request.
pub fn body(bytes: &[u8]) {
    let Some((route, bytes)) = bytes.split_first() else { return };
    match route {
        b'r' => match admission::reports(bytes, NOW) {
            Ok(reports) => {
                assert!(reports.len() <= admission::REPORTS_MAX, "{} reports", reports.len());
                reports.into_iter().for_each(stored);
            }
            Err(problem) => assert_refusal(&problem),
        },
        b'w' => match admission::withdrawal(bytes, NOW) {
            Ok(at) => in_time(at),
            Err(problem) => assert_refusal(&problem),
        },
        b'f' => match admission::friend_list(bytes) {
            Ok(friends) => listed(UserId(1), friends),
            Err(problem) => assert_refusal(&problem),
        },
        b'l' => match admission::friend_lists(bytes) {
            Ok(lists) => lists.into_iter().for_each(|(user, friends)| listed(user, friends)),
            Err(problem) => assert_refusal(&problem),
        },
        _ => {}
    }
}

/// An accepted report becomes a record that every reader takes, and that says the same.
fn stored(report: Report) {
    static CODEC: LazyLock<Codec<LocationEvent>> = LazyLock::new(Codec::new);
    in_time(report.reported_at);
    let event = report.event(UserId(7), Source::Http, NOW);
    assert_eq!(event.user_id, report.user_id.unwrap_or(UserId(7)));
    let read = CODEC.decode(&CODEC.encode(&event));
    assert_eq!(read.expect("what was accepted can be read"), event);
}

/// So does an accepted list.
fn listed(user_id: UserId, friends: Vec<UserId>) {
    static CODEC: LazyLock<Codec<FriendList>> = LazyLock::new(Codec::new);
    assert!(friends.len() <= FriendList::FRIENDS_MAX, "{} friends", friends.len());
    let list = FriendList { user_id, friends, changed_at: NOW };
    let read = CODEC.decode(&CODEC.encode(&list));
    assert_eq!(read.expect("what was accepted can be read"), list);
}

fn in_time(at: Option<TimestampMs>) {
    let Some(TimestampMs(at)) = at else { return };
    assert!((NOW.0 - AGE_MS_MAX..=NOW.0 + AHEAD_MS_MAX).contains(&at), "{at} was accepted at {}", NOW.0);
}
