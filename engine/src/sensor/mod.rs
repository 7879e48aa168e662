//! `podtap sensor`: an open receiver for taps, in place of the appliance.
//!
//! ```text
//! event_loop   epoll, timers, the end          summary   counts, JSON, text
//!    tap       one tap's sockets ----> client        the control protocol (pure)
//!     |  `---> capture                 message       PACKET messages (pure)
//!     |           `-> output           reassembly    the stream form (pure)
//!  context, socket, targets            numbering     what is missing (pure)
//! ```
//!
//! It asks as the appliance does and forgives as little as a receiver must: what is malformed is
//! counted by reason and said once, and nothing that arrives makes memory grow.

mod capture;
mod client;
mod context;
mod event_loop;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod message;
mod numbering;
mod output;
mod reassembly;
mod socket;
mod status;
mod summary;
mod tap;
mod targets;

use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

pub use context::{DataChannel, FilterFileError};
pub use summary::{Counts, Malformed, Record, Summary, TapStats};

use crate::rpcap::{HEADER_BYTES, MAX_SNAPLEN, MAX_UDP_PAYLOAD, PACKET_HEADER_BYTES, Sampling};
use crate::sys::libpcap::CompileError;

/// The environment variable that may hold the password.
const PASSWORD_VARIABLE: &str = "PODTAP_SENSOR_PASSWORD";
/// The longest user name and password that AUTH can carry.
const MAX_CREDENTIAL: usize = 0xffff;

/// Receive packets from taps, write them as pcapng.
#[derive(Clone, Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("taps").required(true).multiple(true).args(["listen", "connect"])))]
pub struct Args {
    /// Wait for taps in active mode here; 2003 is the port they expect.
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Connect to passive daemons, at port 2002 if none is said; a list, repeatable. The run ends
    /// with an error if no daemon answers within 5 s, or all refuse.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub connect: Vec<String>,
    /// Connect again and again, even to daemons that refuse; without, only to those that have once
    /// captured.
    #[arg(long, requires = "connect")]
    pub reconnect: bool,
    /// Write pcapng to a file, or to standard output (`-`); packets are only counted without.
    #[arg(long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// The interface to open [default: the preselected one, else the first offered].
    #[arg(long, value_name = "NAME")]
    pub open: Option<String>,
    /// Ask only for packets that match this pcap-filter(7) expression.
    #[arg(long, value_name = "EXPR")]
    pub filter: Option<String>,
    /// Take the expression from a file, and anew at SIGHUP (UPDATEFILTER).
    #[arg(long, value_name = "FILE", conflicts_with = "filter")]
    pub filter_file: Option<PathBuf>,
    /// Ask daemons to leave packets out: one in N, or the first after so many ms (SETSAMPLING).
    #[arg(long, value_name = "1/N|Nms", value_parser = sampling)]
    pub sampling: Option<Sampling>,
    /// How taps are to send data.
    #[arg(long, value_enum, default_value = "udp")]
    pub data: DataChannel,
    /// Addresses or prefixes from which data are taken besides the daemon's own, for daemons with
    /// several addresses.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = senders)]
    pub data_from: Vec<IpNet>,
    /// The most bytes of a frame to ask for [default: 65479 with UDP, which is what fits a datagram
    /// of the plain form; 262144 with TCP].
    #[arg(long, value_name = "BYTES",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_SNAPLEN)))]
    pub snaplen: Option<u32>,
    /// End after so many packets.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End when a tap has come and no packet came for so long; fractions are allowed.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub idle_exit: Option<Duration>,
    /// Print the summary as one JSON object on standard error.
    #[arg(long)]
    pub json: bool,
    /// User for daemons that want a password; it crosses the network in clear text.
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// File with the password [default: the variable PODTAP_SENSOR_PASSWORD].
    #[arg(long, value_name = "FILE", requires = "user")]
    pub password_file: Option<PathBuf>,
}

