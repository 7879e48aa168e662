//! From what was typed to what is meant: flags, environment, defaults.
//!
//! ```text
//! argv, environment --settings--> text and origin of each setting --parse--> Config
//! ```
//!
//! The flag wins, then `PODTAP_<FLAG>`, then the reference's variable, then the default. An empty
//! variable counts as not set, since manifests write those. Modules take what they need from
//! [`Config`]; none sees a flag.

mod filter;
mod latency;
mod passive;
mod sensors;
mod settings;
mod values;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

pub use settings::{Origin, SETTINGS, Setting, Settings};
pub use values::{parse_bytes, socket_name};

use crate::bpf::Program;
use crate::classify::{Election, Policy};
use crate::control::{
    Access, AllowedHosts, ControlConfig, ListenAddress, MAX_CONNECTIONS, MAX_SESSIONS_PER_SENSOR,
    OwnFlows, SensorAddresses, SensorTarget, SensorsMode, Sharing, Timing,
};
use crate::dedup;
use crate::net::InterfaceSelection;
use crate::rpcap::{ANY_ETH, MAX_SNAPLEN, MAX_UDP_PAYLOAD};
use crate::session::{Encoding, MIN_DATAGRAM};
use crate::settle::Settling;
use sensors::sensors;
pub(crate) use sensors::{check_host, unbracketed};
use values::{list, number, port_range, prefixes};

