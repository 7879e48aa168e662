//! An EKS node group in network namespaces.
//!
//! ```text
//! LabSpec --> names and addresses (spec) --> ip batches, sysctls (wiring), iptables (nat)
//!                                                       |
//! Lab::up: namespaces -> sysctls -> veths -> addresses, routes, NAT -> all links running
//! ```
//!
//! ```text
//!  node1-pod1 --eni..-- node1 --eth0--+-- vpc --+-- inet    203.0.113.10
//!  node1-pod2 --eni..--/              |         +-- sensor  10.0.250.10
//!  node2-pod1 --eni..-- node2 --eth0--/
//! ```
//!
//! Several labs live side by side; all of a lab is in its namespaces (`pt-NAME-HOST`) and one
//! file, `/run/podtap-lab/NAME.json`. Dropping a [`Lab`] removes everything, the processes that
//! run in it included.

mod error;
mod host;
mod namespace;
mod nat;
mod process;
mod spec;
mod wiring;

pub use error::LabError;
pub use host::{Host, Node, Pod};
pub(crate) use namespace::ip_batch;
pub use nat::{Protocol, Service};
pub use process::Process;
pub use spec::{LabSpec, PODNET, PODNET_V6, SVCNET, SVCNET_V6};

use nix::unistd::geteuid;
use std::{
    fs,
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

const STATE_DIRECTORY: &str = "/run/podtap-lab";
/// How long the kernel may take to report all links running.
const LINKS_LIMIT: Duration = Duration::from_secs(10);

/// A lab that is up. Dropping it takes it down.
#[derive(Debug)]
pub struct Lab {
    spec: LabSpec,
    nodes: Vec<Node>,
    vpc: Host,
    inet: Host,
    sensor: Host,
    keep: bool,
}

impl Lab {
    /// Builds the lab. When anything fails, what was built so far is removed.
    ///
    /// # Errors
    ///
    /// A senseless description, no root, a lab of this name, or a command that failed.
    pub fn up(spec: LabSpec) -> Result<Self, LabError> {
        spec.validate()?;
        require_root()?;
        if !namespace::list(&spec::prefix(&spec.name))?.is_empty() {
            return Err(LabError::Exists(spec.name));
        }
        let lab = Self::describe(spec);
        // From here on a `?` drops the lab, which removes what is there.
        lab.build()?;
        lab.save()?;
        lab.wait_for_links()?;
        Ok(lab)
    }

    /// A lab that was brought up by another process; dropping this leaves it as it is.
    ///
    /// # Errors
    ///
    /// When no lab of this name is up.
    pub fn attach(name: &str) -> Result<Self, LabError> {
        spec::validate_name(name)?;
        let path = state_path(name);
        let text = fs::read(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => LabError::NotUp(name.to_owned()),
            _ => LabError::file(&path, error),
        })?;
        let spec: LabSpec = serde_json::from_slice(&text).map_err(|error| {
            LabError::Unexpected { what: path.display().to_string(), detail: error.to_string() }
        })?;
        let mut lab = Self::describe(spec);
        lab.keep = true;
        Ok(lab)
    }

    /// Takes down the lab of this name, whoever brought it up, complete or not.
    ///
    /// # Errors
    ///
    /// When there is none, or something of it cannot be removed.
    pub fn down(name: &str) -> Result<(), LabError> {
        spec::validate_name(name)?;
        require_root()?;
        let namespaces = namespace::list(&spec::prefix(name))?;
        if !namespaces.is_empty() {
            namespace::remove(&namespaces)?;
        }
        if !remove_state(name)? && namespaces.is_empty() {
            return Err(LabError::NotUp(name.to_owned()));
        }
        Ok(())
    }

    /// Names of the labs that are up on this machine, complete or not.
    ///
    /// # Errors
    ///
    /// When the list of namespaces cannot be read.
    pub fn names() -> Result<Vec<String>, LabError> {
        let mut names: Vec<String> = namespace::list("pt-")?
            .iter()
            .filter_map(|namespace| namespace.strip_prefix("pt-")?.split_once('-'))
            .map(|(name, _host)| name.to_owned())
            .collect();
        names.dedup();
        Ok(names)
    }

    /// Leaves the lab up when this value is dropped.
    pub fn keep(mut self) {
        self.keep = true;
    }

    /// What it was built from.
    #[must_use]
    pub fn spec(&self) -> &LabSpec {
        &self.spec
    }

    /// The node of this number, from 1.
    ///
    /// # Panics
    ///
    /// When there is none: a mistake in the test.
    #[must_use]
    pub fn node(&self, number: usize) -> &Node {
        number
            .checked_sub(1)
            .and_then(|index| self.nodes.get(index))
            .unwrap_or_else(|| panic!("lab {:?} has no node {number}", self.spec.name))
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All pods of all nodes.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.nodes.iter().flat_map(|node| &node.pods)
    }

    /// The VPC's router. Its interfaces are named after what they lead to.
    #[must_use]
    pub fn vpc(&self) -> &Host {
        &self.vpc
    }

    /// The host on the internet.
    #[must_use]
    pub fn inet(&self) -> &Host {
        &self.inet
    }

    /// The host for the sensor: in the VPC, on no node.
    #[must_use]
    pub fn sensor(&self) -> &Host {
        &self.sensor
    }

    /// Every host: router, internet host, sensor, nodes, pods.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        [&self.vpc, &self.inet, &self.sensor]
            .into_iter()
            .chain(self.nodes.iter().map(|node| &node.host))
            .chain(self.pods().map(|pod| &pod.host))
    }

    /// The host of this name, such as `node1-pod2`.
    ///
    /// # Errors
    ///
    /// When there is none; the error lists those that there are.
    pub fn host(&self, name: &str) -> Result<&Host, LabError> {
        self.hosts().find(|host| host.name == name).ok_or_else(|| LabError::NoHost {
            lab: self.spec.name.clone(),
            host: name.to_owned(),
            hosts: self.hosts().map(|host| host.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Adds a ClusterIP service on every node.
    ///
    /// # Errors
    ///
    /// When iptables refuses it.
    pub fn add_service(&self, service: &Service) -> Result<(), LabError> {
        nat::add_service(&self.spec, service)
    }

    /// Process ids of everything that runs in the lab's namespaces.
    ///
    /// # Errors
    ///
    /// When `/proc` cannot be read.
    pub fn processes(&self) -> Result<Vec<i32>, LabError> {
        let namespaces: Vec<String> = self.hosts().map(|host| host.namespace.clone()).collect();
        Ok(namespace::processes(&namespaces)?.into_iter().map(nix::unistd::Pid::as_raw).collect())
    }

    /// The names and addresses, nothing built.
    fn describe(spec: LabSpec) -> Self {
        let prefix = spec::prefix(&spec.name);
        let host = |name: String, v4: Ipv4Addr, v6: Ipv6Addr| Host {
            namespace: format!("{prefix}{name}"),
            name,
            v4,
            v6: spec.ipv6.then_some(v6),
            neighbour_mac: None,
        };
        let nodes = (1..=spec.nodes)
            .map(|node| Node {
                host: host(spec::node_name(node), spec::node_v4(node), spec::node_v6(node)),
                pods: (1..=spec.pods)
                    .map(|pod| Pod {
                        host: Host {
                            neighbour_mac: Some(spec::host_veth_mac(node, pod)),
                            ..host(
                                spec::pod_name(node, pod),
                                spec::pod_v4(node, pod),
                                spec::pod_v6(node, pod),
                            )
                        },
                        node,
                        host_veth: spec::host_veth_name(node, pod),
                    })
                    .collect(),
            })
            .collect();
        Self {
            vpc: host("vpc".into(), spec::sensor_gateway_v4(), spec::sensor_gateway_v6()),
            inet: host("inet".into(), spec::inet_v4(), spec::inet_v6()),
            sensor: host("sensor".into(), spec::sensor_v4(), spec::sensor_v6()),
            nodes,
            spec,
            keep: false,
        }
    }

    fn build(&self) -> Result<(), LabError> {
        let spec = &self.spec;
        let add: Vec<String> =
            self.hosts().map(|host| format!("netns add {}", host.namespace)).collect();
        namespace::ip_batch(None, &add)?;

        let forwarders: Vec<&str> = std::iter::once(&self.vpc)
            .chain(self.nodes.iter().map(|node| &node.host))
            .map(|host| host.name.as_str())
            .collect();
        namespace::in_parallel(self.hosts().collect(), |host| {
            let sysctls = wiring::sysctls(spec, forwarders.contains(&host.name.as_str()));
            host.enter(|| write_sysctls(&sysctls))??;
            if spec.ipv6 { nat::silence_multicast_reports(&host.namespace) } else { Ok(()) }
        })?;
        namespace::ip_batch(None, &wiring::links(spec))?;

        let mut work: Vec<(&Host, Vec<String>, Option<u8>)> = vec![
            (&self.vpc, wiring::vpc(spec), None),
            (&self.inet, wiring::inet(spec), None),
            (&self.sensor, wiring::sensor(spec), None),
        ];
        for (number, node) in (1..).zip(&self.nodes) {
            work.push((&node.host, wiring::node(spec, number), Some(number)));
            for (pod_number, pod) in (1..).zip(&node.pods) {
                work.push((&pod.host, wiring::pod(spec, number, pod_number), None));
            }
        }
        namespace::in_parallel(work, |(host, lines, node)| {
            if !spec.pod_offloads {
                self.turn_offloads_off(host)?;
            }
            namespace::ip_batch(Some(&host.namespace), &lines)?;
            node.map_or(Ok(()), |number| nat::prepare_node(spec, number))
        })
    }

    /// For the interfaces that pods and the internet host send through. Uplinks keep theirs: a
    /// tap's own UDP segmentation needs checksum offload there.
    fn turn_offloads_off(&self, host: &Host) -> Result<(), LabError> {
        let interfaces: Vec<&str> = match self.nodes.iter().find(|node| node.name == host.name) {
            Some(node) => node.pods.iter().map(|pod| pod.host_veth.as_str()).collect(),
            None if host.name == "vpc" || host.name == "sensor" => Vec::new(),
            None => vec!["eth0"],
        };
        for interface in interfaces {
            host.exec([
                "ethtool", "-K", interface, "tso", "off", "gso", "off", "gro", "off", "tx", "off",
            ])?;
        }
        Ok(())
    }

    /// A link whose peer came up second gets its queue from a work item of the kernel's, up to
    /// a second later; what is sent before is lost.
    fn wait_for_links(&self) -> Result<(), LabError> {
        let started = Instant::now();
        for host in self.hosts() {
            let mut wanted: Vec<&str> = vec!["eth0"];
            if host.name == "vpc" {
                wanted = vec!["inet", "sensor"];
                wanted.extend(self.nodes.iter().map(|node| node.name.as_str()));
            } else if let Some(node) = self.nodes.iter().find(|node| node.name == host.name) {
                wanted.extend(node.pods.iter().map(|pod| pod.host_veth.as_str()));
            }
            loop {
                let running = host.running_interfaces()?;
                if wanted.iter().all(|name| running.contains(*name)) {
                    break;
                }
                if started.elapsed() > LINKS_LIMIT {
                    return Err(LabError::Late {
                        what: format!("all links of {} running", host.name),
                        seconds: LINKS_LIMIT.as_secs(),
                        detail: format!(": wanted {wanted:?}, running {running:?}"),
                    });
                }
                thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    fn save(&self) -> Result<(), LabError> {
        fs::create_dir_all(STATE_DIRECTORY)
            .map_err(|error| LabError::file(STATE_DIRECTORY, error))?;
        let path = state_path(&self.spec.name);
        let text = serde_json::to_vec(&self.spec).map_err(|error| LabError::Unexpected {
            what: "the lab's description".to_owned(),
            detail: error.to_string(),
        })?;
        fs::write(&path, text).map_err(|error| LabError::file(path, error))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        match Self::down(&self.spec.name) {
            Ok(()) | Err(LabError::NotUp(_)) => {}
            Err(error) => eprintln!("lab {} is not all gone: {}", self.spec.name, error.chain()),
        }
    }
}

/// True when labs can be made here. Otherwise says loudly that `test` is skipped.
#[must_use]
pub fn can_run(test: &str) -> bool {
    let root = geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: {test} needs root for network namespaces");
    }
    root
}

fn require_root() -> Result<(), LabError> {
    if geteuid().is_root() { Ok(()) } else { Err(LabError::NotRoot) }
}

fn state_path(name: &str) -> PathBuf {
    Path::new(STATE_DIRECTORY).join(format!("{name}.json"))
}

/// True when there was one.
fn remove_state(name: &str) -> Result<bool, LabError> {
    let path = state_path(name);
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(LabError::file(path, error)),
    }
}

fn write_sysctls(sysctls: &[(String, &str)]) -> Result<(), LabError> {
    for (key, value) in sysctls {
        let path = Path::new("/proc/sys/net").join(key);
        match fs::write(&path, value) {
            // A kernel without IPv6 has none of its settings; the addresses will say so.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result.map_err(|error| LabError::file(path, error))?,
        }
    }
    Ok(())
}

/// How `scripts/lab exec` runs a command: on the host, with our own standard streams.
///
/// # Errors
///
/// When it cannot be started.
pub fn run_attached(host: &Host, words: &[String]) -> Result<std::process::ExitStatus, LabError> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", host.namespace()]).args(words);
    command.status().map_err(|source| namespace::start_error(&command, source))
}
