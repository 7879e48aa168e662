//! Programs for people: one line per instruction, in the form of `tcpdump -d`.
//!
//! ```text
//! (000) ldh      [12]
//! (001) jeq      #0x800           jt 2    jf 3
//! ```
//!
//! Facts beside the frame are written as `bpf_asm` of the kernel writes them: `ld vlan_tci`.

use std::fmt;

use super::Program;
use super::op::{Alu, Ancillary, Condition, Op, Size};

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, op) in self.0.ops.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            write_instruction(f, at, *op)?;
        }
        Ok(())
    }
}

fn write_instruction(f: &mut fmt::Formatter<'_>, at: usize, op: Op) -> fmt::Result {
    let (name, operand) = match op {
        Op::LoadAbsolute(size, k) => (load_name(size), format!("[{k}]")),
        Op::LoadNegative(size, k) => (load_name(size), format!("[{}]", k.cast_signed())),
        Op::LoadIndirect(size, k) => (load_name(size), format!("[x + {}]", k.cast_signed())),
        Op::LoadAncillary(fact) => ("ld", ancillary_name(fact).into()),
        Op::LoadLen => ("ld", "#pktlen".into()),
        Op::LoadImmediate(k) => ("ld", format!("#{k:#x}")),
        Op::LoadScratch(slot) => ("ld", format!("M[{slot}]")),
        Op::LoadXHeaderLen(k) => ("ldxb", format!("4*([{}]&0xf)", k.cast_signed())),
        Op::LoadXLen => ("ldx", "#pktlen".into()),
        Op::LoadXImmediate(k) => ("ldx", format!("#{k:#x}")),
        Op::LoadXScratch(slot) => ("ldx", format!("M[{slot}]")),
        Op::Store(slot) => ("st", format!("M[{slot}]")),
        Op::StoreX(slot) => ("stx", format!("M[{slot}]")),
        Op::AluK(alu @ (Alu::And | Alu::Or | Alu::Xor), k) => (alu_name(alu), format!("#{k:#x}")),
        Op::AluK(alu, k) => (alu_name(alu), format!("#{k}")),
        Op::AluX(alu) => (alu_name(alu), "x".into()),
        Op::Neg => ("neg", String::new()),
        Op::Jump(k) => ("ja", (at + 1 + k as usize).to_string()),
        Op::BranchK(condition, _, _, k) => (condition_name(condition), format!("#{k:#x}")),
        Op::BranchX(condition, _, _) => (condition_name(condition), "x".into()),
        Op::Return(k) => ("ret", format!("#{k}")),
        Op::ReturnA => ("ret", String::new()),
        Op::Tax => ("tax", String::new()),
        Op::Txa => ("txa", String::new()),
    };
    match op {
        Op::BranchK(_, jt, jf, _) | Op::BranchX(_, jt, jf) => {
            let [jt, jf] = [jt, jf].map(|skip| at + 1 + usize::from(skip));
            write!(f, "({at:03}) {name:<8} {operand:<16} jt {jt}\tjf {jf}")
        }
        _ if operand.is_empty() => write!(f, "({at:03}) {name}"),
        _ => write!(f, "({at:03}) {name:<8} {operand}"),
    }
}

fn load_name(size: Size) -> &'static str {
    match size {
        Size::Word => "ld",
        Size::Half => "ldh",
        Size::Byte => "ldb",
    }
}

fn alu_name(alu: Alu) -> &'static str {
    match alu {
        Alu::Add => "add",
        Alu::Sub => "sub",
        Alu::Mul => "mul",
        Alu::Div => "div",
        Alu::Or => "or",
        Alu::And => "and",
        Alu::Lsh => "lsh",
        Alu::Rsh => "rsh",
        Alu::Mod => "mod",
        Alu::Xor => "xor",
    }
}

fn condition_name(condition: Condition) -> &'static str {
    match condition {
        Condition::Equal => "jeq",
        Condition::Greater => "jgt",
        Condition::AtLeast => "jge",
        Condition::AnyBit => "jset",
    }
}

fn ancillary_name(fact: Ancillary) -> &'static str {
    match fact {
        Ancillary::Protocol => "proto",
        Ancillary::PktType => "type",
        Ancillary::IfIndex => "ifidx",
        Ancillary::NlAttr => "nla",
        Ancillary::NlAttrNest => "nlan",
        Ancillary::Mark => "mark",
        Ancillary::Queue => "queue",
        Ancillary::HaType => "hatype",
        Ancillary::RxHash => "rxhash",
        Ancillary::Cpu => "cpu",
        Ancillary::AluXorX => "xor_x",
        Ancillary::VlanTag => "vlan_tci",
        Ancillary::VlanTagPresent => "vlan_avail",
        Ancillary::PayOffset => "poff",
        Ancillary::Random => "rand",
        Ancillary::VlanTpid => "vlan_tpid",
    }
}
