//! What kube-proxy and the VPC CNI do with iptables: ClusterIP services by DNAT, and SNAT of what
//! leaves the VPC.
//!
//! ```text
//! PREROUTING, OUTPUT -> KUBE-SERVICES: service address -> one backend, by chance (DNAT)
//! POSTROUTING: towards the uplink and out of the VPC -> the node's address, random port (SNAT)
//! ```

use super::{
    error::LabError,
    namespace,
    spec::{self, LabSpec, PODNET},
};
use serde::{Deserialize, Serialize};
use std::{fmt, fmt::Write as _, net::SocketAddr, process::Command, str::FromStr};

/// Transport of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The IP protocol number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(format!("{text:?} is not tcp or udp")),
        }
    }
}

/// A ClusterIP service: each connection to `address` goes to one of `backends`.
///
/// Not there: the masquerading of a pod that reaches itself through its own service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The service's address and port.
    pub address: SocketAddr,
    /// Its transport.
    pub protocol: Protocol,
    /// Where it leads. With none, the node refuses the connection, as kube-proxy has it.
    pub backends: Vec<SocketAddr>,
}

impl Service {
    /// A TCP service.
    #[must_use]
    pub fn tcp(address: SocketAddr, backends: &[SocketAddr]) -> Self {
        Self { address, protocol: Protocol::Tcp, backends: backends.to_vec() }
    }

    /// A UDP service.
    #[must_use]
    pub fn udp(address: SocketAddr, backends: &[SocketAddr]) -> Self {
        Self { address, protocol: Protocol::Udp, backends: backends.to_vec() }
    }

    fn validate(&self) -> Result<(), LabError> {
        let family = self.address.is_ipv4();
        if self.backends.iter().any(|backend| backend.is_ipv4() != family) {
            return Err(LabError::Invalid(format!(
                "service {}: its backends are of another address family",
                self.address
            )));
        }
        Ok(())
    }

    /// The rules in `iptables-restore` form.
    fn rules(&self) -> String {
        let (ip, port) = (self.address.ip(), self.address.port());
        let protocol = self.protocol;
        if self.backends.is_empty() {
            let mut text = "*filter\n".to_owned();
            for chain in ["FORWARD", "OUTPUT"] {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "-A {chain} -d {ip} -p {protocol} --dport {port} -j REJECT");
            }
            return text + "COMMIT\n";
        }
        let mut text = "*nat\n".to_owned();
        for (index, backend) in self.backends.iter().enumerate() {
            let left = self.backends.len() - index;
            let _ = write!(text, "-A KUBE-SERVICES -d {ip} -p {protocol} --dport {port}");
            if left > 1 {
                // Of the connections that earlier rules left, one in `left`.
                let _ = write!(
                    text,
                    " -m statistic --mode random --probability 0.{:010}",
                    10_000_000_000 / left
                );
            }
            let _ = writeln!(text, " -j DNAT --to-destination {backend}");
        }
        text + "COMMIT\n"
    }
}

/// The chains of a node, and its SNAT (which EKS has for IPv4 only).
pub(crate) fn prepare_node(spec: &LabSpec, node: u8) -> Result<(), LabError> {
    let namespace = spec::prefix(&spec.name) + &spec::node_name(node);
    let chains = "*nat\n:KUBE-SERVICES - [0:0]\n\
                  -A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n";
    let snat = format!(
        "-A POSTROUTING ! -d {PODNET} -o eth0 -m addrtype ! --dst-type LOCAL \
         -j SNAT --to-source {} --random-fully\n",
        spec::node_v4(node)
    );
    restore(&namespace, true, &format!("{chains}{snat}COMMIT\n"))?;
    if spec.ipv6 {
        restore(&namespace, false, &format!("{chains}COMMIT\n"))?;
    }
    Ok(())
}

/// Keeps the kernel's reports of its IPv6 multicast groups inside: they are sent, repeatedly, at
/// times of its own choosing after a link has come up. To be called before there is any link.
pub(crate) fn silence_multicast_reports(namespace: &str) -> Result<(), LabError> {
    // MLD versions 1 (report, done) and 2.
    let rules: String = [131, 132, 143]
        .map(|kind| format!("-A OUTPUT -p icmpv6 --icmpv6-type {kind} -j DROP\n"))
        .concat();
    restore(namespace, false, &format!("*filter\n{rules}COMMIT\n"))
}

/// Adds a service on every node.
pub(crate) fn add_service(spec: &LabSpec, service: &Service) -> Result<(), LabError> {
    service.validate()?;
    let rules = service.rules();
    namespace::in_parallel((1..=spec.nodes).collect(), |node| {
        let namespace = spec::prefix(&spec.name) + &spec::node_name(node);
        restore(&namespace, service.address.is_ipv4(), &rules)
    })
}

/// Adds rules with whichever iptables this kernel serves. A lab's namespaces are new, so the
/// first that works is the one that works every time.
fn restore(namespace: &str, ipv4: bool, rules: &str) -> Result<(), LabError> {
    let family = if ipv4 { "iptables" } else { "ip6tables" };
    let attempt = |flavour: &str| {
        let program = format!("{family}-{flavour}-restore");
        namespace::feed(
            Command::new("ip").args(["netns", "exec", namespace, &program, "--noflush"]),
            rules,
        )
    };
    // When neither works the first one's complaint is the one to read.
    attempt("nft").or_else(|error| attempt("legacy").map_err(|_second| error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_backend_gets_its_share() {
        let backends: Vec<SocketAddr> =
            (1..=3).map(|n| SocketAddr::from(([10, 0, 1, 100 + n], 8080))).collect();
        let rules = Service::tcp(SocketAddr::from(([172, 20, 0, 1], 80)), &backends).rules();
        let lines: Vec<&str> = rules.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(
            lines[1].contains("--probability 0.3333333333 -j DNAT --to-destination 10.0.1.101")
        );
        assert!(
            lines[2].contains("--probability 0.5000000000 -j DNAT --to-destination 10.0.1.102")
        );
        assert!(lines[3].ends_with("--dport 80 -j DNAT --to-destination 10.0.1.103:8080"));
    }

    #[test]
    fn families_do_not_mix() {
        let v4 = SocketAddr::from(([10, 0, 1, 101], 53));
        let v6 = SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, 1], 53));
        assert!(Service::udp(v6, &[v4]).validate().is_err());
        assert!(Service::udp(v6, &[v6]).validate().is_ok());
    }
}
