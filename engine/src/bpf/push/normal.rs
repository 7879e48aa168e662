//! A walked program in its shortest form: two are equal if they ask the same.
//!
//! ```text
//! actions, last to first: what nobody reads is left out, jumps go where they end --> Steps
//! ```
//!
//! A load that is left out cannot reject a frame that is too short any more: the condition only
//! becomes weaker.

use super::super::assemble::{Assembler, Label};
use super::super::op::{Alu, Condition, Op, Operand};

/// What to do in place of one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Unreached,
    /// This, and on with the next.
    Plain(Op),
    Goto(usize),
    Branch {
        condition: Condition,
        operand: Operand,
        then: usize,
        otherwise: usize,
    },
    Accept,
    Reject,
    /// Accept if A is not 0.
    AcceptIfA,
}

/// Where the program goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    Accept,
    Reject,
    /// Index among the steps, last to first.
    Step(usize),
}

/// One instruction that is left, and where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Plain(Op, To),
    Branch(Condition, Operand, To, To),
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Normal {
    AcceptAll,
    RejectAll,
    /// Last to first; the program begins with the last of these.
    Steps(Vec<Step>),
}

/// Registers and scratch words that are read later, as bits: `M[0..16]`, A, X.
type Live = u32;
const A: Live = 1 << 16;
const X: Live = 1 << 17;

/// What an instruction reads and writes.
fn uses(op: Op) -> (Live, Live) {
    match op {
        Op::LoadAbsolute(..) | Op::LoadNegative(..) | Op::LoadLen | Op::LoadImmediate(_) => (0, A),
        Op::LoadIndirect(..) => (X, A),
        Op::LoadAncillary(_) => (A | X, A),
        Op::LoadScratch(slot) => (1 << slot, A),
        Op::LoadXHeaderLen(_) | Op::LoadXLen | Op::LoadXImmediate(_) => (0, X),
        Op::LoadXScratch(slot) => (1 << slot, X),
        Op::Store(slot) => (A, 1 << slot),
        Op::StoreX(slot) => (X, 1 << slot),
        Op::AluK(..) | Op::Neg => (A, A),
        Op::AluX(_) => (A | X, A),
        Op::Tax => (A, X),
        Op::Txa => (X, A),
        Op::Jump(_) | Op::BranchK(..) | Op::BranchX(..) | Op::Return(_) | Op::ReturnA => (A | X, 0),
    }
}

impl Normal {
    pub(super) fn new(actions: Vec<Action>) -> Self {
        let mut steps: Vec<(Step, Live)> = Vec::new();
        // Where an instruction that is passed leads, and what is read from there on.
        let mut places = vec![(To::Reject, 0); actions.len()];
        for (at, action) in actions.into_iter().enumerate().rev() {
            let next = |at: usize| places.get(at).copied().unwrap_or((To::Reject, 0));
            let (step, live) = match action {
                Action::Unreached | Action::Reject => continue,
                Action::Accept => {
                    places[at] = (To::Accept, 0);
                    continue;
                }
                Action::Goto(to) => {
                    places[at] = next(to);
                    continue;
                }
                Action::AcceptIfA => {
                    let zero = Operand::K(0);
                    (Step::Branch(Condition::Equal, zero, To::Reject, To::Accept), A)
                }
                Action::Plain(op) => {
                    let (to, live) = next(at + 1);
                    let (reads, writes) = uses(op);
                    if live & writes == 0 {
                        places[at] = (to, live);
                        continue;
                    }
                    (Step::Plain(op, to), live & !writes | reads)
                }
                Action::Branch { condition, operand, then, otherwise } => {
                    let ((then, live_then), (otherwise, live_otherwise)) =
                        (next(then), next(otherwise));
                    if then == otherwise {
                        places[at] = (then, live_then);
                        continue;
                    }
                    let reads = if operand == Operand::X { A | X } else { A };
                    let step = Step::Branch(condition, operand, then, otherwise);
                    (step, live_then | live_otherwise | reads)
                }
            };
            places[at] = (To::Step(steps.len()), live);
            steps.push((step, live));
        }
        match places.first() {
            None | Some((To::Reject, _)) => Self::RejectAll,
            Some((To::Accept, _)) => Self::AcceptAll,
            Some((To::Step(first), live)) => Self::from_first(&steps, *first, *live),
        }
    }

