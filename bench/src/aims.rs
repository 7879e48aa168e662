//! What is to be reached, and whether a figure does.

/// An aim.
#[derive(Clone, Copy, Debug)]
pub struct Aim {
    /// The figure's name.
    pub figure: &'static str,
    /// What it is, for the table.
    pub what: &'static str,
    /// The bound.
    pub bound: f64,
    /// True if the figure must not be above it, false if not below.
    pub is_most: bool,
}

const fn most(figure: &'static str, what: &'static str, bound: f64) -> Aim {
    Aim { figure, what, bound, is_most: true }
}

const fn least(figure: &'static str, what: &'static str, bound: f64) -> Aim {
    Aim { figure, what, bound, is_most: false }
}

impl Aim {
    /// Whether this value is good enough.
    #[must_use]
    pub fn is_met(&self, value: f64) -> bool {
        if self.is_most { value <= self.bound } else { value >= self.bound }
    }
}

/// All of them.
pub const AIMS: &[Aim] = &[
    most("pipeline/new-64/ns", "pipeline alone, 64 B TCP, all new: ns a frame", 90.0),
    most("pipeline/new-64/instructions", "the same: instructions a frame", 450.0),
    most("pipeline/new-1500/ns", "pipeline alone, 1500 B, all new: ns a frame", 250.0),
    most("pipeline/copies-64/ns", "pipeline alone, four copies of each packet: ns a copy", 70.0),
    most("pipeline/allocations", "allocations per batch in steady state", 0.0),
    least("pipeline/workers/share", "two workers against one, of what the two cores gain", 0.95),
    least("table/resident/mops", "table, one thread, resident: million operations a second", 40.0),
    least("table/cold/mops", "table, one thread, out of cache: million operations a second", 15.0),
    least("table/resident/best-map-ratio", "table against the best map, resident", 4.0),
    least("table/cold/best-map-ratio", "table against the best map, out of cache", 4.0),
    least(
        "capture/64/share-of-ring",
        "capture, classify, dedup, null sink against a bare ring, 64 B",
        0.90,
    ),
    least("capture/1500/share-of-ring", "the same, 1500 B", 0.90),
    most("capture/ring-drops", "ring drops meanwhile, share", 0.0001),
    most(
        "forward/1518/share-of-sendmmsg",
        "forward, CPU per 1518 B frame against bare sendmmsg per 1472 B datagram",
        0.55,
    ),
    most("forward/64/cpu-ns", "forward, CPU per 64 B frame, ns", 130.0),
    least("forward/64/libpcap-ratio", "CPU of a libpcap tap against ours, 64 B", 30.0),
    least("forward/mix/libpcap-ratio", "the same, mix of sizes", 12.0),
    least("forward/1518/libpcap-ratio", "the same, 1518 B", 10.0),
    most("forward/resident-mib", "resident memory with default settings, MiB", 128.0),
    least(
        "harm/unwanted/share",
        "traffic that no rule wants: generator's rate against untapped",
        0.90,
    ),
    least("harm/iperf3/share", "iperf3 through a tapped veth against untapped", 0.65),
    least("harm/iperf3-256/share", "the same with --snaplen 256", 0.80),
    most("latency/low/p50-ms", "kernel stamp to datagram sent, 100,000 frames/s, p50 ms", 0.7),
    most("latency/low/p99-ms", "the same, p99 ms", 1.6),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_met_on_its_right_side_and_at_itself() {
        let (no_more, no_less) = (most("a", "", 5.0), least("a", "", 5.0));
        for (value, of_most, of_least) in
            [(4.9, true, false), (5.0, true, true), (5.1, false, true)]
        {
            assert_eq!((no_more.is_met(value), no_less.is_met(value)), (of_most, of_least));
        }
        let mut names: Vec<_> = AIMS.iter().map(|aim| aim.figure).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), AIMS.len(), "no figure has two");
    }
}
