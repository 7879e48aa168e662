//! The drops that the kernel can take, as classic BPF: before the copy into the ring.
//!
//! ```text
//! interface? -> own traffic? -> overlay? -> covered source? -> accept
//!            a sensor may want it? (`sensors`) <-----------------'
//! ```
//!
//! Under `--election ports` the reference's rule (`ports`) stands in the place of the last three.
//!
//! The program drops a subset of what [`Classifier::classify`] drops, never more: user space
//! decides again. What is awkward here (tags in the frame, IPv6 extension headers, headers that
//! contradict themselves) is passed on, and so are service addresses: a copy that carries one is
//! only dropped once its twin was seen, since a service without endpoints, a REJECT or a policy
//! leaves it the only one there is. Classic BPF rejects a packet when a load leaves it, so
//! lengths are tested before every load. Should the node have more prefixes than fit the kernel's
//! 4096 instructions, the costly parts are left to user space.

mod ports;
mod sensors;
#[cfg(test)]
mod tests;

use super::{Classifier, Election};
use crate::bpf::{Alu, Ancillary, Assembler, Condition, Label, Operand, Program, Size, Target};
use crate::net::Role;
use crate::wire::{PrefixSet, ethertype, protocol};

use sensors::Sensors;

const ARPHRD_ETHER: u32 = 1;
const PACKET_OUTGOING: u32 = 4;
const L3: u32 = 14;

/// Scratch words of the program.
mod word {
    /// The packet may be another node's: it came by an uplink, or is on its way out.
    pub(super) const FOREIGN: u32 = 0;
    /// An address while it is compared, or one word of it.
    pub(super) const ADDRESS: u32 = 1;
    /// Bytes of the IP packet, header included.
    pub(super) const IP_LEN: u32 = 2;
}

/// How much of the rule is put into the program.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    Everything,
    WithoutCoverage,
    InterfacesOnly,
}

impl Classifier {
    /// The tap's own socket filter. Frames of the interfaces in `whole` are all accepted: a sensor
    /// captures them without election.
    #[must_use]
    pub fn filter(&self, whole: &[u32]) -> Program {
        [Extent::Everything, Extent::WithoutCoverage, Extent::InterfacesOnly]
            .into_iter()
            .find_map(|extent| Writer::write(self, whole, extent, None).ok())
            // More tapped interfaces than fit: user space sorts them out.
            .unwrap_or_else(Program::accept_all)
    }

    /// The tap's own filter, and behind it what the sensors' filters need: it drops what
    /// [`filter`](Self::filter) drops, and frames of packets that none of `filters` accepts,
    /// as far as no copy that one accepts may wait for them as its twin (`bpf::push`). `None` if the
    /// kernel cannot tell any such frame. All captures must be of the whole node, and `filters` must
    /// hold the filter of each.
    #[must_use]
    pub fn filter_for(&self, filters: &[Program]) -> Option<Program> {
        let sensors = Sensors::new(self, filters)?;
        [true, false].into_iter().find_map(|with_local| {
            Writer::write(self, &[], Extent::Everything, Some((&sensors, with_local))).ok()
        })
    }
}

struct Writer<'a> {
    c: &'a Classifier,
    asm: Assembler,
    accept: Label,
    drop: Label,
}

impl<'a> Writer<'a> {
    fn write(
        c: &'a Classifier,
        whole: &[u32],
        extent: Extent,
        sensors: Option<(&Sensors, bool)>,
    ) -> Result<Program, crate::bpf::AssembleError> {
        let mut asm = Assembler::new();
        let (accept, drop) = (asm.label(), asm.label());
        let mut writer = Self { c, asm, accept, drop };
        writer.interfaces(whole);
        if extent != Extent::InterfacesOnly {
            // Under the reference's rule, what is not our own traffic is that rule's to decide.
            let rule = writer.asm.label();
            if c.ports.is_some() {
                writer.accept = rule;
            }
            writer.direction();
            writer.families(extent == Extent::Everything);
            writer.asm.jump(writer.accept);
            writer.asm.bind(rule);
            writer.accept = accept;
            if let Some(ports) = &c.ports {
                writer.ports(ports);
            }
        }
        writer.asm.jump(accept);
        writer.asm.bind(drop);
        writer.asm.ret(0);
        writer.asm.bind(accept);
        match sensors {
            Some((sensors, with_local)) => writer.sensors(sensors, with_local),
            None => writer.asm.ret(u32::MAX),
        }
        writer.asm.finish()
    }

