//! What can go wrong while a lab is built or used, with the command that failed and what it said.

use std::{io, path::PathBuf, process::ExitStatus};

/// Why something in the lab could not be done.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The description of the lab makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Namespaces need root.
    #[error("a lab of network namespaces needs root")]
    NotRoot,
    /// Another lab has this name.
    #[error("a lab named {0:?} is already up")]
    Exists(String),
    /// No namespace of a lab with this name.
    #[error("no lab named {0:?} is up")]
    NotUp(String),
    /// The lab has no such host.
    #[error("lab {lab:?} has no host {host:?}; it has {hosts}")]
    NoHost {
        /// The lab that was asked.
        lab: String,
        /// What was asked for.
        host: String,
        /// What there is.
        hosts: String,
    },
    /// A program could not be started at all.
    #[error("cannot start {program}")]
    Start {
        /// The program's name.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program ran and failed.
    #[error("{command}: {status}: {stderr}")]
    Failed {
        /// The whole command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to standard error, trimmed.
        stderr: String,
    },
    /// Something that should happen by itself did not happen in time.
    #[error("{what} did not happen within {seconds} s{detail}")]
    Late {
        /// What was awaited.
        what: String,
        /// How long it was awaited.
        seconds: u64,
        /// What was there instead; empty or opening with a colon.
        detail: String,
    },
    /// A file of the lab.
    #[error("{path:?}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A system call.
    #[error("{call}")]
    Call {
        /// Which call, and on what.
        call: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program's output was not what it should be.
    #[error("{what}: {detail}")]
    Unexpected {
        /// Whose output.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
}

impl LabError {
    pub(crate) fn file(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File { path: path.into(), source }
    }

    pub(crate) fn call(call: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Call { call: call.into(), source: source.into() }
    }

    /// The error with all its causes, on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
