//! The classifier, made anew when something that it is made of changes.
//!
//! ```text
//! policy, network (monitor), sensors' addresses and clients' connections (control) --> Inputs
//!     --change--> Classifier --Shared--> workers, woken
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::classify::{Classifier, OwnFlow, Policy};
use crate::config::Config;
use crate::explain::state::State;
use crate::net::View;
use crate::shared::Shared;
use crate::sys::Waker;

/// What a classifier is made of.
#[derive(Debug)]
pub(super) struct Inputs {
    pub(super) policy: Policy,
    pub(super) view: Arc<View>,
    /// Addresses of the sensors.
    pub(super) sensors: BTreeSet<IpAddr>,
    /// Connections with clients, and how many captures each serves.
    pub(super) flows: BTreeMap<OwnFlow, usize>,
}

/// Makes a new classifier when one of the inputs changes.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    inputs: Arc<Mutex<Inputs>>,
    pub(super) classifier: Shared<Classifier>,
}

impl Rules {
    pub(super) fn new(
        policy: Policy,
        view: View,
        sensors: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let sensors = sensors.into_iter().collect();
        let inputs = Inputs { policy, view: Arc::new(view), sensors, flows: BTreeMap::new() };
        let classifier = Shared::new(inputs.build());
        Self { inputs: Arc::new(Mutex::new(inputs)), classifier }
    }

    /// `change` returns whether it changed anything.
    pub(super) fn change(&self, change: impl FnOnce(&mut Inputs) -> bool, wakers: &[Waker]) {
        let mut inputs = self.inputs.lock().unwrap_or_else(PoisonError::into_inner);
        if !change(&mut inputs) {
            return;
        }
        self.classifier.replace(inputs.build());
        drop(inputs);
        for waker in wakers {
            waker.wake();
        }
    }
}

impl Rules {
    /// All that decides, for who asks; `config` is the one that the tap started with.
    pub(super) fn state(&self, config: &Config) -> State {
        let inputs = self.inputs.lock().unwrap_or_else(PoisonError::into_inner);
        let (policy, view) = (inputs.policy.clone(), Arc::clone(&inputs.view));
        let (sensors, flows) = (inputs.sensors.clone(), inputs.flows.clone());
        // The state is made without the lock, which control and netlink wait for.
        drop(inputs);
        State::new(config, &policy, &view, &sensors).running(flows.into_keys())
    }
}

impl Inputs {
    fn build(&self) -> Classifier {
        let Self { policy, view, sensors, flows } = self;
        let sensors: Vec<_> = sensors.iter().copied().collect();
        Classifier::new(policy, view, &sensors).without(flows.keys().copied())
    }
}

/// A flow begins, or ends; true if there was none before, or is none any more.
pub(super) fn count_flow(
    flows: &mut BTreeMap<OwnFlow, usize>,
    flow: OwnFlow,
    begins: bool,
) -> bool {
    let before = flows.get(&flow).copied().unwrap_or(0);
    match if begins { before + 1 } else { before.saturating_sub(1) } {
        0 => flows.remove(&flow).is_some(),
        count => {
            flows.insert(flow, count);
            before == 0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_excluded_until_the_last_capture_that_uses_it_ends() {
        let mut flows = BTreeMap::new();
        let flow = OwnFlow { peer: [10, 0, 0, 1].into(), peer_port: 4000, tcp_port: None };
        let seen: Vec<_> = [true, true, false, true, false, false, false]
            .map(|begins| (count_flow(&mut flows, flow, begins), flows.len()))
            .into();
        let expected =
            [(true, 1), (false, 1), (false, 1), (false, 1), (false, 1), (true, 0), (false, 0)];
        assert_eq!(seen, expected);
    }
}
