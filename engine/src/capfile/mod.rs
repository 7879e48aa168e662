//! Capture files.

pub mod pcapng;
