//! From the reference's options and file to the tap's settings.
//!
//! ```text
//! CommandLine --> Invocation --+--> pairs (flag, text, origin) --> Settings --> Config
//!                  Ini --------'        ^ names of interfaces: Links
//! ```
//!
//! Nothing is validated here that a setting validates: its error then names the option that it
//! came from. The environment holds for what no option speaks of, except the sensors: the
//! reference's daemon reads none from there.

use std::net::IpAddr;

use super::clients::{ActiveClient, DEFAULT_PORT, active_clients, hosts};
use super::ini::Ini;
use super::options::{CommandLine, Effect, OPTIONS, UsageError};
use crate::config::{Origin, Settings, unbracketed};
use crate::net::View;
use crate::rpcap::ANY_ETH;

/// Port of passive mode.
const PASSIVE_PORT: u16 = 2002;
/// The reference cuts `-t` to this.
const MOST_DATAGRAM: u32 = 65_000;

/// What the options say, by themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Invocation {
    /// `-a`.
    pub sensors: Vec<ActiveClient>,
    /// `-l`.
    pub hosts: Vec<String>,
    /// `-n`.
    pub null_auth: bool,
    /// `-f`.
    pub file: Option<String>,
    /// `-s`.
    pub save: Option<String>,
    /// `-v`.
    active_only: bool,
    /// `-4`.
    pub ipv4_only: bool,
    /// `-i`.
    interface: Option<String>,
    /// The other letters' settings.
    plain: Vec<Pair>,
    /// The tap's own, by long options.
    settings: Vec<Pair>,
}