/// A value that cannot be used: which setting, where it came from, why.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: {reason}")]
pub struct ConfigError {
    /// The flag, or the variable that the value came from.
    pub setting: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

/// What `podtap run` and `podtap check` act on.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--interface`.
    pub interfaces: InterfaceSelection,
    /// `--sensor` with `--port`.
    pub sensors: Vec<SensorTarget>,
    /// Names of sensors lead to IPv4 addresses only: `-4` of the reference's command line.
    pub is_ipv4_only: bool,
    /// `--listen`.
    pub listen: Vec<ListenAddress>,
    /// `--allow-hosts`.
    pub allowed_hosts: AllowedHosts,
    /// `--null-auth`, `--password-file`, `PODTAP_PASSWORD`.
    pub access: Access,
    /// `--allow-promisc`.
    pub allow_promisc: bool,
    /// `--sensors-mode`, `--sessions-per-sensor`, `--balance-settle-ms`.
    pub sharing: Sharing,
    /// `--podnet`: the pods' prefixes. The reference's election needs them; the default one does not.
    pub podnet: Vec<IpNet>,
    /// `--svcnet`, `--tapped-net`, `--untapped-net`, `--election`, `--filter`.
    pub policy: Policy,
    /// Nobody gave `--election`, and `--filter` asks for directions: it is the election.
    pub is_filter_election: bool,
    /// `--preselect`.
    pub preselected: Option<String>,
    /// `--encoding`.
    pub encoding: Encoding,
    /// `--datagram-bytes`; `None` is what the path to the sensor takes.
    pub datagram_bytes: Option<usize>,
    /// `--flush-us`, as ns.
    pub flush_ns: u64,
    /// `--dedup-window-ms`, as ns.
    pub dedup_window_ns: u64,
    /// `--ignore-dscp`.
    pub ignores_dscp: bool,
    /// `--dedup-memory`.
    pub dedup_memory: u64,
    /// `--settle-ms`, as ns.
    pub settle_ns: u64,
    /// `--settle-memory`, for all workers together.
    pub settle_memory: u64,
    /// `--workers`; `None` is one for each CPU that the process may use.
    pub workers: Option<usize>,
    /// `--snaplen`.
    pub snaplen: u32,
    /// `--ring-memory`, for all workers together.
    pub ring_memory: u64,
    /// `--block-timeout-ms`.
    pub block_timeout_ms: u32,
    /// `--metrics`.
    pub metrics: Option<SocketAddr>,
    /// `--filter` as it was written; `policy` has the program.
    pub filter: String,
    /// `--state-socket`: the abstract name, without the `@`; `None` for none.
    pub state_socket: Option<String>,
    /// How to call each flag.
    names: Vec<(&'static str, String)>,
}

/// Less memory for settling than this, of one worker, would hold no frame of 64 KiB.
const MIN_SETTLE_MEMORY: u64 = 256 << 10;

impl Config {
    /// Checks every setting on its own and against the others.
    ///
    /// # Errors
    ///
    /// The first that cannot be used.
    pub fn new(settings: &Settings) -> Result<Self, ConfigError> {
        let with = |flag: &'static str| Field { settings, flag };
        let interfaces = with("interface")
            .parse(|text| InterfaceSelection::parse(text).map_err(|error| error.to_string()))?;
        let port = with("port").parse(|text| number(text, 1..=65_535))?;
        let sensors = with("sensor").parse(|text| sensors(text, port))?;
        let sharing = sharing(settings, sensors.len())?;
        let podnet = with("podnet").parse(prefixes)?;
        let svcnet = with("svcnet").parse(prefixes)?;
        let opened = |name: &str| check_opened(name, &interfaces);
        let preselected = with("preselect").parse(|text| match text {
            "" => Ok(None),
            name => opened(name).map(|()| Some(name.to_owned())),
        })?;
        with("sensor").parse(|_text| {
            sensors.iter().filter_map(|sensor| sensor.interface.as_deref()).try_for_each(opened)
        })?;
        let node_filter = with("filter").parse(filter::compile)?;
        let is_filter_election = settings.is_default("election")
            && node_filter.as_ref().is_some_and(Program::asks_direction);
        let election = with("election").parse(|text| match text {
            "source" => Ok(Election::Source),
            "ports" => Ok(Election::Ports),
            "none" => Ok(Election::None),
            _ => Err(format!("{text:?} is neither source, nor ports, nor none")),
        })?;
        let election = if is_filter_election { Election::None } else { election };
        if election == Election::Source {
            refuse_overlap(&with("svcnet"), &svcnet, "PODNET", &podnet)?;
        }
        if election == Election::Ports && !podnet.iter().any(|net| net.addr().is_ipv4()) {
            return Err(with("podnet").error(
                "--election ports needs the pods' IPv4 prefixes (PODNET), as the reference does"
                    .into(),
            ));
        }
        let listen = with("listen").parse(passive::listeners)?;
        let policy = Policy {
            election,
            pods: podnet.clone(),
            node_filter,
            svcnet,
            tapped: with("tapped-net").parse(prefixes)?,
            untapped: with("untapped-net").parse(prefixes)?,
            nodeports: with("nodeport-range").parse(port_range)?,
            overlay_ports: with("overlay-ports")
                .parse(|text| list(text).map(|port| number(port, 1..=65_535)).collect())?,
            any_interface: interfaces.is_any(),
            listeners: listen.iter().map(|address| (address.ip, address.port)).collect(),
            control_ports: sensors
                .iter()
                .map(|sensor| sensor.port)
                .collect::<BTreeSet<u16>>()
                .into_iter()
                .collect(),
        };
        with("latency").parse(latency::check)?;
        with("capture").parse(|text| match text {
            "auto" | "af-packet" => Ok(()),
            _ => Err(format!("{text:?} is neither auto nor af-packet")),
        })?;
        Ok(Self {
            names: settings.names(),
            filter: settings.text("filter").to_owned(),
            state_socket: with("state-socket").parse(values::socket_name)?,
            interfaces,
            sensors,
            is_ipv4_only: false,
            listen,
            allowed_hosts: with("allow-hosts").parse(passive::allowed_hosts)?,
            access: access(settings)?,
            allow_promisc: with("allow-promisc").parse(passive::switch)?,
            sharing,
            podnet,
            policy,
            is_filter_election,
            preselected,
            encoding: with("encoding").parse(|text| match text {
                "stream" => Ok(Encoding::Stream),
                "plain" => Ok(Encoding::Plain),
                _ => Err(format!("{text:?} is neither stream nor plain")),
            })?,
            datagram_bytes: with("datagram-bytes").parse(|text| match text {
                "auto" => Ok(None),
                _ => number(text, MIN_DATAGRAM..=MAX_UDP_PAYLOAD).map(Some),
            })?,
            flush_ns: with("flush-us").parse(|text| number(text, 1..=10_000_000u64))? * 1000,
            dedup_window_ns: with("dedup-window-ms").parse(|text| number(text, 1..=60_000u64))?
                * 1_000_000,
            ignores_dscp: with("ignore-dscp").parse(passive::switch)?,
            dedup_memory: with("dedup-memory").parse(|text| {
                let bytes = parse_bytes(text)?;
                // Say now what the table would say later.
                dedup::check_memory(bytes).map_err(|error| error.to_string())?;
                Ok(bytes)
            })?,
            settle_ns: with("settle-ms").parse(|text| number(text, 1..=10_000u64))? * 1_000_000,
            settle_memory: with("settle-memory").parse(|text| match parse_bytes(text)? {
                bytes if bytes < MIN_SETTLE_MEMORY => Err(format!(
                    "{bytes} bytes are too few: at least {MIN_SETTLE_MEMORY} are needed"
                )),
                bytes => Ok(bytes),
            })?,
            workers: with("workers").parse(|text| match text {
                "auto" => Ok(None),
                _ => number(text, 1..=1024usize).map(Some),
            })?,
            snaplen: with("snaplen").parse(|text| number(text, 1..=MAX_SNAPLEN))?,
            ring_memory: with("ring-memory").parse(parse_bytes)?,
            block_timeout_ms: with("block-timeout-ms").parse(|text| number(text, 1..=1000u32))?,
            metrics: with("metrics").parse(|text| match text {
                "" => Ok(None),
                _ => text.parse().map(Some).map_err(|_not_an_address| {
                    format!("{text:?} is not an address with a port, as in 127.0.0.1:9100")
                }),
            })?,
        })
    }

