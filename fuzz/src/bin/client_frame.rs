//! `nearby_fuzz::client_frame`, under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nearby_fuzz::client_frame(bytes));
