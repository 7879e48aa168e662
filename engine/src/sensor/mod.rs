//! stub until the branch is merged
#![allow(missing_docs)]
#[derive(Clone, Debug, clap::Args)]
pub struct Args {}
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct E;
impl E { pub fn is_input(&self) -> bool { true } }
pub fn run(_a: Args) -> Result<(), E> { Err(E) }
