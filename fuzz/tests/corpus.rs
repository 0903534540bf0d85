//! What `make fuzz` has kept is still refused or accepted as it has to be, and so is what becomes of it by blind mutation.

use nearby_fuzz::{NOW, TARGETS};
use nearby_schemas::codec::{Codec, Record};
use nearby_schemas::{FriendList, GatewayHeartbeat, LocationEvent, Session, batch::FriendMovedBatch};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Of each target, so that a debug build takes a few seconds.
const MUTANTS: usize = 300_000;
const MUTATIONS_MAX: usize = 6;
const LENGTH_MAX: usize = 4 * 1024;
const SEED: u64 = 64;
/// What bytes at random seldom hold.
const WORDS: [&[u8]; 14] = [
    b"null",
    b"1e999",
    b"9223372036854775808",
    b"-0.0",
    b"\"ref\":",
    b"\"user_id\":",
    b"[[[[[[[[[[[[[[[[",
    b"{\"a\":",
    b"\\ud800",
    b"\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\xc3\x01",
    b"\0\0\0\0\x01",
    b"\"precision\":\"coarse\"",
];

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).expect("it is there").map(|file| file.expect("a file").path()).collect();
    // The same mutants everywhere.
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("it can be read")).collect()
}

/// Runs a target; a panic names the bytes, which belong into the corpus then.
fn run(name: &str, target: fn(&[u8]), bytes: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(bytes))) {
        eprintln!("{name} fails on b\"{}\"", bytes.escape_ascii());
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn what_was_kept_does_no_harm() {
    for (name, target) in TARGETS {
        let kept = corpus(name);
        assert!(kept.len() >= 10, "{name} has {} files", kept.len());
        kept.iter().for_each(|bytes| run(name, target, bytes));
    }
}

#[test]
fn what_becomes_of_it_does_no_harm() {
    for (name, target) in TARGETS {
        let (kept, mut dice) = (corpus(name), StdRng::seed_from_u64(SEED));
        for _ in 0..MUTANTS {
            run(name, target, &mutant(&kept, &mut dice));
        }
    }
}

/// A kept input, or the joint of two, with a few bytes changed.
fn mutant(kept: &[Vec<u8>], dice: &mut StdRng) -> Vec<u8> {
    let mut bytes = kept.choose(dice).expect("a corpus").clone();
    for _ in 0..dice.random_range(1..=MUTATIONS_MAX) {
        let at = dice.random_range(0..=bytes.len());
        let until = dice.random_range(at..=bytes.len().min(at + 16));
        match dice.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.random_range(0..8),
            1 if at < bytes.len() => bytes[at] = dice.random(),
            2 => drop(bytes.drain(at..until)),
            3 => drop(bytes.splice(at..at, bytes[at..until].to_vec())),
            4 => drop(bytes.splice(at..until, WORDS.choose(dice).expect("words").iter().copied())),
            _ => {
                let other = kept.choose(dice).expect("a corpus");
                let from = dice.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
        bytes.truncate(LENGTH_MAX);
    }
    bytes
}

/// Otherwise the corpus would be one of garbage: nothing behind the refusals would be met.
#[test]
fn some_of_it_is_accepted() {
    use nearby_ingest::admission;
    let accepted = |name: &str, kind: char, accepts: fn(&[u8]) -> bool| {
        let count = corpus(name).iter().filter(|bytes| accepts(bytes)).count();
        assert!(count > 0, "nothing of kind {kind} in the corpus of {name} is accepted");
    };
    accepted("client_frame", 'c', |bytes| {
        std::str::from_utf8(bytes).is_ok_and(|text| nearby_pusher::client_frame::parse(text, NOW).is_ok())
    });
    accepted("body", 'r', |bytes| {
        bytes[0] == b'r' && admission::reports(&bytes[1..], NOW).is_ok_and(|some| !some.is_empty())
    });
    accepted("body", 'f', |bytes| {
        bytes[0] == b'f' && admission::friend_list(&bytes[1..]).is_ok_and(|some| !some.is_empty())
    });
    accepted("body", 'l', |bytes| {
        bytes[0] == b'l' && admission::friend_lists(&bytes[1..]).is_ok_and(|some| !some.is_empty())
    });
    accepted("body", 'w', |bytes| {
        bytes[0] == b'w' && admission::withdrawal(&bytes[1..], NOW).is_ok_and(|at| at.is_some())
    });
    fn read<R: Record>(bytes: &[u8]) -> bool {
        Codec::<R>::new().decode(&bytes[1..]).is_ok()
    }
    accepted("record", 'l', |bytes| bytes[0] == b'l' && read::<LocationEvent>(bytes));
    accepted("record", 'f', |bytes| bytes[0] == b'f' && read::<FriendList>(bytes));
    accepted("record", 's', |bytes| bytes[0] == b's' && read::<Session>(bytes));
    accepted("record", 'h', |bytes| bytes[0] == b'h' && read::<GatewayHeartbeat>(bytes));
    accepted("record", 'b', |bytes| bytes[0] == b'b' && read::<FriendMovedBatch>(bytes));
}
