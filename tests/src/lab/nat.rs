//! The rules of the VPC CNI and of the tests: SNAT of what leaves the VPC, packets lost or denied.
//!
//! ```text
//! PREROUTING, OUTPUT -> KUBE-SERVICES: service address -> one backend (see `service`)
//! POSTROUTING: towards the uplink and out of the VPC -> the node's address, random port (SNAT)
//! FORWARD: a network policy's DROP; each n-th segment lost; raw: NodeLocal DNS is not tracked
//! ```

use super::{
    Host, Node,
    error::LabError,
    namespace,
    service::{CHAINS, Protocol, Service},
    spec::{self, LabSpec, PODNET},
};
use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
};

/// The chains of a node, and its SNAT (which EKS has for IPv4 only).
pub(crate) fn prepare_node(spec: &LabSpec, node: u8) -> Result<(), LabError> {
    let namespace = spec::prefix(&spec.name) + &spec::node_name(node);
    let snat = format!(
        "-A POSTROUTING ! -d {PODNET} -o eth0 -m addrtype ! --dst-type LOCAL \
         -j SNAT --to-source {} --random-fully\n",
        spec::node_v4(node)
    );
    let overlay = if spec.overlay_pods > 0 { OVERLAY_SNAT } else { "" };
    restore(&namespace, true, &format!("{CHAINS}{overlay}{snat}COMMIT\n"))?;
    if spec.has_eni() {
        restore(&namespace, true, &eni_marks())?;
    }
    if spec.ipv6 {
        restore(&namespace, false, &format!("{CHAINS}COMMIT\n"))?;
    }
    Ok(())
}

/// What flannel masquerades: the overlay's addresses mean nothing outside.
const OVERLAY_SNAT: &str =
    "-A POSTROUTING -s 10.244.0.0/16 ! -d 10.244.0.0/16 -j MASQUERADE --random-fully\n";

/// Marks connections that have to use the primary ENI, whichever ENI the pod is behind: those
/// that it opens to outside the VPC (their SNAT is to that ENI's address), and those that came to
/// an address of the node by it (node ports).
fn eni_marks() -> String {
    format!(
        "*mangle\n\
         -A PREROUTING -i eth0 -m addrtype --dst-type LOCAL --limit-iface-in \
         -j CONNMARK --set-xmark 0x80/0x80\n\
         -A PREROUTING -i eni+ -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80\n\
         COMMIT\n*nat\n\
         -A PREROUTING -i eni+ ! -d {PODNET} -j CONNMARK --set-xmark 0x80/0x80\n\
         -A PREROUTING -i eni+ -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80\n\
         COMMIT\n"
    )
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
pub(crate) fn add_service(nodes: &[Node], service: &Service) -> Result<(), LabError> {
    service.validate()?;
    namespace::in_parallel(nodes.iter().collect(), |node| {
        let is_local = |address: IpAddr| {
            node.addresses().contains(&address)
                || node.pods.iter().any(|pod| pod.addresses().contains(&address))
        };
        restore(&node.namespace, service.address.is_ipv4(), &service.rules(is_local))
    })
}

/// The rules of node-local-dns for one of its addresses: untracked, so that kube-proxy's DNAT of
/// the same address is passed by.
pub(crate) fn add_node_dns(node: &Node, address: IpAddr) -> Result<(), LabError> {
    let rules: String = ["udp", "tcp"]
        .map(|protocol| {
            format!(
                "-A PREROUTING -d {address} -p {protocol} --dport 53 -j CT --notrack\n\
                 -A OUTPUT -s {address} -p {protocol} --sport 53 -j CT --notrack\n\
                 -A OUTPUT -d {address} -p {protocol} --dport 53 -j CT --notrack\n"
            )
        })
        .concat();
    restore(&node.namespace, address.is_ipv4(), &format!("*raw\n{rules}COMMIT\n"))
}

impl Host {
    /// Adds rules in `iptables-restore` form, without flushing what is there.
    ///
    /// # Errors
    ///
    /// When iptables refuses them.
    pub fn add_rules(&self, ipv4: bool, rules: &str) -> Result<(), LabError> {
        restore(&self.namespace, ipv4, rules)
    }

    /// Drops what this host would forward to `to`: a network policy that denies.
    ///
    /// # Errors
    ///
    /// When iptables refuses it.
    pub fn deny(&self, protocol: Protocol, to: SocketAddr) -> Result<(), LabError> {
        let rule = format!("-A FORWARD {} -j DROP", towards(protocol, to));
        self.add_rules(to.is_ipv4(), &format!("*filter\n{rule}\nCOMMIT\n"))
    }

    /// Loses, of what this host forwards to `to` and is longer than a handshake, each `every`-th
    /// packet (a super-frame as a whole): TCP sends it again.
    ///
    /// # Errors
    ///
    /// When iptables refuses it.
    pub fn lose(&self, protocol: Protocol, to: SocketAddr, every: u32) -> Result<(), LabError> {
        let last = every.saturating_sub(1);
        let rule = format!(
            "-A FORWARD {} -m length --length 128:65535 \
             -m statistic --mode nth --every {every} --packet {last} -j DROP",
            towards(protocol, to)
        );
        self.add_rules(to.is_ipv4(), &format!("*filter\n{rule}\nCOMMIT\n"))
    }
}

fn towards(protocol: Protocol, to: SocketAddr) -> String {
    format!("-d {} -p {protocol} --dport {}", to.ip(), to.port())
}

/// Adds rules with whichever iptables this kernel serves. A lab's namespaces are new, so the
/// first that works is the one that works every time.
pub(crate) fn restore(namespace: &str, ipv4: bool, rules: &str) -> Result<(), LabError> {
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
