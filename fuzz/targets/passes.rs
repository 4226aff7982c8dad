//! The fuzz target `passes`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dmopt_fuzz::passes(data));
