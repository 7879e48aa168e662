//! The reference's rule as instructions; what it says is in [`crate::classify::ports`].

use super::{PACKET_OUTGOING, Writer, word};
use crate::bpf::{Ancillary, Condition, Operand, Size, Target};
use crate::classify::ports::{FRAGMENT_OFFSET, Ports, at};
use crate::wire::{ethertype, protocol};

impl Writer<'_> {
    /// Accepts or drops every frame. Loads are not guarded: one that leaves the frame is to reject
    /// it, as it does in the reference.
    pub(super) fn ports(&mut self, rule: &Ports) {
        let (accept, drop) = (self.accept, self.drop);
        self.asm.load(Size::Half, at::ETHERTYPE);
        self.unless_equal(u32::from(ethertype::IPV4), accept);
        self.asm.load(Size::Byte, at::PROTOCOL);
        self.if_equal(u32::from(protocol::IPIP), drop);
        if !rule.service.is_empty() {
            self.if_in(&rule.service, &[at::SOURCE], drop);
            self.if_in(&rule.service, &[at::DESTINATION], drop);
        }
        let elect = self.asm.label();
        if let Some(cluster) = &rule.cluster {
            self.if_in(&cluster.first, &[at::SOURCE], elect);
            self.if_in(&cluster.all, &[at::DESTINATION], elect);
            self.if_in(&cluster.all, &[at::SOURCE], elect);
            self.asm.jump(accept);
        }
        self.asm.bind(elect);

        let (by_address, inbound, outbound) =
            (self.asm.label(), self.asm.label(), self.asm.label());
        self.asm.load(Size::Byte, at::PROTOCOL);
        self.unless_equal(u32::from(protocol::TCP), by_address);
        self.asm.load(Size::Half, at::FRAGMENT);
        self.asm.branch(Condition::AnyBit, u32::from(FRAGMENT_OFFSET), by_address, Target::Next);
        self.asm.loadx_header_len(at::IP);
        self.asm.load_indirect(Size::Half, at::IP);
        self.asm.store(word::ADDRESS);
        self.asm.load_indirect(Size::Half, at::IP + 2);
        self.asm.loadx_scratch(word::ADDRESS);
        self.asm.branch(Condition::Equal, Operand::X, by_address, Target::Next);
        self.asm.branch(Condition::Greater, Operand::X, inbound, outbound);

        self.asm.bind(by_address);
        self.asm.load(Size::Word, at::DESTINATION);
        self.asm.tax();
        self.asm.load(Size::Word, at::SOURCE);
        self.asm.branch(Condition::Equal, Operand::X, accept, Target::Next);
        self.asm.branch(Condition::Greater, Operand::X, inbound, outbound);

        self.asm.bind(inbound);
        self.asm.load_ancillary(Ancillary::PktType);
        self.asm.branch(Condition::Equal, PACKET_OUTGOING, drop, accept);
        self.asm.bind(outbound);
        self.asm.load_ancillary(Ancillary::PktType);
        self.asm.branch(Condition::Equal, PACKET_OUTGOING, accept, drop);
    }
}
