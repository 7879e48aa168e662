//! The tap's side of RPCAP: conversations with sensors, on a thread of its own.
//!
//! ```text
//! event_loop --step--> active (one per sensor: resolve, connect, back off)
//!     ^                   `--step--> connection (socket, session) <--> protocol <-- framing
//!  Control: shutdown,                    |         |                   (no I/O)
//!           states                       v         `-- listing <-- net::View
//!                                session::Sessions --> workers
//! ```
//!
//! Nothing here runs on a worker's thread: workers see a changed list of sessions, no more.

mod active;
mod config;
mod connection;
mod event_loop;
mod framing;
mod listing;
mod protocol;
mod resolve;
mod state;

pub use config::{Authenticator, ControlConfig, NullAuth, SensorAddresses, SensorTarget, Timing};
pub use event_loop::{Control, MAX_SENSORS};
#[cfg(test)]
pub(crate) use listing::tests::node as tests_node;
pub use state::{SensorState, SensorStates, SensorStatus};
