//! A program running in the lab, with its output in files, ended when its guard is dropped.

use super::{
    error::LabError,
    namespace::{command_line, start_error},
};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::NamedTempFile;

/// How often a state that cannot be waited for is looked at.
const POLL: Duration = Duration::from_millis(5);
/// How long a program may take to end when its guard is dropped.
const GRACE: Duration = Duration::from_secs(2);

/// A running program. Dropping it sends SIGTERM and, 2 s later, SIGKILL.
#[derive(Debug)]
pub struct Process {
    child: Child,
    command: String,
    stdout: NamedTempFile,
    stderr: NamedTempFile,
}

impl Process {
    /// Starts `command`; its standard output and error go to files of their own.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(mut command: Command) -> Result<Self, LabError> {
        let file = || NamedTempFile::new().map_err(|error| LabError::file("temporary file", error));
        let handle = |file: &NamedTempFile| {
            file.reopen().map_err(|error| LabError::file(file.path(), error))
        };
        let (stdout, stderr) = (file()?, file()?);
        let child = command
            .stdin(Stdio::null())
            .stdout(handle(&stdout)?)
            .stderr(handle(&stderr)?)
            .spawn()
            .map_err(|source| start_error(&command, source))?;
        Ok(Self { child, command: command_line(&command), stdout, stderr })
    }

    /// Its process id (that of the program itself: `ip netns exec` becomes what it starts).
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard output by now.
    #[must_use]
    pub fn stdout(&self) -> String {
        text(self.stdout.path())
    }

    /// What it has written to standard error by now.
    #[must_use]
    pub fn stderr(&self) -> String {
        text(self.stderr.path())
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// When it could not be sent; that the program has ended is not an error.
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        let pid = i32::try_from(self.child.id()).map(Pid::from_raw).map_err(|_too_large| {
            LabError::Invalid(format!("{} is no process id", self.child.id()))
        })?;
        // Not yet waited for, so the id is still this child's.
        match kill(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(LabError::call(format!("kill {pid}"), error)),
        }
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    ///
    /// When the kernel cannot say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, LabError> {
        self.child.try_wait().map_err(|error| LabError::call("wait", error))
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// When it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, LabError> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if started.elapsed() > limit {
                return Err(self.late(format!("the end of `{}`", self.command), limit));
            }
            thread::sleep(POLL);
        }
    }

    /// Waits for a successful end and returns the standard output.
    ///
    /// # Errors
    ///
    /// When it still runs after `limit`, or failed.
    pub fn finish(&mut self, limit: Duration) -> Result<String, LabError> {
        let status = self.wait(limit)?;
        if status.success() {
            return Ok(self.stdout());
        }
        Err(LabError::Failed {
            command: self.command.clone(),
            status,
            stderr: self.stderr().trim().to_owned(),
        })
    }

    /// Waits until its output (either stream) contains `words`.
    ///
    /// # Errors
    ///
    /// When it ends first, or `limit` passes.
    pub fn wait_for(&mut self, words: &str, limit: Duration) -> Result<(), LabError> {
        let started = Instant::now();
        loop {
            // In this order: what it wrote before its end must be seen.
            let ended = self.ended()?;
            if self.stderr().contains(words) || self.stdout().contains(words) {
                return Ok(());
            }
            if let Some(status) = ended {
                return Err(LabError::Failed {
                    command: self.command.clone(),
                    status,
                    stderr: self.stderr().trim().to_owned(),
                });
            }
            if started.elapsed() > limit {
                return Err(self.late(format!("{words:?} from `{}`", self.command), limit));
            }
            thread::sleep(POLL);
        }
    }

    /// Sends a signal and waits for the end.
    ///
    /// # Errors
    ///
    /// When it still runs after `limit`.
    pub fn stop(&mut self, signal: Signal, limit: Duration) -> Result<ExitStatus, LabError> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        self.signal(signal)?;
        self.wait(limit)
    }

    fn late(&self, what: String, limit: Duration) -> LabError {
        let stderr = self.stderr();
        LabError::Late {
            what,
            seconds: limit.as_secs(),
            detail: if stderr.is_empty() {
                String::new()
            } else {
                format!(": it said {:?}", stderr.trim())
            },
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.stop(Signal::SIGTERM, GRACE).is_err() {
            // Nothing more can be done about one that SIGKILL does not end.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn text(path: &Path) -> String {
    // The file is ours and lives as long as the guard; unreadable means nothing to show.
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::start(command).unwrap()
    }

    #[test]
    fn output_is_there_while_it_runs() {
        let mut process = shell("echo ready >&2; sleep 60");
        process.wait_for("ready", Duration::from_secs(10)).unwrap();
        assert!(process.ended().unwrap().is_none());
        assert!(!process.stop(Signal::SIGTERM, Duration::from_secs(10)).unwrap().success());
    }

    #[test]
    fn failure_carries_what_it_said() {
        let error = shell("echo why >&2; exit 3").finish(Duration::from_secs(10)).unwrap_err();
        assert!(error.to_string().contains("why"), "{error}");
    }

    #[test]
    fn waiting_for_words_ends_with_the_program() {
        let error = shell("true").wait_for("never", Duration::from_secs(10)).unwrap_err();
        assert!(matches!(error, LabError::Failed { .. }), "{error}");
    }

    #[test]
    fn a_dropped_guard_ends_the_program() {
        let process = shell("sleep 60");
        let path = format!("/proc/{}", process.id());
        drop(process);
        assert!(!Path::new(&path).exists());
    }
}
