//! Where labels and jumps come to lie.
//!
//! ```text
//! last item ... first item --place--> instructions, last to first --finish--> the program
//! ```
//!
//! Jumps go forward only, and a conditional jump reaches 255 instructions. So the program is laid
//! out from its end: when a jump is placed, all that it skips is already there, and one pass
//! decides whether it reaches its target or needs a `ja` in between. A `ja` to the same target that
//! is already in reach is used again.

use super::assemble::{AssembleError, Item, Label, Target};
use super::op::code;
use crate::rpcap::BpfInsn;

/// The program as far as it is placed: from some item to the end. Places are counted from the end,
/// so that what is added in front does not move them: an instruction's place is the number of
/// instructions from it on.
pub(super) struct Layout<'a> {
    labels: &'a [Option<usize>],
    reversed: Vec<BpfInsn>,
    /// Place of each item that is placed; one more for the end.
    places: Vec<usize>,
    /// For each label the place of the nearest `ja` to it.
    trampolines: Vec<Option<usize>>,
}

impl<'a> Layout<'a> {
    pub(super) fn new(labels: &'a [Option<usize>]) -> Self {
        Self {
            labels,
            reversed: Vec::new(),
            // Filled from the end as well: the last entry is the item that was placed last.
            places: vec![0],
            trampolines: vec![None; labels.len()],
        }
    }

    /// The instructions, first to last.
    pub(super) fn finish(mut self) -> Vec<BpfInsn> {
        self.reversed.reverse();
        self.reversed
    }

    /// Instructions that a jump put in front of all that is placed would skip to reach `label`.
    fn distance(&self, at: usize, label: Label) -> Result<usize, AssembleError> {
        let bound = self.labels.get(label.0).copied().flatten();
        let item = bound.ok_or(AssembleError::Unbound { at })?;
        let ahead = item.checked_sub(at + 1).ok_or(AssembleError::Backward { at })?;
        // `places` ends with item `at + 1`, and a label is bound at most behind the last item.
        let place = self.places[self.places.len() - 1 - ahead];
        Ok(self.reversed.len() - place)
    }

    /// Puts item number `at` in front of all that is placed.
    pub(super) fn place(&mut self, at: usize, item: Item) -> Result<(), AssembleError> {
        match item {
            Item::Plain(insn) => self.reversed.push(insn),
            Item::Jump(label) => self.place_jump(at, label)?,
            Item::Branch { code, k, then, otherwise } => {
                self.place_branch(at, code, k, [then, otherwise])?;
            }
        }
        self.places.push(self.reversed.len());
        Ok(())
    }

    fn place_jump(&mut self, at: usize, label: Label) -> Result<(), AssembleError> {
        let skip = self.distance(at, label)?;
        // A program too long for 32 bits cannot be in memory; finish() refuses it much earlier.
        let k = u32::try_from(skip).unwrap_or(u32::MAX);
        self.reversed.push(BpfInsn { code: code::JMP | code::JA, jt: 0, jf: 0, k });
        self.trampolines[label.0] = Some(self.reversed.len());
        Ok(())
    }

    fn place_branch(
        &mut self,
        at: usize,
        code: u16,
        k: u32,
        targets: [Target; 2],
    ) -> Result<(), AssembleError> {
        let next = self.reversed.len();
        loop {
            let mut skips = [0u8; 2];
            let mut far = None;
            for (skip, target) in skips.iter_mut().zip(targets) {
                match self.reach(at, next, target)? {
                    Ok(reached) => *skip = reached,
                    Err(label) => far = Some(label),
                }
            }
            let Some(label) = far else {
                let [jt, jf] = skips;
                self.reversed.push(BpfInsn { code, jt, jf, k });
                return Ok(());
            };
            // One more instruction between the branch and its other target: hence another look.
            self.place_jump(at, label)?;
        }
    }

