//! The reference's options: what they are called, and what they mean here.
//!
//! ```text
//! argv --lexopt--> CommandLine { given: (letter, value)..., settings: --flag value... }
//! OPTIONS --> help (-h), and the remark that each option without effect makes at the start
//! ```
//!
//! As with getopt: letters may stand together (`-vn`), a value may follow at once or as the next
//! argument (`-p2002`, `-p 2002`), `--` ends the options. Letters mean what they mean to ExtraHop's
//! rpcapd; where libpcap's gives one another meaning (`-t`, `-S`, `-i`, `-D`), that is not followed.

use std::ffi::OsString;

use crate::config::SETTINGS;

/// How an option is honoured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is a setting of the tap, or changes what this command does.
    Works,
    /// It is accepted, and changes nothing.
    Nothing,
    /// It cannot be honoured, and ignoring it would do harm.
    Refused,
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct OptionRow {
    /// Its letter.
    pub letter: char,
    /// What follows it; empty for a switch.
    pub value: &'static str,
    /// See [`Effect`].
    pub effect: Effect,
    /// What it means here, as a sentence.
    pub here: &'static str,
}

const fn works(letter: char, value: &'static str, here: &'static str) -> OptionRow {
    OptionRow { letter, value, effect: Effect::Works, here }
}

const fn nothing(letter: char, value: &'static str, here: &'static str) -> OptionRow {
    OptionRow { letter, value, effect: Effect::Nothing, here }
}

/// All of them, in the order of the help.
pub const OPTIONS: &[OptionRow] = &[
    works(
        'a',
        "HOST,PORT",
        "connect to this sensor (active mode); HOST,PORT,HOST,PORT..., and again; the last PORT may be left out or be DEFAULT: 2003 [--sensor]",
    ),
    works('b', "ADDR", "listen on this address (passive mode) [--listen]"),
    works('p', "PORT", "listen on this port, 2002 if not given [--listen]"),
    works('4', "", "IPv4 only: listen on IPv4, refuse sensors with IPv6 addresses"),
    works(
        'l',
        "LIST",
        "hosts that may connect: addresses, prefixes, names; a list, not a file [--allow-hosts]",
    ),
    works('n', "", "serve clients that authenticate with nothing [--null-auth]"),
    works('v', "", "active mode only: do not listen"),
    works(
        'i',
        "NAME",
        "the interface that sensors are to open, the only one that they may: any-eth or a name [--interface, --preselect]; of a list or a pattern, any-eth stands for all",
    ),
    works(
        'F',
        "EXPR",
        "report only what matches this pcap-filter(7) expression; with inbound or outbound in it, it takes the place of podtap's own election [--filter]",
    ),
    works(
        'f',
        "FILE",
        "read sensors, hosts and null authentication from this file (rpcapd.ini), which replace -a, -l and -n; SIGHUP reads it again",
    ),
    works('s', "FILE", "write what -a, -l and -n say to this file, and go on"),
    works(
        't',
        "BYTES",
        "most bytes of a datagram [--datagram-bytes]; 0 is one packet a datagram [--encoding plain]",
    ),
    works(
        'c',
        "CPUS",
        "single, one CPU or two: so many workers [--workers]; which CPUs is not chosen",
    ),
    works(
        'z',
        "BYTES",
        "memory of the capture rings, of all workers together [--ring-memory]; added to -m",
    ),
    works(
        'm',
        "MB",
        "memory between the reference's two threads, which are one here: added to -z [--ring-memory]",
    ),
    works('D', "", "log more (as PODTAP_LOG=info,engine=debug)"),
    nothing(
        'd',
        "",
        "podtap stays in the foreground: the service manager (kubelet, systemd) is what makes it a daemon",
    ),
    nothing('e', "A,B", "nice values are not set: the reference's two threads are one here"),
    nothing(
        'g',
        "",
        "data sockets never block: what a full socket does not take is counted as dropped",
    ),
    nothing(
        'k',
        "N",
        "packets between the reference's two threads are not counted: they are one here",
    ),
    nothing('u', "BYTES", "the send buffer is as large as the system allows, 8 MiB at most"),
    nothing(
        'S',
        "",
        "statistics are on /metrics (--metrics), and the sensor's are answered; nothing is logged",
    ),
    nothing('L', "", "the log goes to standard error, where the service manager collects it"),
    OptionRow {
        letter: 'y',
        value: "",
        effect: Effect::Refused,
        here: "there is no dry run: `podtap check` tries the settings, `podtap replay` sends files through the same pipeline",
    },
    works('h', "", "print this and exit"),
];