/// A setting, its text, and who says so.
pub type Pair = (&'static str, String, Origin);

fn rpcapd(flag: &'static str, text: impl Into<String>, origin: impl Into<String>) -> Pair {
    (flag, text.into(), Origin::Rpcapd(origin.into()))
}

impl Invocation {
    /// Reads the options' values.
    ///
    /// # Errors
    ///
    /// The option whose value cannot be used, or that is refused.
    pub fn new(line: &CommandLine) -> Result<Self, UsageError> {
        for row in OPTIONS {
            if row.effect == Effect::Refused && line.has(row.letter) {
                return Err(UsageError::new(row.letter, row.here));
            }
        }
        let mut sensors = Vec::new();
        for value in line.values('a') {
            match active_clients(value).map_err(|why| UsageError::new('a', why))? {
                clients if clients.is_empty() => return Err(UsageError::new('a', "no host")),
                clients => sensors.extend(clients),
            }
        }
        let mut allowed = Vec::new();
        for value in line.values('l') {
            allowed.extend(hosts(value).map_err(|why| UsageError::new('l', why))?);
        }
        let setting = |(flag, text): &(&'static str, String)| (*flag, text.clone(), Origin::Flag);
        let text = |letter| line.value(letter).map(str::to_owned);
        Ok(Self {
            sensors,
            hosts: allowed,
            null_auth: line.has('n'),
            file: text('f'),
            save: text('s'),
            active_only: line.has('v'),
            ipv4_only: line.has('4'),
            interface: text('i'),
            plain: plain(line)?,
            settings: line.settings.iter().map(setting).collect(),
        })
    }

    /// The settings, and what is to be said of them.
    ///
    /// # Errors
    ///
    /// Nobody to send to, or `-4` and a sensor's IPv6 address.
    pub fn map(&self, ini: Option<&Ini>, links: &Links<'_>) -> Result<Mapped, UsageError> {
        let file = self.file.as_deref().unwrap_or_default();
        let origin = |option: &str| match ini {
            Some(_) => format!("rpcapd -f {file}"),
            None => format!("rpcapd {option}"),
        };
        let (sensors, allowed) = match ini {
            Some(ini) => (&ini.sensors, &ini.hosts),
            None => (&self.sensors, &self.hosts),
        };
        let mut remarks = Vec::new();
        if ini.is_some() && !self.sensors.is_empty() {
            remarks.push(format!("-a has no effect: the sensors of {file} take its place"));
        }
        if ini.is_some() && !self.hosts.is_empty() {
            remarks.push(format!("-l has no effect: the hosts of {file} take its place"));
        }
        let is_given = |flag: &str| self.settings.iter().any(|(given, ..)| *given == flag);
        let has_somebody = !sensors.is_empty() || is_given("sensor");
        if self.active_only && !has_somebody && !is_given("listen") {
            return Err(UsageError::new(
                'v',
                format!(
                    "active mode only, and no sensor: give -a, or ActiveClient in {}",
                    self.file.as_deref().unwrap_or("a file (-f)")
                ),
            ));
        }
        if let Some(sensor) =
            sensors.iter().find(|sensor| self.ipv4_only && sensor.host.contains(':'))
        {
            return Err(UsageError::new(
                '4',
                format!("the sensor {} has an IPv6 address", sensor.host),
            ));
        }

        let mut pairs = self.plain.clone();
        let chosen = self.interfaces(sensors, links, &mut pairs, &mut remarks);
        pairs.push(rpcapd("sensor", list_of(sensors, &chosen, &mut remarks), origin("-a")));
        pairs.push(rpcapd("port", DEFAULT_PORT.to_string(), "rpcapd's default"));
        pairs.push(rpcapd("allow-hosts", allowed.join(","), origin("-l")));
        pairs.push(match ini.and_then(|ini| ini.null_auth) {
            Some(is_allowed) => rpcapd("null-auth", yes_or_no(is_allowed), origin("")),
            None if self.null_auth => rpcapd("null-auth", "yes", "rpcapd -n"),
            None => rpcapd("null-auth", "no", "rpcapd without -n"),
        });
        if self.active_only {
            pairs.retain(|(flag, ..)| *flag != "listen");
            pairs.push(rpcapd("listen", "", "rpcapd -v"));
        } else if !pairs.iter().any(|(flag, ..)| *flag == "listen") {
            let port = match self.ipv4_only {
                true => format!("0.0.0.0:{PASSIVE_PORT}"),
                false => PASSIVE_PORT.to_string(),
            };
            pairs.push(rpcapd("listen", port, "rpcapd without -v"));
        }
        // What was typed as a setting wins.
        pairs.retain(|(flag, ..)| !is_given(flag));
        pairs.extend(self.settings.iter().cloned());
        Ok(Mapped { pairs, remarks })
    }

    /// The interface of each sensor, in their order; `interface` and `preselect` go to `pairs`.
    fn interfaces(
        &self,
        sensors: &[ActiveClient],
        links: &Links<'_>,
        pairs: &mut Vec<Pair>,
        remarks: &mut Vec<String>,
    ) -> Vec<Option<String>> {
        let mut is_listed = false;
        let mut choose = |sensor: &ActiveClient| {
            if sensor.ifname.is_none() && sensor.ifaddr.is_none() {
                return None;
            }
            let found = links.find(sensor);
            if found.is_none() {
                let instead = self.interface.as_deref().unwrap_or("whichever it opens");
                remarks.push(format!(
                    "{sensor}: there is no such interface; the sensor gets {instead}"
                ));
                if !std::mem::replace(&mut is_listed, true) {
                    remarks.push(format!("the interfaces are {}", links.names().join(", ")));
                }
            }
            found
        };
        let chosen: Vec<Option<String>> = sensors.iter().map(&mut choose).collect();
        if let Some(name) = &self.interface {
            // What a sensor is to get must be tapped.
            let own = chosen.iter().flatten().filter(|own| name != ANY_ETH && *own != name);
            let mut tapped = vec![name.clone()];
            for own in own {
                if !tapped.contains(own) {
                    tapped.push(own.clone());
                }
            }
            pairs.push(rpcapd("interface", tapped.join(","), "rpcapd -i"));
            let is_one = !name.contains([',', '*', '?']);
            let preselected = if is_one { name.as_str() } else { ANY_ETH };
            pairs.push(rpcapd("preselect", preselected, "rpcapd -i"));
        }
        chosen
    }
}

/// The options that are a setting each.
fn plain(line: &CommandLine) -> Result<Vec<Pair>, UsageError> {
    let mut pairs = Vec::new();
    let number = |letter: char| -> Result<Option<u64>, UsageError> {
        let Some(text) = line.value(letter) else { return Ok(None) };
        let number = text.trim().parse();
        number
            .map(Some)
            .map_err(|_not_a_number| UsageError::new(letter, format!("{text:?} is not a number")))
    };
    if let Some(text) = line.value('F') {
        pairs.push(rpcapd("filter", text, "rpcapd -F"));
    }
    if let Some(most) = number('t')? {
        match u32::try_from(most).unwrap_or(MOST_DATAGRAM).min(MOST_DATAGRAM) {
            0 => pairs.push(rpcapd("encoding", "plain", "rpcapd -t 0")),
            most => {
                pairs.push(rpcapd("encoding", "stream", "rpcapd -t"));
                pairs.push(rpcapd("datagram-bytes", most.to_string(), "rpcapd -t"));
            }
        }
    }
    if let Some(text) = line.value('c') {
        let workers = workers(text).map_err(|why| UsageError::new('c', why))?;
        pairs.push(rpcapd("workers", workers.to_string(), "rpcapd -c"));
    }
    let (capture, between) = (number('z')?, number('m')?);
    if capture.is_some() || between.is_some() {
        let between = between.unwrap_or(0).saturating_mul(1_000_000);
        let memory = capture.unwrap_or(0).saturating_add(between);
        let origin = match (capture, line.has('m')) {
            (Some(_), true) => "rpcapd -z and -m",
            (Some(_), false) => "rpcapd -z",
            (None, _) => "rpcapd -m",
        };
        pairs.push(rpcapd("ring-memory", memory.to_string(), origin));
    }
    if let Some(pair) = listen(line)? {
        pairs.push(pair);
    }
    Ok(pairs)
}

/// `single`, `CPU` or `CPU,CPU` (-1 for any): how many threads there would be.
fn workers(text: &str) -> Result<usize, String> {
    if text == "single" {
        return Ok(1);
    }
    let cpus: Vec<&str> = text.split(',').map(str::trim).collect();
    let is_cpu = |text: &&str| text.parse::<i32>().is_ok_and(|cpu| cpu >= -1);
    match cpus.len() <= 2 && cpus.iter().all(is_cpu) {
        true => Ok(cpus.len()),
        false => Err(format!("{text:?} is neither single, a CPU nor two (A,B; -1 is any)")),
    }
}

/// `-b` and `-p`; `None` without either.
fn listen(line: &CommandLine) -> Result<Option<Pair>, UsageError> {
    let (address, port) = (line.value('b'), line.value('p'));
    if address.is_none() && port.is_none() {
        return Ok(None);
    }
    let port = match port {
        Some(text) => text.parse().ok().filter(|port| *port != 0).ok_or_else(|| {
            UsageError::new('p', format!("{text:?} is not a number from 1 to 65535"))
        })?,
        None => PASSIVE_PORT,
    };
    let is_v4 = line.has('4');
    let address = match address {
        Some(text) => {
            let address: IpAddr = unbracketed(text).parse().map_err(|_not_numeric| {
                UsageError::new(
                    'b',
                    format!("{text:?} is not an address of this machine, as in 10.0.0.1"),
                )
            })?;
            if is_v4 && address.is_ipv6() {
                return Err(UsageError::new(
                    'b',
                    format!("{text} is an IPv6 address, and -4 says IPv4"),
                ));
            }
            Some(address)
        }
        None => is_v4.then(|| IpAddr::from([0, 0, 0, 0])),
    };
    let origin = match (line.has('b'), line.has('p')) {
        (true, true) => "rpcapd -b and -p",
        (true, false) => "rpcapd -b",
        (false, _) => "rpcapd -p",
    };
    Ok(Some(match address {
        Some(address) => {
            rpcapd("listen", std::net::SocketAddr::new(address, port).to_string(), origin)
        }
        None => rpcapd("listen", port.to_string(), origin),
    }))
}

fn yes_or_no(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

/// As `--sensor` takes them; repeated ones once.
fn list_of(
    sensors: &[ActiveClient],
    chosen: &[Option<String>],
    remarks: &mut Vec<String>,
) -> String {
    let mut list: Vec<String> = Vec::new();
    for (sensor, interface) in sensors.iter().zip(chosen) {
        let host = match sensor.host.contains(':') {
            true => format!("[{}]", sensor.host),
            false => sensor.host.clone(),
        };
        let mut entry = format!("{host}:{}", sensor.port);
        if let Some(interface) = interface {
            entry.push_str(&format!("/{interface}"));
        }
        match list.contains(&entry) {
            true => remarks.push(format!("{sensor} is there twice: it gets every packet once")),
            false => list.push(entry),
        }
    }
    list.join(",")
}

/// The result of [`Invocation::map`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Each flag once.
    pub pairs: Vec<Pair>,
    /// What is to be logged.
    pub remarks: Vec<String>,
}

impl Mapped {
    /// The settings, with the environment beneath.
    ///
    /// # Errors
    ///
    /// A variable that is not text.
    pub fn settings(
        &self,
        variable: impl Fn(&str) -> Option<std::ffi::OsString>,
    ) -> Result<Settings, crate::config::ConfigError> {
        let given = |flag: &str| {
            let (_, text, origin) = self.pairs.iter().rev().find(|(given, ..)| *given == flag)?;
            Some((text.clone(), origin.clone()))
        };
        Settings::with(given, variable)
    }
}

/// The machine's interfaces, for `ifname` and `ifaddr`.
#[derive(Clone, Copy, Debug)]
pub struct Links<'a>(pub &'a View);

impl Links<'_> {
    /// The first that has the name and an address in the prefix, where they are given.
    fn find(&self, sensor: &ActiveClient) -> Option<String> {
        if sensor.ifname.as_deref() == Some(ANY_ETH) && sensor.ifaddr.is_none() {
            return Some(ANY_ETH.to_owned());
        }
        self.sorted().into_iter().find_map(|link| {
            let is_named = sensor.ifname.as_ref().is_none_or(|name| *name == link.name);
            let is_inside = sensor.ifaddr.is_none_or(|net| {
                link.addresses.iter().any(|address| net.contains(&address.addr()))
            });
            (is_named && is_inside).then(|| link.name.clone())
        })
    }

    fn names(&self) -> Vec<String> {
        let addresses = |link: &crate::net::Link| {
            link.addresses.iter().map(|address| format!(" {address}")).collect::<String>()
        };
        self.sorted().into_iter().map(|link| format!("{}{}", link.name, addresses(link))).collect()
    }

    fn sorted(&self) -> Vec<&crate::net::Link> {
        let mut links: Vec<_> = self.0.links.values().filter(|link| link.is_ethernet).collect();
        links.sort_by_key(|link| link.ifindex);
        links
    }
}

#[cfg(test)]
mod tests;
