//! A small assembler: programs written with labels, jumps of any length.
//!
//! ```text
//! load, alu, branch(label), bind(label) ... --finish--> layout --> Program
//! ```
//!
//! Jumps go forward only, as the kernel demands; where they land is `layout`'s work.

use super::layout::Layout;
use super::op::{Alu, Ancillary, Condition, Operand, Size, code};
use super::{Invalid, MAX_INSTRUCTIONS, Program};
use crate::rpcap::BpfInsn;

/// A place in the program, to be bound once and jumped to from before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(pub(super) usize);

/// Where a branch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The instruction after the branch.
    Next,
    /// A label.
    To(Label),
}

impl From<Label> for Target {
    fn from(label: Label) -> Self {
        Self::To(label)
    }
}

/// Why a program could not be assembled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// A jump to a label that stands nowhere.
    #[error("instruction {at} jumps to a label that was never bound")]
    Unbound {
        /// Index of the jump, as written.
        at: usize,
    },
    /// A jump to a label at or before it.
    #[error("instruction {at} jumps backward")]
    Backward {
        /// Index of the jump, as written.
        at: usize,
    },
    /// A label with two places.
    #[error("a label was bound twice, at instructions {first} and {second}")]
    BoundTwice {
        /// Index of the instruction behind the first place.
        first: usize,
        /// And behind the second.
        second: usize,
    },
    /// More instructions than the kernel takes.
    #[error("the program has {instructions} instructions; the kernel takes 4096")]
    TooLong {
        /// Instructions, trampolines included.
        instructions: usize,
    },
    /// The program has no such flaw, and yet the kernel would refuse it.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Item {
    Plain(BpfInsn),
    Jump(Label),
    Branch { code: u16, k: u32, then: Target, otherwise: Target },
}

/// A program being written. Each method appends one instruction.
#[derive(Clone, Debug, Default)]
pub struct Assembler {
    items: Vec<Item>,
    /// For each label the index of the item behind it.
    labels: Vec<Option<usize>>,
    bound_twice: Option<AssembleError>,
}

impl Assembler {
    /// An empty program.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A new label, not bound yet.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Binds `label` to the instruction that is appended next.
    pub fn bind(&mut self, label: Label) {
        let here = self.items.len();
        if let Some(place) = self.labels.get_mut(label.0)
            && let Some(first) = place.replace(here)
        {
            self.bound_twice = Some(AssembleError::BoundTwice { first, second: here });
        }
    }

    fn plain(&mut self, code: u16, k: u32) {
        self.items.push(Item::Plain(BpfInsn { code, jt: 0, jf: 0, k }));
    }

    /// A = bytes at `offset` from the link header.
    pub fn load(&mut self, size: Size, offset: u32) {
        self.plain(code::LD | code::ABS | size.number(), offset);
    }

    /// A = bytes at X + `offset` from the link header.
    pub fn load_indirect(&mut self, size: Size, offset: u32) {
        self.plain(code::LD | code::IND | size.number(), offset);
    }

    /// A = a fact beside the frame's bytes.
    pub fn load_ancillary(&mut self, fact: Ancillary) {
        self.plain(code::LD | code::ABS | Size::Word.number(), fact.offset());
    }

    /// A = length of the frame on the wire.
    pub fn load_len(&mut self) {
        self.plain(code::LD | code::LEN, 0);
    }

    /// A = `k`.
    pub fn load_immediate(&mut self, k: u32) {
        self.plain(code::LD | code::IMM, k);
    }

    /// A = `M[slot]`.
    pub fn load_scratch(&mut self, slot: u32) {
        self.plain(code::LD | code::MEM, slot);
    }

    /// X = four times the low half of the byte at `offset`: the length of the IPv4 header there.
    pub fn loadx_header_len(&mut self, offset: u32) {
        self.plain(code::LDX | code::MSH | code::BYTE, offset);
    }

    /// X = length of the frame on the wire.
    pub fn loadx_len(&mut self) {
        self.plain(code::LDX | code::LEN, 0);
    }

