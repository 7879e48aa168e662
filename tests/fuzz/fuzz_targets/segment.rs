//! A super-frame and what is said of it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| engine::fuzzing::segment(data));
