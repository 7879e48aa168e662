//! One network namespace: entering it with a thread, the processes in it, and its end.
//!
//! A namespace is a file, `/run/netns/NAME`; everything in it (veths, routes, rules) goes with it.

use super::error::LabError;
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::HashSet,
    fs::{self, File},
    io::{ErrorKind, Write as _},
    os::unix::fs::MetadataExt as _,
    panic,
    path::PathBuf,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

const DIRECTORY: &str = "/run/netns";
/// How long processes get to end by themselves before they are killed.
const GRACE: Duration = Duration::from_secs(1);

fn path(namespace: &str) -> PathBuf {
    PathBuf::from(DIRECTORY).join(namespace)
}

/// Names of the namespaces that begin with `prefix`, sorted.
pub(crate) fn list(prefix: &str) -> Result<Vec<String>, LabError> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(LabError::file(DIRECTORY, error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| LabError::file(DIRECTORY, error))?;
        if let Ok(name) = entry.file_name().into_string()
            && name.starts_with(prefix)
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Runs `work` on a thread of its own inside the namespace. Sockets that it opens, threads that
/// it starts and `/proc/sys/net` belong to the namespace; `/sys` does not.
pub(crate) fn enter<T: Send>(
    namespace: &str,
    work: impl FnOnce() -> T + Send,
) -> Result<T, LabError> {
    let path = path(namespace);
    let file = File::open(&path).map_err(|error| LabError::file(&path, error))?;
    let inside = move || {
        setns(file, CloneFlags::CLONE_NEWNET)
            .map_err(|error| LabError::call(format!("setns {namespace}"), error))?;
        Ok(work())
    };
    thread::scope(|scope| match scope.spawn(inside).join() {
        Ok(result) => result,
        Err(panic) => panic::resume_unwind(panic),
    })
}

/// Runs `work` for every item at once, each on a thread of its own; the first error is returned.
pub(crate) fn in_parallel<I: Send>(
    items: Vec<I>,
    work: impl Fn(I) -> Result<(), LabError> + Sync,
) -> Result<(), LabError> {
    thread::scope(|scope| {
        let threads: Vec<_> = items.into_iter().map(|item| scope.spawn(|| work(item))).collect();
        let mut first = Ok(());
        for thread in threads {
            let result = thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
            if first.is_ok() {
                first = result;
            }
        }
        first
    })
}

/// Runs a batch of `ip` commands, in a namespace or (`None`) in ours. After them those that begin
/// with `-6 `, for what does not tell its family, and then those of `bridge`.
pub(crate) fn ip_batch(namespace: Option<&str>, lines: &[String]) -> Result<(), LabError> {
    let (mut plain, mut v6, mut bridge) = (Vec::new(), Vec::new(), Vec::new());
    for line in lines {
        match (line.strip_prefix("-6 "), line.strip_prefix("bridge ")) {
            (Some(rest), _) => v6.push(rest),
            (_, Some(rest)) => bridge.push(rest),
            _ => plain.push(line.as_str()),
        }
    }
    for (program, options, lines) in
        [("ip", None, plain), ("ip", Some("-6"), v6), ("bridge", None, bridge)]
    {
        if lines.is_empty() {
            continue;
        }
        let mut command = Command::new(program);
        command.args(options);
        if let Some(namespace) = namespace {
            command.args(["-n", namespace]);
        }
        command.args(["-batch", "-"]);
        feed(&mut command, &(lines.join("\n") + "\n"))?;
    }
    Ok(())
}

/// Runs a command with `input` on its standard input; anything but success is an error.
pub(crate) fn feed(command: &mut Command, input: &str) -> Result<(), LabError> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| start_error(command, source))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends before it has read everything says why itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| LabError::call("wait", error))?;
    check(command, output).map(drop)
}

/// Runs a command to its end; anything but success is an error.
pub(crate) fn run(command: &mut Command) -> Result<Output, LabError> {
    let output =
        command.stdin(Stdio::null()).output().map_err(|source| start_error(command, source))?;
    check(command, output)
}

pub(crate) fn start_error(command: &Command, source: std::io::Error) -> LabError {
    LabError::Start { program: command.get_program().to_string_lossy().into_owned(), source }
}

/// The command line, for messages.
pub(crate) fn command_line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|word| word.to_string_lossy()));
    words.join(" ")
}

fn check(command: &Command, output: Output) -> Result<Output, LabError> {
    if output.status.success() {
        return Ok(output);
    }
    Err(LabError::Failed {
        command: command_line(command),
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Processes whose network namespace is one of these, whoever started them.
pub(crate) fn processes(namespaces: &[String]) -> Result<Vec<Pid>, LabError> {
    let mut wanted = HashSet::new();
    for namespace in namespaces {
        // One that is gone has no processes that could be found by it.
        if let Ok(file) = fs::metadata(path(namespace)) {
            wanted.insert((file.dev(), file.ino()));
        }
    }
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").map_err(|error| LabError::file("/proc", error))? {
        let entry = entry.map_err(|error| LabError::file("/proc", error))?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end while we look.
        if let Ok(file) = fs::metadata(entry.path().join("ns/net"))
            && wanted.contains(&(file.dev(), file.ino()))
        {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

/// Ends the processes in the namespaces, politely first, then removes the namespaces.
pub(crate) fn remove(namespaces: &[String]) -> Result<(), LabError> {
    end_processes(namespaces)?;
    let lines: Vec<String> =
        namespaces.iter().map(|namespace| format!("netns delete {namespace}")).collect();
    ip_batch(None, &lines)
}

fn end_processes(namespaces: &[String]) -> Result<(), LabError> {
    let started = Instant::now();
    let mut signal = Signal::SIGTERM;
    let mut signalled = HashSet::new();
    loop {
        let left = processes(namespaces)?;
        if left.is_empty() {
            return Ok(());
        }
        if started.elapsed() > 3 * GRACE {
            return Err(LabError::Late {
                what: "the end of the lab's processes".to_owned(),
                seconds: (3 * GRACE).as_secs(),
                detail: format!(": left are {left:?}"),
            });
        }
        if signal == Signal::SIGTERM && started.elapsed() > GRACE {
            signal = Signal::SIGKILL;
            signalled.clear();
        }
        for pid in left {
            if signalled.insert(pid) {
                match kill(pid, signal) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(error) => return Err(LabError::call(format!("kill {pid}"), error)),
                }
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
}
