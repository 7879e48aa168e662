//! What an interrupted harness leaves behind: nothing.
//!
//! ```text
//! Undo::new(work) --dropped--------------> work
//!               `--SIGINT, SIGTERM, SIGHUP-> the work of all, the latest first --> exit 128 + signal
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::Error;

type Work = Box<dyn FnOnce() + Send>;

static TO_UNDO: Mutex<(u64, BTreeMap<u64, Work>)> = Mutex::new((0, BTreeMap::new()));

fn to_undo() -> MutexGuard<'static, (u64, BTreeMap<u64, Work>)> {
    TO_UNDO.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Work that is done once: when this is dropped, or when the program is interrupted before.
#[derive(Debug)]
pub struct Undo(u64);

impl Undo {
    /// See the type.
    #[must_use]
    pub fn new(work: impl FnOnce() + Send + 'static) -> Self {
        let (next, all) = &mut *to_undo();
        *next += 1;
        all.insert(*next, Box::new(work));
        Self(*next)
    }

    /// It is not to be done any more.
    pub fn forget(self) {
        to_undo().1.remove(&self.0);
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let work = to_undo().1.remove(&self.0);
        if let Some(work) = work {
            work();
        }
    }
}

/// From now on the signals that end a program undo first.
///
/// # Errors
///
/// When they cannot be taken over.
pub fn watch() -> Result<(), Error> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(Error::call("signals"))?;
    std::thread::spawn(move || {
        let signal = signals.forever().next().unwrap_or(SIGTERM);
        // Nothing new is begun while this is held.
        let (_, all) = &mut *to_undo();
        while let Some((_, work)) = all.pop_last() {
            work();
        }
        std::process::exit(128 + signal);
    });
    Ok(())
}

/// A temporary folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _undo: Undo,
}

impl Folder {
    /// A new, empty one.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn new() -> Result<Self, Error> {
        let made = tempfile::Builder::new().prefix("podtap-bench-").tempdir();
        let path = made.map_err(Error::call("a temporary folder"))?.keep();
        let gone = path.clone();
        let undo = Undo::new(move || drop(std::fs::remove_dir_all(gone)));
        Ok(Self { path, _undo: undo })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Runs a program to its end, and returns what it said. It and those that it starts are killed when
/// this program is interrupted.
///
/// # Errors
///
/// Anything but success, with the end of what it said.
pub fn run(command: &mut Command) -> Result<Output, Error> {
    use std::os::unix::process::CommandExt as _;
    let line = line(command);
    let child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::call(line.clone()))?;
    let group = Pid::from_raw(i32::try_from(child.id()).expect("a process id is 22 bits at most"));
    let undo = Undo::new(move || {
        let _ = killpg(group, Signal::SIGKILL);
    });
    let output = child.wait_with_output();
    undo.forget();
    let output = output.map_err(Error::call(line.clone()))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let end: Vec<_> = said.lines().rev().take(5).collect();
    let said = match end.is_empty() {
        true => output.status.to_string(),
        false => end.into_iter().rev().collect::<Vec<_>>().join("; "),
    };
    Err(Error::Program { command: line, said })
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn what_is_dropped_is_undone_once_and_what_is_forgotten_never() {
        let count = Arc::new(AtomicUsize::new(0));
        let undo = || {
            let count = Arc::clone(&count);
            Undo::new(move || {
                count.fetch_add(1, Ordering::Relaxed);
            })
        };
        let (first, second) = (undo(), undo());
        first.forget();
        assert_eq!(count.load(Ordering::Relaxed), 0);
        drop(second);
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_folder_goes_with_what_is_in_it() {
        let folder = Folder::new().unwrap();
        let path = folder.path().to_owned();
        std::fs::write(path.join("x"), "x").unwrap();
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn a_program_that_fails_is_said_with_its_words_or_its_status() {
        let failed = |script: &str| run(Command::new("sh").args(["-c", script])).unwrap_err();
        assert!(failed("echo one >&2; exit 3").to_string().contains("one"));
        let silent = failed("exit 3").to_string();
        assert!(silent.contains("sh -c exit 3") && silent.contains("exit status: 3"), "{silent}");
        let output = run(Command::new("echo").arg("fine")).unwrap();
        assert_eq!(output.stdout, b"fine\n");
    }
}
