//! A host of the lab - pod, node, router, internet host, sensor - as something to run things on.

use super::{
    error::LabError,
    namespace,
    pods::{PodId, PodKind},
    process::Process,
    spec::{self, LabSpec},
};
use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Deref,
    process::Command,
};

/// A host: a network namespace with an `eth0` (except the router).
#[derive(Clone, Debug)]
pub struct Host {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Option<Ipv6Addr>,
    /// MAC address of the only neighbour: the other end of a pod's veth.
    pub(crate) neighbour_mac: Option<String>,
}

impl Host {
    /// Its name within the lab, such as `node1-pod2`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace, as `ip netns` knows it.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its IPv6 address, in a lab that has IPv6.
    #[must_use]
    pub fn v6(&self) -> Option<Ipv6Addr> {
        self.v6
    }

    /// All its addresses, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        std::iter::once(IpAddr::V4(self.v4)).chain(self.v6.map(IpAddr::V6)).collect()
    }

    /// Its IPv4 address with a port.
    #[must_use]
    pub fn socket(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.v4, port))
    }

    /// Its IPv6 address with a port, in a lab that has IPv6.
    #[must_use]
    pub fn socket_v6(&self, port: u16) -> Option<SocketAddr> {
        self.v6.map(|address| SocketAddr::from((address, port)))
    }

    /// A command that will run on this host, to be completed by the caller.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(program);
        command
    }

    fn command_of<I>(&self, words: I) -> Command
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).args(words);
        command
    }

    /// Runs a program to its end and returns its standard output.
    ///
    /// # Errors
    ///
    /// When it cannot be started or does not exit with 0; the error has its standard error.
    pub fn exec<I>(&self, words: I) -> Result<String, LabError>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let output = namespace::run(&mut self.command_of(words))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a program that runs until its guard is dropped.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn spawn<I>(&self, words: I) -> Result<Process, LabError>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        Process::start(self.command_of(words))
    }

    /// Runs `work` on a thread inside the host's network namespace: sockets that it opens and
    /// threads that it starts are this host's. `/sys` is not.
    ///
    /// # Errors
    ///
    /// When the namespace is gone, or we are not root.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        namespace::enter(&self.namespace, work)
    }

    /// MAC address of the only neighbour on `eth0`, where that is fixed: for pods.
    #[must_use]
    pub fn neighbour_mac(&self) -> Option<&str> {
        self.neighbour_mac.as_deref()
    }

    /// MAC address of an interface.
    ///
    /// # Errors
    ///
    /// When there is no such interface, or it has none.
    pub fn mac(&self, interface: &str) -> Result<String, LabError> {
        let found = self.enter(|| {
            getifaddrs().map(|mut list| {
                list.find_map(|entry| {
                    let address = entry.address.filter(|_| entry.interface_name == interface)?;
                    address.as_link_addr()?.addr()
                })
            })
        })?;
        let mac = found.map_err(|error| LabError::call("getifaddrs", error))?;
        let bytes = mac.ok_or_else(|| {
            LabError::Invalid(format!("{} has no MAC address on {interface:?}", self.name))
        })?;
        Ok(bytes.map(|byte| format!("{byte:02x}")).join(":"))
    }

    /// Names of its interfaces that are up and running, `lo` among them.
    ///
    /// # Errors
    ///
    /// When the namespace is gone.
    pub fn running_interfaces(&self) -> Result<BTreeSet<String>, LabError> {
        let wanted = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
        self.enter(|| {
            let interfaces = getifaddrs().map_err(|error| LabError::call("getifaddrs", error))?;
            Ok(interfaces
                .filter(|interface| interface.flags.contains(wanted))
                .map(|interface| interface.interface_name)
                .collect())
        })?
    }
}

/// A pod: one end of a veth whose other end is on its node.
#[derive(Clone, Debug)]
pub struct Pod {
    pub(crate) host: Host,
    pub(crate) id: PodId,
    pub(crate) host_veth: String,
}

impl Pod {
    pub(crate) fn describe(spec: &LabSpec, id: PodId) -> Self {
        let name = id.name();
        let host = Host {
            namespace: spec::prefix(&spec.name) + &name,
            name,
            v4: id.v4(),
            v6: spec.ipv6.then_some(id.v6()),
            // On a bridge there are others.
            neighbour_mac: (id.kind != PodKind::Overlay).then(|| id.host_mac()),
        };
        Self { host, id, host_veth: id.host_veth() }
    }

    /// Number of the node it lives on.
    #[must_use]
    pub fn node(&self) -> u8 {
        self.id.node
    }

    /// How it is connected.
    #[must_use]
    pub fn kind(&self) -> PodKind {
        self.id.kind
    }

    /// Name of its veth's other end, on the node.
    #[must_use]
    pub fn host_veth(&self) -> &str {
        &self.host_veth
    }

    /// The VLAN device of its branch ENI, on the node: for [`PodKind::Branch`].
    #[must_use]
    pub fn branch_device(&self) -> Option<String> {
        (self.id.kind == PodKind::Branch).then(|| self.id.branch_device())
    }

    /// The VLAN of its branch ENI: for [`PodKind::Branch`].
    #[must_use]
    pub fn vlan(&self) -> Option<u16> {
        (self.id.kind == PodKind::Branch).then(|| u16::from(self.id.number))
    }
}

impl Deref for Pod {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

/// A node, with its uplink `eth0` and its pods.
#[derive(Clone, Debug)]
pub struct Node {
    pub(crate) host: Host,
    pub(crate) number: u8,
    pub(crate) pods: Vec<Pod>,
}

impl Node {
    /// Its ordinary pod of this number, from 1.
    ///
    /// # Panics
    ///
    /// When there is none: a mistake in the test.
    #[must_use]
    pub fn pod(&self, number: usize) -> &Pod {
        self.pod_of(PodKind::Plain, number)
    }

    /// Its pod of this kind and number, from 1.
    ///
    /// # Panics
    ///
    /// When there is none: a mistake in the test.
    #[must_use]
    pub fn pod_of(&self, kind: PodKind, number: usize) -> &Pod {
        self.pods
            .iter()
            .find(|pod| pod.id.kind == kind && usize::from(pod.id.number) == number)
            .unwrap_or_else(|| panic!("{} has no pod {number} of {kind:?}", self.host.name))
    }

    /// All its pods, ordinary ones first.
    #[must_use]
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Its number, from 1.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its own address on the secondary ENI, where it has one.
    #[must_use]
    pub fn eni_v4(&self) -> Ipv4Addr {
        spec::eni_v4(self.number)
    }
}

impl Deref for Node {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}
