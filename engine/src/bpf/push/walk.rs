//! Walks a program over all packets of a family at once.
//!
//! ```text
//! walk(decisions) --test on what varies, undecided--> walk(.. then) and walk(.. otherwise)
//!                 --end--> Vec<Action>, one for each instruction that is reached --> Normal
//! ```
//!
//! Jumps go forward only, so one pass sees every way to an instruction before the instruction.

use super::super::Verified;
use super::super::op::{Alu, Ancillary, Condition, Op, Operand, Size};
use super::super::run::{holds, resolve};
use super::fields;
use super::normal::{Action, Normal};
use super::value::{Kind, State, Value};
use super::{Ends, Family};
use crate::wire::ethertype;

/// More open tests than this many walks can decide: too much for the kernel to be worth it.
const MAX_WALKS: usize = 16;
/// Workers do this between two batches, so it must not take long, whatever a client sends.
const MAX_PROGRAM: usize = 512;

/// The versions of a program; `None` if there are too many.
pub(super) fn versions(program: &Verified, family: Family, ends: Ends) -> Option<Vec<Normal>> {
    if program.ops.len() > MAX_PROGRAM {
        return None;
    }
    let mut found = Vec::new();
    // What is decided so far: instruction, whether its condition holds.
    let mut open = vec![Vec::new()];
    let mut walks = 0;
    while let Some(decisions) = open.pop() {
        walks += 1;
        if walks > MAX_WALKS {
            return None;
        }
        let walk = Walk { program, family, ends, decisions: &decisions };
        match walk.run() {
            Ok(actions) => {
                let normal = Normal::new(actions);
                if !found.contains(&normal) {
                    found.push(normal);
                }
            }
            Err(Undecided(at)) => {
                for holds in [false, true] {
                    open.push([&decisions[..], &[(at, holds)]].concat());
                }
            }
        }
    }
    Some(found)
}

/// Whether any packet of this family and protocol may be accepted, whatever else is in it.
pub(super) fn may_accept(program: &Verified, family: Family, protocol: u8) -> bool {
    if program.ops.len() > MAX_PROGRAM {
        return true;
    }
    let walk = Walk { program, family, ends: Ends::Flow(protocol), decisions: &[] };
    let mut states: Vec<Option<State>> = vec![None; program.ops.len()];
    states[0] = Some(State::start(fields::all_protocols(family)));
    for (at, op) in program.ops.iter().enumerate() {
        let Some(mut state) = states[at].take() else { continue };
        let ways = match walk.step(at, *op, &mut state) {
            Ok(Action::Accept | Action::AcceptIfA) => return true,
            Ok(Action::Unreached | Action::Reject) => [None, None],
            Ok(Action::Plain(_)) => [Some(at + 1), None],
            Ok(Action::Goto(to)) => [Some(to), None],
            Ok(Action::Branch { then, otherwise, .. }) => [Some(then), Some(otherwise)],
            Err(Undecided(at)) => match program.ops[at] {
                Op::BranchK(_, then, otherwise, _) | Op::BranchX(_, then, otherwise) => {
                    [then, otherwise].map(|skip| Some(at + 1 + usize::from(skip)))
                }
                _ => return true,
            },
        };
        for to in ways.into_iter().flatten() {
            match &mut states[to] {
                Some(there) => there.join(&state),
                none => *none = Some(state),
            }
        }
    }
    false
}

/// A test on what varies, which copies may answer differently.
struct Undecided(usize);

struct Walk<'a> {
    program: &'a Verified,
    family: Family,
    ends: Ends,
    decisions: &'a [(usize, bool)],
}

/// How a test ends.
enum Test {
    Decided(bool),
    /// Equal in all copies: the kernel can make it.
    Made,
    Open,
}