/// One option as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The option's letter.
    pub letter: char,
    /// Its value, empty for a switch.
    pub value: String,
}

/// A whole command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// Letters, in their order.
    pub given: Vec<Given>,
    /// The tap's own settings, by long options.
    pub settings: Vec<(&'static str, String)>,
    /// `-h`, `--help`.
    pub help: bool,
    /// `--print-config`.
    pub print_config: bool,
}

/// A command line that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} (rpcapd -h lists the options)")]
pub struct UsageError(String);

impl UsageError {
    pub(super) fn new(letter: char, reason: impl std::fmt::Display) -> Self {
        Self(format!("-{letter}: {reason}"))
    }
}

impl CommandLine {
    /// Reads the arguments, the program's name not among them.
    ///
    /// # Errors
    ///
    /// An option that does not exist, a value that is missing or not text, an argument that is no
    /// option.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, UsageError> {
        use lexopt::Arg::{Long, Short, Value};

        let mut line = Self::default();
        let mut parser = lexopt::Parser::from_args(args);
        let wrong = |error: lexopt::Error| UsageError(error.to_string());
        while let Some(arg) = parser.next().map_err(wrong)? {
            match arg {
                Short('h') | Long("help") => line.help = true,
                Short(letter) => {
                    let Some(row) = OPTIONS.iter().find(|row| row.letter == letter) else {
                        return Err(UsageError(format!("there is no option -{letter}")));
                    };
                    let value = match row.value {
                        "" => String::new(),
                        _ => text(parser.value()).map_err(|why| UsageError::new(letter, why))?,
                    };
                    line.given.push(Given { letter, value });
                }
                Long("print-config") => line.print_config = true,
                Long(name) => {
                    let Some(setting) = SETTINGS.iter().find(|setting| setting.flag == name) else {
                        return Err(UsageError(format!("there is no option --{name}")));
                    };
                    let flag = setting.flag;
                    // A switch may stand alone; a value then has to be joined by `=`.
                    let value = match setting.is_switch {
                        true => Ok(parser.optional_value().unwrap_or_else(|| "yes".into())),
                        false => parser.value(),
                    };
                    let value =
                        text(value).map_err(|why| UsageError(format!("--{flag}: {why}")))?;
                    line.settings.push((flag, value));
                }
                Value(value) => {
                    return Err(UsageError(format!("{value:?} is no option: nothing takes it")));
                }
            }
        }
        Ok(line)
    }

    /// True if the letter was given.
    #[must_use]
    pub fn has(&self, letter: char) -> bool {
        self.given.iter().any(|given| given.letter == letter)
    }

    /// The values of a letter, in their order.
    pub(super) fn values(&self, letter: char) -> impl DoubleEndedIterator<Item = &str> {
        self.given
            .iter()
            .filter(move |given| given.letter == letter)
            .map(|given| given.value.as_str())
    }

    /// The last value of a letter: it counts, as with the reference.
    pub(super) fn value(&self, letter: char) -> Option<&str> {
        self.values(letter).next_back()
    }

    /// What is to be said of options that change nothing, once each.
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        let idle =
            OPTIONS.iter().filter(|row| row.effect == Effect::Nothing && self.has(row.letter));
        idle.map(|row| format!("-{} has no effect here: {}", row.letter, row.here)).collect()
    }
}

fn text(value: Result<OsString, lexopt::Error>) -> Result<String, String> {
    let value = value.map_err(|_missing| "its value is missing".to_owned())?;
    value.into_string().map_err(|value| format!("{value:?} is not UTF-8"))
}

