//! What was learned of flows through which the node's or a service's address is seen.
//!
//! ```text
//! flow (seeded hash of protocol and both ends) --low bits--> set of 4 --> state, time, last packet held
//! ```
//!
//! One per worker: the fanout brings both directions to the same one. Fixed memory, touched as it
//! is used; the entry that was used least lately goes. A flow that was forgotten is unknown, which
//! costs a wait or a duplicate.

/// What is known of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// Nothing.
    #[default]
    Unknown,
    /// The node's own: no twin ever came.
    Native,
    /// The node put its address in a pod's place: a twin was seen.
    Translated,
    /// Through a service: a request waits for its twin.
    Asked,
    /// A request's twin was seen.
    Proven,
    /// And an answer's, which are therefore not another node's to report.
    Answered,
    /// The node opened the connection: its port is one of the NodePort range by chance.
    Opened,
}

impl State {
    const ALL: [Self; 7] = [
        Self::Unknown,
        Self::Native,
        Self::Translated,
        Self::Asked,
        Self::Proven,
        Self::Answered,
        Self::Opened,
    ];

    fn of(number: u64) -> Self {
        usize::try_from(number).ok().and_then(|at| Self::ALL.get(at)).copied().unwrap_or_default()
    }
}

/// Flow, last ticket, time and state; a flow of 0 is no entry. Plain numbers, since memory of
/// zeros is not touched before it is used.
type Entry = [u64; 3];
const WAYS: usize = 4;
type Set = [Entry; WAYS];

/// See the module.
#[derive(Debug)]
pub(super) struct FlowMemory {
    sets: Box<[Set]>,
}

/// A tick, about a millisecond: 2^40 of them are 36 years.
const TICK_BITS: u32 = 20;
const STATE_BITS: u32 = 4;
/// After so long without a twin a translation is doubted.
const DOUBT_TICKS: u64 = 60_000_000_000 >> TICK_BITS;

impl FlowMemory {
    /// In at most so much memory (one set at least).
    pub(super) fn new(memory: usize) -> Self {
        let sets = (memory / size_of::<Set>()).max(1);
        let sets = 1usize << sets.ilog2();
        Self { sets: vec![[[0; 3]; WAYS]; sets].into() }
    }

    fn set(&mut self, flow: u64) -> &mut Set {
        let mask = self.sets.len() as u64 - 1;
        // Any bits do: the name is a hash.
        let at = usize::try_from((flow >> 32) & mask).expect("less than the number of sets");
        &mut self.sets[at]
    }

    /// What is known; a translation that was not seen at work for a minute is not.
    pub(super) fn state(&mut self, flow: u64, now_ns: u64) -> State {
        let now = now_ns >> TICK_BITS;
        let Some(entry) = self.set(flow).iter_mut().find(|entry| entry[0] == flow) else {
            return State::Unknown;
        };
        let (then, state) = (entry[2] >> STATE_BITS, State::of(entry[2] & ((1 << STATE_BITS) - 1)));
        match state {
            State::Translated if now.saturating_sub(then) > DOUBT_TICKS => State::Unknown,
            State::Translated => state,
            _ => {
                entry[2] = now << STATE_BITS | state as u64;
                state
            }
        }
    }

    /// Remembers it.
    pub(super) fn learn(&mut self, flow: u64, state: State, now_ns: u64) {
        self.entry(flow, now_ns)[2] = (now_ns >> TICK_BITS) << STATE_BITS | state as u64;
    }

    /// The flow's entry, in the place of another if it has none.
    fn entry(&mut self, flow: u64, now_ns: u64) -> &mut Entry {
        let set = self.set(flow);
        let at = set.iter().position(|entry| entry[0] == flow).unwrap_or_else(|| {
            let rank = |entry: &Entry| if entry[0] == 0 { 0 } else { 1 + entry[2] };
            let oldest = (0..WAYS).min_by_key(|&at| rank(&set[at])).unwrap_or(0);
            set[oldest] = [flow, 0, (now_ns >> TICK_BITS) << STATE_BITS];
            oldest
        });
        &mut set[at]
    }

    /// The flow's packet with this ticket waits; the ticket of the one before it, or 0.
    pub(super) fn waits(&mut self, flow: u64, ticket: u64, now_ns: u64) -> u64 {
        std::mem::replace(&mut self.entry(flow, now_ns)[1], ticket)
    }
}
