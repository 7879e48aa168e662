//! The local socket on which a tap says its state.
//!
//! ```text
//! tap:     abstract unix socket --accept--> root or the tap's own user? --line--> state as JSON
//! explain: connect -> "state\n" -> read to the end
//! ```
//!
//! An abstract name belongs to a network namespace and goes with its socket: nothing stays behind
//! after `kill -9`, and a read-only file system is no hindrance. One thread of its own answers; it
//! touches no worker and shares no lock with one. Who may not ask is cut off before a byte of theirs
//! is read; who is slow is cut off after `CONNECTION_TIME`; of too many at once, the oldest go first.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::rc::Rc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, LocalSet};

use super::state::{self, State, StateError};

/// What is said by who asks.
const REQUEST: &[u8] = b"state\n";
/// Question and answer must be through in this time.
const CONNECTION_TIME: Duration = Duration::from_secs(2);
/// Connections at a time; each may hold one copy of the state.
const CONNECTIONS: usize = 4;
/// Before the next peer after one that may not ask: with a full backlog, who may ask still gets
/// there in a fraction of a second.
const AFTER_REFUSAL: Duration = Duration::from_millis(1);
/// How long explain waits for the tap.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another tap of this network namespace has the name.
    #[error(
        "the name @{name} is taken, by another tap in this network namespace: give each a --state-socket NAME of its own, and ask with `podtap explain --socket NAME`"
    )]
    Taken {
        /// Without the `@`.
        name: String,
    },
    /// The system refused something.
    #[error("cannot serve the state on @{name}: {cause}")]
    System {
        /// Without the `@`.
        name: String,
        /// What the system said.
        cause: io::Error,
    },
}

/// Why a tap could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens there.
    #[error("no tap answers at @{name} in this network namespace")]
    Absent {
        /// Without the `@`.
        name: String,
    },
    /// The tap says no.
    #[error("the tap at @{name} answers root and its own user only")]
    Refused {
        /// Without the `@`.
        name: String,
    },
    /// The connection failed half-way.
    #[error("the tap at @{name} does not answer: {cause}")]
    Read {
        /// Without the `@`.
        name: String,
        /// What the system said.
        cause: io::Error,
    },
    /// It was no state.
    #[error("the answer from @{name} cannot be used: {cause}")]
    State {
        /// Without the `@`.
        name: String,
        /// Why not.
        cause: StateError,
    },
}

/// The running server; dropping it ends its thread.
#[derive(Debug)]
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers on the abstract socket `name` with what `state` returns at that moment.
    ///
    /// # Errors
    ///
    /// The name is taken, or no thread can be had.
    pub fn start(
        name: &str,
        state: impl Fn() -> State + Send + 'static,
    ) -> Result<Self, ServerError> {
        let system = |cause| ServerError::System { name: name.to_owned(), cause };
        let address = SocketAddr::from_abstract_name(name).map_err(system)?;
        let listener = UnixListener::bind_addr(&address).map_err(|cause| match cause.kind() {
            io::ErrorKind::AddrInUse => ServerError::Taken { name: name.to_owned() },
            _ => system(cause),
        })?;
        listener.set_nonblocking(true).map_err(system)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system)?;
        let (stop, stopped) = oneshot::channel();
        let run = move || LocalSet::new().block_on(&runtime, serve(listener, state, stopped));
        let thread = thread::Builder::new().name("state".into()).spawn(run).map_err(system)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the state's thread panicked");
        }
    }
}

async fn serve(
    listener: UnixListener,
    state: impl Fn() -> State + 'static,
    mut stopped: oneshot::Receiver<()>,
) {
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "nobody can ask for the state: its socket cannot be polled");
            return;
        }
    };
    let state = Rc::new(state);
    let own_uid = nix::unistd::geteuid().as_raw();
    let mut connections: VecDeque<AbortHandle> = VecDeque::with_capacity(CONNECTIONS + 1);
    loop {
        let stream = tokio::select! {
            _ = &mut stopped => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Most likely no descriptor is free: it passes, and until then accept would
                    // fail at once, again and again.
                    tracing::debug!(%error, "state: accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        // Nobody learns the cluster's addresses here who could not read them from the kernel.
        let may_ask = stream.peer_cred().is_ok_and(|peer| may_ask(peer.uid(), own_uid));
        if !may_ask {
            tracing::debug!("state: a peer that is neither root nor this user");
            // Who is refused again and again gets no CPU for it.
            tokio::time::sleep(AFTER_REFUSAL).await;
            continue;
        }
        connections.retain(|connection| !connection.is_finished());
        let task = tokio::task::spawn_local(connection(stream, Rc::clone(&state)));
        connections.push_back(task.abort_handle());
        if connections.len() > CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
    }
}

fn may_ask(peer_uid: u32, own_uid: u32) -> bool {
    peer_uid == 0 || peer_uid == own_uid
}

async fn connection(mut stream: tokio::net::UnixStream, state: Rc<impl Fn() -> State>) {
    let answer = async {
        let mut request = [0; REQUEST.len()];
        stream.read_exact(&mut request).await?;
        if request == REQUEST {
            stream.write_all(state().to_json().as_bytes()).await?;
        }
        io::Result::Ok(())
    };
    match tokio::time::timeout(CONNECTION_TIME, answer).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "state: a peer went away"),
        Err(_) => tracing::debug!("state: a peer was too slow"),
    }
}

/// The state of the tap that listens at the abstract socket `name`.
///
/// # Errors
///
/// See [`AskError`].
pub fn ask(name: &str) -> Result<State, AskError> {
    let named = || name.to_owned();
    let read = |cause| AskError::Read { name: named(), cause };
    let address = SocketAddr::from_abstract_name(name).map_err(read)?;
    let mut stream = UnixStream::connect_addr(&address).map_err(|cause| match cause.kind() {
        io::ErrorKind::ConnectionRefused => AskError::Absent { name: named() },
        _ => read(cause),
    })?;
    stream.set_read_timeout(Some(ANSWER_TIME)).map_err(read)?;
    stream.set_write_timeout(Some(ANSWER_TIME)).map_err(read)?;
    let mut json = Vec::new();
    let is_over = |cause: &io::Error| {
        matches!(cause.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
    };
    let asked = stream.write_all(REQUEST);
    let answered = asked.and_then(|()| stream.take(state::MAX_BYTES + 1).read_to_end(&mut json));
    match answered {
        // It hung up before it said anything: that is how it says no.
        Ok(0) => Err(AskError::Refused { name: named() }),
        Err(cause) if is_over(&cause) && json.is_empty() => {
            Err(AskError::Refused { name: named() })
        }
        Err(cause) => Err(read(cause)),
        Ok(_) => State::parse(&json).map_err(|cause| AskError::State { name: named(), cause }),
    }
}

#[cfg(test)]
mod tests {
    use super::may_ask;

    #[test]
    fn root_and_the_taps_own_user_may_ask_and_nobody_else() {
        for (peer, own, expected) in
            [(0, 0, true), (0, 1000, true), (1000, 1000, true), (1000, 0, false), (1, 1000, false)]
        {
            assert_eq!(may_ask(peer, own), expected, "{peer} asks {own}");
        }
    }
}
