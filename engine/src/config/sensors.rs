//! The list of sensors.
//!
//! ```text
//! "10.0.0.1, probe.example:99, [fd00::1]:98/eth1" --> host, port, the interface that it may open
//! ```

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::values::{list, number};
use crate::control::{MAX_SENSORS, SensorTarget};

/// Every sensor of the list; those that name no port have `default_port`.
pub(super) fn sensors(text: &str, default_port: u16) -> Result<Vec<SensorTarget>, String> {
    let sensors =
        list(text).map(|entry| sensor(entry, default_port)).collect::<Result<Vec<_>, _>>()?;
    let distinct: BTreeSet<_> =
        sensors.iter().map(|s| (s.host.as_str(), s.port, s.interface.as_deref())).collect();
    if distinct.len() != sensors.len() {
        return Err(format!("{text:?} names a sensor twice: it would get every packet twice"));
    }
    if sensors.len() > MAX_SENSORS {
        return Err(format!("{} sensors, at most {MAX_SENSORS}", sensors.len()));
    }
    Ok(sensors)
}

fn sensor(entry: &str, default_port: u16) -> Result<SensorTarget, String> {
    let (entry, interface) = match entry.split_once('/') {
        Some((_, "")) => return Err(format!("{entry:?} names no interface behind the slash")),
        Some((entry, interface)) => (entry, Some(interface.to_owned())),
        None => (entry, None),
    };
    let (host, port) = if let Ok(address) = entry.parse::<IpAddr>() {
        (address.to_string(), default_port)
    } else if let Ok(address) = entry.parse::<SocketAddr>() {
        (address.ip().to_string(), address.port())
    } else {
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') => (host, number(port, 1..=65_535)?),
            _ => (entry, default_port),
        };
        check_host(unbracketed(host))
            .map_err(|_reason| format!("{entry:?} is neither an address nor a host name"))?;
        (unbracketed(host).to_owned(), port)
    };
    Ok(SensorTarget { host, port, interface })
}

/// The address within brackets, where there are any.
pub(crate) fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Refuses what is neither an address nor a name that could be looked up.
pub(crate) fn check_host(host: &str) -> Result<(), String> {
    if host.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    // What looks like an address and is none would be asked of a name server, and never answered.
    let is_number = host.chars().all(|c| c.is_ascii_digit() || c == '.');
    match host.is_empty() || !host.chars().all(is_name) || is_number {
        true => Err(format!("{host:?} is neither an address nor a host name")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sensor_may_have_an_interface_of_its_own() {
        let list =
            sensors("10.0.0.1/eth1,[fd00::1]:98/eth2,probe:7/eth0.5,[fd00::2],10.0.0.1", 2003);
        let texts: Vec<String> = list.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "10.0.0.1:2003/eth1",
                "[fd00::1]:98/eth2",
                "probe:7/eth0.5",
                "[fd00::2]:2003",
                "10.0.0.1:2003"
            ]
        );
        sensors("10.0.0.1/", 2003).unwrap_err();
        let twice = sensors("10.0.0.1/eth1,10.0.0.1:2003/eth1", 2003).unwrap_err();
        assert!(twice.contains("twice"), "{twice}");
    }

    #[test]
    fn more_sensors_than_control_serves_are_refused() {
        let many: Vec<String> = (0..65).map(|i| format!("10.0.0.{i}")).collect();
        assert_eq!(sensors(&many.join(","), 2003).unwrap_err(), "65 sensors, at most 64");
    }
}