    fn if_equal(&mut self, k: u32, then: impl Into<Target>) {
        self.asm.branch(Condition::Equal, k, then, Target::Next);
    }

    fn unless_equal(&mut self, k: u32, otherwise: impl Into<Target>) {
        self.asm.branch(Condition::Equal, k, Target::Next, otherwise);
    }

    /// Goes to `otherwise` if the frame has fewer than `len` bytes.
    fn need(&mut self, len: u32, otherwise: Label) {
        self.asm.load_len();
        self.asm.branch(Condition::AtLeast, len, Target::Next, otherwise);
    }

    fn interfaces(&mut self, whole: &[u32]) {
        let (accept, drop) = (self.accept, self.drop);
        self.asm.load_ancillary(Ancillary::HaType);
        self.unless_equal(ARPHRD_ETHER, drop);
        self.asm.load_ancillary(Ancillary::IfIndex);
        for ifindex in whole {
            self.if_equal(*ifindex, accept);
        }
        if !self.c.any_interface {
            let selected = self.asm.label();
            for (ifindex, place) in self.c.places.iter() {
                if place.is_tapped {
                    self.if_equal(*ifindex, selected);
                }
            }
            self.asm.jump(drop);
            self.asm.bind(selected);
        }
    }

    /// FOREIGN = out, or in at an uplink.
    fn direction(&mut self) {
        let (foreign, done) = (self.asm.label(), self.asm.label());
        // A still holds the ifindex.
        for (ifindex, place) in self.c.places.iter() {
            if place.role == Role::Uplink {
                self.if_equal(*ifindex, foreign);
            }
        }
        self.asm.load_ancillary(Ancillary::PktType);
        self.if_equal(PACKET_OUTGOING, foreign);
        self.asm.load_immediate(0);
        self.asm.jump(done);
        self.asm.bind(foreign);
        self.asm.load_immediate(1);
        self.asm.bind(done);
        self.asm.store(word::FOREIGN);
    }

    fn families(&mut self, with_coverage: bool) {
        let (v4, v6, accept) = (self.asm.label(), self.asm.label(), self.accept);
        self.need(L3 + 20, accept);
        self.asm.load(Size::Half, 12);
        self.if_equal(u32::from(ethertype::IPV6), v6);
        self.if_equal(u32::from(ethertype::IPV4), v4);
        self.unless_equal(u32::from(ethertype::ARP), accept);
        self.arp(with_coverage);
        self.asm.jump(accept);
        self.asm.bind(v4);
        self.v4(with_coverage);
        self.asm.jump(accept);
        self.asm.bind(v6);
        self.need(L3 + 40, accept);
        self.v6(with_coverage);
    }

    /// The sender's protocol address, of Ethernet and IPv4.
    fn arp(&mut self, with_coverage: bool) {
        if self.c.election != Election::Source {
            return;
        }
        self.asm.load(Size::Half, 16);
        self.unless_equal(u32::from(ethertype::IPV4), self.accept);
        self.asm.load(Size::Half, 18);
        self.unless_equal(0x0604, self.accept);
        self.covered(&[28], with_coverage);
    }

    fn v4(&mut self, with_coverage: bool) {
        let accept = self.accept;
        // The header as user space wants it, or else user space decides: version, length.
        self.asm.load(Size::Byte, L3);
        self.asm.branch(Condition::AtLeast, 0x45, Target::Next, accept);
        self.asm.branch(Condition::Greater, 0x4f, accept, Target::Next);
        self.asm.loadx_header_len(L3);
        self.asm.load_len();
        self.asm.alu(Alu::Sub, L3);
        self.asm.branch(Condition::AtLeast, Operand::X, Target::Next, accept);
        // IP_LEN = the smaller of total length and what is there; a super-frame may say 0.
        let (whole, known) = (self.asm.label(), self.asm.label());
        self.asm.store(word::IP_LEN);
        self.asm.load(Size::Half, L3 + 2);
        self.if_equal(0, known);
        self.asm.branch(Condition::AtLeast, Operand::X, Target::Next, accept);
        self.asm.loadx_scratch(word::IP_LEN);
        self.asm.branch(Condition::Greater, Operand::X, known, whole);
        self.asm.bind(whole);
        self.asm.store(word::IP_LEN);
        self.asm.bind(known);
        if self.c.election == Election::Source {
            self.ip_overlay(L3 + 9, &[L3 + 12, L3 + 16]);
        }
        self.transport_v4();
        if self.c.election == Election::Source {
            self.covered(&[L3 + 12], with_coverage);
        }
    }