    /// X = `k`.
    pub fn loadx_immediate(&mut self, k: u32) {
        self.plain(code::LDX | code::IMM, k);
    }

    /// X = `M[slot]`.
    pub fn loadx_scratch(&mut self, slot: u32) {
        self.plain(code::LDX | code::MEM, slot);
    }

    /// `M[slot]` = A.
    pub fn store(&mut self, slot: u32) {
        self.plain(code::ST, slot);
    }

    /// `M[slot]` = X.
    pub fn storex(&mut self, slot: u32) {
        self.plain(code::STX, slot);
    }

    /// A = A `alu` operand.
    pub fn alu(&mut self, alu: Alu, operand: impl Into<Operand>) {
        let (source, k) = encode(operand.into());
        self.plain(code::ALU | alu.number() | source, k);
    }

    /// A = -A.
    pub fn negate(&mut self) {
        self.plain(code::ALU | code::NEG, 0);
    }

    /// X = A.
    pub fn tax(&mut self) {
        self.plain(code::MISC | code::TAX, 0);
    }

    /// A = X.
    pub fn txa(&mut self) {
        self.plain(code::MISC | code::TXA, 0);
    }

    /// Goes to `then` if A compares so with the operand, else to `otherwise`.
    pub fn branch(
        &mut self,
        condition: Condition,
        operand: impl Into<Operand>,
        then: impl Into<Target>,
        otherwise: impl Into<Target>,
    ) {
        let (source, k) = encode(operand.into());
        self.items.push(Item::Branch {
            code: code::JMP | condition.number() | source,
            k,
            then: then.into(),
            otherwise: otherwise.into(),
        });
    }

    /// Goes to `label`.
    pub fn jump(&mut self, label: Label) {
        self.items.push(Item::Jump(label));
    }

    /// Ends the program: `k` bytes are accepted, 0 rejects.
    pub fn ret(&mut self, k: u32) {
        self.plain(code::RET, k);
    }

    /// Ends the program: A bytes are accepted, 0 rejects.
    pub fn ret_a(&mut self) {
        self.plain(code::RET | code::RET_A, 0);
    }

    /// Resolves the jumps and checks the program.
    ///
    /// # Errors
    ///
    /// A jump that cannot be made, a program that is too long, or what [`Program::new`] refuses.
    pub fn finish(self) -> Result<Program, AssembleError> {
        if let Some(error) = self.bound_twice {
            return Err(error);
        }
        let mut layout = Layout::new(&self.labels);
        for (at, item) in self.items.iter().enumerate().rev() {
            layout.place(at, *item)?;
        }
        let program = layout.finish();
        if program.len() > MAX_INSTRUCTIONS {
            return Err(AssembleError::TooLong { instructions: program.len() });
        }
        Ok(Program::new(&program)?)
    }
}

