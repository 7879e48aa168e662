//! A frame from the ring, with its offloads.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| engine::fuzzing::frame(data));
