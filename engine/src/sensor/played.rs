//! A whole sensor on loopback, and taps and daemons that are played by the tests.
//!
//! ```text
//! Sensor (a thread) <--control, data--> FakeTap (the test)      end -> Summary, the file's bytes
//! ```

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::client::Wishes;
use super::context::{DataChannel, Settings};
use super::event_loop::EventLoop;
use super::output::Output;
use super::reassembly::tests::Packet;
use super::socket;
use super::summary::Summary;
use super::targets::Target;
use crate::capfile::pcapng::Writer;
use crate::rpcap::{
    Auth, Header, Interface, MessageType, OpenReply, StartCapture, StartCaptureReply, Stats,
};

/// A failing test ends by this, a passing one never waits for it.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// What a sensor is to do.
pub(super) struct Plan {
    pub(super) settings: Settings,
    pub(super) count: Option<u64>,
    pub(super) targets: Vec<Target>,
    pub(super) listens: bool,
    /// Instead of a file of its own.
    pub(super) output: Option<PathBuf>,
    pub(super) reload: Option<UnixStream>,
}

impl Plan {
    pub(super) fn new(data: DataChannel) -> Self {
        let mut settings = Settings::new(Wishes::default(), data, 65_535, None).unwrap();
        // Holes are given up at the end only: a busy machine changes no count.
        settings.hold = PATIENCE;
        Self {
            settings,
            count: None,
            targets: Vec::new(),
            listens: true,
            output: None,
            reload: None,
        }
    }

    /// Connects to these, and listens no more.
    pub(super) fn connecting(mut self, targets: impl IntoIterator<Item = SocketAddr>) -> Self {
        let target = |to: SocketAddr| Target::new(to.to_string(), vec![to], Instant::now());
        self.targets.extend(targets.into_iter().map(target));
        self.listens = false;
        self
    }

    pub(super) fn start(self) -> Sensor {
        let directory = tempfile::tempdir().unwrap();
        let path = self.output.unwrap_or_else(|| directory.path().join("out.pcapng"));
        let listen = || socket::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = self.listens.then(listen);
        let address = listener.as_ref().map(|listener| listener.local_addr().unwrap());
        let (stop, stopper) = UnixStream::pair().unwrap();
        let (settings, count, targets, reload) =
            (self.settings, self.count, self.targets, self.reload);
        let file = path.clone();
        let thread = std::thread::spawn(move || {
            // Here, since a pipe opens when its reader comes.
            let output = Output::open(&file, count).unwrap();
            let mut event_loop = EventLoop::new(settings, output, listener, targets, stop).unwrap();
            if let Some(reload) = reload {
                event_loop.reload_when_told(reload).unwrap();
            }
            event_loop.run()
        });
        Sensor { address, stopper, thread, path, directory }
    }
}

pub(super) struct Sensor {
    address: Option<SocketAddr>,
    stopper: UnixStream,
    thread: JoinHandle<(Summary, io::Result<()>)>,
    path: PathBuf,
    directory: tempfile::TempDir,
}

impl Sensor {
    pub(super) fn start(data: DataChannel, count: Option<u64>) -> Self {
        Plan { count, ..Plan::new(data) }.start()
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address.unwrap()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn stop(&self) {
        (&self.stopper).write_all(b"x").unwrap();
    }

    /// What was counted, and the file's bytes.
    pub(super) fn end(self) -> (Summary, Vec<u8>) {
        let path = self.path.clone();
        let (summary, result, _directory) = self.end_somehow();
        result.unwrap();
        (summary, std::fs::read(path).unwrap())
    }

    /// What was counted, and whether the run failed.
    pub(super) fn end_somehow(self) -> (Summary, io::Result<()>, tempfile::TempDir) {
        let (summary, result) = self.thread.join().unwrap();
        (summary, result, self.directory)
    }
}

/// A tap as the sensor sees it.
pub(super) struct FakeTap {
    pub(super) control: TcpStream,
    pub(super) start: StartCapture,
}

impl FakeTap {
    pub(super) fn new(control: TcpStream) -> Self {
        control.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { control, start: StartCapture::read(&[0; 20]).unwrap() }
    }