fn encode(operand: Operand) -> (u16, u32) {
    match operand {
        Operand::K(k) => (0, k),
        Operand::X => (code::X, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::WHOLE_FRAME;

    fn insn(code: u16, jt: u8, jf: u8, k: u32) -> BpfInsn {
        BpfInsn { code, jt, jf, k }
    }

    #[test]
    fn every_instruction_has_the_number_that_libpcap_gives_it() {
        let mut asm = Assembler::new();
        asm.load(Size::Word, 1);
        asm.load(Size::Half, 2);
        asm.load(Size::Byte, 3);
        asm.load_indirect(Size::Word, 4);
        asm.load_indirect(Size::Half, 5);
        asm.load_indirect(Size::Byte, 6);
        asm.load_ancillary(Ancillary::VlanTag);
        asm.load_len();
        asm.load_immediate(7);
        asm.store(8);
        asm.load_scratch(8);
        asm.loadx_header_len(14);
        asm.loadx_len();
        asm.loadx_immediate(9);
        asm.storex(10);
        asm.loadx_scratch(10);
        asm.alu(Alu::And, 0xff);
        asm.alu(Alu::Mod, Operand::X);
        asm.negate();
        asm.tax();
        asm.txa();
        asm.ret_a();
        asm.ret(WHOLE_FRAME);
        let program = asm.finish().unwrap();
        let expected = [
            insn(0x20, 0, 0, 1),
            insn(0x28, 0, 0, 2),
            insn(0x30, 0, 0, 3),
            insn(0x40, 0, 0, 4),
            insn(0x48, 0, 0, 5),
            insn(0x50, 0, 0, 6),
            insn(0x20, 0, 0, 0xffff_f02c),
            insn(0x80, 0, 0, 0),
            insn(0x00, 0, 0, 7),
            insn(0x02, 0, 0, 8),
            insn(0x60, 0, 0, 8),
            insn(0xb1, 0, 0, 14),
            insn(0x81, 0, 0, 0),
            insn(0x01, 0, 0, 9),
            insn(0x03, 0, 0, 10),
            insn(0x61, 0, 0, 10),
            insn(0x54, 0, 0, 0xff),
            insn(0x9c, 0, 0, 0),
            insn(0x84, 0, 0, 0),
            insn(0x07, 0, 0, 0),
            insn(0x87, 0, 0, 0),
            insn(0x16, 0, 0, 0),
            insn(0x06, 0, 0, 0x40000),
        ];
        assert_eq!(program.instructions(), expected);
    }

    #[test]
    fn labels_become_offsets() {
        let mut asm = Assembler::new();
        let (accept, reject) = (asm.label(), asm.label());
        asm.load(Size::Half, 12);
        asm.branch(Condition::Equal, 0x800, Target::Next, reject);
        asm.branch(Condition::AnyBit, Operand::X, accept, Target::Next);
        asm.jump(accept);
        asm.bind(reject);
        asm.ret(0);
        asm.bind(accept);
        asm.ret(1);
        let expected = [
            insn(0x28, 0, 0, 12),
            insn(0x15, 0, 2, 0x800),
            insn(0x4d, 2, 0, 0),
            insn(0x05, 0, 0, 1),
            insn(0x06, 0, 0, 0),
            insn(0x06, 0, 0, 1),
        ];
        assert_eq!(asm.finish().unwrap().instructions(), expected);
    }

    #[test]
    fn jumps_that_cannot_be_made_are_errors() {
        let mut asm = Assembler::new();
        let nowhere = asm.label();
        asm.tax();
        asm.jump(nowhere);
        asm.ret(0);
        assert_eq!(asm.finish().unwrap_err(), AssembleError::Unbound { at: 1 });

        let mut asm = Assembler::new();
        let back = asm.label();
        asm.tax();
        asm.bind(back);
        asm.branch(Condition::Equal, 0, back, Target::Next);
        asm.ret(0);
        assert_eq!(asm.finish().unwrap_err(), AssembleError::Backward { at: 1 });

        let mut asm = Assembler::new();
        let twice = asm.label();
        asm.bind(twice);
        asm.tax();
        asm.bind(twice);
        asm.ret(0);
        let error = AssembleError::BoundTwice { first: 0, second: 1 };
        assert_eq!(asm.finish().unwrap_err(), error);
    }

    #[test]
    fn what_the_kernel_would_refuse_is_an_error() {
        let wrongs: [fn(&mut Assembler); 5] = [
            |asm| asm.load_scratch(0),
            |asm| asm.store(16),
            |asm| asm.alu(Alu::Div, 0),
            |asm| asm.alu(Alu::Lsh, 32),
            |asm| asm.load(Size::Byte, 0xffff_f001),
        ];
        for wrong in wrongs {
            let mut asm = Assembler::new();
            wrong(&mut asm);
            asm.ret(0);
            assert!(matches!(asm.finish(), Err(AssembleError::Invalid(Invalid { at: 0, .. }))));
        }
        let mut asm = Assembler::new();
        let end = asm.label();
        asm.jump(end);
        asm.ret(0);
        asm.bind(end);
        assert!(matches!(asm.finish(), Err(AssembleError::Invalid(Invalid { at: 0, .. }))));
    }
}
