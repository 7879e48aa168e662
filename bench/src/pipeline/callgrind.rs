//! Instructions a packet, counted by valgrind's callgrind on this program itself.
//!
//! ```text
//! bench pipeline --callgrind NAME[/STAGE]  (hidden, one pass)  under callgrind, which collects inside `drive`
//!     or the stage's function alone --> totals: N --> N / packets
//! ```
//!
//! The same program and input give the same count, whatever else the machine does: one sample is enough.

use std::path::Path;
use std::process::Command;

use super::stages::{self, STAGES};
use super::{classifier, drive, packets, pass, source};
use crate::error::Error;
use crate::interrupt::{Folder, run};
use crate::record::Figure;
use crate::workload::{WORKLOADS, Workload};

/// One pass of what is named, for callgrind to look at.
///
/// # Errors
///
/// An unknown name.
pub fn one_pass(name: &str) -> Result<(), Error> {
    let (workload, stage) = name.split_once('/').map_or((name, None), |(a, b)| (a, Some(b)));
    let workload = Workload::named(workload)
        .ok_or_else(|| Error::Input(format!("there is no workload {workload}")))?;
    let mut source = source(&workload);
    match stage {
        None => pass(&mut source, &classifier(), drive).map(drop),
        Some(stage) if STAGES.contains(&stage) && stages::apply_to(&workload) => {
            stages::pass(&mut source, &classifier()).map(drop)
        }
        Some(stage) => Err(Error::Input(format!("{} has no stage {stage}", workload.name))),
    }
}

/// Instructions a packet of each workload, in all and by stage; `None` where there is no valgrind.
///
/// # Errors
///
/// When callgrind fails, or says nothing.
pub fn measure(say: &mut dyn FnMut(&str)) -> Result<Option<Vec<Figure>>, Error> {
    let is_there = Command::new("valgrind").arg("--version").output().is_ok();
    if !is_there {
        say("no valgrind here: instructions are not counted");
        return Ok(None);
    }
    let folder = Folder::new()?;
    let out = folder.path().join("out");
    let mut figures = Vec::new();
    for workload in WORKLOADS {
        let name = workload.name;
        say(&format!("callgrind: {name}"));
        let mut add = |figure: String, of: &str, function: &str| -> Result<(), Error> {
            let each = count(of, function, &out)? / packets(&workload);
            figures.push(Figure::new(&figure, "instructions", vec![each])?);
            Ok(())
        };
        add(format!("pipeline/{name}/instructions"), name, "bench::pipeline::drive*")?;
        for stage in STAGES.into_iter().filter(|_| stages::apply_to(&workload)) {
            let figure = format!("pipeline/{name}/{stage}-instructions");
            add(figure, &format!("{name}/{stage}"), &stages::function(stage))?;
        }
    }
    Ok(Some(figures))
}

/// Instructions of one pass inside a function.
fn count(of: &str, function: &str, out: &Path) -> Result<f64, Error> {
    let program = std::env::current_exe().map_err(Error::call("this program's path"))?;
    run(Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--vgdb=no"])
        .arg(format!("--toggle-collect={function}"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(["pipeline", "--callgrind", of]))?;
    let text = std::fs::read_to_string(out).map_err(Error::file(out))?;
    total(&text).ok_or_else(|| Error::Unbelievable(format!("callgrind counted nothing of {of}")))
}

/// The sum in callgrind's output; `None` if nothing was collected.
fn total(text: &str) -> Option<f64> {
    let total: f64 =
        text.lines().find_map(|line| line.strip_prefix("totals: "))?.trim().parse().ok()?;
    (total > 0.0).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_found_and_nothing_is_no_total() {
        assert_eq!(total("version: 1\nevents: Ir\n\ntotals: 12345\n"), Some(12345.0));
        for text in ["", "totals: 0\n", "totals: many\n", "summary: 5\n"] {
            assert_eq!(total(text), None, "{text}");
        }
    }

    #[test]
    fn what_there_is_not_is_said() {
        for (name, said) in
            [("nothing", "nothing"), ("new-64/cook", "cook"), ("super/parse", "parse")]
        {
            let error = one_pass(name).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        one_pass("new-64/table").unwrap();
    }
}
