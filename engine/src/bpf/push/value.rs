//! What is known of a register while a program is walked.
//!
//! ```text
//! Value: a number | a number whose bits in `varies` may be others in another copy of the packet
//! ```

use super::super::op::{Alu, SCRATCH_WORDS};
use super::super::run;

/// What a number is good for beside its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    /// The transport protocol.
    Protocol,
    /// An `EtherType` of neither IP nor a tag.
    EtherType,
    /// The first two bytes of a tag.
    TagProtocol,
}

/// See the module. A bit that is not in `varies` is the same in every copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) varies: u32,
    /// Then nothing varies.
    pub(super) known: Option<u32>,
    pub(super) kind: Kind,
}

impl Value {
    pub(super) fn known(number: u32) -> Self {
        Self { varies: 0, known: Some(number), kind: Kind::Plain }
    }

    /// Equal in all copies but for these bits.
    pub(super) fn varying(varies: u32) -> Self {
        Self { varies, known: None, kind: Kind::Plain }
    }

    /// May be anything.
    pub(super) fn any() -> Self {
        Self::varying(u32::MAX)
    }

    /// What holds of either.
    fn join(self, other: Self) -> Self {
        Self {
            varies: self.varies | other.varies,
            known: self.known.filter(|_| self.known == other.known),
            kind: if self.kind == other.kind { self.kind } else { Kind::Plain },
        }
    }

    /// `None` where the program ends with a rejection.
    pub(super) fn compute(self, alu: Alu, operand: Self) -> Option<Self> {
        if let (Some(a), Some(b)) = (self.known, operand.known) {
            return run::compute(alu, a, b).map(Self::known);
        }
        let (varies, other) = (self.varies, operand.varies);
        Some(Self::varying(match (alu, operand.known) {
            (Alu::Div | Alu::Mod, Some(0)) => return None,
            (Alu::And, Some(k)) => varies & k,
            (Alu::Or, Some(k)) => varies & !k,
            (Alu::Lsh, Some(k)) => varies.wrapping_shl(k),
            (Alu::Rsh, Some(k)) => varies.wrapping_shr(k),
            (Alu::And | Alu::Or | Alu::Xor, _) => varies | other,
            _ if varies | other == 0 => 0,
            _ => u32::MAX,
        }))
    }

    pub(super) fn negated(self) -> Self {
        match self.known {
            Some(number) => Self::known(number.wrapping_neg()),
            None => Self::varying(if self.varies == 0 { 0 } else { u32::MAX }),
        }
    }
}

/// The machine in front of an instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    pub(super) a: Value,
    pub(super) x: Value,
    pub(super) scratch: [Value; SCRATCH_WORDS as usize],
    /// What the transport can be: see `fields::protocols`.
    pub(super) protocols: u8,
}

impl State {
    pub(super) fn start(protocols: u8) -> Self {
        let zero = Value::known(0);
        Self { a: zero, x: zero, scratch: [zero; SCRATCH_WORDS as usize], protocols }
    }

    /// What holds on either path. All copies take the same one: tests that they may answer
    /// differently are decided, the same for all, before the walk.
    pub(super) fn join(&mut self, other: &Self) {
        self.a = self.a.join(other.a);
        self.x = self.x.join(other.x);
        for (ours, theirs) in self.scratch.iter_mut().zip(other.scratch) {
            *ours = ours.join(theirs);
        }
        self.protocols |= other.protocols;
    }
}
