//! See the crate's picture.

mod message;
mod numbering;
mod reassembly;
