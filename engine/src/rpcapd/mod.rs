//! `podtap rpcapd`: the reference's command line and file, on podtap's own settings.
//!
//! ```text
//! argv --options--> CommandLine --mapping--> Invocation --.
//! rpcapd.ini --ini, clients--> Ini -------------------------+--> Settings --> Config --> supervisor
//!                 ^ reload: SIGHUP                          '--> remarks, logged once
//! ```
//!
//! What a letter means is ExtraHop's meaning; the settings' own checks do the rest, and their
//! errors name the option that a value came from.

mod clients;
pub mod ini;
mod mapping;
mod options;
mod reload;

use std::ffi::OsString;
use std::fs;
use std::io;

pub use clients::ActiveClient;
pub use mapping::{Invocation, Links, Mapped, Pair};
pub use options::{CommandLine, Effect, Given, OPTIONS, OptionRow, UsageError, help};
pub use reload::{Changes, Reloader};

use crate::config::{Config, ConfigError, Settings};
use crate::control::NullAuth;
use crate::net::{InterfaceSelection, RoleOverrides, View};

/// Why the daemon cannot start, or a file not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum RpcapdError {
    /// The command line.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// The file cannot be read or written.
    #[error("{option} {file}: {source}")]
    File {
        /// `-f` or `-s`.
        option: &'static str,
        /// Its name.
        file: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The file has a line that cannot be used.
    #[error("{file}:{error}")]
    Line {
        /// Its name.
        file: String,
        /// The line, and why.
        error: ini::IniError,
    },
    /// A setting that came of an option or a line.
    #[error(transparent)]
    Setting(#[from] ConfigError),
    /// The interfaces, for `ifname` and `ifaddr`.
    #[error("reading the interfaces failed")]
    Interfaces(#[source] io::Error),
    /// A sensor's interface is not among those that -i said at the start, when the file is read
    /// again.
    #[error(
        "sensor {sensor}: its interface {interface} is not tapped, which only a restart can change; \
         start with -i any-eth for files to name any interface"
    )]
    NotTapped {
        /// As the log calls it.
        sensor: String,
        /// What it is to open.
        interface: String,
    },
}

/// What is to be done.
#[derive(Debug)]
pub enum Task {
    /// Print this and end well.
    Print(String),
    /// Run the tap.
    Run {
        /// With this.
        config: Box<Config>,
        /// After saying this.
        remarks: Vec<String>,
        /// What SIGHUP asks.
        reloader: Box<Reloader>,
    },
}

/// True if `-D` or the like asks for more to be logged.
#[must_use]
pub fn is_talkative(line: &CommandLine) -> bool {
    line.has('D')
}

/// True if a program of this name is to understand the reference's command line.
#[must_use]
pub fn is_our_name(argv0: &OsString) -> bool {
    std::path::Path::new(argv0).file_name().is_some_and(|name| name == "rpcapd")
}

/// From a command line to a configuration.
///
/// # Errors
///
/// See [`RpcapdError`].
pub fn prepare(
    line: &CommandLine,
    variable: impl Fn(&str) -> Option<OsString> + Send + 'static,
) -> Result<Task, RpcapdError> {
    if line.help {
        return Ok(Task::Print(help()));
    }
    let invocation = Invocation::new(line)?;
    if let Some(file) = &invocation.save {
        let text = ini::to_text(&invocation.sensors, &invocation.hosts, invocation.null_auth);
        fs::write(file, text).map_err(|source| RpcapdError::File {
            option: "-s",
            file: file.clone(),
            source,
        })?;
    }
    let loaded = load(&invocation, &variable)?;
    let mut config = Config::new(&loaded.settings)?;
    config.is_ipv4_only = invocation.ipv4_only;
    if line.print_config {
        return Ok(Task::Print(loaded.settings.to_text()));
    }
    let mut remarks: Vec<String> = line.remarks().into_iter().chain(loaded.remarks).collect();
    if can_nobody_authenticate(&config) {
        remarks.push(NOBODY.into());
    }
    let reloader = Reloader::new(invocation, Box::new(variable), &config);
    Ok(Task::Run { config: Box::new(config), remarks, reloader: Box::new(reloader) })
}

/// To be said at the start, and again when a file that is read again makes it so.
const NOBODY: &str = "nobody can authenticate: give -n, NullAuthPermit = YES, --password-file or \
     PODTAP_PASSWORD (the system's own accounts, which the reference asks, are not asked)";

fn can_nobody_authenticate(config: &Config) -> bool {
    config.access.null == NullAuth::Nobody && config.access.passwords.is_empty()
}

/// Settings that were read, and what is to be said of them.
#[derive(Debug)]
struct Loaded {
    settings: Settings,
    remarks: Vec<String>,
}

fn load(
    invocation: &Invocation,
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Loaded, RpcapdError> {
    let ini = invocation.file.as_deref().map(read).transpose()?;
    let sensors = ini.as_ref().map_or(&invocation.sensors, |ini| &ini.sensors);
    let wishes = sensors.iter().any(|sensor| sensor.ifname.is_some() || sensor.ifaddr.is_some());
    let view = match wishes {
        true => crate::net::snapshot(InterfaceSelection::default(), RoleOverrides::default())
            .map_err(RpcapdError::Interfaces)?,
        false => View::default(),
    };
    let mapped = invocation.map(ini.as_ref(), &Links(&view))?;
    let file = invocation.file.as_deref().unwrap_or_default();
    let mut remarks: Vec<String> =
        ini.iter().flat_map(|ini| &ini.remarks).map(|remark| format!("{file}:{remark}")).collect();
    remarks.extend(mapped.remarks.iter().cloned());
    Ok(Loaded { settings: mapped.settings(variable)?, remarks })
}

fn read(file: &str) -> Result<ini::Ini, RpcapdError> {
    let bytes = fs::read(file).map_err(|source| RpcapdError::File {
        option: "-f",
        file: file.to_owned(),
        source,
    })?;
    ini::parse(&bytes).map_err(|error| RpcapdError::Line { file: file.to_owned(), error })
}

#[cfg(test)]
mod tests;
