//! A configuration file of `podtap rpcapd`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| engine::fuzzing::ini(data));
