//! `/metrics`, `/livez` and `/readyz` over HTTP/1.1, on a thread of its own.
//!
//! ```text
//! accept --> connection (a task, at most 64, 5 s each) --> exposition | liveness | readiness
//! every second: heartbeats --> Liveness
//! ```
//!
//! Nothing that a client does reaches a worker: the thread only reads counters. One request per
//! connection; a client that dawdles is cut off, and where too many do, the oldest goes first, so
//! that the kubelet's probe always gets its turn.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, LocalSet};

use super::export::{self, Exported};

/// A request and its answer must be through in this time.
const CONNECTION_TIME: Duration = Duration::from_secs(5);
/// Connections at a time.
const CONNECTIONS: usize = 64;
/// Bytes of a request's head; hyper takes no less.
const REQUEST_BYTES: usize = 8192;
/// How often the heartbeats are looked at.
const TICK: Duration = Duration::from_secs(1);
/// A worker that stands still for so long hangs: it loops every 100 ms at the latest.
const STILL: Duration = Duration::from_secs(10);

const TEXT: &str = "text/plain; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address is taken, or not this host's.
    #[error("cannot listen on {address} for --metrics: {cause}")]
    Listen {
        /// As it was asked for.
        address: SocketAddr,
        /// What the system said.
        cause: io::Error,
    },
    /// The thread or its event loop cannot be had.
    #[error("cannot start the metrics thread: {cause}")]
    Thread {
        /// What the system said.
        cause: io::Error,
    },
}

/// The running server; dropping it stops it and waits for its thread.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on `address` (port 0: one that is free) and answers from then on.
    ///
    /// # Errors
    ///
    /// The address cannot be listened on, or no thread can be started.
    pub fn start(address: SocketAddr, exported: Exported) -> Result<Self, ServerError> {
        let listen = |cause| ServerError::Listen { address, cause };
        let listener = TcpListener::bind(address).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        let local = listener.local_addr().map_err(listen)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|cause| ServerError::Thread { cause })?;
        let (stop, stopped) = oneshot::channel();
        let exported = Arc::new(exported);
        let run = move || LocalSet::new().block_on(&runtime, serve(listener, exported, stopped));
        let thread = thread::Builder::new()
            .name("metrics".into())
            .spawn(run)
            .map_err(|cause| ServerError::Thread { cause })?;
        Ok(Self { address: local, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Answers no more; open connections are closed.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the metrics thread panicked");
        }
    }
}

/// What requests are answered from.
struct State {
    exported: Arc<Exported>,
    registry: Registry,
    liveness: Mutex<Liveness>,
}

async fn serve(listener: TcpListener, exported: Arc<Exported>, mut stopped: oneshot::Receiver<()>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "no metrics: the listening socket cannot be polled");
            return;
        }
    };
    let state = Rc::new(State {
        registry: export::registry(Arc::clone(&exported)),
        liveness: Mutex::new(Liveness::new(exported.workers.len(), Instant::now())),
        exported,
    });
    let mut connections: VecDeque<AbortHandle> = VecDeque::with_capacity(CONNECTIONS + 1);
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            _ = tick.tick() => state.observe(),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.retain(|connection| !connection.is_finished());
                    let task = tokio::task::spawn_local(connection(stream, Rc::clone(&state)));
                    connections.push_back(task.abort_handle());
                    if connections.len() > CONNECTIONS && let Some(oldest) = connections.pop_front() {
                        oldest.abort();
                    }
                }
                Err(error) => {
                    // Most likely no descriptor is free: it passes, and until then accept would
                    // fail at once, again and again.
                    tracing::debug!(%error, "metrics: accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

async fn connection(stream: TcpStream, state: Rc<State>) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = state.answer(request.method(), request.uri().path());
        async { Ok::<_, Infallible>(response) }
    });
    let serving = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(REQUEST_BYTES)
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_TIME)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIME, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "metrics: bad request"),
        Err(_) => tracing::debug!("metrics: a client was too slow"),
    }
}

impl State {
    fn observe(&self) {
        let now = Instant::now();
        let beats = self.exported.workers.iter().map(|worker| worker.batches.get());
        self.liveness.lock().unwrap_or_else(PoisonError::into_inner).observe(beats, now);
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if !matches!(path, "/metrics" | "/livez" | "/readyz") {
            return text(
                StatusCode::NOT_FOUND,
                "not found: try /metrics, /livez, /readyz\n".into(),
            );
        }
        if method != Method::GET && method != Method::HEAD {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".into());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let healthy = match path {
            "/metrics" => {
                let mut response = text(StatusCode::OK, export::render(&self.registry));
                let openmetrics = HeaderValue::from_static(OPENMETRICS);
                response.headers_mut().insert(CONTENT_TYPE, openmetrics);
                return response;
            }
            "/livez" => {
                self.observe();
                let liveness = self.liveness.lock().unwrap_or_else(PoisonError::into_inner);
                liveness.check(Instant::now())
            }
            _ => (self.exported.readiness)(),
        };
        match healthy {
            Ok(()) => text(StatusCode::OK, "ok\n".into()),
            Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        }
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT));
    response
}

/// When each worker's heartbeat last moved.
#[derive(Debug)]
struct Liveness(Vec<(u64, Instant)>);

