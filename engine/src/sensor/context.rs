//! What all taps of a run share.
//!
//! ```text
//! Tap --reads with--> Receiver      --writes to--> Output      --adds to--> records
//!     --registers---> Epoll         --complains--> once per peer and reason
//! ```

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::client::{Failure, Wishes};
use super::output::Output;
use super::reassembly::HOLD;
use super::summary::Record;
use crate::capfile::pcapng::InterfaceId;
use crate::rpcap::{BpfInsn, DLT_EN10MB, Filter, MAX_SNAPLEN};
use crate::sys::Receiver;
use crate::sys::libpcap::{self, CompileError};

/// Taps that are told apart; each is a block in the file and a line in the summary.
const MAX_RECORDS: usize = 4_096;
/// Complaints that are remembered as said. Beyond that, strangers are counted in silence.
const MAX_COMPLAINTS: usize = 4_096;

/// How data are to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DataChannel {
    /// Datagrams, plain or stream form, as the tap likes.
    Udp,
    /// A connection of PACKET messages.
    Tcp,
}

/// What every tap is asked for.
pub(super) struct Settings {
    pub(super) wishes: Wishes,
    pub(super) data: DataChannel,
    pub(super) snaplen: u32,
    /// How long a hole in the stream is waited for.
    pub(super) hold: Duration,
    /// Who may send data besides the taps themselves.
    pub(super) data_from: Vec<IpNet>,
    /// Where the expression comes from, if it may change.
    filter_file: Option<PathBuf>,
    expression: Option<String>,
    /// The expression for Ethernet, compiled.
    ethernet: Filter,
}

/// Why a filter file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilterFileError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// As it was given.
        path: PathBuf,
        /// No such file, not allowed.
        source: io::Error,
    },
    /// There is nothing in it.
    #[error("{}: empty; what lets everything pass is \"greater 0\"", path.display())]
    Empty {
        /// As it was given.
        path: PathBuf,
    },
    /// What is in it does not compile.
    #[error("{}: {source}", path.display())]
    Compile {
        /// As it was given.
        path: PathBuf,
        /// What libpcap says.
        source: CompileError,
    },
}

impl Settings {
    /// Compiles the expression for Ethernet, the link type of nearly every tap.
    pub(super) fn new(
        wishes: Wishes,
        data: DataChannel,
        snaplen: u32,
        expression: Option<String>,
    ) -> Result<Self, CompileError> {
        let ethernet = compile(expression.as_deref(), DLT_EN10MB)?;
        Ok(Self {
            wishes,
            data,
            snaplen,
            hold: HOLD,
            data_from: Vec::new(),
            filter_file: None,
            expression,
            ethernet,
        })
    }

    /// Takes the expression from a file, now and at every [`reload`](Self::reload).
    pub(super) fn set_filter_file(&mut self, path: PathBuf) -> Result<(), FilterFileError> {
        self.filter_file = Some(path);
        self.reload()
    }

    /// Reads the filter file again. One that cannot be used changes nothing; nor does an empty one,
    /// which an editor may have left behind for a moment.
    pub(super) fn reload(&mut self) -> Result<(), FilterFileError> {
        let Some(path) = self.filter_file.clone() else { return Ok(()) };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().to_owned(),
            Err(source) => return Err(FilterFileError::Read { path, source }),
        };
        if text.is_empty() {
            return Err(FilterFileError::Empty { path });
        }
        match compile(Some(&text), DLT_EN10MB) {
            Ok(ethernet) => self.ethernet = ethernet,
            Err(source) => return Err(FilterFileError::Compile { path, source }),
        }
        self.expression = Some(text);
        Ok(())
    }

    pub(super) fn filter_for(&self, linktype: i32) -> Result<Filter, CompileError> {
        if linktype == DLT_EN10MB {
            return Ok(self.ethernet.clone());
        }
        compile(self.expression.as_deref(), linktype)
    }
}