    /// Those steps that can be reached from `first`, where some registers still have to be zero.
    fn from_first(steps: &[(Step, Live)], first: usize, live: Live) -> Self {
        let mut is_reached = vec![false; steps.len()];
        is_reached[first] = true;
        let mut accepts = false;
        for at in (0..=first).rev().filter(|at| *at < steps.len()) {
            if !is_reached[at] {
                continue;
            }
            let targets = match steps[at].0 {
                Step::Plain(_, to) => [to, to],
                Step::Branch(_, _, then, otherwise) => [then, otherwise],
            };
            for to in targets {
                match to {
                    To::Step(to) => is_reached[to] = true,
                    To::Accept => accepts = true,
                    To::Reject => {}
                }
            }
        }
        if !accepts {
            return Self::RejectAll;
        }
        let mut kept = Vec::new();
        let mut places = vec![0; steps.len()];
        for (at, (step, _)) in steps.iter().enumerate().filter(|(at, _)| is_reached[*at]) {
            places[at] = kept.len();
            let moved = |to: To| match to {
                To::Step(at) => To::Step(places[at]),
                end => end,
            };
            kept.push(match *step {
                Step::Plain(op, to) => Step::Plain(op, moved(to)),
                Step::Branch(condition, operand, then, otherwise) => {
                    Step::Branch(condition, operand, moved(then), moved(otherwise))
                }
            });
        }
        // A program starts with A = X = 0, which it need not write itself.
        for (register, zero) in [(X, Op::LoadXImmediate(0)), (A, Op::LoadImmediate(0))] {
            if live & register != 0 {
                kept.push(Step::Plain(zero, To::Step(kept.len() - 1)));
            }
        }
        Self::Steps(kept)
    }

    /// Goes to `accept`, or on with what is written next.
    pub(super) fn write(&self, asm: &mut Assembler, accept: Label) {
        let steps = match self {
            Self::AcceptAll => return asm.jump(accept),
            Self::RejectAll => return,
            Self::Steps(steps) => steps,
        };
        let reject = asm.label();
        let labels: Vec<Label> = steps.iter().map(|_| asm.label()).collect();
        let label = |to: To| match to {
            To::Accept => accept,
            To::Reject => reject,
            To::Step(at) => labels[at],
        };
        for (at, step) in steps.iter().enumerate().rev() {
            asm.bind(labels[at]);
            match *step {
                Step::Plain(op, to) => {
                    write_plain(asm, op);
                    if at == 0 || to != To::Step(at - 1) {
                        asm.jump(label(to));
                    }
                }
                Step::Branch(condition, operand, then, otherwise) => {
                    asm.branch(condition, operand, label(then), label(otherwise));
                }
            }
        }
        asm.bind(reject);
    }
}

fn write_plain(asm: &mut Assembler, op: Op) {
    match op {
        Op::LoadAbsolute(size, k) => asm.load(size, k),
        Op::LoadImmediate(k) => asm.load_immediate(k),
        Op::LoadScratch(slot) => asm.load_scratch(slot),
        Op::LoadXHeaderLen(k) => asm.loadx_header_len(k),
        Op::LoadXImmediate(k) => asm.loadx_immediate(k),
        Op::LoadXScratch(slot) => asm.loadx_scratch(slot),
        Op::Store(slot) => asm.store(slot),
        Op::StoreX(slot) => asm.storex(slot),
        Op::AluK(alu, k) => asm.alu(alu, k),
        Op::AluX(alu) => asm.alu(alu, Operand::X),
        Op::Neg => asm.negate(),
        Op::Tax => asm.tax(),
        Op::Txa => asm.txa(),
        // A walk leaves none of these: they are decided, computed or made branches.
        Op::LoadNegative(..)
        | Op::LoadIndirect(..)
        | Op::LoadAncillary(_)
        | Op::LoadLen
        | Op::LoadXLen
        | Op::Jump(_)
        | Op::BranchK(..)
        | Op::BranchX(..)
        | Op::Return(_)
        | Op::ReturnA => asm.alu(Alu::Or, 0),
    }
}