impl Args {
    /// What to ask for. libpcap's daemon sends a longer frame than fits in vain, once, and its
    /// capture is then dead without a word; a snaplen that fits makes it cut the frame instead.
    fn snaplen(&self) -> u32 {
        const FITS_A_DATAGRAM: usize = MAX_UDP_PAYLOAD - HEADER_BYTES - PACKET_HEADER_BYTES;
        let default = match self.data {
            DataChannel::Udp => u32::try_from(FITS_A_DATAGRAM).unwrap_or(MAX_SNAPLEN),
            DataChannel::Tcp => MAX_SNAPLEN,
        };
        self.snaplen.unwrap_or(default)
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_error| "expected a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(number).map_err(|error| error.to_string())
}

fn senders(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.or_else(|_not_one| text.parse()).map_err(|_neither| {
        "expected an address or a prefix, as in 10.0.0.1 or fd00::/64".to_owned()
    })
}

fn sampling(text: &str) -> Result<Sampling, String> {
    let number = |text: &str| text.parse().ok().filter(|number| *number > 0);
    let with = |method| move |value| Sampling { method, value };
    let sampling = match text.strip_prefix("1/") {
        Some(text) => number(text).map(with(1)),
        None => text.strip_suffix("ms").and_then(number).map(with(2)),
    };
    sampling.ok_or_else(|| "expected 1/N or Nms, N from 1 to 4294967295".to_owned())
}

/// Why the sensor did not run, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter expression does not compile.
    #[error("--filter {expression:?}: {source}")]
    Filter {
        /// As it was given.
        expression: String,
        /// What libpcap says.
        source: CompileError,
    },
    /// The filter file cannot be used.
    #[error("--filter-file {0}")]
    FilterFile(#[from] FilterFileError),
    /// No password, or none that can be sent.
    #[error("--user {user}: {reason}")]
    Password {
        /// As it was given.
        user: String,
        /// What is wrong.
        reason: String,
    },
    /// The listening socket cannot be had.
    #[error("--listen {address}: {source}")]
    Listen {
        /// As it was given.
        address: SocketAddr,
        /// Port in use, no such address, not allowed.
        source: io::Error,
    },
    /// A daemon's name has no address.
    #[error("--connect {target}: {source}; expected HOST or HOST:PORT")]
    Resolve {
        /// As it was given.
        target: String,
        /// What the resolver says.
        source: io::Error,
    },
    /// The file cannot be made.
    #[error("--write {}: {source}", path.display())]
    Create {
        /// As it was given.
        path: PathBuf,
        /// No such directory, not allowed.
        source: io::Error,
    },
    /// The system lacks what the event loop needs.
    #[error("cannot set up the event loop: {0}")]
    SetUp(#[source] io::Error),
    /// Writing failed, or waiting, or no daemon is left; the summary was printed.
    #[error("stopped: {0}")]
    Running(#[source] io::Error),
}

impl Error {
    /// 2 for wrong input, 1 for a failure while running.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::SetUp(_) | Self::Running(_) => 1,
            _ => 2,
        }
    }
}

/// Runs until SIGINT, SIGTERM, `--count` or `--idle-exit`, and prints the summary.
///
/// # Errors
///
/// See [`Error`]; whatever is in the file by then is complete.
pub fn run(args: &Args) -> Result<Summary, Error> {
    let (stop, stopper) = UnixStream::pair().map_err(Error::SetUp)?;
    let (mut event_loop, address) = prepare(args, stop)?;
    let mut signals = Signals::register(&stopper).map_err(Error::SetUp)?;
    if args.filter_file.is_some() {
        let (reload, reloader) = UnixStream::pair().map_err(Error::SetUp)?;
        event_loop.reload_when_told(reload).map_err(Error::SetUp)?;
        signals.register_hangup(reloader).map_err(Error::SetUp)?;
    }
    if let Some(address) = address {
        tracing::info!("waiting for taps on {address}");
    }
    let (summary, result) = event_loop.run();
    print(&summary, args.json);
    result.map(|()| summary).map_err(Error::Running)
}

/// Everything that can be wrong with the arguments is found here, before a tap is talked to and
/// before a file is overwritten.
fn prepare(
    args: &Args,
    stop: UnixStream,
) -> Result<(event_loop::EventLoop, Option<SocketAddr>), Error> {
    let wishes = client::Wishes {
        credentials: credentials(args)?,
        open: args.open.clone(),
        sampling: args.sampling,
    };
    let mut settings =
        context::Settings::new(wishes, args.data, args.snaplen(), args.filter.clone()).map_err(
            |source| Error::Filter { expression: args.filter.clone().unwrap_or_default(), source },
        )?;
    settings.data_from.clone_from(&args.data_from);
    if let Some(path) = &args.filter_file {
        settings.set_filter_file(path.clone())?;
    }
    let targets = args.connect.iter().map(|target| {
        let mut target = targets::Target::resolve(target, Instant::now())
            .map_err(|source| Error::Resolve { target: target.clone(), source })?;
        if args.reconnect {
            target.insist();
        }
        Ok(target)
    });
    let targets = targets.collect::<Result<_, Error>>()?;
    let listen =
        |address| socket::listen(address).map_err(|source| Error::Listen { address, source });
    let listener = args.listen.map(listen).transpose()?;
    let address = listener.as_ref().and_then(|listener| listener.local_addr().ok());
    let create = |path: &PathBuf| {
        output::Output::open(path, args.count)
            .map_err(|source| Error::Create { path: path.clone(), source })
    };
    let output = match &args.write {
        Some(path) => create(path)?,
        None => output::Output::nowhere(args.count),
    };
    let mut event_loop = event_loop::EventLoop::new(settings, output, listener, targets, stop)
        .map_err(Error::SetUp)?;
    event_loop.set_idle_exit(args.idle_exit);
    if io::stderr().is_terminal() {
        event_loop.show_status();
    }
    Ok((event_loop, address))
}

fn credentials(args: &Args) -> Result<Option<(String, String)>, Error> {
    let Some(user) = args.user.clone() else { return Ok(None) };
    let fail = |reason: String| Error::Password { user: user.clone(), reason };
    let password = match &args.password_file {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| fail(format!("--password-file {}: {error}", path.display())))?
            .trim_end_matches(['\r', '\n'])
            .to_owned(),
        None => std::env::var(PASSWORD_VARIABLE).map_err(|_unset| {
            fail(format!("needs --password-file or the variable {PASSWORD_VARIABLE}"))
        })?,
    };
    if user.len().max(password.len()) > MAX_CREDENTIAL {
        return Err(fail("name or password is longer than 65535 bytes".to_owned()));
    }
    Ok(Some((user, password)))
}

