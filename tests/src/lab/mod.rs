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
//! More of it on demand: pods behind secondary ENIs, branch ENIs or an overlay ([`PodKind`]),
//! bare instances (`db`, `cache`), services with node ports, NodeLocal DNS.
//!
//! Several labs live side by side; all of a lab is in its namespaces (`pt-NAME-HOST`) and one
//! file, `/run/podtap-lab/NAME.json`. Dropping a [`Lab`] removes everything, the processes that
//! run in it included.

mod big_tcp;
mod build;
mod error;
mod host;
mod live;
mod namespace;
mod nat;
mod pods;
mod process;
mod relay;
mod service;
mod spec;
mod trunk;
mod tunnel;
mod uplinks;
mod wiring;

pub use error::LabError;
pub use host::{Host, Node, Pod};
pub(crate) use namespace::ip_batch;
pub use pods::PodKind;
pub use process::Process;
pub use relay::RelaySpec;
pub use service::{Protocol, Refusal, Service};
pub use spec::{LabSpec, Overlay, PODNET, PODNET_V6, SVCNET, SVCNET_V6};
pub use trunk::Trunk;
pub use tunnel::{Tunnel, Wrapping};

use nix::unistd::geteuid;
use std::{
    fs,
    io::ErrorKind,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
};

const STATE_DIRECTORY: &str = "/run/podtap-lab";
/// Holds the addresses of NodeLocal DNS.
const NODE_DNS_DEVICE: &str = "nodelocaldns";

/// A lab that is up. Dropping it takes it down.
#[derive(Debug)]
pub struct Lab {
    spec: LabSpec,
    nodes: Vec<Node>,
    vpc: Host,
    inet: Host,
    sensor: Host,
    bare: Vec<Host>,
    relays: Vec<relay::Relay>,
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
        let mut lab = Self::describe(spec);
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

    /// Leaves the lab up when this value is dropped. Its [`Self::relays`] end with it.
    pub fn keep(mut self) {
        self.keep = true;
    }

    /// What stands for devices that the kernel lacks, for one that runs it after [`Self::keep`].
    #[must_use]
    pub fn relays(&self) -> Vec<RelaySpec> {
        self.nodes.iter().flat_map(|node| self.relays_of(node)).collect()
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

    /// A bare instance in the VPC, outside the half where nodes are: `db`, a database.
    ///
    /// # Panics
    ///
    /// When the lab was not asked for it: a mistake in the test.
    #[must_use]
    pub fn db(&self) -> &Host {
        self.bare.first().expect("a lab with `bare()`")
    }

    /// A bare instance in the half of the VPC where nodes are: `cache`.
    ///
    /// # Panics
    ///
    /// When the lab was not asked for it: a mistake in the test.
    #[must_use]
    pub fn cache(&self) -> &Host {
        self.bare.get(1).expect("a lab with `bare()`")
    }

    /// Every host: router, internet host, sensor, bare instances, nodes, pods.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        [&self.vpc, &self.inet, &self.sensor]
            .into_iter()
            .chain(&self.bare)
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

    /// Adds a service on every node.
    ///
    /// # Errors
    ///
    /// When iptables refuses it.
    pub fn add_service(&self, service: &Service) -> Result<(), LabError> {
        nat::add_service(&self.nodes, service)
    }

    /// Makes these (service) addresses a node's own, as NodeLocal DNS does: on an interface of
    /// their own, with port 53 exempt from DNAT. The server is the test's.
    ///
    /// # Errors
    ///
    /// When the interface is there already, or iptables refuses.
    pub fn add_node_dns(&self, node: usize, addresses: &[IpAddr]) -> Result<(), LabError> {
        let node = self.node(node);
        let mut lines = vec![
            // A dummy on real nodes. No frame ever passes it.
            format!("tuntap add dev {NODE_DNS_DEVICE} mode tap"),
            format!("link set {NODE_DNS_DEVICE} up"),
        ];
        for address in addresses {
            lines.push(match address {
                IpAddr::V4(address) => format!("address add {address}/32 dev {NODE_DNS_DEVICE}"),
                IpAddr::V6(address) => {
                    format!("address add {address}/128 dev {NODE_DNS_DEVICE} nodad")
                }
            });
        }
        namespace::ip_batch(Some(&node.namespace), &lines)?;
        addresses.iter().try_for_each(|address| nat::add_node_dns(node, *address))
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
        // Before their interfaces go.
        self.relays.clear();
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