impl Walk<'_> {
    fn run(&self) -> Result<Vec<Action>, Undecided> {
        let ops = &self.program.ops;
        let mut states: Vec<Option<State>> = vec![None; ops.len()];
        states[0] = Some(State::start(fields::all_protocols(self.family)));
        let mut actions = vec![Action::Unreached; ops.len()];
        for (at, op) in ops.iter().enumerate() {
            let Some(mut state) = states[at].take() else { continue };
            let action = self.step(at, *op, &mut state)?;
            let mut arrive = |at: usize, state: &State| match &mut states[at] {
                Some(there) => there.join(state),
                none => *none = Some(*state),
            };
            match &action {
                Action::Unreached | Action::Accept | Action::Reject | Action::AcceptIfA => {}
                Action::Plain(_) => arrive(at + 1, &state),
                Action::Goto(to) => arrive(*to, &state),
                Action::Branch { condition, operand, then, otherwise } => {
                    let (mut holds, mut fails) = (state, state);
                    if let (Kind::Protocol, Condition::Equal, Operand::K(k)) =
                        (state.a.kind, condition, operand)
                    {
                        let named = fields::protocol_set(self.family, *k);
                        holds.protocols &= named;
                        if named != fields::protocols::OTHERS {
                            fails.protocols &= !named;
                        }
                    }
                    arrive(*then, &holds);
                    arrive(*otherwise, &fails);
                }
            }
            actions[at] = action;
        }
        Ok(actions)
    }

    /// Brings the state behind the instruction; what the kernel is to do instead of it.
    fn step(&self, at: usize, op: Op, state: &mut State) -> Result<Action, Undecided> {
        let same = Action::Plain(op);
        Ok(match op {
            Op::LoadAbsolute(size, k) => self.load(state, size, Some(k)),
            Op::LoadNegative(size, k) => self.load(state, size, self.resolve(k)),
            Op::LoadIndirect(size, k) => match state.x.known {
                Some(x) => self.load(state, size, self.resolve(x.wrapping_add(k))),
                None => set_a(state, Value::any()),
            },
            Op::LoadAncillary(Ancillary::AluXorX) => {
                compute(state, Alu::Xor, state.x, Op::AluX(Alu::Xor))
            }
            Op::LoadAncillary(fact) => set_a(state, self.fact(fact)),
            Op::LoadLen => set_a(state, Value::any()),
            Op::LoadImmediate(k) => set_a(state, Value::known(k)),
            Op::LoadScratch(slot) => {
                state.a = state.scratch[slot as usize];
                same
            }
            Op::LoadXHeaderLen(k) => self.load_header_len(state, k),
            Op::LoadXLen => set_x(state, Value::any()),
            Op::LoadXImmediate(k) => set_x(state, Value::known(k)),
            Op::LoadXScratch(slot) => {
                state.x = state.scratch[slot as usize];
                same
            }
            Op::Store(slot) => {
                state.scratch[slot as usize] = state.a;
                same
            }
            Op::StoreX(slot) => {
                state.scratch[slot as usize] = state.x;
                same
            }
            Op::AluK(alu, k) => compute(state, alu, Value::known(k), op),
            Op::AluX(alu) => compute(state, alu, state.x, op),
            Op::Neg => {
                state.a = state.a.negated();
                same
            }
            Op::Jump(k) => Action::Goto(at + 1 + k as usize),
            Op::BranchK(condition, jt, jf, k) => {
                self.branch(at, state, condition, Operand::K(k), [jt, jf])?
            }
            Op::BranchX(condition, jt, jf) => {
                self.branch(at, state, condition, Operand::X, [jt, jf])?
            }
            Op::Return(0) => Action::Reject,
            Op::Return(_) => Action::Accept,
            Op::ReturnA => match state.a {
                Value { known: Some(0), .. } => Action::Reject,
                Value { known: None, varies: 0, .. } => Action::AcceptIfA,
                _ => Action::Accept,
            },
            Op::Tax => {
                state.x = state.a;
                same
            }
            Op::Txa => {
                state.a = state.x;
                same
            }
        })
    }

    /// The offset in the bytes that the kernel has, which are the delivered ones: no tag is there.
    fn resolve(&self, offset: u32) -> Option<u32> {
        resolve(offset, super::super::ancillary::ETHERNET_HEADER)
    }

    fn load(&self, state: &mut State, size: Size, at: Option<u32>) -> Action {
        let Some(at) = at else { return Action::Reject };
        // One that may leave the frame would end the whole socket filter, whoever else wants it.
        if at.saturating_add(u32::try_from(size.bytes()).unwrap_or(u32::MAX))
            > fields::certain(self.family)
        {
            return set_a(state, Value::any());
        }
        let value = fields::load(self.family, self.ends, state.protocols, size, at);
        let all_varies = value.varies == u32::MAX >> (32 - 8 * size.bytes());
        if value.known.is_some() || all_varies {
            return set_a(state, value);
        }
        state.a = value;
        Action::Plain(Op::LoadAbsolute(size, at))
    }

    fn load_header_len(&self, state: &mut State, k: u32) -> Action {
        let Some(at) = self.resolve(k) else { return Action::Reject };
        if at >= fields::certain(self.family) {
            return set_x(state, Value::varying(0xf * 4));
        }
        let byte = fields::load(self.family, self.ends, state.protocols, Size::Byte, at);
        let value = match byte.known {
            Some(number) => Value::known((number & 0xf) * 4),
            None => Value::varying((byte.varies & 0xf) * 4),
        };
        if value.known.is_some() || value.varies == 0xf * 4 {
            return set_x(state, value);
        }
        state.x = value;
        Action::Plain(Op::LoadXHeaderLen(at))
    }

    fn fact(&self, fact: Ancillary) -> Value {
        match (fact, self.family) {
            (Ancillary::HaType, _) => Value::known(1),
            (Ancillary::Protocol, Family::V4) => Value::known(ethertype::IPV4.into()),
            (Ancillary::Protocol, Family::V6) => Value::known(ethertype::IPV6.into()),
            (Ancillary::VlanTagPresent, Family::Tagged) => Value::any(),
            // Of a copy without a tag; for those with one see `may_accept_tagged`.
            (
                Ancillary::VlanTag | Ancillary::VlanTpid | Ancillary::VlanTagPresent,
                Family::V4 | Family::V6 | Family::Other,
            ) => Value::known(0),
            _ => Value::any(),
        }
    }

    fn branch(
        &self,
        at: usize,
        state: &State,
        condition: Condition,
        operand: Operand,
        skips: [u8; 2],
    ) -> Result<Action, Undecided> {
        let [then, otherwise] = skips.map(|skip| at + 1 + usize::from(skip));
        let value = match operand {
            Operand::K(k) => Value::known(k),
            Operand::X => state.x,
        };
        let holds = match self.test(state, condition, value) {
            Test::Decided(holds) => holds,
            Test::Made => return Ok(Action::Branch { condition, operand, then, otherwise }),
            Test::Open => {
                let decided = self.decisions.iter().find(|(decided, _)| *decided == at);
                decided.ok_or(Undecided(at))?.1
            }
        };
        Ok(Action::Goto(if holds { then } else { otherwise }))
    }

    fn test(&self, state: &State, condition: Condition, operand: Value) -> Test {
        let a = state.a;
        if let (Some(a), Some(b)) = (a.known, operand.known) {
            return Test::Decided(holds(condition, a, b));
        }
        match (a.kind, condition, operand.known) {
            (Kind::Protocol, Condition::Equal, Some(k)) => {
                let named = fields::protocol_set(self.family, k);
                if state.protocols & named == 0 {
                    return Test::Decided(false);
                }
            }
            (Kind::EtherType, Condition::Equal, Some(k)) if is_ip(k) || is_linux_tag(k) => {
                return Test::Decided(false);
            }
            (Kind::TagProtocol, Condition::Equal, Some(k)) if !is_tag(k) => {
                return Test::Decided(false);
            }
            // Below any number of a tag: what asks for an 802.3 length.
            (Kind::TagProtocol, Condition::Greater | Condition::AtLeast, Some(0..0x8100)) => {
                return Test::Decided(true);
            }
            _ => {}
        }
        let varies = match (condition, operand.known) {
            (Condition::AnyBit, Some(k)) => a.varies & k,
            _ => a.varies | operand.varies,
        };
        if varies == 0 { Test::Made } else { Test::Open }
    }
}

