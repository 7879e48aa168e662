//! A filter, and a frame that it runs on.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| engine::fuzzing::filter(data));
