//! `podtap explain`: why a packet is reported, or is not, and by whom.
//!
//! ```text
//! running tap --socket--> State <--file, or flags and netlink    question: address, flow, interface, frame
//!                           |                                        |
//!                           +--> Known: Classifier, View --> path --> judge --> Answer --> text | JSON
//! ```
//!
//! What is said comes from the code that decides: a frame is made for each place where the packet is
//! seen, and the tap's own classifier is asked about it.

mod answer;
mod capture;
mod craft;
mod judge;
mod key;
mod known;
mod path;
mod question;
pub mod socket;
pub mod state;
mod text;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::net::RoleOverrides;
use crate::source::file::FileError;

use answer::Source;
use known::Known;
use question::Question;
use socket::AskError;
use state::{State, StateError};

/// Command line of `podtap explain`, beside the tap's settings.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// ADDRESS, or INTERFACE, or a flow: SOURCE [tcp|udp|icmp|sctp|NUMBER] DESTINATION, each an address with :PORT
    /// (IPv6 with a port: the address in brackets)
    #[arg(value_name = "QUESTION")]
    pub question: Vec<String>,
    /// What a service sends the flow to: shows the copies after the translation too
    #[arg(long, value_name = "ADDR:PORT")]
    pub backend: Option<String>,
    /// Ask about a frame of this capture file (with --frame)
    #[arg(long, value_name = "FILE", requires = "frame", conflicts_with = "question")]
    pub file: Option<PathBuf>,
    /// The frame's number in the file, from 1
    #[arg(long, value_name = "N", requires = "file")]
    pub frame: Option<u64>,
    /// Where the frame was seen
    #[arg(long, value_name = "IFACE:in|out", requires = "file")]
    pub point: Option<String>,
    /// Ask the tap that answers here [default: --state-socket's]
    #[arg(long, value_name = "NAME", conflicts_with = "state")]
    pub socket: Option<String>,
    /// Ask a state that was saved before; - is standard input
    #[arg(long, value_name = "FILE|-")]
    pub state: Option<PathBuf>,
    /// Save the tap's state to this file, for --state; - is standard output
    #[arg(long, value_name = "FILE|-", conflicts_with_all = ["file", "question"])]
    pub save: Option<PathBuf>,
    /// Answer with one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What follows the options in the help.
pub const AFTER_HELP: &str = "\
Which tap: the one that runs in this network namespace (its --state-socket); or --socket NAME; or a \
saved --state FILE; or, if none runs or one of the tap's flags is given here, a tap with these flags \
on this machine as it is now.

Examples:
  podtap explain 10.0.1.7
  podtap explain eni1234
  podtap explain 10.0.1.7:40000 tcp 172.20.0.10:80 --backend 10.0.2.7:8080
  podtap explain --file cap.pcapng --frame 17 --point eth0:in
  podtap explain --save state.json; podtap explain --state state.json 10.0.1.7";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The command line.
    #[error("{0}")]
    Usage(String),
    /// The running tap.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// A state that cannot be used.
    #[error("--state {}: {cause}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: StateError,
    },
    /// A file that cannot be read or written.
    #[error("{flag} {}: {cause}", path.display())]
    File {
        /// The flag.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The capture file.
    #[error("--file: {0}")]
    Capture(#[from] FileError),
    /// This machine's network.
    #[error("reading links, addresses and routes failed: {0}")]
    Network(io::Error),
}

impl ExplainError {
    /// True where the exit code is 2.
    #[must_use]
    pub fn is_input(&self) -> bool {
        match self {
            Self::Usage(_) | Self::State { .. } | Self::Capture(_) => true,
            Self::Ask(error) => matches!(error, AskError::Absent { .. } | AskError::Refused { .. }),
            Self::File { flag, .. } => *flag == "--state",
            Self::Network(_) => false,
        }
    }
}

/// Answers on standard output. `has_flags` says that the command line has flags of the tap's.
///
/// # Errors
///
/// See [`ExplainError`].
pub fn run(args: &Args, config: &Config, has_flags: bool) -> Result<String, ExplainError> {
    let question = match &args.save {
        Some(_) => None,
        None => Some(Question::parse(args).map_err(ExplainError::Usage)?),
    };
    let (state, source) = state(args, config, has_flags)?;
    let Some(question) = question else {
        let path = args.save.as_deref().unwrap_or(Path::new("-"));
        return save(path, &state);
    };
    let answer = answer::answer(&Known::new(state), source, question)?;
    Ok(match args.json {
        true => serde_json::to_string(&answer).expect("text keys and plain values only") + "\n",
        false => text::render(&answer),
    })
}

fn save(path: &Path, state: &State) -> Result<String, ExplainError> {
    let json = state.to_json() + "\n";
    if path.as_os_str() == "-" {
        return Ok(json);
    }
    let file = |cause| ExplainError::File { flag: "--save", path: path.into(), cause };
    let mut out = File::create(path).map_err(file)?;
    out.write_all(json.as_bytes()).map_err(file)?;
    Ok(String::new())
}

/// The state to ask, and where it is from.
fn state(args: &Args, config: &Config, has_flags: bool) -> Result<(State, Source), ExplainError> {
    if let Some(path) = &args.state {
        if has_flags {
            return Err(ExplainError::Usage(
                "--state says all that the tap's flags say: give one or the other".into(),
            ));
        }
        let state = load(path)?;
        return Ok((state, Source::File(path.display().to_string())));
    }
    if let Some(name) = &args.socket {
        if has_flags {
            return Err(ExplainError::Usage(
                "a running tap has its own flags: give --socket or the flags".into(),
            ));
        }
        let name = crate::config::socket_name(name)
            .map_err(|reason| ExplainError::Usage(format!("--socket: {reason}")))?
            .ok_or_else(|| ExplainError::Usage("--socket: none is no socket".into()))?;
        return Ok((socket::ask(&name)?, Source::Tap(name)));
    }
    let mut tap = None;
    if let (Some(name), false) = (&config.state_socket, has_flags) {
        match socket::ask(name) {
            Ok(state) => return Ok((state, Source::Tap(name.clone()))),
            Err(AskError::Absent { .. }) => tap = Some(name.clone()),
            Err(error) => return Err(error.into()),
        }
    }
    let view = crate::net::snapshot(config.interfaces.clone(), RoleOverrides::default())
        .map_err(ExplainError::Network)?;
    let sensors: BTreeSet<_> = config.numeric_sensors().into_iter().collect();
    let state = State::new(config, &config.policy, &view, &sensors);
    Ok((state, Source::Machine { absent: tap }))
}

fn load(path: &Path) -> Result<State, ExplainError> {
    let file = |cause| ExplainError::File { flag: "--state", path: path.into(), cause };
    let mut json = Vec::new();
    let input: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(path).map_err(file)?),
    };
    input.take(state::MAX_BYTES + 1).read_to_end(&mut json).map_err(file)?;
    State::parse(&json).map_err(|cause| ExplainError::State { path: path.into(), cause })
}

#[cfg(test)]
mod tests;
