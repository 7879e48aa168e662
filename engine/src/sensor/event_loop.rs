//! The sensor's one thread: which socket is ready, what is due, and when it is over.
//!
//! ```text
//! epoll --+-- listener --accept--> Tap          timers: taps' deadlines, flush, status line,
//!         +-- control, data -----> Tap                  reconnection, idle exit
//!         +-- reload (SIGHUP) ---> a new filter for every Tap
//!         +-- stop (signals), output (reader gone) --> end every capture, then return
//! ```
//!
//! Level-triggered, so a socket that is not read to its end comes again and no tap can starve the
//! others.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::context::{Context, Settings, Token, Trouble};
use super::output::Output;
use super::socket;
use super::status::Status;
use super::summary::{Counts, Summary};
use super::tap::{Fate, Tap};
use super::targets::Target;

/// Packets are in the file after so long at the latest.
const FLUSH_PERIOD: Duration = Duration::from_millis(100);
/// The longest sleep.
const IDLE: Duration = Duration::from_secs(1);
/// How long the end may take.
const END_DEADLINE: Duration = Duration::from_millis(1_900);
/// Conversations at a time; more are turned away.
const MAX_TAPS: usize = 4_096;
/// Pause after the system refused to accept a connection (no descriptors, no memory).
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
pub(super) struct EventLoop {
    context: Context,
    listener: Option<TcpListener>,
    accept_again: Option<Instant>,
    targets: Vec<Target>,
    taps: HashMap<u64, Tap>,
    next_id: u64,
    connections: u64,
    stop: UnixStream,
    reload: Option<UnixStream>,
    idle_exit: Option<Duration>,
    status: Option<Status>,
    /// When [`housekeeping`](Self::housekeeping) has something to do.
    wake_at: Instant,
    flush_at: Option<Instant>,
    last_packet: Option<Instant>,
    /// The end has begun, and takes no longer than this.
    ending: Option<Instant>,
    /// It has begun because no daemon is left: why.
    deserted: Option<String>,
}