fn print(summary: &Summary, json: bool) {
    let text = if json {
        serde_json::to_string(summary).unwrap_or_else(|error| error.to_string())
    } else {
        summary.to_text()
    };
    // Who has closed standard error does not want to know.
    let _ = writeln!(io::stderr(), "{text}");
}

/// The handlers of SIGINT, SIGTERM and SIGHUP; dropping takes them away.
struct Signals(Vec<signal_hook::SigId>);

impl Signals {
    fn register(stopper: &UnixStream) -> io::Result<Self> {
        let mut signals = Self(Vec::new());
        // One signal and several mean the same: `timeout` sends two at once, and the end is
        // bounded without a second.
        for signal in [SIGINT, SIGTERM] {
            let pipe = stopper.try_clone()?;
            signals.0.push(signal_hook::low_level::pipe::register(signal, pipe)?);
        }
        Ok(signals)
    }

    /// SIGHUP writes a byte, from now on.
    fn register_hangup(&mut self, reloader: UnixStream) -> io::Result<()> {
        self.0.push(signal_hook::low_level::pipe::register(SIGHUP, reloader)?);
        Ok(())
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.0.drain(..) {
            signal_hook::low_level::unregister(id);
        }
    }
}

#[cfg(test)]
mod args_tests;
#[cfg(test)]
mod daemons;
#[cfg(test)]
mod played;
#[cfg(test)]
mod recorded;
#[cfg(test)]
mod tools;
