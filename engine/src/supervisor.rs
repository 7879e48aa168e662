//! Starts the tap, waits for a signal, ends it.
//!
//! ```text
//! machine check -> view (monitor) -> classifier -> rings, workers -> control, metrics -> wait
//! SIGTERM: workers drain and flush -> control closes -> exit 0, within two seconds
//! ```
//!
//! Everything that can be refused is refused before the first socket captures anything: wrong
//! input and missing privilege are [`StartError`]s with exit code 2. A worker that panics takes the process
//! down (`panic = "abort"`): a DaemonSet restarts, while a half-dead capture would not show. Nothing
//! outlives the process: sockets, rings and threads are all that it has in the kernel.

mod rules;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::classify::Election;
use crate::config::Config;
use crate::control::{self, Control, NullAuth, OwnFlows, SensorAddresses};
use crate::dedup::{Fingerprinter, Table};
use crate::net::{Counters, InterfaceSelection, Monitor, RoleOverrides, View};
use crate::pipeline::Pipeline;
use crate::rpcap::Stats;
use crate::session::Sessions;
use crate::source::packet::{Geometry, OpenError, PacketOptions, PacketSource};
use crate::stats::WorkerStats;
use crate::stats::account::account;
use crate::stats::export::{BuildInfo, Exported};
use crate::stats::histogram::{SharedHistograms, WorkerHistograms};
use crate::stats::sensor::{SensorState, SensorStats};
use crate::stats::server::Server;
use crate::sys::Waker;
use crate::worker::{self, Lifecycle};

use rules::{Inputs, Rules, count_flow};

/// How long control may take to close its connections at the end.
const CLOSING: Duration = Duration::from_millis(500);

/// The tap cannot start: wrong input or a missing privilege.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is nobody to send to.
    #[error(
        "no sensor: give --sensor (or EXTRAHOP_SENSOR_IP) an address, or --listen one for clients to connect to"
    )]
    NoSensor,
    /// A capability is missing.
    #[error(
        "{capability} is missing, which is needed {purpose}: run as root, or add it to the container's capabilities"
    )]
    Privilege {
        /// Its name.
        capability: &'static str,
        /// What for.
        purpose: &'static str,
    },
    /// Named interfaces that do not exist.
    #[error("{setting}: no such interface: {}", names.join(", "))]
    NoInterface {
        /// The flag, or what its value came from.
        setting: String,
        /// Their names.
        names: Vec<String>,
    },
    /// A setting that does not fit the machine.
    #[error("{setting}: {reason}")]
    Setting {
        /// The flag, or what its value came from.
        setting: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel refuses a ring.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The system refused something.
    #[error("{what} failed")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::System { what, source }
}

fn refused(config: &Config, flag: &'static str, reason: impl ToString) -> StartError {
    StartError::Setting { setting: config.named(flag), reason: reason.to_string() }
}

/// What the machine has for a tap with this configuration.
#[derive(Debug)]
pub struct Machine {
    /// The network as it is now.
    pub view: View,
    /// CPUs that the process may use.
    pub cpus: Vec<core_affinity::CoreId>,
    /// One for each worker.
    pub workers: usize,
    /// Shape of each worker's ring.
    pub geometry: Geometry,
}

impl Machine {
    /// Looks, and refuses what cannot work.
    ///
    /// # Errors
    ///
    /// See [`StartError`].
    pub fn check(config: &Config) -> Result<Self, StartError> {
        let raw = caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_NET_RAW);
        if !raw.unwrap_or(false) {
            return Err(StartError::Privilege {
                capability: "CAP_NET_RAW",
                purpose: "to capture (AF_PACKET sockets)",
            });
        }
        let view = crate::net::snapshot(config.interfaces.clone(), RoleOverrides::default())
            .map_err(system("reading links, addresses and routes"))?;
        let names = config.interfaces.missing(&view);
        if !names.is_empty() {
            return Err(StartError::NoInterface { setting: config.named("interface"), names });
        }
        let cpus = core_affinity::get_core_ids().unwrap_or_default();
        let workers = config.workers.unwrap_or(cpus.len().max(1));
        // 64 KiB are always held, and the link header comes on top.
        let largest = view.largest_frame.saturating_add(LINK_HEADER);
        let geometry = Geometry::for_frames(config.ring_memory, workers, largest)
            .map_err(|error| refused(config, "ring-memory", error))?;
        if geometry.largest_frame() < largest {
            tracing::warn!(
                largest,
                held = geometry.largest_frame(),
                "super-frames (BIG TCP) are larger than the ring's blocks and will be cut short: raise --ring-memory"
            );
        }
        Ok(Self { view, cpus, workers, geometry })
    }
}