    /// How many instructions a branch put in front of all that is placed skips to get to `target`,
    /// directly or by a trampoline; `Err` with the label if neither is near enough. `next` is the
    /// place of what follows the branch as written.
    fn reach(
        &self,
        at: usize,
        next: usize,
        target: Target,
    ) -> Result<Result<u8, Label>, AssembleError> {
        let label = match target {
            // Only this branch's own trampolines, two at most, stand between.
            Target::Next => return Ok(Ok(u8::try_from(self.reversed.len() - next).unwrap_or(0))),
            Target::To(label) => label,
        };
        if let Ok(skip) = u8::try_from(self.distance(at, label)?) {
            return Ok(Ok(skip));
        }
        let trampoline = self.trampolines[label.0].map(|place| self.reversed.len() - place);
        Ok(trampoline.and_then(|skip| u8::try_from(skip).ok()).ok_or(label))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bpf::{Alu, Assembler, Condition, Program};
    use crate::frame::{Direction, Frame, Offload, Point};

    fn insn(code: u16, jt: u8, jf: u8, k: u32) -> BpfInsn {
        BpfInsn { code, jt, jf, k }
    }

    /// A branch with `between` instructions between it and its two targets.
    fn far_branch(between: usize) -> Vec<BpfInsn> {
        let mut asm = Assembler::new();
        let (accept, reject) = (asm.label(), asm.label());
        asm.branch(Condition::Equal, 1, accept, reject);
        for _ in 0..between {
            asm.tax();
        }
        asm.bind(accept);
        asm.ret(1);
        asm.bind(reject);
        asm.ret(0);
        asm.finish().unwrap().instructions().to_vec()
    }

    #[test]
    fn a_target_out_of_reach_gets_a_trampoline() {
        assert_eq!(far_branch(254)[0], insn(0x15, 254, 255, 1));
        // The trampoline for one target moves the other away: both need one.
        let far = far_branch(255);
        assert_eq!(far.len(), 255 + 2 + 3);
        assert_eq!(far[0], insn(0x15, 0, 1, 1));
        assert_eq!(far[1..3], [insn(0x05, 0, 0, 256), insn(0x05, 0, 0, 256)]);
    }

    #[test]
    fn one_trampoline_serves_many_branches() {
        let mut asm = Assembler::new();
        let accept = asm.label();
        for k in 0..2000 {
            asm.branch(Condition::Equal, k, accept, Target::Next);
        }
        asm.ret(0);
        asm.bind(accept);
        asm.ret(1);
        assert_eq!(asm.finish().unwrap().instructions().len(), 2002 + 2000 / 255);
    }

    #[test]
    fn the_length_counts_trampolines() {
        let with_fillers = |count: usize| {
            let mut asm = Assembler::new();
            let end = asm.label();
            asm.branch(Condition::Equal, 0, end, Target::Next);
            for _ in 0..count {
                asm.tax();
            }
            asm.bind(end);
            asm.ret(0);
            asm.finish()
        };
        assert_eq!(with_fillers(4093).unwrap().instructions().len(), 4096);
        let error = AssembleError::TooLong { instructions: 4097 };
        assert_eq!(with_fillers(4094).unwrap_err(), error);
    }

    /// A step of a made-up program whose jumps may be far longer than 255 instructions.
    #[derive(Clone, Debug)]
    enum Step {
        Add(u32),
        Multiply(u32),
        Jump(usize),
        /// If A has any of the bits; else the second.
        Branch(u32, usize, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let ahead = || prop_oneof![0..4usize, 0..1500usize];
        prop_oneof![
            4 => any::<u32>().prop_map(Step::Add),
            2 => any::<u32>().prop_map(Step::Multiply),
            1 => ahead().prop_map(Step::Jump),
            4 => (0..u32::BITS, ahead(), ahead())
                .prop_map(|(bit, then, otherwise)| Step::Branch(1 << bit, then, otherwise)),
        ]
    }

    /// What the steps do, without BPF: jumps skip that many steps, at most to the end.
    fn reference(steps: &[Step], mut a: u32) -> u32 {
        let mut at = 0;
        while let Some(step) = steps.get(at) {
            at += 1;
            match *step {
                Step::Add(k) => a = a.wrapping_add(k),
                Step::Multiply(k) => a = a.wrapping_mul(k),
                Step::Jump(skip) => at += skip,
                Step::Branch(bits, then, otherwise) => {
                    at += if a & bits != 0 { then } else { otherwise };
                }
            }
        }
        a
    }

    /// The steps as a program on the frame's length.
    fn assemble(steps: &[Step]) -> Program {
        let mut asm = Assembler::new();
        let labels: Vec<Label> = (0..=steps.len()).map(|_| asm.label()).collect();
        asm.load_len();
        for (at, step) in steps.iter().enumerate() {
            asm.bind(labels[at]);
            let ahead = |skip: usize| labels[(at + 1 + skip).min(steps.len())];
            match *step {
                Step::Add(k) => asm.alu(Alu::Add, k),
                Step::Multiply(k) => asm.alu(Alu::Mul, k),
                Step::Jump(skip) => asm.jump(ahead(skip)),
                // Both ways to write "the next one".
                Step::Branch(bits, then, 0) => {
                    asm.branch(Condition::AnyBit, bits, ahead(then), Target::Next);
                }
                Step::Branch(bits, then, otherwise) => {
                    asm.branch(Condition::AnyBit, bits, ahead(then), ahead(otherwise));
                }
            }
        }
        asm.bind(labels[steps.len()]);
        asm.ret_a();
        asm.finish().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn far_jumps_land_where_the_labels_are(
            steps in prop::collection::vec(step(), 0..1200),
            lengths in prop::collection::vec(any::<u32>(), 1..20),
        ) {
            let program = assemble(&steps);
            for wire_len in lengths {
                let frame = Frame {
                    data: &[],
                    wire_len,
                    timestamp_ns: 0,
                    point: Point { ifindex: 1, direction: Direction::In },
                    vlan: None,
                    offload: Offload::default(),
                };
                prop_assert_eq!(program.run(&frame), reference(&steps, wire_len));
            }
        }
    }
}
