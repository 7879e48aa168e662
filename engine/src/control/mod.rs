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
mod watch;

pub use config::{
    Authenticator, ControlConfig, NullAuth, SensorAddresses, SensorTarget, SensorsMode, Sharing,
    Timing,
};
pub use event_loop::{Control, MAX_CONNECTIONS, MAX_SENSORS, MAX_SESSIONS_PER_SENSOR};
pub use state::{SensorState, SensorStates, SensorStatus};
