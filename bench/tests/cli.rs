//! The program as its user meets it: codes, lines, and what is left after an interrupt.

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::path::Path;
    use std::process::{Command, Output, Stdio};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    fn bench(folder: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
        command.args(arguments).current_dir(folder).env("TMPDIR", folder);
        command
    }

    fn run(arguments: &[&str]) -> Output {
        let folder = tempfile::tempdir().unwrap();
        bench(folder.path(), arguments).output().unwrap()
    }

    #[test]
    fn wrong_input_is_2_and_a_line_that_says_so() {
        for (arguments, said) in [
            (&["pipeline", "--round"][..], "--round"),
            (&["pipeline", "--rounds", "0"], "0"),
            (&["nothing"], "nothing"),
            (&["compare", "main"], "REVISION_B"),
            (&["all", "--quick", "--rounds", "2"], "--rounds"),
            (&["report"], "run `bench all` first"),
            (&["forward", "--podtap", "/nowhere/podtap"], "/nowhere/podtap"),
            (&["pipeline", "--callgrind", "new-64/cook"], "cook"),
        ] {
            let output = run(arguments);
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
            assert!(text.contains(said), "{arguments:?}: {text}");
            assert!(output.stdout.is_empty(), "{arguments:?}");
        }
    }

    #[test]
    fn help_names_every_measurement() {
        let output = run(&["--help"]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0));
        for step in bench::all::STEPS {
            assert!(text.contains(&format!("  {} ", step.name)), "{text}");
        }
    }

    /// Valgrind runs the harness in a temporary folder meanwhile.
    #[test]
    fn an_interrupt_leaves_nothing_behind() {
        if Command::new("valgrind").arg("--version").output().is_err() {
            eprintln!("skipped: no valgrind");
            return;
        }
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let folder = tempfile::tempdir().unwrap();
            let mut child = bench(folder.path(), &["pipeline", "--quick", "--out", "records"])
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
            let lines = BufReader::new(child.stderr.take().unwrap()).lines();
            let begun = lines.map_while(Result::ok).any(|line| line.contains("callgrind: "));
            assert!(begun, "it says when it begins");
            let left = || std::fs::read_dir(folder.path()).unwrap().count();
            assert_eq!(left(), 1, "the folder of the output");
            kill(pid, signal).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(128 + signal as i32));
            assert_eq!(left(), 0);
        }
    }
}