impl EventLoop {
    /// `stop` ends the run when a byte comes from it. Nothing happens before [`run`](Self::run).
    pub(super) fn new(
        settings: Settings,
        mut output: Output,
        listener: Option<TcpListener>,
        targets: Vec<Target>,
        stop: UnixStream,
    ) -> io::Result<Self> {
        raise_descriptor_limit();
        stop.set_nonblocking(true)?;
        output.watch(stop.try_clone()?);
        let context = Context::new(settings, Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, output);
        context.register(&stop, Token::Stop, EpollFlags::EPOLLIN)?;
        if let Some(listener) = &listener {
            context.register(listener, Token::Listener, EpollFlags::EPOLLIN)?;
        }
        if let Some(file) = context.output.descriptor() {
            match context.register(file, Token::Output, EpollFlags::empty()) {
                // A regular file cannot be waited for, and has no reader that could go.
                Ok(()) | Err(Errno::EPERM) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self {
            context,
            listener,
            accept_again: None,
            targets,
            taps: HashMap::new(),
            next_id: 0,
            connections: 0,
            stop,
            reload: None,
            idle_exit: None,
            status: None,
            wake_at: Instant::now(),
            flush_at: None,
            last_packet: None,
            ending: None,
            deserted: None,
        })
    }

    /// Ends the run when there was a tap, and no packet came for so long.
    pub(super) fn set_idle_exit(&mut self, idle: Option<Duration>) {
        self.idle_exit = idle;
    }

    /// Shows counts on standard error, once a second.
    pub(super) fn show_status(&mut self) {
        self.status = Some(Status::new(Instant::now()));
    }

    /// Reads the filter file again when a byte comes from `reload`.
    pub(super) fn reload_when_told(&mut self, reload: UnixStream) -> io::Result<()> {
        reload.set_nonblocking(true)?;
        self.context.register(&reload, Token::Reload, EpollFlags::EPOLLIN)?;
        self.reload = Some(reload);
        Ok(())
    }

    /// Runs until it is told to stop, has what it was asked for, or cannot write any more. The
    /// summary is right in every case.
    pub(super) fn run(mut self) -> (Summary, io::Result<()>) {
        let result = self.turn_until_done();
        let now = Instant::now();
        for (_, tap) in std::mem::take(&mut self.taps) {
            tap.close(now, &mut self.context);
        }
        if let Some(status) = &self.status {
            status.clear();
        }
        let Context { records, failures, output, .. } = self.context;
        let summary = Summary::new(records, self.connections, failures);
        let deserted = self.deserted.map_or(Ok(()), |why| Err(io::Error::other(why)));
        (summary, output.finish().and(result).and(deserted))
    }

    fn turn_until_done(&mut self) -> io::Result<()> {
        let mut ready = [EpollEvent::empty(); 256];
        loop {
            let wait = self.wake_at.saturating_duration_since(Instant::now()).min(IDLE);
            // Rounded up: a deadline that is less than a millisecond away is not to be spun for.
            let wait = u16::try_from(wait.as_micros().div_ceil(1_000)).unwrap_or(u16::MAX);
            let count = match self.context.epoll.wait(&mut ready, EpollTimeout::from(wait)) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            let now = Instant::now();
            let packets = self.context.output.packets();
            for event in &ready[..count] {
                self.handle(now, Token::from_number(event.data()));
            }
            if self.wake_at <= now {
                self.housekeeping(now);
            }
            if self.context.output.packets() != packets {
                self.last_packet = Some(now);
                let flush_at = *self.flush_at.get_or_insert(now + FLUSH_PERIOD);
                self.wake_by(flush_at);
            }
            if self.context.output.is_done() {
                self.begin_to_end(now);
            }
            if self.ending.is_some_and(|end| end <= now || self.taps.is_empty()) {
                return Ok(());
            }
        }
    }

    fn wake_by(&mut self, deadline: Instant) {
        self.wake_at = self.wake_at.min(deadline);
    }

    fn handle(&mut self, now: Instant, token: Token) {
        match token {
            Token::Stop => {
                take_bytes(&mut self.stop);
                self.context.output.told_to_stop();
                self.begin_to_end(now);
            }
            Token::Reload => {
                if let Some(reload) = &mut self.reload {
                    take_bytes(reload);
                }
                self.replace_filter(now);
            }
            Token::Listener => self.accept(now),
            Token::Output => {
                if let Some(file) = self.context.output.descriptor() {
                    // Registered in `new`: taking it out cannot fail.
                    let _ = self.context.epoll.delete(file);
                }
                self.context.output.reader_has_gone();
            }
            Token::Control(id) => {
                self.with_tap(id, now, |tap, context| tap.control_ready(now, context))
            }
            Token::Data(id) => self.with_tap(id, now, |tap, context| tap.data_ready(now, context)),
        }
    }

    /// Lets a tap do something, and takes it out if that was its last.
    fn with_tap(
        &mut self,
        id: u64,
        now: Instant,
        act: impl FnOnce(&mut Tap, &mut Context) -> Fate,
    ) {
        let Some(tap) = self.taps.get_mut(&id) else { return };
        match act(tap, &mut self.context) {
            Fate::Stays => {
                if let Some(deadline) = tap.deadline() {
                    self.wake_by(deadline);
                }
            }
            Fate::Goes => self.remove(id, now),
        }
    }

    fn remove(&mut self, id: u64, now: Instant) {
        let Some(tap) = self.taps.remove(&id) else { return };
        if let Some(target) = tap.target.and_then(|index| self.targets.get_mut(index)) {
            target.lost(now, tap.has_started(), tap.trouble());
            self.look_for_targets(now);
        }
        tap.close(now, &mut self.context);
    }

    /// Wakes up for the next attempt to connect; ends when nobody is left to be connected to, and
    /// nobody can come.
    fn look_for_targets(&mut self, now: Instant) {
        if let Some(next) = self.targets.iter().filter_map(Target::next_attempt).min() {
            self.wake_by(next);
        }
        let why: Vec<&str> = self.targets.iter().filter_map(Target::given_up).collect();
        if self.listener.is_none()
            && self.ending.is_none()
            && !why.is_empty()
            && why.len() == self.targets.len()
        {
            self.deserted = Some(why.join("; "));
            self.begin_to_end(now);
        }
    }

    fn replace_filter(&mut self, now: Instant) {
        match self.context.settings.reload() {
            Ok(()) => tracing::info!("the filter was read again"),
            Err(error) => return tracing::error!("the old filter stays: {error}"),
        }
        let ids: Vec<u64> = self.taps.keys().copied().collect();
        for id in ids {
            self.with_tap(id, now, |tap, context| tap.update_filter(now, context));
        }
    }

    fn accept(&mut self, now: Instant) {
        // Not for ever: others want their turn, and who is still waiting is still there.
        for _ in 0..64 {
            let Some(listener) = &self.listener else { return };
            match listener.accept() {
                Ok((stream, from)) => {
                    let peer = socket::canonical(from);
                    self.add(now, peer.ip().to_string(), peer, None, stream);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    match error.raw_os_error() {
                        // The peer's own doing.
                        Some(libc::ECONNABORTED | libc::EINTR | libc::EPROTO) => continue,
                        _ => self.pause_accepting(now, &error),
                    }
                    return;
                }
            }
        }
    }

    fn pause_accepting(&mut self, now: Instant, error: &io::Error) {
        if self.context.is_news("listener", "accept") {
            tracing::warn!("cannot accept connections for now: {error}");
        }
        if let Some(listener) = &self.listener {
            // Registered in `new` or by `housekeeping`: taking it out cannot fail.
            let _ = self.context.epoll.delete(listener);
        }
        self.accept_again = Some(now + ACCEPT_PAUSE);
        self.wake_by(now + ACCEPT_PAUSE);
    }

    fn add(
        &mut self,
        now: Instant,
        label: String,
        peer: SocketAddr,
        target: Option<usize>,
        stream: TcpStream,
    ) {
        self.connections += 1;
        if self.taps.len() >= MAX_TAPS {
            let trouble = Trouble::new("too_many", "is one connection too many");
            return self.not_added(now, &label, target, &trouble);
        }
        let id = self.next_id;
        self.next_id += 1;
        let tap = stream
            .set_nonblocking(true)
            .and_then(|()| stream.set_nodelay(true))
            .and_then(|()| Tap::new(id, label.clone(), peer, target, stream, now, &self.context));
        match tap {
            Ok(tap) => {
                self.taps.insert(id, tap);
                if target.is_none() {
                    self.with_tap(id, now, |tap, context| tap.control_ready(now, context));
                }
                self.wake_by(now);
            }
            Err(error) => {
                let trouble = Trouble::new("socket", format!("cannot be served: {error}"));
                self.not_added(now, &label, target, &trouble);
            }
        }
    }

    fn not_added(&mut self, now: Instant, label: &str, target: Option<usize>, trouble: &Trouble) {
        self.context.failed(label, trouble);
        if let Some(target) = target.and_then(|index| self.targets.get_mut(index)) {
            target.lost(now, false, Some(trouble));
        }
    }

    fn connect_targets(&mut self, now: Instant) {
        for index in 0..self.targets.len() {
            let target = &mut self.targets[index];
            if target.next_attempt().is_none_or(|next| next > now) {
                continue;
            }
            let address = target.attempt();
            let label = target.label.clone();
            match socket::connect(address) {
                Ok(stream) => {
                    self.add(now, label, socket::canonical(address), Some(index), stream);
                }
                Err(error) => {
                    let text = format!("cannot be connected to: {error}");
                    let trouble = Trouble::new("connect", text);
                    self.context.failed(&label, &trouble);
                    self.targets[index].lost(now, false, Some(&trouble));
                }
            }
        }
        self.look_for_targets(now);
    }

    /// Everything that goes by time; finds out when it is next wanted.
    fn housekeeping(&mut self, now: Instant) {
        self.wake_at = now + IDLE;
        let due: Vec<u64> = self
            .taps
            .iter()
            .filter(|(_, tap)| tap.deadline().is_some_and(|deadline| deadline <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.with_tap(id, now, |tap, context| tap.tick(now, context));
        }
        if let Some(next) = self.taps.values().filter_map(Tap::deadline).min() {
            self.wake_by(next);
        }
        if self.flush_at.is_some_and(|flush_at| flush_at <= now) {
            self.flush_at = None;
            self.context.output.flush();
        }
        if let Some(flush_at) = self.flush_at {
            self.wake_by(flush_at);
        }
        self.accept_after_pause(now);
        if self.ending.is_none() {
            self.connect_targets(now);
            self.exit_if_idle(now);
        }
        if let Some(end) = self.ending {
            self.wake_by(end);
        }
        self.update_status(now);
    }

    fn accept_after_pause(&mut self, now: Instant) {
        let Some(again) = self.accept_again else { return };
        if again > now {
            return self.wake_by(again);
        }
        self.accept_again = None;
        if let Some(listener) = &self.listener
            && let Err(error) =
                self.context.register(listener, Token::Listener, EpollFlags::EPOLLIN)
        {
            self.pause_accepting(now, &error.into());
        }
    }

    fn exit_if_idle(&mut self, now: Instant) {
        let Some(idle) = self.idle_exit else { return };
        if self.context.records.is_empty() {
            return;
        }
        let deadline = *self.last_packet.get_or_insert(now) + idle;
        if deadline <= now {
            self.begin_to_end(now);
        } else {
            self.wake_by(deadline);
        }
    }

    /// Ends every capture; the loop returns when all have ended.
    fn begin_to_end(&mut self, now: Instant) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(now + END_DEADLINE);
        self.listener = None;
        let ids: Vec<u64> = self.taps.keys().copied().collect();
        for id in ids {
            self.with_tap(id, now, |tap, context| tap.end(now, context));
        }
        self.wake_by(now);
    }

    fn update_status(&mut self, now: Instant) {
        let Some(status) = &mut self.status else { return };
        if status.next <= now {
            let mut counts = Counts::default();
            self.context.records.iter().for_each(|record| counts += record.counts);
            self.taps.values().for_each(|tap| counts += tap.counts());
            let capturing = self.taps.values().filter(|tap| tap.has_captured()).count();
            status.show(now, capturing, &counts);
        }
        let next = status.next;
        self.wake_by(next);
    }
}

/// What is read does not matter, only that it is not there any more.
fn take_bytes(from: &mut UnixStream) {
    let _ = io::Read::read(from, &mut [0; 64]);
}

/// Two or three descriptors per tap: takes as many as the system lets us have.
fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::debug!("the limit of open files stays at {soft}: {error}");
    }
}

#[cfg(test)]
mod tests;