/// What `-h` prints.
#[must_use]
pub fn help() -> String {
    let mut text = String::from(
        "podtap rpcapd: podtap by the command line of ExtraHop's rpcapd\n\n\
         usage: rpcapd [-4dghnvyDLS] [-a HOST,PORT]... [-b ADDR] [-p PORT] [-l LIST] [-i NAME]\n       \
         [-F EXPR] [-f FILE] [-s FILE] [-t BYTES] [-c CPUS] [-z BYTES] [-m MB]\n       \
         [-e A,B] [-k N] [-u BYTES] [--SETTING VALUE]...\n\n",
    );
    for row in OPTIONS {
        let option = format!("-{} {}", row.letter, row.value);
        let effect = match row.effect {
            Effect::Works => "",
            Effect::Nothing => "no effect: ",
            Effect::Refused => "refused: ",
        };
        text.push_str(&format!("  {option:<13} {effect}{}\n", row.here));
    }
    text.push_str(
        "\nEvery setting of `podtap run` is a long option here, and its PODTAP_ variable holds, where no letter\n\
         says otherwise. --print-config shows what came of it all.\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<CommandLine, UsageError> {
        CommandLine::parse(args.iter().map(OsString::from))
    }

    fn letters(args: &[&str]) -> String {
        let given = |given: &Given| format!("{}{}", given.letter, given.value);
        parse(args).unwrap().given.iter().map(given).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_command_line_of_init_sh_is_understood() {
        let args = ["-v", "-f", "rpcapd.ini", "-i", "any-eth", "-D", "-F", "not ip or (ip)"];
        assert_eq!(letters(&args), "v frpcapd.ini iany-eth D Fnot ip or (ip)");
    }

    #[test]
    fn letters_may_stand_together_and_values_follow_at_once_or_apart() {
        for (args, expected) in [
            (&["-vn"][..], "v n"),
            (&["-vp2002"], "v p2002"),
            (&["-vp", "2002"], "v p2002"),
            (&["-p2002", "-n"], "p2002 n"),
            (&["-e", "-15,10", "-n"], "e-15,10 n"),
            (&["-c", "-1,-1"], "c-1,-1"),
            (&["-4n", "--"], "4 n"),
            (&["-a", "h,1", "-a", "g,2"], "ah,1 ag,2"),
            (&["-F", "-v"], "F-v"),
        ] {
            assert_eq!(letters(args), expected, "{args:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (args, expected) in [
            (&["-x"][..], "there is no option -x"),
            (&["-vx"], "there is no option -x"),
            (&["-6"], "there is no option -6"),
            (&["-f"], "-f: its value is missing"),
            (&["-np"], "-p: its value is missing"),
            (&["--nope"], "there is no option --nope"),
            (&["--snaplen"], "--snaplen: its value is missing"),
            (&["extra"], "\"extra\" is no option"),
            (&["-n", "--", "-v"], "\"-v\" is no option"),
            (&["-v=yes"], "unexpected argument"),
        ] {
            let said = parse(args).unwrap_err().to_string();
            assert!(said.contains(expected) && said.contains("-h"), "{args:?}: {said}");
        }
        use std::os::unix::ffi::OsStringExt;
        let args = [OsString::from("-F"), OsString::from_vec(vec![0xff])];
        assert!(CommandLine::parse(args).unwrap_err().to_string().contains("not UTF-8"));
    }

    #[test]
    fn the_tap_s_own_settings_are_long_options() {
        let line = parse(&["-n", "--metrics", "127.0.0.1:9", "--snaplen=96", "--print-config"]);
        let line = line.unwrap();
        assert_eq!(line.settings, [("metrics", "127.0.0.1:9".into()), ("snaplen", "96".into())]);
        assert!(line.print_config && !line.help);
        let switches = parse(&["--allow-promisc", "--null-auth=no", "-n"]).unwrap();
        assert_eq!(
            switches.settings,
            [("allow-promisc", "yes".into()), ("null-auth", "no".into())]
        );
        assert!(parse(&["--help"]).unwrap().help && parse(&["-vh"]).unwrap().help);
    }

    #[test]
    fn every_letter_of_the_reference_is_in_the_table_once_and_in_the_help() {
        let expected = "abcdeFfgiklLmnpSstuvyz4Dh";
        let mut letters: Vec<char> = OPTIONS.iter().map(|row| row.letter).collect();
        let mut sorted: Vec<char> = expected.chars().collect();
        letters.sort_unstable();
        sorted.sort_unstable();
        assert_eq!(letters, sorted);
        let help = help();
        for row in OPTIONS {
            let line = help.lines().find(|line| line.starts_with(&format!("  -{} ", row.letter)));
            assert!(line.is_some_and(|line| line.contains(row.here)), "-{}", row.letter);
        }
    }

    #[test]
    fn an_option_without_effect_is_remarked_upon_once() {
        let remarks = parse(&["-S", "-vS", "-u", "9", "-e1,2"]).unwrap().remarks();
        assert_eq!(remarks.len(), 3);
        assert!(
            remarks
                .iter()
                .any(|remark| remark
                    .starts_with("-S has no effect here: statistics are on /metrics"))
        );
    }
}