fn is_ip(number: u32) -> bool {
    [ethertype::IPV4, ethertype::IPV6].map(u32::from).contains(&number)
}

fn is_linux_tag(number: u32) -> bool {
    [ethertype::VLAN, ethertype::QINQ].map(u32::from).contains(&number)
}

/// The two that Linux knows, and those of old switches.
fn is_tag(number: u32) -> bool {
    let known = [ethertype::VLAN, ethertype::QINQ].map(u32::from).contains(&number);
    known || (0x9100..=0x9300).contains(&number)
}

/// A is this: the number, or nothing that a test will look at.
fn set_a(state: &mut State, value: Value) -> Action {
    state.a = value;
    Action::Plain(Op::LoadImmediate(value.known.unwrap_or(0)))
}

fn set_x(state: &mut State, value: Value) -> Action {
    state.x = value;
    Action::Plain(Op::LoadXImmediate(value.known.unwrap_or(0)))
}

fn compute(state: &mut State, alu: Alu, operand: Value, op: Op) -> Action {
    let divides = matches!(alu, Alu::Div | Alu::Mod);
    let Some(value) = state.a.compute(alu, operand) else { return Action::Reject };
    // Another copy's divisor may be another: this one's zero must not end the program.
    if value.known.is_some() {
        return set_a(state, value);
    }
    // A divisor of 0 would end the whole socket filter, whoever else wants the frame.
    if divides && operand.known.is_none() {
        return set_a(state, Value::any());
    }
    state.a = value;
    Action::Plain(op)
}
