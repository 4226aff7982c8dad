//! The fuzz target `text`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dmopt_fuzz::text(data));