    /// What the control thread needs of it; `addresses` is told where the sensors are.
    #[must_use]
    pub fn control(&self, addresses: SensorAddresses) -> ControlConfig {
        ControlConfig {
            sensors: self.sensors.clone(),
            is_ipv4_only: self.is_ipv4_only,
            sharing: self.sharing,
            encoding: self.encoding,
            datagram_bytes: self.datagram_bytes,
            snaplen: self.snaplen,
            listen: self.listen.clone(),
            allowed_hosts: self.allowed_hosts.clone(),
            access: self.access.clone(),
            allow_promisc: self.allow_promisc,
            preselected: self.preselected.clone(),
            timing: Timing::default(),
            addresses,
            flows: OwnFlows::default(),
        }
    }

    /// How to call a setting in an error: the flag, or what its value came from.
    #[must_use]
    pub fn named(&self, flag: &'static str) -> String {
        let found = self.names.iter().find(|(named, _)| *named == flag);
        found.map_or_else(|| format!("--{flag}"), |(_, name)| name.clone())
    }

    /// How each of so many workers settles.
    #[must_use]
    pub fn settling(&self, workers: usize) -> Settling {
        let share = usize::try_from(self.settle_memory).unwrap_or(usize::MAX) / workers.max(1);
        let least = usize::try_from(MIN_SETTLE_MEMORY).unwrap_or(usize::MAX);
        // The rest of the window is for the packet's other copies, after it was decided.
        let settle_ns = self.settle_ns.min(self.dedup_window_ns / 2);
        Settling { settle_ns, memory: share.max(least) }
    }

    /// The sensors' addresses that need no name server.
    #[must_use]
    pub fn numeric_sensors(&self) -> Vec<IpAddr> {
        self.sensors.iter().filter_map(|sensor| sensor.host.parse().ok()).collect()
    }
}

/// The accounts of the file and of the variable, and who needs none.
fn access(settings: &Settings) -> Result<Access, ConfigError> {
    let with = |flag: &'static str| Field { settings, flag };
    let mut access = Access {
        null: with("null-auth").parse(passive::null_auth)?,
        passwords: with("password-file").parse(passive::password_file)?,
    };
    if let Some(password) = settings.password() {
        let setting = passive::PASSWORD_VARIABLE.to_owned();
        let error = |reason| ConfigError { setting, reason };
        access.passwords.add(None, password).map_err(error)?;
    }
    Ok(access)
}

struct Field<'a> {
    settings: &'a Settings,
    flag: &'static str,
}

impl Field<'_> {
    fn parse<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, ConfigError> {
        parse(self.settings.text(self.flag)).map_err(|reason| self.error(reason))
    }

    fn error(&self, reason: String) -> ConfigError {
        ConfigError { setting: self.settings.named(self.flag), reason }
    }
}

fn sharing(settings: &Settings, sensors: usize) -> Result<Sharing, ConfigError> {
    let with = |flag: &'static str| Field { settings, flag };
    let mode = with("sensors-mode").parse(|text| match text {
        "copy" => Ok(SensorsMode::Copy),
        "balance" => Ok(SensorsMode::Balance),
        _ => Err(format!("{text:?} is neither copy nor balance")),
    })?;
    let sessions_per_sensor = with("sessions-per-sensor").parse(|text| {
        let each = number(text, 1..=MAX_SESSIONS_PER_SENSOR)?;
        match each * sensors <= MAX_CONNECTIONS {
            true => Ok(each),
            false => Err(format!(
                "{each} sessions to each of {sensors} sensors are more than {MAX_CONNECTIONS}"
            )),
        }
    })?;
    let settle = with("balance-settle-ms").parse(|text| number(text, 0..=3_600_000u64))?;
    Ok(Sharing { mode, sessions_per_sensor, settle: Duration::from_millis(settle) })
}