    /// Talks until the capture runs; `data_port` is what a passive TCP daemon listens on.
    pub(super) fn serve(control: TcpStream, data_port: u16) -> Self {
        let mut tap = Self::new(control);
        tap.talk_until_opened();
        tap.talk_until_started(data_port);
        tap
    }

    pub(super) fn talk_until_opened(&mut self) {
        self.expect(MessageType::Auth);
        self.reply(MessageType::AuthReply, 0, &Auth::reply());
        self.expect(MessageType::FindAllIf);
        let mut list = Vec::new();
        Interface { name: "any-eth".into(), ..Interface::default() }.write(&mut list);
        self.reply(MessageType::FindAllIfReply, 1, &list);
        assert_eq!(self.expect(MessageType::Open), b"any-eth");
        self.reply(MessageType::OpenReply, 0, &OpenReply { linktype: 1 }.to_bytes());
    }

    pub(super) fn talk_until_started(&mut self, data_port: u16) {
        self.start = StartCapture::read(&self.expect(MessageType::StartCapture)).unwrap();
        let reply = StartCaptureReply { buffer_bytes: 0, port: data_port };
        self.reply(MessageType::StartCaptureReply, 0, &reply.to_bytes());
    }

    pub(super) fn connect(sensor: &Sensor) -> Self {
        Self::serve(TcpStream::connect(sensor.address()).unwrap(), 0)
    }

    pub(super) fn accept(listener: &TcpListener, data_port: u16) -> Self {
        Self::serve(accept(listener), data_port)
    }

    pub(super) fn expect(&mut self, kind: MessageType) -> Vec<u8> {
        let mut header = [0; 8];
        self.control.read_exact(&mut header).unwrap();
        let header = Header::read(header);
        assert_eq!(header.message_type(), Some(kind));
        let mut payload = vec![0; header.payload_len as usize];
        self.control.read_exact(&mut payload).unwrap();
        payload
    }

    pub(super) fn reply(&mut self, kind: MessageType, value: u16, payload: &[u8]) {
        let len = u32::try_from(payload.len()).unwrap();
        let bytes = [&Header::new(kind, value, len).to_bytes()[..], payload].concat();
        self.control.write_all(&bytes).unwrap();
    }

    /// The sensor hangs up, after some bytes or none.
    pub(super) fn expect_end(mut self) {
        let _ = self.control.read_to_end(&mut Vec::new());
    }

    pub(super) fn data_address(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), self.start.port)
    }

    pub(super) fn send(&self, datagrams: &[&Vec<u8>]) {
        assert_eq!(self.start.flags & StartCapture::DGRAM, StartCapture::DGRAM);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for datagram in datagrams {
            socket.send_to(datagram, self.data_address()).unwrap();
        }
    }

    pub(super) fn reply_stats(&mut self, sent: u32) {
        let stats = Stats { received: sent, sent, ..Stats::default() };
        self.reply(MessageType::StatsReply, 0, &stats.to_bytes());
    }

    /// Answers what the sensor asks at the end.
    pub(super) fn end(mut self, sent: u32) {
        self.expect(MessageType::Stats);
        self.reply_stats(sent);
        self.expect(MessageType::EndCapture);
        self.reply(MessageType::EndCaptureReply, 0, &[]);
        self.expect(MessageType::Stats);
        self.reply_stats(sent);
        self.expect(MessageType::Close);
    }
}

/// Somebody who connects; a test that waits in vain fails.
pub(super) fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                return stream;
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => panic!("{error}"),
            Err(_) => assert!(Instant::now() < deadline, "nobody connects"),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The file that holds these packets and no more.
pub(super) fn file_of(label: &str, packets: &[Packet]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new()).unwrap();
    let block = writer.interface(&format!("{label} any-eth"), 1, 65_535).unwrap();
    for (header, data) in packets {
        let time = u64::from(header.seconds) * 1_000_000_000 + u64::from(header.micros) * 1_000;
        writer.packet(block, time, header.wire_len, data).unwrap();
    }
    writer.into_inner()
}
