//! What a process holds while it runs, and what the kernel dropped meanwhile.

use std::{
    fs, io,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

const SAMPLE_EVERY: Duration = Duration::from_millis(500);

/// What a process holds at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Open file descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// Resident memory, KiB.
    pub resident_kib: u64,
    /// Mapped packet rings, KiB.
    pub ring_kib: u64,
    /// Processor time used, in ticks of 10 ms.
    pub ticks: u64,
}

/// Looks at a process.
///
/// # Errors
///
/// When it has gone, or `/proc` is not as proc(5) says.
pub fn sample(pid: u32) -> io::Result<Sample> {
    let strange = |what: &str| io::Error::other(format!("{what} of process {pid}"));
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let status = read("status")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        number.ok_or_else(|| strange(name))
    };
    let is_ring = |line: &&str| line.contains("socket:[");
    let kib = |line: &str| {
        let (from, to) = line.split_once(' ')?.0.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((number(to)? - number(from)?) / 1024)
    };
    let ring_kib = read("maps")?.lines().filter(is_ring).filter_map(kib).sum();
    let stat = read("stat")?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>());
    Ok(Sample {
        descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64,
        threads: field("Threads:")?,
        resident_kib: field("VmRSS:")?,
        ring_kib,
        ticks: ticks.sum::<Result<u64, _>>().map_err(|_no_number| strange("stat"))?,
    })
}

/// Packets that the kernel dropped on all CPUs because a queue between two interfaces was full:
/// nobody sees those.
///
/// # Errors
///
/// When `/proc/net/softnet_stat` cannot be read.
pub fn kernel_drops() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/net/softnet_stat")?;
    let dropped = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    Ok(text.lines().filter_map(dropped).sum())
}

/// Samples of a process, taken while `work` runs.
///
/// # Errors
///
/// As [`sample`].
pub fn watched<T>(pid: u32, work: impl FnOnce() -> T) -> io::Result<(T, Vec<Sample>)> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watching = scope.spawn(|| -> io::Result<Vec<Sample>> {
            let mut samples = Vec::new();
            loop {
                samples.push(sample(pid)?);
                if is_over.load(Ordering::Relaxed) {
                    return Ok(samples);
                }
                thread::sleep(SAMPLE_EVERY);
            }
        });
        let result = work();
        is_over.store(true, Ordering::Relaxed);
        let samples = watching.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        samples.map(|samples| (result, samples))
    })
}

/// Least and most of what a process held after its first `warm_up` samples.
#[must_use]
pub fn spread(samples: &[Sample], warm_up: usize) -> Option<(Sample, Sample)> {
    let warm = samples.get(warm_up..)?;
    let of = |pick: fn(u64, u64) -> u64| {
        let both = |a: Sample, b: &Sample| Sample {
            descriptors: pick(a.descriptors, b.descriptors),
            threads: pick(a.threads, b.threads),
            resident_kib: pick(a.resident_kib, b.resident_kib),
            ring_kib: pick(a.ring_kib, b.ring_kib),
            ticks: pick(a.ticks, b.ticks),
        };
        Some(warm.iter().skip(1).fold(*warm.first()?, both))
    };
    Some((of(u64::min)?, of(u64::max)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_holds_something() {
        let ((), samples) = watched(std::process::id(), || ()).unwrap();
        let (least, most) = spread(&samples, 0).unwrap();
        assert!(least.descriptors > 2 && least.threads > 0 && least.resident_kib > 100);
        assert!(most.resident_kib >= least.resident_kib && spread(&samples, 9).is_none());
    }
}
