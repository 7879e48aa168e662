//! A run's figures as a JSON file, with all that is needed to judge or repeat it.
//!
//! ```text
//! samples --Figure::new--> median, least, most --Record--> OUT/COMMAND.json
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::machine::machine;
use crate::stats::median;

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
        let median = match median(&samples) {
            Some(median) if samples.iter().all(|sample| sample.is_finite()) => median,
            _ => return Err(Error::Unbelievable(format!("{name}: samples {samples:?}"))),
        };
        let least = samples.iter().copied().fold(f64::INFINITY, f64::min);
        let most = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Ok(Self { name: name.into(), unit: unit.into(), median, least, most, samples })
    }
}

/// Samples by name, in the order of their first.
#[derive(Debug, Default)]
pub struct Figures(Vec<(String, &'static str, Vec<f64>)>);

impl Figures {
    /// One more.
    pub fn add(&mut self, name: &str, unit: &'static str, sample: f64) {
        match self.0.iter_mut().find(|(known, ..)| known == name) {
            Some((.., samples)) => samples.push(sample),
            None => self.0.push((name.into(), unit, vec![sample])),
        }
    }

    /// The figures that they make.
    ///
    /// # Errors
    ///
    /// A sample that is no number.
    pub fn finish(self) -> Result<Vec<Figure>, Error> {
        self.0.into_iter().map(|(name, unit, samples)| Figure::new(&name, unit, samples)).collect()
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
        fs::write(&path, self.json() + "\n").map_err(Error::file(&path))?;
        Ok(path)
    }

    /// As it is written.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_middle_with_its_spread() {
        let figure = Figure::new("a/b", "ns", vec![5.0, 1.0, 9.0]).unwrap();
        assert_eq!((figure.median, figure.least, figure.most), (5.0, 1.0, 9.0));
        assert_eq!(figure.samples, [5.0, 1.0, 9.0]);
        let even = Figure::new("a/b", "ns", vec![4.0, 1.0]).unwrap();
        assert_eq!((even.median, even.least, even.most), (2.5, 1.0, 4.0));
        Figure::new("a/b", "ns", vec![]).unwrap_err();
        Figure::new("a/b", "ns", vec![1.0, f64::NAN]).unwrap_err();
    }

    #[test]
    fn samples_of_a_name_are_one_figure() {
        let mut figures = Figures::default();
        for (name, sample) in [("a", 1.0), ("b", 5.0), ("a", 3.0)] {
            figures.add(name, "ns", sample);
        }
        let figures = figures.finish().unwrap();
        let names: Vec<_> = figures.iter().map(|figure| figure.name.as_str()).collect();
        assert_eq!((names, figures[0].median), (vec!["a", "b"], 2.0));
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
