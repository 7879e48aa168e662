//! Every setting of the tap in one table: flag, variables, default, help.

use std::ffi::OsString;

use super::latency;
use super::passive::PASSWORD_VARIABLE;

/// A setting that takes a value.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Flag, without the dashes; the variable is `PODTAP_` and this in capitals.
    pub flag: &'static str,
    /// What the value is, in the help.
    pub value: &'static str,
    /// The reference's variable with the same meaning.
    pub reference: Option<&'static str>,
    /// Used when nothing else is given.
    pub default: &'static str,
    /// The flag alone means yes.
    pub is_switch: bool,
    /// One sentence.
    pub help: &'static str,
}

impl Setting {
    /// The environment variable.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("PODTAP_{}", self.flag.to_uppercase().replace('-', "_"))
    }
}

const fn setting(
    flag: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
) -> Setting {
    Setting { flag, value, reference: None, default, is_switch: false, help }
}

/// A flag that needs no value; `--flag=no` says the contrary.
const fn switch(flag: &'static str, help: &'static str) -> Setting {
    Setting { is_switch: true, ..setting(flag, "yes|no", "", help) }
}

const fn with_reference(setting: Setting, reference: &'static str) -> Setting {
    Setting { reference: Some(reference), ..setting }
}

/// All of them, in the order of the help.
pub const SETTINGS: &[Setting] = &[
    with_reference(
        setting(
            "sensor",
            "LIST",
            "",
            "Sensors to connect to (active mode): addresses or names, each with :PORT if not --port, and with /NAME if it may open that interface only",
        ),
        "EXTRAHOP_SENSOR_IP",
    ),
    setting(
        "sensors-mode",
        "MODE",
        "copy",
        "Several sensors: copy (each gets every packet) or balance (each flow goes to one of them, both directions, from every node to the same)",
    ),
    setting(
        "sessions-per-sensor",
        "N",
        "1",
        "Connections to each sensor, which share its flows: EC2 allows 5 Gbit/s to each",
    ),
    setting(
        "balance-settle-ms",
        "N",
        "5000",
        "How long a sensor (or one session of it) that is back after an absence gets nothing while others can, milliseconds; up to twice this, since nodes switch at whole multiples of it on the clock",
    ),
    with_reference(
        setting("port", "N", "2003", "TCP port of the sensors' control connection"),
        "RPCAPD_TARGET_PORT",
    ),
    setting(
        "listen",
        "LIST",
        "",
        "Listen for clients (passive mode) here: ADDR:PORT, or only one of them; the port is 2002 if none is given",
    ),
    setting(
        "allow-hosts",
        "LIST",
        "",
        "Hosts that may connect to --listen: addresses, prefixes, names; without, all that authenticate",
    ),
    switch(
        "null-auth",
        "Serve peers that authenticate with nothing; if not given, only the sensors of --sensor may, and they not once there is a password",
    ),
    setting(
        "password-file",
        "FILE",
        "",
        "Who may use the tap: lines of USER:PASSWORD, or of a password for any user; PODTAP_PASSWORD holds one for any user",
    ),
    switch(
        "allow-promisc",
        "Put interfaces into promiscuous mode while a capture that asks for it runs",
    ),
    with_reference(
        setting(
            "interface",
            "LIST",
            "any-eth",
            "Interfaces to tap: any-eth (every Ethernet interface, as they come and go), or names and globs",
        ),
        "INTERFACE",
    ),
    with_reference(
        setting(
            "podnet",
            "LIST",
            "",
            "Pod prefixes (CIDR), IPv4 and IPv6; needed by --election ports only",
        ),
        "PODNET",
    ),
    with_reference(
        setting(
            "svcnet",
            "LIST",
            "",
            "Service prefixes (CIDR): copies with a service address are skipped for their translated twins",
        ),
        "SVCNET",
    ),
    setting(
        "nodeport-range",
        "A-B",
        "30000-32767",
        "Ports that are a service's where the address is the node's own",
    ),
    setting(
        "overlay-ports",
        "LIST",
        "4789,8472,6081",
        "UDP ports of VXLAN and Geneve between nodes, beside those of the node's own devices",
    ),
    setting(
        "tapped-net",
        "LIST",
        "",
        "Prefixes whose addresses all belong to nodes that run a tap: what arrives from them is the sender's node's to report",
    ),
    setting("untapped-net", "LIST", "", "Exceptions to --tapped-net"),
    setting(
        "election",
        "RULE",
        "source",
        "Who reports a packet: source (the sender's node), ports (the reference's rule, bit for bit, to swap one node at a time: some packets are reported twice or never, as there) or none (every node; only copies within the node are removed)",
    ),
    setting(
        "filter",
        "EXPR",
        "",
        "Report only packets that match this pcap-filter(7) expression, at the point where they are seen; with inbound or outbound in it, it takes the election's place unless --election is given",
    ),
    setting(
        "preselect",
        "NAME",
        "",
        "The one interface that sensors may open; without it they choose",
    ),
    setting("capture", "RING", "auto", "Ring: auto or af-packet (TPACKET_V3)"),
    setting(
        "encoding",
        "FORM",
        "stream",
        "UDP form for the sensors of --sensor: stream (many packets a datagram, type 110) or plain (one packet a datagram, type 7), which clients of --listen always get unless they are podtap sensors",
    ),
    setting(
        "datagram-bytes",
        "N",
        "auto",
        "Most bytes of UDP payload a datagram; auto is what the path takes unfragmented (1472 at most if the sensor is not known to take more), while plain datagrams are as large as their frame and may be fragmented; with N, plain frames are cut to fit",
    ),
    setting(
        "latency",
        "PRESET",
        "balanced",
        "low, balanced or throughput: how long frames may wait (--flush-us, --block-timeout-ms), for fewer wake-ups; a flag of their own wins",
    ),
    setting("flush-us", "N", "1000", "Longest time that a partial datagram waits, microseconds"),
    setting(
        "dedup-window-ms",
        "N",
        "100",
        "How long one packet may take through this host, milliseconds",
    ),
    switch(
        "ignore-dscp",
        "Copies of a packet may differ in their DSCP: something on this host rewrites it",
    ),
    setting(
        "dedup-memory",
        "BYTES",
        "16M",
        "Memory of the table that finds copies; the power of two below is used",
    ),
    setting(
        "settle-ms",
        "N",
        "20",
        "How long a copy with a service's or the node's address waits for its twin with the pod's, milliseconds; at most half of --dedup-window-ms",
    ),
    setting(
        "settle-memory",
        "BYTES",
        "16M",
        "Memory for copies that wait and for what is learned of their flows, all workers together",
    ),
    setting(
        "workers",
        "N",
        "auto",
        "Worker threads, each pinned to a CPU; auto is one for each CPU that the process may use",
    ),
    setting(
        "snaplen",
        "N",
        "262144",
        "Most bytes of a frame that are sent; the sensor may ask for fewer",
    ),
    setting("ring-memory", "BYTES", "64M", "Memory of the capture rings, all workers together"),
    setting(
        "block-timeout-ms",
        "N",
        "1",
        "How long the kernel keeps a partly filled block (tp_retire_blk_tov), milliseconds",
    ),
    setting(
        "state-socket",
        "NAME",
        "@podtap",
        "Local socket (abstract, of this network namespace) at which root and the tap's own user may ask for its state by `podtap explain`; none for none",
    ),
    setting("metrics", "ADDR:PORT", "", "Serve /metrics, /livez and /readyz here"),
];

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag,
    /// This environment variable.
    Variable(String),
    /// This option or line of the reference's, as a person would name it.
    Rpcapd(String),
    /// This preset of `--latency`.
    Preset(&'static str),
    /// Nothing was given.
    Default,
}

