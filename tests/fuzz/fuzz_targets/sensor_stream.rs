//! Datagrams of the stream form, lost, swapped and doubled.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| engine::fuzzing::stream(data));
