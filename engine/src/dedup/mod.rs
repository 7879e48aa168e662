//! See the crate's picture.
