//! Network namespaces without names: a thread that lives in each, and work that is handed to it.
//!
//! ```text
//! Namespace::new --thread: unshare(NEWNET), mount /sys--> waits for work, until it is dropped
//! ```
//!
//! Nothing refers to them but this process: after kill -9 the kernel has removed them.

use std::fs;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

use crate::error::Error;

type Work = Box<dyn FnOnce() + Send>;

/// See the module. Dropping it ends its thread.
#[derive(Debug)]
pub struct Namespace {
    work: Option<Sender<Work>>,
    thread: Option<JoinHandle<()>>,
    path: String,
}

impl Namespace {
    /// A new one, its loopback up.
    ///
    /// # Errors
    ///
    /// Without root.
    pub fn new() -> Result<Self, Error> {
        let (work, waiting) = channel::<Work>();
        let (ready, is_ready) = channel();
        let thread = std::thread::spawn(move || {
            let made = enter_new().map(|()| format!("/proc/self/task/{}/ns/net", gettid()));
            let is_made = made.is_ok();
            let _ = ready.send(made);
            while let (true, Ok(work)) = (is_made, waiting.recv()) {
                work();
            }
        });
        let path = is_ready.recv().map_err(|_gone| Error::Input("a thread ended".into()))??;
        // Of this process, for the programs that it starts.
        let path = path.replace("/proc/self", &format!("/proc/{}", std::process::id()));
        let namespace = Self { work: Some(work), thread: Some(thread), path };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Where the kernel shows it, as `ip link set .. netns` wants it.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Runs `work` inside; sockets, threads and programs made there belong to it.
    ///
    /// # Errors
    ///
    /// A panic in there.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (result, done) = channel();
        let work = Box::new(move || drop(result.send(work())));
        let gone = || Error::Unbelievable("work in a namespace panicked".into());
        self.work.as_ref().ok_or_else(gone)?.send(work).map_err(|_gone| gone())?;
        done.recv().map_err(|_gone| gone())
    }

    /// Runs a command inside to its end, and returns what it said.
    ///
    /// # Errors
    ///
    /// Anything but success.
    pub fn command(&self, line: &str) -> Result<String, Error> {
        let command = line.to_owned();
        let words: Vec<String> = line.split_whitespace().map(Into::into).collect();
        let output = self.run(move || Command::new(&words[0]).args(&words[1..]).output())?;
        let output = output.map_err(Error::call(line))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::Program { command, said });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `ip ...` inside.
    ///
    /// # Errors
    ///
    /// Anything but success.
    pub fn ip(&self, arguments: &str) -> Result<String, Error> {
        self.command(&format!("ip {arguments}"))
    }

    /// Writes a setting of the namespace's `/proc/sys` or `/sys`.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn set(&self, path: &'static str, value: &'static str) -> Result<(), Error> {
        self.run(move || fs::write(path, value).map_err(Error::file(path)))?
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.work.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// This thread leaves for a network namespace of its own, with a `/sys` that shows it.
fn enter_new() -> Result<(), Error> {
    let call = |what: &'static str| {
        move |errno: nix::Error| Error::Call { what: what.into(), source: errno.into() }
    };
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)
        .map_err(call("a network namespace (needs root)"))?;
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .map_err(call("making mounts private"))?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), nothing)
        .map_err(call("mounting /sys"))
}
