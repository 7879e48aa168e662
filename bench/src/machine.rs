//! What a figure was measured on: commit, kernel, CPU, and how fast that is allowed to run.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// By name. What cannot be told is "unknown", and of a clean tree the commit has no `+`.
#[must_use]
pub fn machine() -> BTreeMap<String, String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let known = |text: String| if text.is_empty() { "unknown".to_owned() } else { text };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    [
        ("commit", known(commit())),
        ("kernel", known(read("/proc/sys/kernel/osrelease"))),
        ("cpu", known(model(&read("/proc/cpuinfo")))),
        ("cores", cores.to_string()),
        // A virtual machine has none of its own.
        ("governor", known(read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))),
        ("load before", known(read("/proc/loadavg").split(' ').next().unwrap_or("").into())),
        ("ended", utc(since_epoch.as_secs())),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn model(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    line.map_or_else(String::new, |(_, name)| name.into())
}

fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    };
    std::env::var("PODTAP_COMMIT").ok().unwrap_or_else(|| {
        let (Some(head), Some(changes)) =
            (git(&["rev-parse", "--short", "HEAD"]), git(&["status", "--porcelain", "-uno"]))
        else {
            return String::new();
        };
        head + if changes.is_empty() { "" } else { "+" }
    })
}

/// `2026-11-25T14:03:00Z`, of seconds since the epoch.
fn utc(seconds: u64) -> String {
    let (mut days, of_day) = (seconds / 86_400, seconds % 86_400);
    let mut year = 1970;
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 0;
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", month + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_dates() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_618_477, "2026-11-25T14:54:37Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), date);
        }
    }

    #[test]
    fn the_model_is_the_first_cpus() {
        let text =
            "processor\t: 0\nmodel name\t: Some CPU: fast\nprocessor\t: 1\nmodel name\t: B\n";
        assert_eq!(model(text), "Some CPU: fast");
        assert_eq!(model(""), "");
    }

    #[test]
    fn everything_has_a_value() {
        let machine = machine();
        for name in ["commit", "kernel", "cpu", "cores", "governor", "ended"] {
            assert!(!machine[name].is_empty(), "{name}");
        }
    }
}
