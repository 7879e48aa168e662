//! Services, as kube-proxy's iptables mode lays them out.
//!
//! ```text
//! KUBE-SERVICES: address, port --------------------------> KUBE-SVC-x: one backend, by chance
//! KUBE-NODEPORTS: node's address, node port -> KUBE-EXT-x ----^            |
//!     policy Cluster: marked to be masqueraded                             v
//!     policy Local: only this node's backends           KUBE-SEP-x-i: DNAT; its own packets marked
//! KUBE-POSTROUTING: what is marked leaves with the node's address (MASQUERADE, random port)
//! no backends: REJECT in INPUT, FORWARD and OUTPUT
//! ```

use super::error::LabError;
use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};
use std::{
    fmt,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

/// Transport of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP: the kernel translates it, but this one has no sockets for it.
    Sctp,
}

impl Protocol {
    /// The IP protocol number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            _ => Err(format!("{text:?} is not tcp, udp or sctp")),
        }
    }
}

/// How a service without backends answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// By an ICMP error, as kube-proxy has it.
    #[default]
    PortUnreachable,
    /// By a TCP reset.
    TcpReset,
}

/// A service: each connection to `address` goes to one of `backends`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The service's address and port.
    pub address: SocketAddr,
    /// Its transport.
    pub protocol: Protocol,
    /// Where it leads. With none, the node refuses the connection, as kube-proxy has it.
    pub backends: Vec<SocketAddr>,
    /// The port of every node's own addresses that leads there too.
    pub node_port: Option<u16>,
    /// `externalTrafficPolicy: Local`: by the node port only to backends of the same node, and
    /// with the client's address. Otherwise to any, and with the node's.
    pub local_only: bool,
    /// How it answers without backends.
    pub refusal: Refusal,
}

impl Service {
    /// A TCP service.
    #[must_use]
    pub fn tcp(address: SocketAddr, backends: &[SocketAddr]) -> Self {
        Self::new(Protocol::Tcp, address, backends)
    }

    /// A UDP service.
    #[must_use]
    pub fn udp(address: SocketAddr, backends: &[SocketAddr]) -> Self {
        Self::new(Protocol::Udp, address, backends)
    }

    /// A ClusterIP service.
    #[must_use]
    pub fn new(protocol: Protocol, address: SocketAddr, backends: &[SocketAddr]) -> Self {
        Self {
            address,
            protocol,
            backends: backends.to_vec(),
            node_port: None,
            local_only: false,
            refusal: Refusal::default(),
        }
    }

    /// Adds a node port, `externalTrafficPolicy: Cluster`.
    #[must_use]
    pub fn node_port(self, port: u16) -> Self {
        Self { node_port: Some(port), ..self }
    }

    /// Makes that `externalTrafficPolicy: Local`.
    #[must_use]
    pub fn local_only(self) -> Self {
        Self { local_only: true, ..self }
    }

    /// Refuses by a TCP reset where there is no backend.
    #[must_use]
    pub fn refuse_by_reset(self) -> Self {
        Self { refusal: Refusal::TcpReset, ..self }
    }

    pub(crate) fn validate(&self) -> Result<(), LabError> {
        let family = self.address.is_ipv4();
        if self.backends.iter().any(|backend| backend.is_ipv4() != family) {
            return Err(LabError::Invalid(format!(
                "service {}: its backends are of another address family",
                self.address
            )));
        }
        if self.refusal == Refusal::TcpReset && self.protocol != Protocol::Tcp {
            return Err(LabError::Invalid(format!(
                "service {}: only TCP can be reset",
                self.address
            )));
        }
        Ok(())
    }

    /// The rules of one node in `iptables-restore` form; `is_local` knows the node's backends.
    pub(crate) fn rules(&self, is_local: impl Fn(IpAddr) -> bool) -> String {
        if self.backends.is_empty() {
            return self.refusing_rules();
        }
        let (ip, port, protocol) = (self.address.ip(), self.address.port(), self.protocol);
        let id = self.id();
        let locals: Vec<usize> =
            (0..self.backends.len()).filter(|i| is_local(self.backends[*i].ip())).collect();
        let mut text = format!("*nat\n:KUBE-SVC-{id} - [0:0]\n");
        // Writing to a string cannot fail.
        for (index, backend) in self.backends.iter().enumerate() {
            let chain = format!("KUBE-SEP-{id}-{index}");
            let _ = writeln!(text, ":{chain} - [0:0]");
            let _ = writeln!(text, "-A {chain} -s {} -j KUBE-MARK-MASQ", backend.ip());
            let _ = writeln!(text, "-A {chain} -p {protocol} -j DNAT --to-destination {backend}");
        }
        let all: Vec<usize> = (0..self.backends.len()).collect();
        text += &choice(&format!("KUBE-SVC-{id}"), &id, &all);
        let _ = writeln!(
            text,
            "-A KUBE-SERVICES -d {ip} -p {protocol} --dport {port} -j KUBE-SVC-{id}"
        );
        let mut filter = String::new();
        if let Some(port) = self.node_port {
            let chain = format!("KUBE-EXT-{id}");
            let _ = writeln!(text, ":{chain} - [0:0]");
            let _ = writeln!(text, "-A KUBE-NODEPORTS -p {protocol} --dport {port} -j {chain}");
            if self.local_only {
                for target in ["KUBE-MARK-MASQ".to_owned(), format!("KUBE-SVC-{id}")] {
                    let _ = writeln!(text, "-A {chain} -m addrtype --src-type LOCAL -j {target}");
                }
                text += &choice(&chain, &id, &locals);
                if locals.is_empty() {
                    filter = format!(
                        "*filter\n-A INPUT -p {protocol} --dport {port} \
                         -m addrtype --dst-type LOCAL -j DROP\nCOMMIT\n"
                    );
                }
            } else {
                let _ = writeln!(text, "-A {chain} -j KUBE-MARK-MASQ");
                let _ = writeln!(text, "-A {chain} -j KUBE-SVC-{id}");
            }
        }
        text + "COMMIT\n" + &filter
    }

