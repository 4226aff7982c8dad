//! The fuzz target `import`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dmopt_fuzz::import(data));
