//! What happened, as a hash: two runs of one seed have the same. Printed line by line if wanted.

use std::fmt::{self, Write};

/// FNV-1a, 64 bits.
/// Source: <http://www.isthe.com/chongo/tech/comp/fnv/>
const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// The hash of everything noted so far.
pub struct Trace {
    hash: u64,
    prints: bool,
}

impl Trace {
    /// Nothing has happened.
    pub fn new(prints: bool) -> Trace {
        Trace { hash: OFFSET_BASIS, prints }
    }

    /// Something happened.
    pub fn note(&mut self, now_ms: i64, what: fmt::Arguments<'_>) {
        if self.prints {
            println!("{now_ms} {what}");
        }
        writeln!(self, "{now_ms} {what}").expect("a hash takes everything");
    }

    /// The hash.
    pub fn hash(&self) -> u64 {
        self.hash
    }
}

impl Write for Trace {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
        Ok(())
    }
}