    fn v6(&mut self, with_coverage: bool) {
        let accept = self.accept;
        self.asm.load(Size::Byte, L3);
        self.asm.alu(Alu::And, 0xf0);
        self.unless_equal(0x60, accept);
        let (source, destination) = (v6_words(L3 + 8), v6_words(L3 + 24));
        if self.c.election == Election::Source {
            self.ip_overlay(L3 + 6, &[]);
        }
        self.transport_v6(&source, &destination);
        if self.c.election == Election::Source {
            self.covered(&source, with_coverage);
        }
    }

    /// Covered source.
    fn covered(&mut self, source: &[u32], with_coverage: bool) {
        let c = self.c;
        if with_coverage && !c.tapped.is_empty() {
            let next = self.asm.label();
            self.asm.load_scratch(word::FOREIGN);
            self.if_equal(0, next);
            self.unless_in(&c.tapped, source, next);
            self.if_in(&c.untapped, source, next);
            self.if_in(&c.local, source, next);
            self.if_in(&c.service, source, next);
            self.asm.jump(self.drop);
            self.asm.bind(next);
        }
    }

    /// IP in IP between nodes.
    fn ip_overlay(&mut self, protocol_at: u32, v4: &[u32]) {
        let (next, outer) = (self.asm.label(), self.asm.label());
        if !self.c.has_ipip || v4.is_empty() {
            return self.asm.bind(next);
        }
        self.asm.load(Size::Byte, protocol_at);
        self.if_equal(u32::from(protocol::IPIP), outer);
        self.unless_equal(u32::from(protocol::IPV6), next);
        self.asm.bind(outer);
        for at in v4 {
            self.if_in(&self.c.own, &[*at], self.drop);
        }
        self.asm.bind(next);
    }

    /// Own traffic and UDP overlays over IPv4.
    fn transport_v4(&mut self) {
        let (next, udp) = (self.asm.label(), self.asm.label());
        let (source, destination) = ([L3 + 12], [L3 + 16]);
        self.asm.load(Size::Half, L3 + 6);
        self.asm.branch(Condition::AnyBit, 0x1fff, next, Target::Next);
        self.asm.load(Size::Byte, L3 + 9);
        self.if_equal(u32::from(protocol::UDP), udp);
        self.unless_equal(u32::from(protocol::TCP), next);
        // A TCP header of 20 bytes or more that the packet holds.
        self.need_behind_v4(20, next);
        self.asm.store(word::ADDRESS);
        self.asm.load_indirect(Size::Byte, L3 + 12);
        self.asm.alu(Alu::Rsh, 4);
        self.asm.alu(Alu::Mul, 4);
        self.asm.branch(Condition::AtLeast, 20, Target::Next, next);
        self.asm.loadx_scratch(word::ADDRESS);
        self.asm.branch(Condition::Greater, Operand::X, next, Target::Next);
        self.control_connection(&source, &destination, |asm, at| {
            asm.loadx_header_len(L3);
            asm.load_indirect(Size::Half, L3 + at);
        });
        self.asm.jump(next);
        self.asm.bind(udp);
        self.need_behind_v4(8, next);
        if self.c.election == Election::Source && !self.c.overlay_ports.is_empty() {
            let (outer, inner) = (self.asm.label(), self.asm.label());
            self.asm.load_indirect(Size::Half, L3 + 2);
            for port in &self.c.overlay_ports {
                self.asm.branch(Condition::Equal, u32::from(*port), outer, Target::Next);
            }
            self.asm.jump(inner);
            self.asm.bind(outer);
            self.if_in(&self.c.own, &source, self.drop);
            self.if_in(&self.c.own, &destination, self.drop);
            self.asm.bind(inner);
        }
        self.unless_in(&self.c.sensors, &destination, next);
        self.need_behind_v4(10, next);
        self.asm.load_indirect(Size::Half, L3 + 8);
        self.rpcap_data();
        self.asm.bind(next);
    }

    /// X = length of the IPv4 header, A = bytes behind it; fewer than `len` go to `otherwise`.
    fn need_behind_v4(&mut self, len: u32, otherwise: Label) {
        self.asm.loadx_header_len(L3);
        self.asm.load_scratch(word::IP_LEN);
        self.asm.alu(Alu::Sub, Operand::X);
        self.asm.branch(Condition::AtLeast, len, Target::Next, otherwise);
    }

