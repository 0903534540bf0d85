//! `nearby_fuzz::body`, under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nearby_fuzz::body(bytes));
