//! The tap's side of RPCAP: conversations with sensors and clients, on a thread of its own.
//!
//! ```text
//! event_loop --step--> active (one per sensor: resolve, connect, back off) ---.
//!     ^  |---step--> passive (listeners, hosts, 64 clients) --.               |
//!  Control: shutdown,                                         v               v
//!           states        connection (socket, times, access) <--> protocol <-- framing (no I/O)
//!                             |          `-- listing <-- net::View
//!                             v
//!                          captures (data sockets; a capture each) --> session::Sessions --> workers
//! ```
//!
//! Nothing here runs on a worker's thread: workers see a changed list of sessions, no more.

mod active;
mod auth;
mod capture;
mod captures;
mod config;
mod connection;
mod event_loop;
mod framing;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod hosts;
mod listing;
mod passive;
mod promiscuous;
mod protocol;
mod resolve;
mod socket;
mod state;
mod tls;
mod watch;

pub use auth::{Access, NullAuth, Passwords};
pub use config::{
    ControlConfig, ListenAddress, OwnFlows, SensorAddresses, SensorTarget, SensorsMode, Sharing,
    Timing,
};
pub use event_loop::{CLIENTS, Control, MAX_CONNECTIONS, MAX_SENSORS, MAX_SESSIONS_PER_SENSOR};
pub use hosts::AllowedHosts;
#[cfg(test)]
pub(crate) use listing::tests::node as tests_node;
pub use passive::ListenError;
pub use state::{SensorState, SensorStates, SensorStatus};
