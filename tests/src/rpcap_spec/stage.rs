//! Where conversations take place: podtap's processes, and a cable of their own to capture from.
//!
//! ```text
//! namespace of this thread:   v0 ===== v1  <-- podtap run --interface v1      Wire::send(frame) at v0
//!                             lo: control and data between podtap and the test
//! ```
//!
//! The namespace has no name: it ends with the thread and the processes in it.

use super::{LIMIT, Peer};
use crate::{
    lab::{Process, can_run, ip_batch},
    tap::podtap,
};
use nix::{
    ifaddrs::getifaddrs,
    net::if_::InterfaceFlags,
    sched::{CloneFlags, unshare},
    sys::{
        signal::Signal,
        socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket},
    },
};
use pcap_parser::traits::{PcapNGPacketBlock as _, PcapReaderIterator as _};
use pcap_parser::{Block, PcapBlockOwned, PcapError, PcapNGReader};
use serde_json::Value;
use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};
use tempfile::{NamedTempFile, TempDir};

/// How often a state that cannot be waited for is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Calls `look` until it finds something.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < LIMIT, "not in {LIMIT:?}: {what}");
        thread::sleep(POLL);
    }
}

/// Runs `test` in a network namespace of its own, with a [`Wire`] in it. Without root it says
/// loudly that it skips `name`.
///
/// # Panics
///
/// When the namespace cannot be made, or `test` panics.
pub fn in_namespace(name: &str, test: impl FnOnce(&Wire) + Send) {
    if !can_run(name) {
        return;
    }
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        test(&Wire::new());
    };
    thread::scope(|scope| {
        if let Err(panic) = scope.spawn(inside).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A cable from v0 to v1.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    v0: LinkAddr,
}

impl Wire {
    fn new() -> Self {
        // Router solicitations and the like would be frames that no test sent.
        for links in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{links}/disable_ipv6");
            match std::fs::write(&path, "1") {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    panic!("{path}: {error}")
                }
                _ => {}
            }
        }
        Self::ip(
            "link set lo up
            link add v0 type veth peer name v1
            addr add 10.7.0.1/24 dev v1
            link set v0 up
            link set v1 up",
        );
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket =
            socket(AddressFamily::Packet, SockType::Raw, flags, None).expect("CAP_NET_RAW");
        Self { socket, v0: link("v0") }
    }

    /// Waits until the cable carries frames: the kernel gives a link its queue a while after it
    /// came up, and drops what is sent before.
    ///
    /// # Panics
    ///
    /// When it never does.
    pub fn wait_until_it_carries(&self) {
        until("v0 and v1 running", || {
            let running = |name: &str| {
                getifaddrs().expect("the interfaces").any(|interface| {
                    interface.interface_name == name
                        && interface.flags.contains(InterfaceFlags::IFF_RUNNING)
                })
            };
            (running("v0") && running("v1")).then_some(())
        });
    }

    /// Sends a frame from v0 to v1.
    ///
    /// # Panics
    ///
    /// When the kernel refuses it.
    pub fn send(&self, frame: &[u8]) {
        let sent = sendto(self.socket.as_raw_fd(), frame, &self.v0, MsgFlags::empty());
        assert_eq!(sent, Ok(frame.len()));
    }

    /// Runs these lines of `ip`, in this thread's namespace.
    ///
    /// # Panics
    ///
    /// When one fails.
    pub fn ip(lines: &str) {
        let lines: Vec<String> = lines.lines().map(|line| line.trim().to_owned()).collect();
        ip_batch(None, &lines).expect("ip");
    }

    /// A frame of `len` bytes from 60, of a local experimental ethertype that no stack answers,
    /// told from others by `mark`.
    #[must_use]
    pub fn frame(mark: u8, len: usize) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5, mark]);
        frame.extend((frame.len()..len).map(|at| (at % 251).to_le_bytes()[0]));
        frame
    }
}

fn link(name: &str) -> LinkAddr {
    let mut interfaces = getifaddrs().expect("the interfaces");
    let found = interfaces.find_map(|interface| {
        let address = interface.address.filter(|_| interface.interface_name == name)?;
        address.as_link_addr().copied()
    });
    found.unwrap_or_else(|| panic!("{name} is not there"))
}

