//! The measurements, and all of them in turn.
//!
//! ```text
//! STEPS: pipeline, table, capture, forward, harm, latency --> one record each
//! ```

use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::geteuid;

use crate::error::Error;
use crate::net::tap::check_program;
use crate::net::{capture, forward, harm, latency};
use crate::pipeline::{self, callgrind};
use crate::record::Figure;
use crate::table;

/// What measurements are to be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program that is measured.
    pub podtap: PathBuf,
    /// How often.
    pub rounds: usize,
    /// Of one measurement with traffic.
    pub time: Duration,
    /// Instructions are counted, too.
    pub callgrind: bool,
    /// What balance adds to the pipeline is measured, too.
    pub balance: bool,
    /// Another tap in active mode: a command line with `{iface}`, `{sensor}` and `{port}`.
    pub peer: Option<String>,
}

type Measure = fn(&Options, &mut dyn FnMut(&str)) -> Result<Vec<Figure>, Error>;

/// A measurement with a record of its own.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The subcommand.
    pub name: &'static str,
    /// It makes namespaces and sends frames through them, which takes root.
    pub has_traffic: bool,
    /// It measures the program, which must be built.
    pub needs_podtap: bool,
    /// Programs that it starts.
    pub programs: &'static [&'static str],
    measure: Measure,
}

/// Of everything with traffic.
const RIG: [&str; 3] = ["ip", "ethtool", "iptables"];

/// In the order in which [`check`] and `bench all` take them.
pub const STEPS: [Step; 6] = [
    Step {
        name: "pipeline",
        has_traffic: false,
        needs_podtap: false,
        programs: &[],
        measure: |options, say| {
            let mut figures = pipeline::measure(options.rounds, options.balance, say)?;
            if options.callgrind {
                figures.extend(callgrind::measure(say)?.into_iter().flatten());
            }
            Ok(figures)
        },
    },
    Step {
        name: "table",
        has_traffic: false,
        needs_podtap: false,
        programs: &[],
        measure: |options, say| table::measure(options.rounds, say),
    },
    Step {
        name: "capture",
        has_traffic: true,
        needs_podtap: false,
        programs: &[],
        measure: |options, say| capture::measure(options.rounds, options.time, say),
    },
    Step {
        name: "forward",
        has_traffic: true,
        needs_podtap: true,
        programs: &["taskset", "setpriv"],
        measure: forward::measure,
    },
    Step {
        name: "harm",
        has_traffic: true,
        needs_podtap: true,
        programs: &["taskset", "setpriv", "iperf3", "ss"],
        measure: |options, say| harm::measure(&options.podtap, options.rounds, options.time, say),
    },
    Step {
        name: "latency",
        has_traffic: true,
        needs_podtap: true,
        programs: &["taskset", "setpriv", "tcpdump"],
        measure: |options, say| {
            latency::measure(&options.podtap, options.rounds, options.time, say)
        },
    },
];

impl Step {
    /// The step of this name.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn named(name: &str) -> Result<Self, Error> {
        let step = STEPS.into_iter().find(|step| step.name == name);
        step.ok_or_else(|| Error::Input(format!("there is no measurement {name}")))
    }

    /// Measures.
    ///
    /// # Errors
    ///
    /// What it could not do.
    pub fn measure(
        &self,
        options: &Options,
        say: &mut dyn FnMut(&str),
    ) -> Result<Vec<Figure>, Error> {
        (self.measure)(options, say)
    }
}

/// Whether these steps can be taken here: said before the first of them is, not minutes later.
///
/// # Errors
///
/// All that is missing.
pub fn check(steps: &[Step], options: &Options) -> Result<(), Error> {
    if steps.iter().any(|step| step.needs_podtap) {
        check_program(&options.podtap)?;
    }
    let Some(with_traffic) = steps.iter().find(|step| step.has_traffic) else { return Ok(()) };
    if !geteuid().is_root() {
        return Err(Error::Input(format!(
            "`bench {}` makes network namespaces and needs root; `bench pipeline` and `bench table` do not",
            with_traffic.name
        )));
    }
    let mut wanted: Vec<_> =
        RIG.into_iter().chain(steps.iter().flat_map(|step| step.programs).copied()).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing = missing(&wanted, &std::env::split_paths(&path).collect::<Vec<_>>());
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Error::Input(format!(
            "not found: {} (`scripts/setup --bench` installs them)",
            missing.join(", ")
        ))),
    }
}

fn missing<'a>(programs: &[&'a str], folders: &[PathBuf]) -> Vec<&'a str> {
    let is_there = |program: &str| folders.iter().any(|folder| folder.join(program).is_file());
    programs.iter().copied().filter(|program| !is_there(program)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(podtap: &str) -> Options {
        Options {
            podtap: podtap.into(),
            rounds: 1,
            time: Duration::from_millis(1),
            callgrind: false,
            balance: false,
            peer: None,
        }
    }

    #[test]
    fn what_is_not_there_is_told_by_name() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("one"), "").unwrap();
        assert_eq!(missing(&["one", "two"], &[folder.path().into()]), ["two"]);
        assert_eq!(missing(&["one"], &[]), ["one"]);
    }

    #[test]
    fn the_program_is_asked_for_only_by_those_who_measure_it() {
        let options = options("/nowhere/podtap");
        check(&STEPS[..2], &options).unwrap();
        let error = check(&STEPS, &options).unwrap_err().to_string();
        assert!(error.contains("/nowhere/podtap"), "{error}");
        assert_eq!(Step::named("harm").unwrap().name, "harm");
        Step::named("charm").unwrap_err();
    }
}
