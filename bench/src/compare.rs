//! `bench compare REV_A REV_B`: the pipeline of two revisions, in turn.
//!
//! ```text
//! each revision: git worktree in a temporary folder, built (kept in target/bench/build)
//! each round: A's `bench pipeline`, B's --> medians, and whether their spreads overlap
//! ```

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Error;
use crate::record::{Figure, Record};

/// Rounds of a revision's own.
const INNER: &str = "1";

struct Built {
    commit: String,
    program: PathBuf,
    samples: Vec<(String, Vec<f64>)>,
}

fn run(command: &mut Command) -> Result<String, Error> {
    let line = format!("{command:?}");
    let output = command.output().map_err(Error::call(line.clone()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let end: Vec<_> = said.lines().rev().take(4).collect();
    let said = end.into_iter().rev().collect::<Vec<_>>().join("; ");
    Err(Error::Program { command: line, said })
}

fn git(arguments: &[&str]) -> Result<String, Error> {
    run(Command::new("git").args(arguments))
}

/// Builds a revision's harness; kept by commit.
fn build(revision: &str, say: &mut dyn FnMut(&str)) -> Result<Built, Error> {
    let commit =
        git(&["rev-parse", "--verify", "--end-of-options", &format!("{revision}^{{commit}}")])?;
    let top = PathBuf::from(git(&["rev-parse", "--show-toplevel"])?);
    let kept = top.join("target/bench/build").join(&commit);
    let program = kept.join("release/bench");
    if !program.is_file() {
        say(&format!("compare: building {revision}"));
        let folder = tempfile::tempdir().map_err(Error::call("a temporary folder"))?;
        let tree = folder.path().join("tree");
        let tree_name = tree.display().to_string();
        git(&["worktree", "add", "--detach", "--quiet", &tree_name, &commit])?;
        let built = run(Command::new("cargo")
            .args(["build", "--release", "-p", "bench", "--quiet", "--target-dir"])
            .arg(&kept)
            .current_dir(&tree));
        git(&["worktree", "remove", "--force", &tree_name])?;
        built?;
    }
    Ok(Built { commit, program, samples: Vec::new() })
}

impl Built {
    /// One round.
    fn measure(&mut self, out: &Path) -> Result<(), Error> {
        run(Command::new(&self.program)
            .args(["pipeline", "--no-callgrind", "--rounds", INNER, "--out"])
            .arg(out))?;
        for figure in Record::read_all(out)?.into_iter().flat_map(|record| record.figures) {
            match self.samples.iter_mut().find(|(name, _)| *name == figure.name) {
                Some((_, samples)) => samples.push(figure.median),
                None => self.samples.push((figure.name, vec![figure.median])),
            }
        }
        Ok(())
    }
}

/// Compares; a table with one line for each figure that both have.
///
/// # Errors
///
/// An unknown revision, one that does not build or has another harness.
pub fn compare(
    revisions: [&str; 2],
    rounds: usize,
    say: &mut dyn FnMut(&str),
) -> Result<String, Error> {
    let mut built = [build(revisions[0], say)?, build(revisions[1], say)?];
    for round in 1..=rounds {
        say(&format!("compare: round {round} of {rounds}"));
        for one in &mut built {
            let out = tempfile::tempdir().map_err(Error::call("a temporary folder"))?;
            one.measure(out.path())?;
        }
    }
    let [a, b] = &built;
    let mut text =
        format!("A {} ({})\nB {} ({})\n\n", revisions[0], a.commit, revisions[1], b.commit);
    let _ = writeln!(text, "{:<40} {:>10} {:>10} {:>7}", "figure", "A", "B", "B/A");
    for (name, samples) in &a.samples {
        let Some((_, others)) = b.samples.iter().find(|(other, _)| other == name) else { continue };
        let one = Figure::new(name, "", samples.clone())?;
        let other = Figure::new(name, "", others.clone())?;
        let _ = writeln!(text, "{}", line(&one, &other));
    }
    Ok(text)
}

/// Medians and their ratio; a difference is one where the spreads do not overlap.
fn line(a: &Figure, b: &Figure) -> String {
    let is_apart = a.most < b.least || b.most < a.least;
    let verdict = if is_apart { "" } else { "   no difference shown" };
    let ratio = b.median / a.median;
    format!("{:<40} {:>10.2} {:>10.2} {ratio:>7.2}{verdict}", a.name, a.median, b.median)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_spreads_that_are_apart_are_a_difference() {
        let figure = |samples: &[f64]| Figure::new("x", "ns", samples.to_vec()).unwrap();
        let (slow, fast, wide) =
            (figure(&[10.0, 11.0, 12.0]), figure(&[5.0, 6.0, 7.0]), figure(&[5.0, 6.0, 10.5]));
        assert!(!line(&slow, &fast).contains("no difference"), "{}", line(&slow, &fast));
        assert!(line(&slow, &wide).contains("no difference"));
        assert!(line(&slow, &fast).contains("0.55"));
    }

    #[test]
    fn an_unknown_revision_is_an_error_and_no_option() {
        for revision in ["no-such-revision", "--help"] {
            assert!(build(revision, &mut |_| ()).is_err(), "{revision}");
        }
    }
}