/// A name that sensors are to open must be among what is tapped.
fn check_opened(name: &str, interfaces: &InterfaceSelection) -> Result<(), String> {
    match name == ANY_ETH || interfaces.matches(name) {
        true => Ok(()),
        false => Err(format!("{name:?} is not among the interfaces that --interface selects")),
    }
}

fn refuse_overlap(
    field: &Field<'_>,
    ours: &[IpNet],
    other_name: &str,
    others: &[IpNet],
) -> Result<(), ConfigError> {
    for one in ours {
        for other in others {
            if one.contains(other) || other.contains(one) {
                return Err(field.error(format!(
                    "{one} overlaps {other_name} {other}: an address is a pod's or a service's, not both"
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(args: &[&str]) -> Result<Config, ConfigError> {
        Config::new(&Settings::from_parts(args, &[]).unwrap())
    }

    fn refused(args: &[&str]) -> String {
        config(args).unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_what_the_contract_says() {
        let config = config(&[]).unwrap();
        assert!(config.interfaces.is_any() && config.policy.any_interface);
        assert_eq!((config.datagram_bytes, config.flush_ns), (None, 1_000_000));
        assert_eq!((config.dedup_window_ns, config.workers), (100_000_000, None));
        assert_eq!(config.settling(2), Settling { settle_ns: 20_000_000, memory: 8 << 20 });
        assert_eq!(config.policy.nodeports, 30_000..=32_767);
        assert_eq!(config.policy.overlay_ports, [4789, 8472, 6081]);
        assert_eq!((config.encoding, config.policy.election), (Encoding::Stream, Election::Source));
        assert!(config.sensors.is_empty() && config.metrics.is_none());
        assert_eq!(config.sharing, Sharing::default(), "every sensor gets every packet, once");
    }

    #[test]
    fn copies_may_differ_in_their_dscp_only_if_the_tap_is_told_so() {
        assert!(!config(&[]).unwrap().ignores_dscp);
        assert!(config(&["--ignore-dscp"]).unwrap().ignores_dscp);
        let settings = Settings::from_parts(&[], &[("PODTAP_IGNORE_DSCP", "true")]).unwrap();
        assert!(Config::new(&settings).unwrap().ignores_dscp);
    }

    #[test]
    fn the_reference_s_rule_needs_the_pods_prefixes_and_takes_them_from_its_variables() {
        let said = refused(&["--election", "ports"]);
        assert!(said.starts_with("--podnet: --election ports needs"), "{said}");
        let said = refused(&["--election", "ports", "--podnet", "fd00::/56"]);
        assert!(said.contains("IPv4"), "{said}");
        let variables = [("PODNET", "10.0.0.0/8,fd00::/56"), ("SVCNET", "10.9.0.0/16")];
        let settings = Settings::from_parts(&["--election", "ports"], &variables).unwrap();
        let policy = Config::new(&settings).unwrap().policy;
        assert_eq!((policy.election, policy.pods.len()), (Election::Ports, 2));
        assert!(settings.to_text().contains("election           ports "), "{settings:?}");
        assert!(refused(&["--election", "port"]).contains("neither source, nor ports, nor none"));
    }

    #[test]
    fn settling_leaves_half_the_window_and_has_memory_for_each_worker() {
        let config = config(&["--dedup-window-ms", "30", "--settle-memory", "1M"]).unwrap();
        assert_eq!(config.settling(2), Settling { settle_ns: 15_000_000, memory: 512 << 10 });
        assert_eq!(config.settling(64).memory, 256 << 10);
    }

    #[test]
    fn passwords_come_from_a_file_and_from_a_variable_that_is_never_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "ann:hidden-1\n").unwrap();
        let args = ["--password-file", file.path().to_str().unwrap(), "--null-auth", "--listen=99"];
        let settings = Settings::from_parts(
            &args,
            &[("PODTAP_PASSWORD", "hidden:2"), ("PODTAP_ALLOW_PROMISC", "1")],
        )
        .unwrap();
        let config = Config::new(&settings).unwrap();
        assert_eq!(format!("{:?}", config.access.passwords), "2 accounts");
        assert_eq!(config.access.null, crate::control::NullAuth::Everybody);
        assert!(config.allow_promisc && config.listen[0].port == 99);
        let shown = format!("{}{config:?}{settings:?}", settings.to_text());
        assert!(!shown.contains("hidden"), "{shown}");
    }

    #[test]
    fn a_datagrams_size_is_found_or_fixed() {
        assert_eq!(config(&["--datagram-bytes", "auto"]).unwrap().datagram_bytes, None);
        assert_eq!(config(&["--datagram-bytes", "8972"]).unwrap().datagram_bytes, Some(8972));
        let settings = Settings::from_parts(&[], &[]).unwrap().to_text();
        assert!(settings.contains("datagram-bytes     auto "), "{settings}");
    }

    #[test]
    fn sensors_take_the_common_port_or_their_own() {
        let config = config(&[
            "--sensor",
            "10.0.0.1, fd00::1,probe.example:99,[fd00::2]:98",
            "--port",
            "2010",
        ])
        .unwrap();
        let sensors: Vec<_> = config.sensors.iter().map(|s| (s.host.as_str(), s.port)).collect();
        assert_eq!(
            sensors,
            [("10.0.0.1", 2010), ("fd00::1", 2010), ("probe.example", 99), ("fd00::2", 98)]
        );
        assert_eq!(config.policy.control_ports, [98, 99, 2010]);
        assert_eq!(config.numeric_sensors().len(), 3);
    }

    #[test]
    fn each_wrong_value_is_named_with_its_flag_and_what_would_do() {
        for (args, expected) in [
            (&["--podnet", "10.0.0.0/33"][..], "--podnet: \"10.0.0.0/33\" is not a prefix"),
            (
                &["--podnet", "10.0.1.0/16"],
                "--podnet: \"10.0.1.0/16\" has bits behind its prefix length: 10.0.0.0/16?",
            ),
            (
                &["--podnet", "10.0.0.0/8", "--svcnet", "10.9.0.0/16"],
                "--svcnet: 10.9.0.0/16 overlaps PODNET 10.0.0.0/8",
            ),
            (&["--listen", "host"], "--listen: \"host\" is neither ADDR:PORT"),
            (&["--allow-hosts", "10.0.0.300"], "--allow-hosts: \"10.0.0.300\" is neither"),
            (&["--null-auth=perhaps"], "--null-auth: \"perhaps\" is neither yes nor no"),
            (&["--password-file", "/no/such"], "--password-file: cannot read \"/no/such\""),
            (&["--port", "0"], "--port: \"0\" is not a number from 1 to 65535"),
            (&["--sensor", "10.0.0.300"], "--sensor: \"10.0.0.300\" is neither"),
            (&["--sensor", "a b"], "--sensor: \"a b\" is neither"),
            (
                &["--sensor", "10.0.0.1,10.0.0.1"],
                "--sensor: \"10.0.0.1,10.0.0.1\" names a sensor twice",
            ),
            (&["--sensors-mode", "x"], "--sensors-mode: \"x\" is neither copy nor balance"),
            (
                &["--sessions-per-sensor", "17"],
                "--sessions-per-sensor: \"17\" is not a number from 1 to 16",
            ),
            (
                &["--balance-settle-ms", "x"],
                "--balance-settle-ms: \"x\" is not a number from 0 to 3600000",
            ),
            (&["--dedup-memory", "1K"], "--dedup-memory: 1024 bytes of dedup memory are too few"),
            (&["--nodeport-range", "9-8"], "--nodeport-range: \"9-8\" is not a range of ports"),
            (&["--overlay-ports", "x"], "--overlay-ports: \"x\" is not a number from 1 to 65535"),
            (&["--settle-ms", "0"], "--settle-ms: \"0\" is not a number from 1 to 10000"),
            (&["--settle-memory", "1K"], "--settle-memory: 1024 bytes are too few"),
            (&["--dedup-memory", "lots"], "--dedup-memory: \"lots\" is not a number of bytes"),
            (&["--workers", "0"], "--workers: \"0\" is not a number from 1 to 1024"),
            (&["--encoding", "udp"], "--encoding: \"udp\" is neither stream nor plain"),
            (&["--election", "x"], "--election: \"x\" is neither"),
            (&["--capture", "x"], "--capture: \"x\" is neither"),
            (&["--metrics", "9100"], "--metrics: \"9100\" is not an address with a port"),
            (
                &["--datagram-bytes", "70000"],
                "--datagram-bytes: \"70000\" is not a number from 128 to 65507",
            ),
        ] {
            let text = refused(args);
            assert!(text.starts_with(expected), "{args:?}: {text}");
        }
    }
}