/// The most that stands before a packet: two MAC addresses, two tags, a type.
const LINK_HEADER: u32 = 22;

/// Runs the tap until SIGTERM or SIGINT. SIGHUP, which a terminal sends when it closes, does not
/// end it: caught by nobody, it would end the tap with its last batch unsent.
///
/// # Errors
///
/// See [`StartError`]; once it runs, only a signal ends it.
pub fn run(config: &Config) -> Result<(), StartError> {
    run_reloading(config, &mut || Ok::<_, io::Error>(None))
}

/// As [`run`], and SIGHUP takes over what `reload` returns: sensors, who may connect, and how they
/// authenticate. `None` changes nothing; an error is logged and changes nothing.
///
/// # Errors
///
/// See [`run`].
pub fn run_reloading<E: std::error::Error + 'static>(
    config: &Config,
    reload: &mut dyn FnMut() -> Result<Option<Config>, E>,
) -> Result<(), StartError> {
    if config.sensors.is_empty() && config.listen.is_empty() {
        return Err(StartError::NoSensor);
    }
    let machine = Machine::check(config)?;
    // Before any thread starts, so that every thread leaves the signals to this one.
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(system("catching signals"))?;
    let view = machine.view.clone();
    let tap = Tap::start(config, machine)?;
    announce(config, &view);
    for signal in &mut signals {
        if signal != SIGHUP {
            tracing::info!(signal, "ending: flushing what is batched");
            break;
        }
        match reload() {
            Ok(Some(config)) => tap.reconfigure(&config),
            Ok(None) => tracing::info!("SIGHUP: there is no file to read again"),
            Err(error) => {
                let error = crate::error_chain(&error);
                tracing::error!(error, "SIGHUP: nothing is changed");
            }
        }
    }
    tap.stop();
    Ok(())
}

/// What the configuration means where that may surprise.
fn announce(config: &Config, view: &View) {
    if config.is_filter_election {
        tracing::warn!(
            "the filter says inbound or outbound, so it takes the place of podtap's own election: \
             packets that it rejects at every point are not reported. Without the filter, podtap's \
             rule reports every packet once"
        );
    } else if config.policy.node_filter.is_some() {
        tracing::info!("only packets that match the node's filter are reported");
    }
    if config.policy.election == Election::Ports {
        let subnets: Vec<String> = view.main_subnets.iter().map(ToString::to_string).collect();
        tracing::warn!(
            main_device = view.main_name().unwrap_or("none"),
            subnets = subnets.join(","),
            "--election ports is the reference's rule, bit for bit, for swapping one node at a time: \
             as there, packets between nodes and IPv6 are reported twice, and others never. Once all \
             nodes run podtap, --election source reports every packet once"
        );
        if view.main.is_none() {
            tracing::warn!(
                "there is no IPv4 default route, where the reference refuses to start: without the \
                 main device's subnets, what is neither from nor to PODNET is reported at every point"
            );
        }
        if !config.policy.svcnet.iter().any(|net| net.addr().is_ipv4()) {
            tracing::warn!("no SVCNET is given: copies with a service address are reported too");
        }
    }
    let settle_ns = config.settling(1).settle_ns;
    if settle_ns < config.settle_ns {
        tracing::warn!(
            settle_ms = settle_ns / 1_000_000,
            "--settle-ms is more than half of --dedup-window-ms: half of it is used"
        );
    }
}

/// The running parts.
struct Tap {
    workers: Vec<JoinHandle<()>>,
    wakers: Vec<Waker>,
    life: Arc<Lifecycle>,
    control: Control,
    _monitor: Monitor,
    _metrics: Option<Server>,
    stats: Vec<Arc<WorkerStats>>,
    sessions: Arc<Sessions>,
    rules: Rules,
}