/// A `podtap run` or `podtap replay` that talks to this test.
#[derive(Debug)]
pub struct Tap {
    process: Process,
    listener: TcpListener,
    _file: Option<NamedTempFile>,
}

impl Tap {
    /// Starts `podtap run` on v1, with us as its sensor. To be called in [`in_namespace`].
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    pub fn run(more: &[&str]) -> Self {
        Self::run_towards(1, more)
    }

    /// As [`run`](Self::run), with us as so many sensors: each has an address of its own.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    pub fn run_towards(sensors: u8, more: &[&str]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
        listener.set_nonblocking(true).expect("an option of every socket");
        let port = listener.local_addr().expect("it is bound").port();
        let sensors: Vec<_> = (1..=sensors).map(|n| format!("127.0.0.{n}:{port}")).collect();
        let mut command = Command::new(podtap());
        command.args(["run", "--sensor", &sensors.join(",")]).args(CAPTURE).args(more);
        Self::start(command, listener, None)
    }

    /// Starts `podtap run` on v1 in passive mode, on a port of this namespace's.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    pub fn passive(more: &[&str]) -> Self {
        let (listener, _address) = listen();
        let mut command = Command::new(podtap());
        command.args(["run", "--listen", &PASSIVE.to_string()]).args(CAPTURE).args(more);
        Self::start(command, listener, None)
    }

    /// Starts `podtap replay` of these frames, with us as its sensor.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    pub fn replay(frames: &[Vec<u8>], more: &[&str]) -> Self {
        let (listener, address) = listen();
        let mut file = NamedTempFile::new().expect("a temporary file");
        file.write_all(&pcap(frames)).expect("a temporary file can be written");
        let mut command = Command::new(podtap());
        command.args(["replay", "--sensor", &address.to_string()]).arg(file.path()).args(more);
        Self::start(command, listener, Some(file))
    }

    fn start(command: Command, listener: TcpListener, file: Option<NamedTempFile>) -> Self {
        let process = Process::start(command).expect("podtap starts");
        Self { process, listener, _file: file }
    }

    fn check_alive(&mut self) {
        if let Some(status) = self.process.ended().expect("its status") {
            panic!("podtap ended: {status}: {}", self.process.stderr());
        }
    }

    /// Waits for its control connection.
    ///
    /// # Panics
    ///
    /// When none comes.
    pub fn accept(&mut self) -> Peer {
        let stream = until("the tap connects", || match self.listener.accept() {
            Ok((stream, _from)) => Some(stream),
            Err(_none_yet) => {
                self.check_alive();
                None
            }
        });
        stream.set_nonblocking(false).expect("an option of every socket");
        Peer::client(stream)
    }

    /// Connects to it: it is in passive mode.
    ///
    /// # Panics
    ///
    /// When it does not listen.
    pub fn connect(&mut self) -> Peer {
        Peer::client(until("the tap listens", || {
            self.check_alive();
            TcpStream::connect(PASSIVE).ok()
        }))
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.stderr()
    }

    /// Waits until it has logged `words`.
    ///
    /// # Panics
    ///
    /// When it never does.
    pub fn wait_for(&mut self, words: &str) {
        self.process.wait_for(words, LIMIT).expect("the words");
    }

    /// Sends it a signal.
    ///
    /// # Panics
    ///
    /// When it is not there.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal).expect("it runs");
    }

    /// Waits for its end by itself.
    ///
    /// # Panics
    ///
    /// When it goes on.
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait(LIMIT).expect("an end")
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the tap said:\n{}", self.log());
        }
    }
}

/// What `podtap run` is told in every test: small, one worker, frames from v1, all of them.
const CAPTURE: [&str; 8] =
    ["--interface", "v1", "--election", "none", "--workers", "1", "--ring-memory", "4M"];
/// Where a passive tap listens, in its own namespace.
const PASSIVE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 2002);

fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port of loopback");
    listener.set_nonblocking(true).expect("an option of every socket");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

/// A capture file: microseconds, Ethernet, a frame each second.
fn pcap(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = 0xa1b2_c3d4_u32.to_be_bytes().to_vec();
    bytes.extend([0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 1]);
    for (second, frame) in (1_700_000_000_u32..).zip(frames) {
        let len = u32::try_from(frame.len()).expect("a frame");
        for field in [second, 5, len, len] {
            bytes.extend(field.to_be_bytes());
        }
        bytes.extend(frame);
    }
    bytes
}