    fn refusing_rules(&self) -> String {
        let (ip, port, protocol) = (self.address.ip(), self.address.port(), self.protocol);
        let with = match self.refusal {
            Refusal::PortUnreachable => "",
            Refusal::TcpReset => " --reject-with tcp-reset",
        };
        let mut text = "*filter\n".to_owned();
        for chain in ["FORWARD", "OUTPUT"] {
            let _ =
                writeln!(text, "-A {chain} -d {ip} -p {protocol} --dport {port} -j REJECT{with}");
        }
        if let Some(port) = self.node_port {
            let _ = writeln!(
                text,
                "-A INPUT -m addrtype --dst-type LOCAL -p {protocol} --dport {port} -j REJECT{with}"
            );
        }
        text + "COMMIT\n"
    }

    /// Tells the chains of services apart, as kube-proxy does: by a hash.
    fn id(&self) -> String {
        let digest = Sha1::digest(format!("{} {}", self.protocol, self.address));
        digest.iter().take(5).fold(String::new(), |text, byte| text + &format!("{byte:02X}"))
    }
}

/// Rules of `chain` that jump to one of the backends, each with the same chance.
fn choice(chain: &str, id: &str, backends: &[usize]) -> String {
    let mut text = String::new();
    for (position, index) in backends.iter().enumerate() {
        let left = backends.len() - position;
        let _ = write!(text, "-A {chain}");
        if left > 1 {
            // Of the connections that earlier rules left, one in `left`.
            let probability = 10_000_000_000 / left;
            let _ = write!(text, " -m statistic --mode random --probability 0.{probability:010}");
        }
        let _ = writeln!(text, " -j KUBE-SEP-{id}-{index}");
    }
    text
}

/// The chains that all services hang on.
pub(crate) const CHAINS: &str = "*nat\n\
    :KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
    :KUBE-POSTROUTING - [0:0]\n\
    -A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n\
    -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
    -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
    -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
    -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
    -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(count: u8) -> Vec<SocketAddr> {
        (1..=count).map(|n| SocketAddr::from(([10, 0, 1, 100 + n], 8080))).collect()
    }

    #[test]
    fn each_backend_gets_its_share() {
        let service = Service::tcp(SocketAddr::from(([172, 20, 0, 1], 80)), &backends(3));
        let rules = service.rules(|_address| true);
        let shares: Vec<&str> =
            rules.lines().filter(|line| line.starts_with("-A KUBE-SVC-")).collect();
        assert_eq!(shares.len(), 3);
        assert!(shares[0].contains("--probability 0.3333333333 -j KUBE-SEP-"));
        assert!(shares[1].contains("--probability 0.5000000000 -j KUBE-SEP-"));
        assert!(!shares[2].contains("probability") && shares[2].ends_with("-2"));
        assert!(rules.contains("DNAT --to-destination 10.0.1.103:8080"));
    }

    #[test]
    fn a_node_port_of_policy_local_leads_to_this_nodes_backends_only() {
        let service = Service::tcp(SocketAddr::from(([172, 20, 0, 1], 80)), &backends(3))
            .node_port(30080)
            .local_only();
        let second: IpAddr = [10, 0, 1, 102].into();
        let rules = service.rules(|address| address == second);
        let jumps: Vec<&str> = rules
            .lines()
            .filter(|line| line.starts_with("-A KUBE-EXT-") && line.contains("KUBE-SEP-"))
            .collect();
        assert_eq!(jumps.len(), 1);
        assert!(jumps[0].ends_with("-1"));
        assert!(!rules.contains("DROP"));
        assert!(service.rules(|_address| false).contains("--dport 30080"));
        assert!(service.rules(|_address| false).contains("DROP"));
    }

    #[test]
    fn families_do_not_mix() {
        let v4 = SocketAddr::from(([10, 0, 1, 101], 53));
        let v6 = SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, 1], 53));
        assert!(Service::udp(v6, &[v4]).validate().is_err());
        assert!(Service::udp(v6, &[v6]).validate().is_ok());
        assert!(Service::udp(v6, &[]).refuse_by_reset().validate().is_err());
    }
}
