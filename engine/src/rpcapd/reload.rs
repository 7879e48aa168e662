//! SIGHUP: the file again, and what differs.
//!
//! ```text
//! rpcapd.ini --load--> Config (new)  --Changes::between(old, new)--> log, Control::reconfigure
//!                 '--> error: logged, the old configuration stays
//! ```
//!
//! Only what the file can say is taken over: sensors, hosts, null authentication. The rest is the
//! command line's, which a signal does not change.

use std::ffi::OsString;

use super::{Invocation, NOBODY, RpcapdError, can_nobody_authenticate, load};
use crate::config::Config;
use crate::control::SensorTarget;
use crate::rpcap::ANY_ETH;

/// The environment.
type Variables = Box<dyn Fn(&str) -> Option<OsString> + Send>;

/// Reads the file again when it is asked to.
pub struct Reloader {
    invocation: Invocation,
    variable: Variables,
    current: Config,
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloader").field("invocation", &self.invocation).finish_non_exhaustive()
    }
}

/// What a new configuration changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Sensors to connect to.
    pub added: Vec<SensorTarget>,
    /// Sensors to leave.
    pub removed: Vec<SensorTarget>,
    /// Sensors that notice nothing.
    pub kept: Vec<SensorTarget>,
}

impl Changes {
    /// Compares the sensors; one whose interface differs is removed and added.
    #[must_use]
    pub fn between(old: &[SensorTarget], new: &[SensorTarget]) -> Self {
        let only = |of: &[SensorTarget], other: &[SensorTarget]| {
            of.iter().filter(|sensor| !other.contains(sensor)).cloned().collect()
        };
        Self {
            added: only(new, old),
            removed: only(old, new),
            kept: new.iter().filter(|sensor| old.contains(sensor)).cloned().collect(),
        }
    }
}

impl Reloader {
    pub(super) fn new(invocation: Invocation, variable: Variables, current: &Config) -> Self {
        Self { invocation, variable, current: current.clone() }
    }

    /// The configuration with what the file says now; `None` where there is no file.
    ///
    /// # Errors
    ///
    /// The file cannot be read or used: the old configuration stays.
    pub fn reload(&mut self) -> Result<Option<Config>, RpcapdError> {
        if self.invocation.file.is_none() {
            return Ok(None);
        }
        let loaded = load(&self.invocation, &self.variable)?;
        let read = Config::new(&loaded.settings)?;
        self.check_tapped(&read)?;
        let nobody = can_nobody_authenticate(&read).then_some(NOBODY);
        for remark in loaded.remarks.iter().map(String::as_str).chain(nobody) {
            tracing::warn!("{remark}");
        }
        let Changes { added, removed, kept } =
            Changes::between(&self.current.sensors, &read.sensors);
        tracing::info!(
            added = added.len(),
            removed = removed.len(),
            kept = kept.len(),
            "SIGHUP: the file was read again"
        );
        let mut config = self.current.clone();
        config.sensors = read.sensors;
        config.allowed_hosts = read.allowed_hosts;
        config.access = read.access;
        config.policy.control_ports = read.policy.control_ports;
        self.current = config.clone();
        Ok(Some(config))
    }

    /// What is tapped was settled at the start. A sensor that may open only something else would
    /// be given nothing, and nobody would be told.
    fn check_tapped(&self, read: &Config) -> Result<(), RpcapdError> {
        let tapped = &self.current.interfaces;
        for sensor in &read.sensors {
            if let Some(interface) = &sensor.interface
                && interface != ANY_ETH
                && !tapped.matches(interface)
            {
                return Err(RpcapdError::NotTapped {
                    sensor: sensor.to_string(),
                    interface: interface.clone(),
                });
            }
        }
        Ok(())
    }
}
