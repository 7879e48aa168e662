//! What a tap decides by, as JSON: what `podtap explain` reads from a running tap or a file.
//!
//! ```text
//! Policy + View + sensors (running tap) --State::new--> State --serde--> JSON --parse--> State
//!     State::policy, State::view --> Classifier: the data path's own, built from the state
//! ```
//!
//! The form has a number: a state of another form is refused, and so is a field that is not known
//! here, since what is not understood may be what decides. The mirrors below take the product's
//! types apart whole: a new field there does not compile until it is carried here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use crate::bpf::Program;
use crate::classify::{Classifier, Election, OwnFlow, Policy};
use crate::config::Config;
use crate::net::{self, Role, SHARED_SLOT, View};
use crate::rpcap::BpfInsn;

/// The number of this form; another one means other fields.
pub const FORMAT: u32 = 1;
/// The most bytes of a state that are read: that of 100,000 interfaces is smaller.
pub const MAX_BYTES: u64 = 64 << 20;

/// Why a text is no state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// No JSON, or not with these fields.
    #[error("it is no state of a tap: {0}")]
    Json(#[from] serde_json::Error),
    /// Made by another podtap.
    #[error(
        "it has form {found} (of podtap {version}), and this podtap reads form {FORMAT}: use the podtap that made it"
    )]
    Format {
        /// Its number.
        found: u64,
        /// What made it.
        version: String,
    },
    /// Values that no tap has.
    #[error("it is no state of a tap: {0}")]
    Value(String),
    /// More than [`MAX_BYTES`].
    #[error("it is longer than {MAX_BYTES} bytes, which no tap's state is")]
    Long,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the podtap that it is of.
    pub version: String,
    /// Process id of the running tap.
    pub pid: Option<u32>,
    /// `--settle-ms`, as ns.
    pub settle_ns: u64,
    /// `--dedup-window-ms`, as ns.
    pub window_ns: u64,
    /// How each flag's value came in: the flag, or the variable or line that it is from.
    pub names: BTreeMap<String, String>,
    /// What flags say.
    pub policy: PolicyState,
    /// What netlink says.
    pub network: Network,
    /// Addresses of the sensors.
    pub sensors: Vec<IpAddr>,
    /// The tap's own connections with clients.
    pub flows: Vec<FlowState>,
}

/// [`Policy`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyState {
    #[serde(with = "ElectionState")]
    election: Election,
    pods: Vec<IpNet>,
    svcnet: Vec<IpNet>,
    nodeports: (u16, u16),
    tapped: Vec<IpNet>,
    untapped: Vec<IpNet>,
    overlay_ports: Vec<u16>,
    any_interface: bool,
    control_ports: Vec<u16>,
    listeners: Vec<(Option<IpAddr>, u16)>,
    node_filter: Option<FilterState>,
}

/// `--filter`: its text for people, its instructions for the verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilterState {
    text: String,
    instructions: Vec<(u16, u8, u8, u32)>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Election", rename_all = "lowercase")]
enum ElectionState {
    Source,
    Ports,
    None,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Role", rename_all = "lowercase")]
enum RoleState {
    Uplink,
    Pod,
    Other,
}

/// [`View`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    links: Vec<LinkState>,
    own: Vec<IpAddr>,
    local: Vec<IpNet>,
    local_by: Vec<(IpNet, u32)>,
    overlay_ports: Vec<u16>,
    main: Option<u32>,
    main_subnets: Vec<Ipv4Net>,
}

/// [`net::Link`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkState {
    ifindex: u32,
    name: String,
    kind: String,
    is_ethernet: bool,
    is_up: bool,
    is_running: bool,
    is_loopback: bool,
    mac: String,
    mtu: u32,
    addresses: Vec<IpNet>,
    #[serde(with = "RoleState")]
    role: Role,
    slot: u16,
    is_tapped: bool,
}

/// [`OwnFlow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowState {
    peer: IpAddr,
    peer_port: u16,
    tcp_port: Option<u16>,
}