    /// Own traffic over IPv6; what has extension headers is user space's.
    fn transport_v6(&mut self, source: &[u32], destination: &[u32]) {
        const L4: u32 = L3 + 40;
        let (next, udp) = (self.asm.label(), self.asm.label());
        // The payload as long as the frame holds: what is shorter is user space's.
        self.asm.load_len();
        self.asm.alu(Alu::Sub, L4);
        self.asm.tax();
        self.asm.load(Size::Half, L3 + 4);
        self.asm.branch(Condition::Greater, Operand::X, next, Target::Next);
        self.asm.branch(Condition::AtLeast, 60, Target::Next, next);
        self.asm.load(Size::Byte, L3 + 6);
        self.if_equal(u32::from(protocol::UDP), udp);
        self.unless_equal(u32::from(protocol::TCP), next);
        self.asm.load(Size::Byte, L4 + 12);
        self.asm.branch(Condition::AtLeast, 0x50, Target::Next, next);
        self.control_connection(source, destination, |asm, at| asm.load(Size::Half, L4 + at));
        self.asm.jump(next);
        self.asm.bind(udp);
        self.unless_in(&self.c.sensors, destination, next);
        self.asm.load(Size::Half, L4 + 8);
        self.rpcap_data();
        self.asm.bind(next);
    }

    /// Drops TCP to or from a sensor's control port; `port` loads the port at an offset.
    fn control_connection(
        &mut self,
        source: &[u32],
        destination: &[u32],
        port: impl Fn(&mut Assembler, u32),
    ) {
        // As user space asks: to a sensor the destination's port counts, else the source's.
        let (from, done) = (self.asm.label(), self.asm.label());
        for (address, port_at, otherwise) in [(destination, 2, from), (source, 0, done)] {
            self.unless_in(&self.c.sensors, address, otherwise);
            port(&mut self.asm, port_at);
            for control in &self.c.control_ports {
                self.asm.branch(Condition::Equal, u32::from(*control), self.drop, Target::Next);
            }
            self.asm.jump(done);
            if port_at == 2 {
                self.asm.bind(from);
            }
        }
        self.asm.bind(done);
    }

    /// A holds the first two bytes of a datagram to a sensor.
    fn rpcap_data(&mut self) {
        let drop = self.drop;
        self.if_equal(7, drop);
        self.if_equal(110, drop);
    }

    fn if_in(&mut self, set: &PrefixSet, at: &[u32], then: Label) {
        let next = self.asm.label();
        self.member(set, at, then, next);
        self.asm.bind(next);
    }

    fn unless_in(&mut self, set: &PrefixSet, at: &[u32], otherwise: Label) {
        let next = self.asm.label();
        self.member(set, at, next, otherwise);
        self.asm.bind(next);
    }

    /// Goes to `inside` or `outside`; `at` are the offsets of the address's words, one for IPv4,
    /// four for IPv6.
    fn member(&mut self, set: &PrefixSet, at: &[u32], inside: Label, outside: Label) {
        let (v4, v6) = set.split();
        if let [at] = at {
            self.asm.load(Size::Word, *at);
            self.asm.store(word::ADDRESS);
            let mut loaded = u32::MAX;
            for (network, mask) in v4 {
                if mask != loaded {
                    self.asm.load_scratch(word::ADDRESS);
                    self.asm.alu(Alu::And, mask);
                    loaded = mask;
                }
                self.if_equal(network, inside);
            }
        } else {
            for (network, mask) in v6 {
                let next = self.asm.label();
                for ((at, network), mask) in at.iter().zip(words(network)).zip(words(mask)) {
                    if mask == 0 {
                        break;
                    }
                    self.asm.load(Size::Word, *at);
                    if mask != u32::MAX {
                        self.asm.alu(Alu::And, mask);
                    }
                    self.unless_equal(network, next);
                }
                self.asm.jump(inside);
                self.asm.bind(next);
            }
        }
        self.asm.jump(outside);
    }
}

fn v6_words(at: u32) -> [u32; 4] {
    [at, at + 4, at + 8, at + 12]
}

fn words(number: u128) -> [u32; 4] {
    let word = |shift: u32| u32::try_from(number >> shift & 0xffff_ffff).expect("masked");
    [word(96), word(64), word(32), word(0)]
}
