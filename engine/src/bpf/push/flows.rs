//! Which transport protocols a filter may want anything of, whatever else is in the packet.
//!
//! ```text
//! Program --for each protocol: is any accepting return within reach?--> Protocols --write--> ranges
//! ```

use super::super::Program;
use super::super::assemble::{Assembler, Label, Target};
use super::super::op::Condition;
use super::{Family, walk};
use crate::wire::protocol;

/// A set of transport protocols.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protocols([bool; 256]);

impl Protocols {
    /// Of those that packets of the family have, what any of the filters may want.
    #[must_use]
    pub fn wanted(filters: &[Program], family: Family) -> Self {
        let mut wanted = [false; 256];
        for (number, wanted) in (0..=u8::MAX).zip(&mut wanted) {
            *wanted = is_of(family, number)
                && filters.iter().any(|filter| walk::may_accept(&filter.0, family, number));
        }
        Self(wanted)
    }

    /// None.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.0.contains(&true)
    }

    /// Every one that packets of the family have.
    #[must_use]
    pub fn is_all(&self, family: Family) -> bool {
        (0..=u8::MAX).zip(self.0).all(|(number, wanted)| wanted || !is_of(family, number))
    }

    /// Goes to `accept` if A is one of them; else on with what is written next.
    pub fn write(&self, asm: &mut Assembler, accept: Label) {
        let mut from = None;
        for number in 0..=256u32 {
            let wanted = self.0.get(number as usize).is_some_and(|wanted| *wanted);
            match (from, wanted) {
                (None, true) => from = Some(number),
                (Some(first), false) => {
                    let next = asm.label();
                    asm.branch(Condition::AtLeast, first, Target::Next, next);
                    asm.branch(Condition::AtLeast, number, next, accept);
                    asm.bind(next);
                    from = None;
                }
                _ => {}
            }
        }
    }
}

/// Whether a packet of the family may have it; see [`Family`].
fn is_of(family: Family, number: u8) -> bool {
    family != Family::V6 || [protocol::TCP, protocol::UDP, protocol::ICMPV6].contains(&number)
}
