//! Keeps the view current: a thread that follows the kernel and publishes what has changed.
//!
//! ```text
//! events --> tables --quiet for 5 ms, or 20 ms after the first--> View --if new--> publish, tell
//! every 30 s, after an overrun, or in doubt: dump ---^
//! ```
//!
//! A burst costs one view per 20 ms, however many events it has; a view costs as much as there are
//! links, addresses and routes.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::netlink::{Drained, Dumper, Events};
use super::tables::Tables;
use super::{InterfaceSelection, RoleOverrides, View};
use crate::shared::Shared;
use crate::sys::Waker;

/// A burst is over when nothing has come for this long.
const QUIET: Duration = Duration::from_millis(5);
/// A burst that goes on is published this often.
const LONGEST_WAIT: Duration = Duration::from_millis(20);
/// Between dumps that events ask for, so that a storm of those does not become one of dumps.
const BETWEEN_DUMPS: Duration = Duration::from_millis(50);
/// Before another dump, where one failed or was interrupted again and again.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// How the monitor works; the default is right outside tests.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of events that the kernel may queue for us; one more and a dump makes it good.
    pub receive_buffer_bytes: usize,
    /// Time between dumps that nothing asked for.
    pub reconcile_every: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { receive_buffer_bytes: 16 << 20, reconcile_every: Duration::from_secs(30) }
    }
}

/// What the monitor has done so far. Written by its thread alone.
#[derive(Debug, Default)]
pub struct Counters {
    /// Views published.
    pub views: AtomicU64,
    /// Times that the kernel had to drop events; each was followed by a dump.
    pub overruns: AtomicU64,
    /// Dumps taken, for whatever reason.
    pub dumps: AtomicU64,
    /// Tapped links that have no number in the newest view, there being more than numbers.
    pub unnumbered: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64) {
        // Relaxed: a reader that sees it late reports it late.
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    fn note_unnumbered(&self, links: usize) {
        let before =
            self.unnumbered.swap(u64::try_from(links).unwrap_or(u64::MAX), Ordering::Relaxed);
        if before == 0 && links > 0 {
            tracing::warn!(
                links,
                "there are more interfaces than numbers to tell them apart by: packets are reported at \
                 each point of those that have none"
            );
        }
    }
}

/// The network as of now, from one dump of the calling thread's namespace.
///
/// # Errors
///
/// What the netlink socket answers.
pub fn snapshot(selection: InterfaceSelection, overrides: RoleOverrides) -> io::Result<View> {
    let mut tables = Tables::new(selection, overrides);
    Dumper::open()?.refresh(&mut tables)?;
    Ok(tables.view())
}

/// Follows the network of the namespace it was started in. Dropping it ends its thread.
#[derive(Debug)]
pub struct Monitor {
    /// The newest view.
    pub view: Shared<View>,
    /// What the monitor has done.
    pub counters: Arc<Counters>,
    stop: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Takes a first view and starts to follow. `on_change` gets each view after it was published:
    /// the first one before this returns, all later ones in the monitor's thread.
    ///
    /// # Errors
    ///
    /// What the sockets or the thread's creation answer.
    pub fn start(
        selection: InterfaceSelection,
        overrides: RoleOverrides,
        on_change: impl Fn(&Arc<View>) + Send + 'static,
    ) -> io::Result<Self> {
        Self::start_with(Options::default(), selection, overrides, on_change)
    }

    /// As [`start`](Self::start), with other settings than the default.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_with(
        options: Options,
        selection: InterfaceSelection,
        overrides: RoleOverrides,
        on_change: impl Fn(&Arc<View>) + Send + 'static,
    ) -> io::Result<Self> {
        let view = Shared::new(View::default());
        let counters = Arc::new(Counters::default());
        let stop = Waker::new()?;
        let now = Instant::now();
        let mut follower = Follower {
            events: Events::subscribe(options.receive_buffer_bytes)?,
            dumper: Dumper::open()?,
            tables: Tables::new(selection, overrides),
            view: view.clone(),
            counters: Arc::clone(&counters),
            on_change,
            reconcile_every: options.reconcile_every,
            news_since: None,
            next_dump: now,
            last_dump: now,
        };
        follower.dump()?;
        follower.publish();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("net-monitor".to_owned())
            .spawn(move || follower.run(&stopped))?;
        Ok(Self { view, counters, stop, thread: Some(thread) })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the network monitor had panicked");
        }
    }
}