/// The text of every setting, and where it came from.
#[derive(Clone, Debug)]
pub struct Settings {
    entries: Vec<(&'static Setting, String, Origin)>,
    /// Of the one variable that has no flag.
    password: Option<Secret>,
}

/// A text that is not to be printed.
#[derive(Clone)]
pub(super) struct Secret(pub(super) String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Settings {
    /// Adds the flags to a command.
    #[must_use]
    pub fn declare(command: clap::Command) -> clap::Command {
        SETTINGS.iter().fold(command, |command, setting| {
            let variables = match setting.reference {
                Some(reference) => format!("{}, {reference}", setting.variable()),
                None => setting.variable(),
            };
            let default = match setting.default {
                "" => String::new(),
                default => format!(" [default: {default}]"),
            };
            let arg = clap::Arg::new(setting.flag)
                .long(setting.flag)
                .value_name(setting.value)
                .help(format!("{} [env: {variables}]{default}", setting.help));
            command.arg(match setting.is_switch {
                true => arg.num_args(0..=1).require_equals(true).default_missing_value("yes"),
                false => arg.allow_hyphen_values(true),
            })
        })
    }

    /// Takes each setting from the command line, else from `variable`.
    ///
    /// # Errors
    ///
    /// A variable that is not text.
    pub fn resolve(
        matches: &clap::ArgMatches,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, super::ConfigError> {
        let flag = |flag: &str| Some((matches.get_one::<String>(flag)?.clone(), Origin::Flag));
        Self::with(flag, variable)
    }

    /// Takes each setting from `given`, else from `variable`.
    ///
    /// # Errors
    ///
    /// A variable that is not text.
    pub fn with(
        given: impl Fn(&'static str) -> Option<(String, Origin)>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, super::ConfigError> {
        let mut resolved = Vec::new();
        for setting in SETTINGS {
            if let Some((text, origin)) = given(setting.flag) {
                resolved.push((setting, text, origin));
                continue;
            }
            let names = [Some(setting.variable()), setting.reference.map(String::from)];
            let mut found = None;
            for name in names.into_iter().flatten() {
                let Some(value) = variable(&name).filter(|value| !value.is_empty()) else {
                    continue;
                };
                let text = value.into_string().map_err(|_not_utf8| super::ConfigError {
                    setting: name.clone(),
                    reason: "the value is not UTF-8".into(),
                })?;
                found = Some((setting, text, Origin::Variable(name)));
                break;
            }
            resolved.push(found.unwrap_or((setting, setting.default.into(), Origin::Default)));
        }
        latency::apply(&mut resolved);
        let password = match variable(PASSWORD_VARIABLE).filter(|value| !value.is_empty()) {
            Some(value) => Some(value.into_string().map_err(|_not_utf8| super::ConfigError {
                setting: PASSWORD_VARIABLE.into(),
                reason: "the value is not UTF-8".into(),
            })?),
            None => None,
        };
        Ok(Self { entries: resolved, password: password.map(Secret) })
    }

    fn entry(&self, flag: &str) -> &(&'static Setting, String, Origin) {
        self.entries
            .iter()
            .find(|(setting, ..)| setting.flag == flag)
            .expect("the caller names a flag of the table")
    }

    /// True if nobody gave it.
    pub(super) fn is_default(&self, flag: &str) -> bool {
        self.entry(flag).2 == Origin::Default
    }

    /// The value of a flag, surrounding space removed.
    pub(super) fn text(&self, flag: &str) -> &str {
        self.entry(flag).1.trim()
    }

    /// The password for any user, if there is one.
    pub(super) fn password(&self) -> Option<&str> {
        self.password.as_ref().map(|Secret(text)| text.as_str())
    }

    /// How to call a setting in an error: the flag, or the variable that it came from.
    pub(super) fn named(&self, flag: &str) -> String {
        match &self.entry(flag).2 {
            Origin::Variable(name) | Origin::Rpcapd(name) => name.clone(),
            Origin::Flag | Origin::Default | Origin::Preset(_) => format!("--{flag}"),
        }
    }

    /// Each flag, and how to call it.
    pub(super) fn names(&self) -> Vec<(&'static str, String)> {
        self.entries.iter().map(|(setting, ..)| (setting.flag, self.named(setting.flag))).collect()
    }

    /// For `--print-config`: a line for each setting, with its origin.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (setting, value, origin) in &self.entries {
            let origin = match origin {
                Origin::Flag => "command line".into(),
                Origin::Variable(name) => format!("environment, {name}"),
                Origin::Rpcapd(name) => name.clone(),
                Origin::Preset(name) => format!("--latency {name}"),
                Origin::Default => "default".into(),
            };
            text.push_str(&format!("{:<18} {value:<32} # {origin}\n", setting.flag));
        }
        text
    }

    /// For tests: arguments and variables as given here.
    #[cfg(test)]
    pub(crate) fn from_parts(
        args: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Self, super::ConfigError> {
        let command = Self::declare(clap::Command::new("run").no_binary_name(true));
        let matches = command.try_get_matches_from(args).unwrap();
        Self::resolve(&matches, |name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_wins_then_our_variable_then_the_references() {
        let all = [("PODTAP_PODNET", "10.1.0.0/16"), ("PODNET", "10.2.0.0/16")];
        let of = |args: &[&str], vars: &[(&str, &str)]| {
            let settings = Settings::from_parts(args, vars).unwrap();
            (settings.text("podnet").to_string(), settings.entry("podnet").2.clone())
        };
        assert_eq!(of(&["--podnet", "10.0.0.0/16"], &all), ("10.0.0.0/16".into(), Origin::Flag));
        assert_eq!(of(&[], &all).0, "10.1.0.0/16");
        assert_eq!(of(&[], &all[1..]), ("10.2.0.0/16".into(), Origin::Variable("PODNET".into())));
        assert_eq!(of(&[], &[("PODTAP_PODNET", ""), all[1]]).0, "10.2.0.0/16", "empty is unset");
        assert_eq!(of(&[], &[]), (String::new(), Origin::Default));
    }

    #[test]
    fn the_references_five_variables_are_honoured() {
        for name in ["EXTRAHOP_SENSOR_IP", "RPCAPD_TARGET_PORT", "PODNET", "SVCNET", "INTERFACE"] {
            assert!(SETTINGS.iter().any(|setting| setting.reference == Some(name)), "{name}");
        }
    }

    #[test]
    fn an_error_names_the_variable_that_was_wrong() {
        let settings = Settings::from_parts(&[], &[("RPCAPD_TARGET_PORT", "x")]).unwrap();
        assert_eq!(settings.named("port"), "RPCAPD_TARGET_PORT");
    }

    #[test]
    fn what_is_printed_says_where_it_came_from() {
        let settings =
            Settings::from_parts(&["--port", "7"], &[("SVCNET", "172.20.0.0/16")]).unwrap();
        let text = settings.to_text();
        assert_eq!(text.lines().count(), SETTINGS.len());
        assert!(
            text.contains("# command line") && text.contains("# environment, SVCNET"),
            "{text}"
        );
    }
}