/// Without an expression: one instruction that accepts everything, because daemons refuse a
/// program of none.
fn compile(expression: Option<&str>, linktype: i32) -> Result<Filter, CompileError> {
    let accept = || vec![BpfInsn { code: 6, jt: 0, jf: 0, k: MAX_SNAPLEN }];
    let instructions = expression.map_or_else(
        || Ok(accept()),
        |text| libpcap::compile(text, linktype, MAX_SNAPLEN, true, libpcap::NETMASK_UNKNOWN),
    )?;
    Ok(Filter { kind: 1, instructions })
}

/// Why a tap is left: a word to count it by, and a sentence that goes on from the tap's name.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) label: &'static str,
    pub(super) text: String,
}

impl Trouble {
    pub(super) fn new(label: &'static str, text: impl Into<String>) -> Self {
        Self { label, text: text.into() }
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::new(failure.label(), failure.to_string())
    }
}

/// Whose descriptor became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Stop,
    Listener,
    Output,
    Reload,
    Control(u64),
    Data(u64),
}

impl Token {
    pub(super) fn to_number(self) -> u64 {
        match self {
            Self::Stop => 0,
            Self::Listener => 1,
            Self::Output => 2,
            Self::Reload => 3,
            Self::Control(id) => (id << 1) + 4,
            Self::Data(id) => (id << 1) + 5,
        }
    }

    pub(super) fn from_number(number: u64) -> Self {
        match number {
            0 => Self::Stop,
            1 => Self::Listener,
            2 => Self::Output,
            3 => Self::Reload,
            _ if number.is_multiple_of(2) => Self::Control((number - 4) >> 1),
            _ => Self::Data((number - 5) >> 1),
        }
    }
}

pub(super) struct Context {
    pub(super) settings: Settings,
    pub(super) epoll: Epoll,
    pub(super) receiver: Receiver,
    pub(super) output: Output,
    pub(super) records: Vec<Record>,
    interfaces: Vec<Option<InterfaceId>>,
    pub(super) failures: BTreeMap<&'static str, u64>,
    said: HashSet<(String, &'static str)>,
}

impl Context {
    pub(super) fn new(settings: Settings, epoll: Epoll, output: Output) -> Self {
        Self {
            settings,
            epoll,
            receiver: Receiver::new(),
            output,
            records: Vec::new(),
            interfaces: Vec::new(),
            failures: BTreeMap::new(),
            said: HashSet::new(),
        }
    }

    pub(super) fn register(
        &self,
        what: impl AsFd,
        token: Token,
        interest: EpollFlags,
    ) -> Result<(), Errno> {
        self.epoll.add(what, EpollEvent::new(interest, token.to_number()))
    }

    /// The record of a tap, an old one if it was here before; and its block in the file.
    pub(super) fn record(
        &mut self,
        tap: &str,
        interface: &str,
        linktype: u16,
    ) -> Option<(usize, Option<InterfaceId>)> {
        let known = self.records.iter().position(|record| {
            record.linktype == linktype && record.tap == tap && record.interface == interface
        });
        let index = match known {
            Some(index) => index,
            None if self.records.len() == MAX_RECORDS => return None,
            None => {
                let name = format!("{tap} {interface}");
                let block = self.output.interface(&name, linktype, self.settings.snaplen);
                self.interfaces.push(block);
                self.records.push(Record {
                    tap: tap.to_owned(),
                    interface: interface.to_owned(),
                    linktype,
                    ..Record::default()
                });
                self.records.len() - 1
            }
        };
        self.records[index].captures += 1;
        Some((index, self.interfaces[index]))
    }

    /// True the first time that this is said of `who`.
    pub(super) fn is_news(&mut self, who: &str, label: &'static str) -> bool {
        self.said.len() < MAX_COMPLAINTS && self.said.insert((who.to_owned(), label))
    }

    /// Counts a failed conversation; says so once per peer and reason.
    pub(super) fn failed(&mut self, who: &str, trouble: &Trouble) {
        *self.failures.entry(trouble.label).or_default() += 1;
        if self.is_news(who, trouble.label) {
            tracing::warn!("{who} {}", trouble.text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        let tokens = [
            Token::Stop,
            Token::Listener,
            Token::Output,
            Token::Reload,
            Token::Control(0),
            Token::Data(0),
            Token::Control(77),
            Token::Data(1 << 40),
        ];
        for token in tokens {
            assert_eq!(Token::from_number(token.to_number()), token);
        }
    }
}
