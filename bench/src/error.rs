//! What may go wrong with a measurement.

use std::path::PathBuf;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: std::io::Error,
    },
    /// A call failed.
    #[error("{what}: {source}")]
    Call {
        /// Which.
        what: String,
        /// What the system answered.
        #[source]
        source: std::io::Error,
    },
    /// A program failed.
    #[error("`{command}` failed: {said}")]
    Program {
        /// The command line.
        command: String,
        /// The end of what it said, or how it ended.
        said: String,
    },
    /// A record is not one of ours.
    #[error("{path}: no record of this harness: {source}")]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A result contradicts itself: nothing is recorded then.
    #[error("not believed: {0}")]
    Unbelievable(String),
    /// What was asked for cannot be done.
    #[error("{0}")]
    Input(String),
}

impl Error {
    /// For `map_err`, with what was tried.
    pub fn call(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Call { what, source }
    }

    /// For `map_err`, with the file.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
