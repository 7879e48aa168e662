//! Which member of a fanout group gets a frame, as classic BPF that the kernel runs.
//!
//! ```text
//! source ^ destination address --, (not for fragments)
//!        source ^ destination port `--> mixed --> % members
//! ```
//!
//! The same for both directions, for all fragments of a datagram, and for all copies of a packet, with
//! a VLAN tag or without, whatever extension headers are before its ports. The kernel's own hash
//! (`PACKET_FANOUT_HASH`) is not (6.18): a frame that goes out with its tag in it (a device without
//! the offload for tags) is hashed otherwise than the copies with the tag beside them, or without.
//!
//! A program of a group sees a frame from the link header when it goes out, and from the network
//! header when it comes in. Addresses that translation changes are hashed as they are: see `settle`.

use crate::bpf::{Alu, Ancillary, AssembleError, Assembler, Condition, Operand, Program, Size};
use crate::wire::{ethertype, protocol};

const PACKET_OUTGOING: u32 = 4;
const ETHERNET_HEADER: u32 = 14;
/// Hop-by-hop, routing, destination options.
const EXTENSIONS: [u32; 3] = [0, 43, 60];
const AUTHENTICATION: u32 = 51;
/// Extension headers that are walked; behind more of them, a packet is spread by its addresses.
const MAX_EXTENSIONS: usize = 4;
/// TCP, UDP, DCCP, SCTP, UDP-Lite.
const WITH_PORTS: [u32; 5] = [protocol::TCP as u32, protocol::UDP as u32, 33, 132, 136];

/// Scratch words.
const ENDS: u32 = 0;
const L3: u32 = 1;
const KIND: u32 = 2;
const OTHER: u32 = 3;

/// The program; its answer is taken modulo the number of members.
pub(super) fn program() -> Result<Program, AssembleError> {
    let mut asm = Assembler::new();
    let [outgoing, incoming, typed] = [asm.label(), asm.label(), asm.label()];
    let [v4, v6, other] = [asm.label(), asm.label(), asm.label()];
    let [ports, mix] = [asm.label(), asm.label()];

    asm.load_ancillary(Ancillary::PktType);
    asm.branch(Condition::Equal, PACKET_OUTGOING, outgoing, incoming);
    asm.bind(outgoing);
    asm.loadx_immediate(ETHERNET_HEADER);
    asm.load(Size::Half, ETHERNET_HEADER - 2);
    asm.jump(typed);
    asm.bind(incoming);
    asm.loadx_immediate(0);
    asm.load_ancillary(Ancillary::Protocol);
    asm.bind(typed);
    for _tag in 0..2 {
        let [tagged, done, is_qinq] = [asm.label(), asm.label(), asm.label()];
        asm.branch(Condition::Equal, u32::from(ethertype::VLAN), tagged, is_qinq);
        asm.bind(is_qinq);
        asm.branch(Condition::Equal, u32::from(ethertype::QINQ), tagged, done);
        asm.bind(tagged);
        asm.load_indirect(Size::Half, 2);
        asm.store(KIND);
        advance(&mut asm, 4);
        asm.load_scratch(KIND);
        asm.bind(done);
    }
    let not_v4 = asm.label();
    asm.branch(Condition::Equal, u32::from(ethertype::IPV4), v4, not_v4);
    asm.bind(not_v4);
    asm.branch(Condition::Equal, u32::from(ethertype::IPV6), v6, other);
    // What is not IP: one member for each kind.
    asm.bind(other);
    asm.ret_a();

    asm.bind(v4);
    join_words(&mut asm, &[12, 16]);
    let whole = asm.label();
    asm.load_indirect(Size::Half, 6);
    asm.branch(Condition::AnyBit, 0x3fff, mix, whole);
    asm.bind(whole);
    asm.load_indirect(Size::Byte, 9);
    asm.store(KIND);
    asm.load_indirect(Size::Byte, 0);
    asm.alu(Alu::And, 0x0f);
    asm.alu(Alu::Lsh, 2);
    asm.alu(Alu::Add, Operand::X);
    asm.tax();
    asm.jump(ports);

    asm.bind(v6);
    join_words(&mut asm, &[8, 12, 16, 20, 24, 28, 32, 36]);
    asm.load_indirect(Size::Byte, 6);
    asm.store(KIND);
    advance(&mut asm, 40);
    for _extension in 0..MAX_EXTENSIONS {
        let [extension, authentication, next] = [asm.label(), asm.label(), asm.label()];
        asm.load_scratch(KIND);
        for kind in EXTENSIONS {
            let not = asm.label();
            asm.branch(Condition::Equal, kind, extension, not);
            asm.bind(not);
        }
        // A fragment header is none of them, and not a protocol with ports.
        asm.branch(Condition::Equal, AUTHENTICATION, authentication, ports);
        asm.bind(extension);
        next_header(&mut asm);
        asm.alu(Alu::Add, 1);
        asm.alu(Alu::Lsh, 3);
        asm.jump(next);
        asm.bind(authentication);
        next_header(&mut asm);
        asm.alu(Alu::Add, 2);
        asm.alu(Alu::Lsh, 2);
        asm.bind(next);
        asm.alu(Alu::Add, Operand::X);
        asm.tax();
    }

    asm.bind(ports);
    let with_ports = asm.label();
    asm.load_scratch(KIND);
    for kind in WITH_PORTS {
        let not = asm.label();
        asm.branch(Condition::Equal, kind, with_ports, not);
        asm.bind(not);
    }
    asm.jump(mix);
    asm.bind(with_ports);
    asm.load_indirect(Size::Word, 0);
    fold(&mut asm, 16);
    asm.alu(Alu::And, 0xffff);
    asm.alu(Alu::Mul, 0x9e37_79b1);
    asm.loadx_scratch(ENDS);
    asm.alu(Alu::Xor, Operand::X);
    asm.store(ENDS);

    asm.bind(mix);
    asm.load_scratch(ENDS);
    // Multiply and fold, twice: the low bits, of which the members are chosen, depend on all.
    asm.alu(Alu::Mul, 0x85eb_ca6b);
    fold(&mut asm, 15);
    asm.alu(Alu::Mul, 0xc2b2_ae35);
    fold(&mut asm, 16);
    asm.ret_a();
    asm.finish()
}

/// X += `bytes`.
fn advance(asm: &mut Assembler, bytes: u32) {
    asm.txa();
    asm.alu(Alu::Add, bytes);
    asm.tax();
}

/// `M[ENDS]` = the words at these offsets from X, in exclusive or.
fn join_words(asm: &mut Assembler, offsets: &[u32]) {
    asm.storex(L3);
    asm.load_immediate(0);
    asm.store(ENDS);
    for offset in offsets {
        asm.loadx_scratch(L3);
        asm.load_indirect(Size::Word, *offset);
        asm.loadx_scratch(ENDS);
        asm.alu(Alu::Xor, Operand::X);
        asm.store(ENDS);
    }
    asm.loadx_scratch(L3);
}

/// `M[KIND]` = what follows the extension header at X; A = its length field.
fn next_header(asm: &mut Assembler) {
    asm.load_indirect(Size::Byte, 0);
    asm.store(KIND);
    asm.load_indirect(Size::Byte, 1);
}

/// A ^= A >> `bits`; X is lost.
fn fold(asm: &mut Assembler, bits: u32) {
    asm.store(OTHER);
    asm.alu(Alu::Rsh, bits);
    asm.loadx_scratch(OTHER);
    asm.alu(Alu::Xor, Operand::X);
}