impl Liveness {
    /// `workers` that have not been looked at; they have from `now` on to move.
    fn new(workers: usize, now: Instant) -> Self {
        Self(vec![(0, now); workers])
    }

    fn observe(&mut self, beats: impl Iterator<Item = u64>, now: Instant) {
        for (last, beat) in self.0.iter_mut().zip(beats) {
            if last.0 != beat {
                *last = (beat, now);
            }
        }
    }

    fn check(&self, now: Instant) -> Result<(), String> {
        for (index, (_, moved)) in self.0.iter().enumerate() {
            let still = now.saturating_duration_since(*moved);
            if still >= STILL {
                return Err(format!("worker {index} has not moved for {} s", still.as_secs()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;
    use crate::stats::WorkerStats;
    use crate::stats::export::BuildInfo;

    fn exported(readiness: Result<(), String>) -> Exported {
        let worker = WorkerStats::default();
        worker.received.add(42);
        Exported {
            workers: vec![Arc::new(worker)],
            histograms: Vec::new(),
            control: Arc::default(),
            network: Arc::default(),
            sensors: Box::new(Vec::new),
            readiness: Box::new(move || readiness.clone()),
            build: BuildInfo { version: "1".into(), commit: "c".into() },
        }
    }

    fn start(readiness: Result<(), String>) -> Server {
        Server::start("127.0.0.1:0".parse().unwrap(), exported(readiness)).unwrap()
    }

    /// Sends `request` and reads to the end of the connection.
    fn ask(server: &Server, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(server.local_address()).unwrap();
        // A server that has seen enough may close before it has all of it.
        let _cut = stream.write_all(request);
        let mut answer = Vec::new();
        // The rest of a request that nobody read ends in a reset; what came before it counts.
        let _reset = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    fn get(server: &Server, path: &str) -> (String, String) {
        let answer = ask(server, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    #[test]
    fn metrics_are_openmetrics() {
        let server = start(Ok(()));
        let (head, body) = get(&server, "/metrics");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"));
        assert!(body.contains("\npodtap_frames_received_total{worker=\"0\"} 42\n"), "{body}");
        assert!(body.ends_with("# EOF\n"));
        server.stop();
    }

    #[test]
    fn readiness_says_what_is_missing() {
        assert_eq!(get(&start(Ok(())), "/readyz").1, "ok\n");
        let server = start(Err("no ring is open".into()));
        let (head, body) = get(&server, "/readyz");
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert_eq!(body, "no ring is open\n");
        assert_eq!(get(&server, "/livez").1, "ok\n", "not ready is no reason to be killed");
    }

    #[test]
    fn other_paths_and_methods_are_refused() {
        let server = start(Ok(()));
        assert!(get(&server, "/").0.starts_with("HTTP/1.1 404 "));
        assert!(get(&server, "/metrics/../etc").0.starts_with("HTTP/1.1 404 "));
        let posted =
            ask(&server, b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
        assert!(posted.starts_with("HTTP/1.1 405 "), "{posted}");
        assert!(posted.contains("allow: GET, HEAD\r\n"), "{posted}");
        let head = ask(&server, b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[test]
    fn a_request_without_end_is_cut_off() {
        let server = start(Ok(()));
        let mut endless = b"GET /metrics HTTP/1.1\r\nX: ".to_vec();
        endless.resize(4 * REQUEST_BYTES, b'x');
        let answer = ask(&server, &endless);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
        assert!(ask(&server, b"\x16\x03\x01 no http \xff\r\n\r\n").starts_with("HTTP/1.1 400 "));
    }

    #[test]
    fn idle_clients_do_not_keep_the_probe_waiting() {
        let server = start(Ok(()));
        let connect = |_| TcpStream::connect(server.local_address()).unwrap();
        let idle: Vec<TcpStream> = (0..3 * CONNECTIONS).map(connect).collect();
        assert_eq!(get(&server, "/livez").1, "ok\n");
        let mut first = &idle[0];
        assert_eq!(first.read(&mut [0; 1]).unwrap_or(0), 0, "the oldest was closed");
    }

    #[test]
    fn a_port_in_use_is_named() {
        let server = start(Ok(()));
        let address = server.local_address();
        let error = Server::start(address, exported(Ok(()))).unwrap_err().to_string();
        let want = format!("cannot listen on {address} for --metrics: Address already in use");
        assert!(error.starts_with(&want), "{error}");
    }

    #[test]
    fn after_the_stop_nobody_answers() {
        let server = start(Ok(()));
        let address = server.local_address();
        let mut open = TcpStream::connect(address).unwrap();
        server.stop();
        assert_eq!(open.read(&mut [0; 1]).unwrap_or(0), 0, "the open connection was closed");
    }

    #[test]
    fn a_worker_that_stands_still_for_ten_seconds_is_named() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut liveness = Liveness::new(2, start);
        for second in 1..=9 {
            liveness.observe([second, 7].into_iter(), at(second));
            assert_eq!(liveness.check(at(second)), Ok(()));
        }
        liveness.observe([10, 7].into_iter(), at(11));
        let want = "worker 1 has not moved for 10 s".to_owned();
        assert_eq!(liveness.check(at(11)), Err(want));
        liveness.observe([10, 8].into_iter(), at(12));
        assert_eq!(liveness.check(at(12)), Ok(()));
    }
}
