//! Three namespaces in a row, and what is between them.
//!
//! ```text
//! generator: gen0 ==veth== tap0 :node: up0 ==veth== snk0 :sink     10.9.0.1 -- 10.9.0.2
//! ```
//!
//! What the sink costs is the sender's, whoever that is, and little: a rule drops and counts the data
//! before sockets are looked for. (RPS, or a thread of the kernel's, on the other core would cost the sender an
//! interrupt of that core instead, which is dear in a virtual machine; XDP on a veth copies each packet first.) A veth takes what UDP_SEGMENT leaves uncut, as no NIC does, so that is switched off.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::generator::{Sent, Sizes, send};
use super::namespace::Namespace;
use crate::error::Error;

/// Where the sink is.
pub const SINK: &str = "10.9.0.2";

/// See the module.
#[derive(Debug)]
pub struct Rig {
    /// Sends.
    pub generator: Namespace,
    /// Has the tap.
    pub node: Namespace,
    /// Has the sensor.
    pub sink: Namespace,
    /// The next run's first packet: packets of one run differ from those of another.
    next: AtomicU32,
}

/// More packets than a run has.
const RUN: u32 = 1 << 24;

impl Rig {
    /// Makes it.
    ///
    /// # Errors
    ///
    /// Without root, or without iproute2, ethtool, iptables.
    pub fn new() -> Result<Self, Error> {
        let (generator, node, sink) = (Namespace::new()?, Namespace::new()?, Namespace::new()?);
        node.ip(&format!("link add tap0 type veth peer name gen0 netns {}", generator.path()))?;
        node.ip(&format!("link add up0 type veth peer name snk0 netns {}", sink.path()))?;
        for (namespace, link, address) in [
            (&generator, "gen0", None),
            (&node, "tap0", None),
            (&node, "up0", Some("10.9.0.1/24")),
            (&sink, "snk0", Some("10.9.0.2/24")),
        ] {
            // No neighbour discovery of its own in the counts.
            let _ = namespace.command(&format!("sysctl -qw net.ipv6.conf.{link}.disable_ipv6=1"));
            if let Some(address) = address {
                namespace.ip(&format!("address add {address} dev {link}"))?;
            }
            // Frames of 1518 bytes, without the wire's checksum, are 4 more than usual there.
            let mtu = if address.is_some() { 1500 } else { 1504 };
            namespace.ip(&format!("link set {link} mtu {mtu} up"))?;
        }
        node.command("ethtool -K up0 tx-udp-segmentation off")?;
        sink.command("iptables -t raw -A PREROUTING -i snk0 -p udp -j DROP")?;
        Ok(Self { generator, node, sink, next: AtomicU32::new(1) })
    }

    /// Sends new packets towards the node, as [`send`] does.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn generate(&self, sizes: Sizes, rate: Option<f64>, time: Duration) -> Result<Sent, Error> {
        let first = self.next.fetch_add(RUN, Ordering::Relaxed);
        self.generator.run(move || send("gen0", sizes, rate, time, first))?
    }

    /// Datagrams that the sink has dropped, and so received.
    ///
    /// # Errors
    ///
    /// When iptables says something else.
    pub fn received(&self) -> Result<u64, Error> {
        let said = self.sink.command("iptables -t raw -L PREROUTING -nvx")?;
        let line = said.lines().find(|line| line.contains("DROP"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok())
            .ok_or_else(|| Error::Unbelievable(format!("iptables said {said}")))
    }
}