impl Tap {
    fn start(config: &Config, machine: Machine) -> Result<Self, StartError> {
        let Machine { view, cpus, workers: count, geometry } = machine;
        let table = Table::new(config.dedup_memory, config.dedup_window_ns)
            .map_err(|error| refused(config, "dedup-memory", error))?;
        let table = Arc::new(table);
        let fingerprinter = Fingerprinter::random()
            .map_err(|error| system("reading random bytes")(io::Error::other(error.to_string())))?
            .ignoring_dscp(config.ignores_dscp);
        let wakers = (0..count)
            .map(|_| Waker::new())
            .collect::<io::Result<Vec<_>>>()
            .map_err(system("creating an eventfd"))?;
        let clients = (!config.listen.is_empty()).then(|| control::CLIENTS.to_owned());
        let labels = config.sensors.iter().map(ToString::to_string).chain(clients);
        let sensors = labels.map(|label| Arc::new(SensorStats::new(label)));
        let sessions = Sessions::counting(wakers.clone(), sensors.collect());
        let rules = Rules::new(config.policy.clone(), view, config.numeric_sensors());
        let monitor = follow_network(config.interfaces.clone(), &rules, &wakers)?;
        let sources = open_sources(config, geometry, &wakers)?;

        let life = Arc::new(Lifecycle::default());
        let mut stats = Vec::new();
        let mut histograms = Vec::new();
        let mut workers = Vec::new();
        for (index, source) in sources.into_iter().enumerate() {
            let context = worker::Context {
                index,
                pipeline: Pipeline::new(Arc::clone(&table), fingerprinter)
                    .settling(config.settling(count)),
                classifier: rules.classifier.reader(),
                sessions: Arc::clone(&sessions),
                stats: Arc::new(WorkerStats::default()),
                histograms: WorkerHistograms::default(),
                flush_ns: config.flush_ns,
                clock: worker::Clock::Worker,
                life: Arc::clone(&life),
            };
            stats.push(Arc::clone(&context.stats));
            histograms.push(context.histograms.shared());
            let cpu = cpus.get(index % cpus.len().max(1)).copied();
            let worker = spawn_worker(index, cpu, source, context);
            workers.push(worker.map_err(system("starting a worker thread"))?);
        }
        let control = start_control(config, &sessions, &monitor, &rules, &wakers, &stats)?;
        let metrics = config.metrics.map(|address| {
            let network = Arc::clone(&monitor.counters);
            let exported = exported(config, &sessions, &stats, histograms, &control, network);
            Server::start(address, exported)
        });
        let metrics = metrics
            .transpose()
            .map_err(|error| refused(config, "metrics", crate::error_chain(&error)))?;
        tracing::info!(
            workers = count,
            ring_bytes = geometry.ring_bytes(),
            dedup_bytes = table.memory(),
            "capturing with af-packet (TPACKET_V3)"
        );
        Ok(Self {
            workers,
            wakers,
            life,
            control,
            _monitor: monitor,
            _metrics: metrics,
            stats,
            sessions,
            rules,
        })
    }

    /// Takes over sensors and rules of access; what a sensor that stays gets goes on undisturbed.
    fn reconfigure(&self, config: &Config) {
        // First what must not be captured, then who connects. Addresses of sensors that are left
        // stay known: their last datagrams may still be on the way, and nothing else is hidden
        // by them than what looks like RPCAP.
        let numeric = config.numeric_sensors();
        let take = |inputs: &mut Inputs| {
            inputs.sensors.extend(numeric);
            inputs.policy.control_ports.clone_from(&config.policy.control_ports);
            true
        };
        self.rules.change(take, &self.wakers);
        self.control.reconfigure(config.control(SensorAddresses::default()));
    }

    fn stop(self) {
        let Self { workers, wakers, life, control, stats, sessions, .. } = self;
        life.drain();
        for waker in &wakers {
            waker.wake();
        }
        for worker in workers {
            if worker.join().is_err() {
                tracing::error!("a worker ended by a panic");
            }
        }
        if !control.shutdown(CLOSING) {
            tracing::warn!("the control connections were not closed in time");
        }
        tracing::info!("counted {}", account(&stats, &sessions.sensors()));
    }
}

fn follow_network(
    selection: InterfaceSelection,
    rules: &Rules,
    wakers: &[Waker],
) -> Result<Monitor, StartError> {
    let (rules, wakers) = (rules.clone(), wakers.to_vec());
    let on_change = move |view: &Arc<View>| {
        let take = |inputs: &mut Inputs| {
            inputs.view = Arc::clone(view);
            true
        };
        rules.change(take, &wakers);
    };
    Monitor::start(selection, RoleOverrides::default(), on_change)
        .map_err(system("following the network by netlink"))
}

fn open_sources(
    config: &Config,
    geometry: Geometry,
    wakers: &[Waker],
) -> Result<Vec<PacketSource>, StartError> {
    let options = PacketOptions { geometry, retire_timeout_ms: config.block_timeout_ms };
    let mut sources = Vec::new();
    let mut group = None;
    for waker in wakers {
        let mut source = PacketSource::open(&options, waker.clone())?;
        // A group of one needs no group.
        if wakers.len() > 1 {
            group = Some(source.join_fanout(group)?);
        }
        sources.push(source);
    }
    Ok(sources)
}