/// A `podtap sensor` that talks to this test.
#[derive(Debug)]
pub struct SensorRun {
    process: Process,
    address: Option<SocketAddr>,
    listener: TcpListener,
    directory: TempDir,
}

impl SensorRun {
    /// Starts `podtap sensor --listen`.
    ///
    /// # Panics
    ///
    /// When it does not come up.
    #[must_use]
    pub fn listening(more: &[&str]) -> Self {
        const SAID: &str = "waiting for taps on ";
        let mut sensor = Self::start(&["--listen", "127.0.0.1:0"], more, listen().0);
        sensor.process.wait_for(SAID, LIMIT).expect("it listens");
        let said = sensor.process.stderr();
        let (_, rest) = said.split_once(SAID).expect("just seen");
        let address = rest.split_whitespace().next().expect("an address");
        sensor.address = Some(address.parse().expect("an address"));
        sensor
    }

    /// Starts `podtap sensor --connect`, towards us.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    pub fn connecting(more: &[&str]) -> Self {
        let (listener, address) = listen();
        Self::start(&["--connect", &address.to_string()], more, listener)
    }

    fn start(how: &[&str], more: &[&str], listener: TcpListener) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let mut command = Command::new(podtap());
        command.arg("sensor").args(how).args(["--json", "--write"]);
        command.arg(directory.path().join("s.pcapng")).args(more);
        let process = Process::start(command).expect("podtap starts");
        Self { process, address: None, listener, directory }
    }

    /// The file that it writes.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("s.pcapng")
    }

    /// A control connection, whoever makes it.
    ///
    /// # Panics
    ///
    /// When there is none in time.
    pub fn meet(&mut self) -> Peer {
        if let Some(address) = self.address {
            return Peer::daemon(TcpStream::connect(address).expect("it listens"));
        }
        let stream = until("the sensor connects", || Some(self.listener.accept().ok()?.0));
        stream.set_nonblocking(false).expect("an option of every socket");
        Peer::daemon(stream)
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.stderr()
    }

    /// Waits until it has logged `words`.
    ///
    /// # Panics
    ///
    /// When it never does.
    pub fn wait_for(&mut self, words: &str) {
        self.process.wait_for(words, LIMIT).expect("the words");
    }

    /// Asks it to end.
    ///
    /// # Panics
    ///
    /// When it cannot be signalled.
    pub fn interrupt(&self) {
        self.process.signal(Signal::SIGINT).expect("it runs");
    }

    /// Waits for its end by itself; its summary.
    ///
    /// # Panics
    ///
    /// When it does not end well.
    pub fn summary(&mut self) -> Value {
        let status = self.process.wait(LIMIT).expect("an end");
        let said = self.process.stderr();
        assert!(status.success(), "{status}: {said}");
        let found = said.lines().rev().find_map(|line| serde_json::from_str(line).ok());
        found.unwrap_or_else(|| panic!("no summary: {said}"))
    }
}

impl Drop for SensorRun {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the sensor said:\n{}", self.log());
        }
    }
}

/// A socket for datagrams to us.
///
/// # Panics
///
/// When there is none.
#[must_use]
pub fn datagrams() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
    socket.set_read_timeout(Some(LIMIT)).expect("an option of every socket");
    let port = socket.local_addr().expect("it is bound").port();
    (socket, port)
}

/// The captured bytes of each packet of a pcapng file, from the link header on.
///
/// # Panics
///
/// When it is no such file, or not whole.
#[must_use]
pub fn frames_of(path: &Path) -> Vec<Vec<u8>> {
    let file = std::fs::read(path).expect("the file");
    let mut reader = PcapNGReader::new(1 << 20, &file[..]).expect("pcapng");
    let mut frames = Vec::new();
    loop {
        match reader.next() {
            Ok((used, block)) => {
                if let PcapBlockOwned::NG(Block::EnhancedPacket(packet)) = block {
                    frames.push(packet.packet_data().to_vec());
                }
                reader.consume(used);
            }
            Err(PcapError::Eof) => return frames,
            Err(PcapError::Incomplete(_)) => reader.refill().expect("a file in memory"),
            Err(error) => panic!("{}: {error:?}", path.display()),
        }
    }
}
