//! Instructions a frame, counted by valgrind's callgrind on this program itself.
//!
//! ```text
//! bench pipeline --callgrind NAME  (hidden, one pass)  under callgrind, collecting inside `drive` alone
//!     --> totals: N --> N / frames
//! ```
//!
//! The same program and input give the same count, whatever else the machine does.

use std::process::Command;

use crate::error::Error;
use crate::pipeline;
use crate::record::Figure;
use crate::workload::WORKLOADS;

/// One pass of the workload of this name, for callgrind to look at.
///
/// # Errors
///
/// An unknown name.
pub fn one_pass(name: &str) -> Result<(), Error> {
    let workload = WORKLOADS
        .iter()
        .find(|workload| workload.name == name)
        .ok_or_else(|| Error::Input(format!("there is no workload {name}")))?;
    pipeline::pass(&mut pipeline::source(workload), &pipeline::classifier()).map(drop)
}

/// Instructions a frame of each workload; `None` where there is no valgrind.
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
    let program = std::env::current_exe().map_err(Error::call("this program's path"))?;
    let folder = tempfile::tempdir().map_err(Error::call("a temporary folder"))?;
    let mut figures = Vec::new();
    for workload in WORKLOADS {
        say(&format!("callgrind: {}", workload.name));
        let out = folder.path().join("out");
        let mut command = Command::new("valgrind");
        command
            .args([
                "--tool=callgrind",
                "--collect-atstart=no",
                "--toggle-collect=bench::pipeline::drive*",
            ])
            .arg(format!("--callgrind-out-file={}", out.display()))
            .arg(&program)
            .args(["pipeline", "--callgrind", workload.name]);
        let output = command.output().map_err(Error::call("valgrind"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let end: Vec<_> = said.lines().rev().take(5).collect();
            return Err(Error::Program {
                command: format!("valgrind {}", workload.name),
                said: end.into_iter().rev().collect::<Vec<_>>().join("; "),
            });
        }
        let text = std::fs::read_to_string(&out).map_err(Error::file(&out))?;
        let total = total(&text).ok_or_else(|| {
            Error::Unbelievable(format!("callgrind counted nothing of {}", workload.name))
        })?;
        let frames = pipeline::frames(&workload);
        let name = format!("pipeline/{}/instructions", workload.name);
        figures.push(Figure::new(&name, "instructions", vec![total / frames])?);
    }
    Ok(Some(figures))
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
    fn an_unknown_workload_is_said() {
        let error = one_pass("nothing").unwrap_err().to_string();
        assert!(error.contains("nothing"), "{error}");
    }
}
