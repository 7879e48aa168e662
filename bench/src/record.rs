//! A run's figures as a JSON file, with all that is needed to judge or repeat it.
//!
//! ```text
//! samples --Figure::new--> median, least, most --Record--> OUT/COMMAND.json
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Raised when what a field means changes.
pub const SCHEMA: u32 = 1;

/// One quantity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// `what/case/quantity`.
    pub name: String,
    /// Of the numbers: `ns`, `instructions`, `ratio`, `Mop/s`, `kpps`, `MiB`, `ms`.
    pub unit: String,
    /// Of the samples.
    pub median: f64,
    /// The least of them.
    pub least: f64,
    /// The most of them.
    pub most: f64,
    /// One for each round, in order.
    pub samples: Vec<f64>,
}

impl Figure {
    /// The figure that these rounds make.
    ///
    /// # Errors
    ///
    /// No sample, or one that is no number.
    pub fn new(name: &str, unit: &str, samples: Vec<f64>) -> Result<Self, Error> {
        let mut sorted = samples.clone();
        if sorted.is_empty() || sorted.iter().any(|sample| !sample.is_finite()) {
            return Err(Error::Unbelievable(format!("{name}: samples {samples:?}")));
        }
        sorted.sort_by(f64::total_cmp);
        let median = sorted[sorted.len() / 2];
        let (least, most) = (sorted[0], sorted[sorted.len() - 1]);
        Ok(Self { name: name.into(), unit: unit.into(), median, least, most, samples })
    }
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// See [`SCHEMA`].
    pub schema: u32,
    /// The subcommand.
    pub command: String,
    /// Commit, kernel, CPU and the like.
    pub machine: BTreeMap<String, String>,
    /// What was chosen, by flag or by itself.
    pub settings: BTreeMap<String, String>,
    /// What came out.
    pub figures: Vec<Figure>,
}

impl Record {
    /// A run of this machine.
    #[must_use]
    pub fn new(command: &str, settings: &[(&str, String)], figures: Vec<Figure>) -> Self {
        let settings = settings.iter().map(|(name, value)| ((*name).into(), value.clone()));
        Self {
            schema: SCHEMA,
            command: command.into(),
            machine: machine(),
            settings: settings.collect(),
            figures,
        }
    }

    /// Writes it to `COMMAND.json` in a folder that may have to be made, and returns the path.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<PathBuf, Error> {
        fs::create_dir_all(folder).map_err(Error::file(folder))?;
        let path = folder.join(format!("{}.json", self.command));
        let text = serde_json::to_string_pretty(self).expect("plain data");
        fs::write(&path, text + "\n").map_err(Error::file(&path))?;
        Ok(path)
    }

    /// All records of a folder, by command.
    ///
    /// # Errors
    ///
    /// A folder that cannot be read, or a file in it that is no record of this schema.
    pub fn read_all(folder: &Path) -> Result<Vec<Self>, Error> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder).map_err(Error::file(folder))? {
            let path = entry.map_err(Error::file(folder))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                paths.push(path);
            }
        }
        paths.sort();
        paths.into_iter().map(|path| Self::read(&path)).collect()
    }

    fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(Error::file(path))?;
        let record: Self = serde_json::from_str(&text)
            .map_err(|source| Error::Record { path: path.into(), source })?;
        match record.schema {
            SCHEMA => Ok(record),
            other => Err(Error::Input(format!("{}: schema {other}, not {SCHEMA}", path.display()))),
        }
    }
}

fn machine() -> BTreeMap<String, String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let commit = std::env::var("PODTAP_COMMIT").ok().or_else(|| {
        let git = |args: &[&str]| {
            let output = Command::new("git").args(args).output().ok()?;
            output
                .status
                .success()
                .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let dirty = if git(&["status", "--porcelain", "-uno"])?.is_empty() { "" } else { "+" };
        Some(git(&["rev-parse", "--short", "HEAD"])? + dirty)
    });
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    [
        ("commit", commit.unwrap_or_else(|| "unknown".into())),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().into()),
        ("cpu", model.map_or_else(|| "unknown".into(), |(_, name)| name.into())),
        ("cores", cores.to_string()),
        ("load before", read("/proc/loadavg").split(' ').next().unwrap_or("").into()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_middle_with_its_spread() {
        let figure = Figure::new("a/b", "ns", vec![5.0, 1.0, 9.0]).unwrap();
        assert_eq!((figure.median, figure.least, figure.most), (5.0, 1.0, 9.0));
        assert_eq!(figure.samples, [5.0, 1.0, 9.0]);
        Figure::new("a/b", "ns", vec![]).unwrap_err();
        Figure::new("a/b", "ns", vec![1.0, f64::NAN]).unwrap_err();
    }

    #[test]
    fn records_are_read_back_and_nothing_else_is_taken_for_one() {
        let folder = tempfile::tempdir().unwrap();
        let figure = Figure::new("a/b", "ns", vec![1.5]).unwrap();
        let record = Record::new("pipeline", &[("rounds", "1".into())], vec![figure]);
        record.write(folder.path()).unwrap();
        assert_eq!(Record::read_all(folder.path()).unwrap(), std::slice::from_ref(&record));
        Record { schema: 9, ..record }.write(folder.path()).unwrap();
        let error = Record::read_all(folder.path()).unwrap_err().to_string();
        assert!(error.contains("schema 9"), "{error}");
        fs::write(folder.path().join("x.json"), "{}").unwrap();
        Record::read_all(folder.path()).unwrap_err();
    }
}
