//! `bench compare REV_A REV_B`: the pipeline of two revisions, in turn.
//!
//! ```text
//! each revision: git worktree in a temporary folder, built; what is built is kept in target/bench/build
//! each round: A's `bench pipeline`, B's --> medians, and whether their spreads overlap
//! ```

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Error;
use crate::interrupt::{Folder, Undo, run};
use crate::record::{Figure, Record};

/// Rounds of a revision's own, in each of ours.
const INNER: &str = "1";

struct Built {
    commit: String,
    program: PathBuf,
    samples: Vec<(String, String, Vec<f64>)>,
}

fn git(arguments: &[&str]) -> Result<String, Error> {
    let output = run(Command::new("git").args(arguments))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// While the program ends, too: what it said is nobody's then.
fn git_quietly(arguments: &[&str]) -> std::io::Result<std::process::Output> {
    Command::new("git").args(arguments).output()
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
        let folder = Folder::new()?;
        // Of a name that no other comparison has, as git keeps worktrees by their last part.
        let tree = folder.path().join(folder.path().file_name().unwrap_or_default());
        let tree_name = tree.display().to_string();
        let gone = tree_name.clone();
        let _worktree = Undo::new(move || {
            let _ = git_quietly(&["worktree", "remove", "--force", &gone]);
        });
        git(&["worktree", "add", "--detach", "--quiet", &tree_name, &commit])?;
        run(Command::new("cargo")
            .args(["build", "--release", "--locked", "-p", "bench", "--quiet", "--target-dir"])
            .arg(&kept)
            .current_dir(&tree))?;
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
            match self.samples.iter_mut().find(|(name, ..)| *name == figure.name) {
                Some((.., samples)) => samples.push(figure.median),
                None => self.samples.push((figure.name, figure.unit, vec![figure.median])),
            }
        }
        Ok(())
    }
}

/// What came out.
#[derive(Debug)]
pub struct Comparison {
    /// One line for each figure that both have.
    pub text: String,
    /// The same, `a/..` and `b/..`.
    pub figures: Vec<Figure>,
    /// By side.
    pub commits: [String; 2],
}

/// Compares.
///
/// # Errors
///
/// An unknown revision, one that does not build or has another harness.
pub fn compare(
    revisions: [&str; 2],
    rounds: usize,
    say: &mut dyn FnMut(&str),
) -> Result<Comparison, Error> {
    let mut built = [build(revisions[0], say)?, build(revisions[1], say)?];
    for round in 1..=rounds {
        say(&format!("compare: round {round} of {rounds}"));
        // Who is first is second in the next round.
        let order = if round % 2 == 1 { [0, 1] } else { [1, 0] };
        for one in order {
            built[one].measure(Folder::new()?.path())?;
        }
    }
    let [a, b] = &built;
    let mut text =
        format!("A {} ({})\nB {} ({})\n\n", revisions[0], a.commit, revisions[1], b.commit);
    let _ = writeln!(
        text,
        "{:<40} {:>9} {:>17} {:>9} {:>17} {:>6}",
        "figure", "A", "least..most", "B", "least..most", "B/A"
    );
    let mut figures = Vec::new();
    for (name, unit, samples) in &a.samples {
        let Some((.., others)) = b.samples.iter().find(|(other, ..)| other == name) else {
            continue;
        };
        let one = Figure::new(&format!("a/{name}"), unit, samples.clone())?;
        let other = Figure::new(&format!("b/{name}"), unit, others.clone())?;
        let _ = writeln!(text, "{}", line(name, &one, &other));
        figures.extend([one, other]);
    }
    if figures.is_empty() {
        return Err(Error::Input("these revisions have no figure in common".into()));
    }
    Ok(Comparison { text, figures, commits: built.map(|built| built.commit) })
}

/// Medians, spreads and ratio; a difference is one where the spreads do not overlap.
fn line(name: &str, a: &Figure, b: &Figure) -> String {
    let is_apart = a.samples.len() > 1 && (a.most < b.least || b.most < a.least);
    let verdict = if is_apart { "" } else { "   no difference shown" };
    let spread = |figure: &Figure| format!("{:.2}..{:.2}", figure.least, figure.most);
    let ratio = match a.median {
        0.0 => "-".into(),
        median => format!("{:.2}", b.median / median),
    };
    format!(
        "{name:<40} {:>9.2} {:>17} {:>9.2} {:>17} {ratio:>6}{verdict}",
        a.median,
        spread(a),
        b.median,
        spread(b)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_spreads_that_are_apart_are_a_difference() {
        let figure = |samples: &[f64]| Figure::new("x", "ns", samples.to_vec()).unwrap();
        let (slow, fast, wide) =
            (figure(&[10.0, 11.0, 12.0]), figure(&[5.0, 6.0, 7.0]), figure(&[5.0, 6.0, 10.5]));
        let said = line("x", &slow, &fast);
        assert!(!said.contains("no difference"), "{said}");
        assert!(said.contains("0.55") && said.contains("10.00..12.00"), "{said}");
        assert!(line("x", &slow, &wide).contains("no difference"));
        // One sample has no spread to be outside of.
        assert!(line("x", &figure(&[1.0]), &figure(&[9.0])).contains("no difference"));
        assert!(line("x", &figure(&[0.0, 0.0]), &fast).ends_with(" -"));
    }

    #[test]
    fn an_unknown_revision_is_an_error_and_no_option() {
        for revision in ["no-such-revision", "--help"] {
            assert!(build(revision, &mut |_| ()).is_err(), "{revision}");
        }
    }
}
