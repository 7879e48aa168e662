//! What a sensor or a client says to the tap.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| engine::fuzzing::conversation(data));