struct Follower<F> {
    events: Events,
    dumper: Dumper,
    tables: Tables,
    view: Shared<View>,
    counters: Arc<Counters>,
    on_change: F,
    reconcile_every: Duration,
    /// When the oldest event came that is not published yet.
    news_since: Option<Instant>,
    next_dump: Instant,
    last_dump: Instant,
}

impl<F: Fn(&Arc<View>)> Follower<F> {
    fn run(mut self, stop: &Waker) {
        loop {
            let mut is_quiet = match self.wait(stop) {
                Ok(Wake::Stop) => return,
                Ok(Wake::Events) => false,
                Ok(Wake::Timeout) => true,
                Err(error) => {
                    // poll itself fails for want of memory only.
                    tracing::warn!(%error, "the network monitor cannot wait for events");
                    std::thread::sleep(QUIET);
                    true
                }
            };
            if !is_quiet {
                self.drain();
            }
            let now = Instant::now();
            if now >= self.next_dump {
                if let Err(error) = self.dump() {
                    tracing::warn!(%error, "the network could not be listed; trying again");
                    self.next_dump = now + AFTER_FAILURE;
                    // The old socket may still owe an answer, and refuses another question.
                    if let Ok(fresh) = Dumper::open() {
                        self.dumper = fresh;
                    }
                }
                self.news_since.get_or_insert(now);
                // What changed during the dump waits in the other socket: not published without.
                is_quiet = false;
            }
            if self.news_since.is_some_and(|since| is_quiet || now >= since + LONGEST_WAIT) {
                self.publish();
            }
        }
    }

    fn wait(&self, stop: &Waker) -> Result<Wake, Errno> {
        let now = Instant::now();
        let mut until = self.next_dump;
        if let Some(since) = self.news_since {
            until = until.min(since + LONGEST_WAIT).min(now + QUIET);
        }
        // Rounded up: a wait that ends just before its time would only be repeated.
        let timeout = until.saturating_duration_since(now).as_micros().div_ceil(1000);
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let mut fds = [
            PollFd::new(self.events.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => Ok(Wake::Events),
            Err(error) => Err(error),
            Ok(_) if fds[1].any() == Some(true) => Ok(Wake::Stop),
            Ok(0) => Ok(Wake::Timeout),
            Ok(_) => Ok(Wake::Events),
        }
    }

    fn drain(&mut self) {
        let Self { events, tables, .. } = self;
        let mut is_news = false;
        let drained = events.drain(|update| is_news |= tables.apply(update));
        let now = Instant::now();
        match drained {
            Ok(Drained::Empty | Drained::More) => {}
            Ok(Drained::Overrun) => {
                Counters::add(&self.counters.overruns);
                self.next_dump = now;
            }
            Err(error) => {
                tracing::warn!(%error, "the network's events cannot be read");
                self.next_dump = self.next_dump.min(now + AFTER_FAILURE);
                std::thread::sleep(QUIET);
            }
        }
        if self.tables.take_stale() {
            // Not at once: what made them stale may still be going on.
            let soon = (now + QUIET).max(self.last_dump + BETWEEN_DUMPS);
            self.next_dump = self.next_dump.min(soon);
        }
        if is_news {
            self.news_since.get_or_insert(now);
        }
    }

    fn dump(&mut self) -> io::Result<()> {
        let is_consistent = self.dumper.refresh(&mut self.tables)?;
        // What made the tables stale is older than this dump.
        self.tables.take_stale();
        Counters::add(&self.counters.dumps);
        self.last_dump = Instant::now();
        let pause = if is_consistent { self.reconcile_every } else { AFTER_FAILURE };
        self.next_dump = self.last_dump + pause;
        Ok(())
    }

    fn publish(&mut self) {
        self.news_since = None;
        let view = self.tables.view();
        let unnumbered =
            view.links.values().filter(|link| link.is_tapped && link.slot == 0).count();
        self.counters.note_unnumbered(unnumbered);
        if *self.view.load() == view {
            return;
        }
        self.view.replace(view);
        Counters::add(&self.counters.views);
        (self.on_change)(&self.view.load());
    }
}

enum Wake {
    Stop,
    Events,
    Timeout,
}

#[cfg(test)]
mod tests;
