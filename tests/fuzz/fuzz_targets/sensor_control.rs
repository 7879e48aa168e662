//! What a daemon says to the sensor.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| engine::fuzzing::daemon(data));
