//! SETSAMPLING: one in N, or the first after N milliseconds. Shared by the workers.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::rpcap::Sampling;

/// Decides which frames a sampled session gets.
#[derive(Debug)]
pub(super) struct Sampler {
    sampling: Sampling,
    /// Frames so far (one in N), or the time of the last admitted one (first after N ms).
    state: AtomicU64,
}

impl Sampler {
    pub(super) fn new(sampling: Sampling) -> Self {
        Self { sampling, state: AtomicU64::new(0) }
    }

    /// True if the frame, captured at `now_ns`, is to be sent.
    pub(super) fn admits(&self, now_ns: u64) -> bool {
        let value = u64::from(self.sampling.value);
        match self.sampling.method {
            // A value of 0 is what a common client sends for any: no sampling.
            1 if value > 1 => self.state.fetch_add(1, Ordering::Relaxed).is_multiple_of(value),
            2 if value > 0 => {
                let last = self.state.load(Ordering::Relaxed);
                let due = last == 0 || now_ns >= last.saturating_add(value * 1_000_000);
                // Of two workers at the same moment, the one that loses leaves its frame out.
                due && self
                    .state
                    .compare_exchange(last, now_ns.max(1), Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(method: u8, value: u32, times_ms: &[u64]) -> Vec<bool> {
        let sampler = Sampler::new(Sampling { method, value });
        times_ms.iter().map(|ms| sampler.admits(1_000_000_000 + ms * 1_000_000)).collect()
    }

    #[test]
    fn one_in_n_starts_with_the_first() {
        let expected = [true, false, false, true, false, false, true];
        assert_eq!(admitted(1, 3, &[0; 7]), expected);
    }

    #[test]
    fn the_first_after_n_milliseconds() {
        let times = [0, 5, 10, 11, 25, 34];
        assert_eq!(admitted(2, 10, &times), [true, false, true, false, true, false]);
    }

    #[test]
    fn nothing_zero_and_unknown_mean_everything() {
        for (method, value) in [(0, 7), (1, 0), (1, 1), (2, 0), (9, 7)] {
            assert_eq!(admitted(method, value, &[0, 0, 0]), [true; 3], "{method} {value}");
        }
    }
}