fn spawn_worker(
    index: usize,
    cpu: Option<core_affinity::CoreId>,
    source: PacketSource,
    context: worker::Context,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("rx-{index}")).spawn(move || {
        if let Some(cpu) = cpu
            && !core_affinity::set_for_current(cpu)
        {
            tracing::warn!(worker = index, cpu = cpu.id, "cannot pin the worker to its CPU");
        }
        worker::run(source, context);
    })
}

fn start_control(
    config: &Config,
    sessions: &Arc<Sessions>,
    monitor: &Monitor,
    rules: &Rules,
    wakers: &[Waker],
    stats: &[Arc<WorkerStats>],
) -> Result<Control, StartError> {
    if !config.listen.is_empty()
        && config.access.passwords.is_empty()
        && config.access.null != NullAuth::Everybody
    {
        tracing::warn!(
            "no client of --listen can authenticate: give --password-file, PODTAP_PASSWORD or --null-auth"
        );
    }
    let told = (rules.clone(), wakers.to_vec());
    let addresses = SensorAddresses::new(move |address| {
        let (rules, wakers) = &told;
        rules.change(|inputs| inputs.sensors.insert(address), wakers);
    });
    let told = (rules.clone(), wakers.to_vec());
    let flows = OwnFlows::new(move |flow, begins| {
        let (rules, wakers) = &told;
        rules.change(|inputs| count_flow(&mut inputs.flows, flow, begins), wakers);
    });
    let control = control::ControlConfig { flows, ..config.control(addresses) };
    let stats = stats.to_vec();
    let capture_stats = move || capture_stats(&stats);
    Control::start(control, Arc::clone(sessions), monitor.view.clone(), capture_stats).map_err(
        |error| match error.get_ref().is_some_and(|why| why.is::<control::ListenError>()) {
            true => refused(config, "listen", error),
            false => system("starting the control thread")(error),
        },
    )
}

fn exported(
    config: &Config,
    sessions: &Arc<Sessions>,
    workers: &[Arc<WorkerStats>],
    histograms: Vec<SharedHistograms>,
    control: &Control,
    network: Arc<Counters>,
) -> Exported {
    let (sessions, states, ready) = (Arc::clone(sessions), control.states(), control.states());
    let sensors = move || {
        let sensors = sessions.sensors();
        let states = states.load();
        for stats in &sensors {
            // The best of its connections.
            let of_it = states.iter().filter(|status| status.target == stats.label());
            let state = of_it.map(|status| match status.state {
                control::SensorState::Capturing => SensorState::Capturing,
                control::SensorState::Connected => SensorState::Connected,
                control::SensorState::Connecting | control::SensorState::Backoff => {
                    SensorState::Disconnected
                }
            });
            let best = state.max_by_key(|state| *state as u8);
            stats.set_state(best.unwrap_or(SensorState::Disconnected));
        }
        sensors
    };
    // Clients come when they like: who only listens is ready for them now.
    let waits_for_sensors = !config.sensors.is_empty();
    let readiness = move || {
        // Rings are open, or the process would not run; a sensor must want the frames.
        let is_capturing =
            |status: &control::SensorStatus| status.state == control::SensorState::Capturing;
        match !waits_for_sensors || ready.load().iter().any(is_capturing) {
            true => Ok(()),
            false => Err("no sensor has started a capture".to_owned()),
        }
    };
    Exported {
        workers: workers.to_vec(),
        histograms,
        control: control.stats(),
        network,
        sensors: Box::new(sensors),
        readiness: Box::new(readiness),
        build: BuildInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: option_env!("PODTAP_COMMIT").unwrap_or("unknown").to_owned(),
        },
    }
}

/// STATS of RPCAP: 32-bit fields that wrap, as the protocol's do.
fn capture_stats(stats: &[Arc<WorkerStats>]) -> Stats {
    let sum = |field: fn(&WorkerStats) -> u64| {
        let total: u64 = stats.iter().map(|stats| field(stats)).fold(0, u64::wrapping_add);
        u32::try_from(total & 0xffff_ffff).expect("masked")
    };
    Stats {
        received: sum(|stats| stats.received.get()),
        interface_dropped: 0,
        kernel_dropped: sum(|stats| stats.ring_dropped.get()),
        sent: 0,
    }
}