impl State {
    /// The state of a tap with this configuration on this network.
    #[must_use]
    pub fn new(config: &Config, policy: &Policy, view: &View, sensors: &BTreeSet<IpAddr>) -> Self {
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: None,
            settle_ns: config.settling(1).settle_ns,
            window_ns: config.dedup_window_ns,
            names: NAMED.iter().map(|flag| ((*flag).to_owned(), config.named(flag))).collect(),
            policy: PolicyState::new(policy, &config.filter),
            network: Network::new(view),
            sensors: sensors.iter().copied().collect(),
            flows: Vec::new(),
        }
    }

    /// The same, of a running process with these connections.
    #[must_use]
    pub fn running(self, flows: impl IntoIterator<Item = OwnFlow>) -> Self {
        let flows = flows.into_iter().map(|OwnFlow { peer, peer_port, tcp_port }| FlowState {
            peer,
            peer_port,
            tcp_port,
        });
        Self { pid: Some(std::process::id()), flows: flows.collect(), ..self }
    }

    /// Reads one from JSON.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(json: &[u8]) -> Result<Self, StateError> {
        /// What every form has.
        #[derive(Deserialize)]
        struct Head {
            format: u64,
            #[serde(default)]
            version: String,
        }
        if json.len() as u64 > MAX_BYTES {
            return Err(StateError::Long);
        }
        let head: Head = serde_json::from_slice(json)?;
        if head.format != u64::from(FORMAT) {
            return Err(StateError::Format { found: head.format, version: head.version });
        }
        let state: Self = serde_json::from_slice(json)?;
        state.check()?;
        Ok(state)
    }

    fn check(&self) -> Result<(), StateError> {
        for link in &self.network.links {
            // The table's points are made of these numbers.
            if link.slot > SHARED_SLOT {
                let LinkState { name, slot, .. } = link;
                return Err(StateError::Value(format!("interface {name} has number {slot}")));
            }
        }
        let Some(filter) = &self.policy.node_filter else { return Ok(()) };
        filter.program().map(|_program| ()).map_err(|error| StateError::Value(error.to_string()))
    }

    /// As JSON, one line.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("text keys and plain values only")
    }

    /// What flags say.
    #[must_use]
    pub fn policy(&self) -> Policy {
        let PolicyState {
            election,
            pods,
            svcnet,
            nodeports: (first, last),
            tapped,
            untapped,
            overlay_ports,
            any_interface,
            control_ports,
            listeners,
            node_filter,
        } = self.policy.clone();
        Policy {
            election,
            pods,
            svcnet,
            nodeports: first..=last,
            tapped,
            untapped,
            overlay_ports,
            any_interface,
            control_ports,
            listeners,
            node_filter: node_filter.and_then(|filter| filter.program().ok()),
        }
    }

    /// The text of `--filter`, if there is one.
    #[must_use]
    pub fn filter(&self) -> Option<&str> {
        self.policy.node_filter.as_ref().map(|filter| filter.text.as_str())
    }

    /// What netlink says.
    #[must_use]
    pub fn view(&self) -> View {
        let Network { links, own, local, local_by, overlay_ports, main, main_subnets } =
            self.network.clone();
        View {
            links: links.into_iter().map(|link| (link.ifindex, link.into())).collect(),
            own,
            local,
            local_by,
            overlay_ports,
            main,
            main_subnets,
            // Of a moment, and of the rings.
            gone: Vec::new(),
            largest_frame: 0,
        }
    }

    /// The classifier of the tap whose state this is.
    #[must_use]
    pub fn classifier(&self) -> Classifier {
        let flows = self.flows.iter().map(|FlowState { peer, peer_port, tcp_port }| OwnFlow {
            peer: *peer,
            peer_port: *peer_port,
            tcp_port: *tcp_port,
        });
        Classifier::new(&self.policy(), &self.view(), &self.sensors).without(flows)
    }

    /// How to call a flag: as it was given.
    #[must_use]
    pub fn named(&self, flag: &str) -> String {
        self.names.get(flag).cloned().unwrap_or_else(|| format!("--{flag}"))
    }
}

/// Flags that answers name.
const NAMED: [&str; 7] =
    ["interface", "svcnet", "tapped-net", "untapped-net", "nodeport-range", "election", "filter"];

impl PolicyState {
    fn new(policy: &Policy, filter: &str) -> Self {
        let Policy {
            election,
            pods,
            svcnet,
            nodeports,
            tapped,
            untapped,
            overlay_ports,
            any_interface,
            control_ports,
            listeners,
            node_filter,
        } = policy.clone();
        Self {
            election,
            pods,
            svcnet,
            nodeports: (*nodeports.start(), *nodeports.end()),
            tapped,
            untapped,
            overlay_ports,
            any_interface,
            control_ports,
            listeners,
            node_filter: node_filter.map(|program| FilterState::new(filter, &program)),
        }
    }
}

impl FilterState {
    fn new(text: &str, program: &Program) -> Self {
        let instructions = program.instructions().iter();
        let instructions = instructions.map(|i| (i.code, i.jt, i.jf, i.k)).collect();
        Self { text: text.to_owned(), instructions }
    }

    fn program(&self) -> Result<Program, crate::bpf::Invalid> {
        let instruction = |&(code, jt, jf, k): &_| BpfInsn { code, jt, jf, k };
        let instructions: Vec<BpfInsn> = self.instructions.iter().map(instruction).collect();
        Program::new(&instructions)
    }
}

impl Network {
    fn new(view: &View) -> Self {
        let View { links, own, local, local_by, overlay_ports, main, main_subnets, .. } =
            view.clone();
        let mut links: Vec<LinkState> = links.into_values().map(LinkState::from).collect();
        links.sort_unstable_by_key(|link| link.ifindex);
        Self { links, own, local, local_by, overlay_ports, main, main_subnets }
    }
}

impl From<net::Link> for LinkState {
    fn from(link: net::Link) -> Self {
        let net::Link {
            ifindex,
            name,
            kind,
            is_ethernet,
            is_up,
            is_running,
            is_loopback,
            mac,
            mtu,
            addresses,
            role,
            slot,
            is_tapped,
        } = link;
        let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        let mac = mac.join(":");
        Self {
            ifindex,
            name,
            kind,
            is_ethernet,
            is_up,
            is_running,
            is_loopback,
            mac,
            mtu,
            addresses,
            role,
            slot,
            is_tapped,
        }
    }
}

impl From<LinkState> for net::Link {
    fn from(link: LinkState) -> Self {
        let LinkState {
            ifindex,
            name,
            kind,
            is_ethernet,
            is_up,
            is_running,
            is_loopback,
            mac,
            mtu,
            addresses,
            role,
            slot,
            is_tapped,
        } = link;
        // Nothing is decided by it: what cannot be read is left out.
        let mac = mac.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        Self {
            ifindex,
            name,
            kind,
            is_ethernet,
            is_up,
            is_running,
            is_loopback,
            mac,
            mtu,
            addresses,
            role,
            slot,
            is_tapped,
        }
    }
}
