//! Sensors as the reference writes them, on its command line and in its file.
//!
//! ```text
//! "10.0.0.1, 2003, ifname=eth1" --words--> ActiveClient { host, port, interface wishes }
//! ```
//!
//! Commas, semicolons, spaces and tabs all separate, alone or together; what belongs to `=` may
//! have spaces around it.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{check_host, unbracketed};

/// `RPCAP_DEFAULT_NETPORT_ACTIVE`.
pub(super) const DEFAULT_PORT: u16 = 2003;

/// A sensor to connect to, and the interface that it is meant to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveClient {
    /// Address or name.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// `ifname=`: the interface of this name ...
    pub ifname: Option<String>,
    /// `ifaddr=`: ... with an address in here.
    pub ifaddr: Option<IpNet>,
}

impl std::fmt::Display for ActiveClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{},{}", self.host, self.port)?;
        if let Some(name) = &self.ifname {
            write!(f, ",ifname={name}")?;
        }
        match &self.ifaddr {
            Some(net) => write!(f, ",ifaddr={net}"),
            None => Ok(()),
        }
    }
}

/// The words of a list.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let separates = |c: char| matches!(c, ' ' | '\t' | ',' | ';' | '\r' | '\n');
    text.split(separates).filter(|word| !word.is_empty())
}

/// `host,port,host,port...`: a last port may be missing, `DEFAULT` stands for 2003, and
/// `ifname=` and `ifaddr=` follow the port that they belong to, or the host.
pub(super) fn active_clients(text: &str) -> Result<Vec<ActiveClient>, String> {
    let joined = join_assignments(text);
    let mut clients: Vec<ActiveClient> = Vec::new();
    let mut needs_port = false;
    for word in words(&joined) {
        match (word.split_once('='), clients.last_mut()) {
            (Some((key, value)), Some(client)) => {
                wish(client, key, value)?;
                needs_port = false;
            }
            (None, Some(client)) if needs_port => {
                client.port = port(word)?;
                needs_port = false;
            }
            _ => {
                let host = unbracketed(word).to_owned();
                check_host(&host)?;
                clients.push(ActiveClient { host, port: DEFAULT_PORT, ifname: None, ifaddr: None });
                needs_port = true;
            }
        }
    }
    Ok(clients)
}

/// Hosts that may connect: addresses, prefixes, names.
pub(super) fn hosts(text: &str) -> Result<Vec<String>, String> {
    let mut hosts = Vec::new();
    for word in words(text) {
        if let Ok(net) = word.parse::<IpNet>() {
            hosts.push(net.trunc().to_string());
            continue;
        }
        check_host(unbracketed(word)).map_err(|_reason| {
            format!("{word:?} is neither an address, a prefix nor a host name")
        })?;
        hosts.push(unbracketed(word).to_owned());
    }
    Ok(hosts)
}

/// Takes away the space around each `=`.
fn join_assignments(text: &str) -> String {
    let parts: Vec<&str> = text.split('=').collect();
    let last = parts.len() - 1;
    let trimmed = parts.iter().enumerate().map(|(at, part)| {
        let part = if at == 0 { part } else { part.trim_start() };
        if at == last { part } else { part.trim_end() }
    });
    trimmed.collect::<Vec<_>>().join("=")
}

fn port(word: &str) -> Result<u16, String> {
    match word {
        "DEFAULT" => Ok(DEFAULT_PORT),
        _ => word.parse().ok().filter(|port| *port != 0).ok_or_else(|| {
            format!("{word:?} is not a port: a number from 1 to 65535, or DEFAULT (2003)")
        }),
    }
}

fn wish(client: &mut ActiveClient, key: &str, value: &str) -> Result<(), String> {
    /// `IFNAMSIZ`, less the zero byte.
    const LONGEST_NAME: usize = 15;
    match key {
        "ifname" if value.is_empty() || value.len() > LONGEST_NAME || value.contains('/') => {
            Err(format!("{value:?} is not the name of an interface"))
        }
        "ifname" => {
            client.ifname = Some(value.to_owned());
            Ok(())
        }
        "ifaddr" => {
            let net = value.parse::<IpNet>().or_else(|_| value.parse::<IpAddr>().map(IpNet::from));
            client.ifaddr = Some(net.map_err(|_neither| {
                format!("{value:?} is neither an address nor a prefix, as in 10.0.0.0/16")
            })?);
            Ok(())
        }
        _ => Err(format!("{key:?} is neither ifname nor ifaddr")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_the_reference_reads_them() {
        for (text, expected) in [
            ("10.0.0.1,2103", "10.0.0.1,2103"),
            ("h1,p1-is-no-port", ""),
            ("h1,1,h2,2", "h1,1 h2,2"),
            ("h1;1;h2", "h1,1 h2,2003"),
            (" h1 , DEFAULT\th2 ", "h1,2003 h2,2003"),
            ("[fd00::1],7", "fd00::1,7"),
            ("fd00::1 7", "fd00::1,7"),
            ("h,1,ifname = eth0 , ifaddr= 10.0.0.9/8", "h,1,ifname=eth0,ifaddr=10.0.0.9/8"),
            ("h,ifaddr=fd00::9", "h,2003,ifaddr=fd00::9/128"),
            ("h,1,ifname=eth0,h,1,ifname=eth1", "h,1,ifname=eth0 h,1,ifname=eth1"),
            ("", ""),
        ] {
            let clients = active_clients(text).unwrap_or_default();
            let texts: Vec<String> = clients.iter().map(ToString::to_string).collect();
            assert_eq!(texts.join(" "), expected, "{text:?}");
        }
    }

    #[test]
    fn a_wrong_word_is_named() {
        for (text, expected) in [
            ("h,http", "\"http\" is not a port"),
            ("h,0", "\"0\" is not a port"),
            ("h,70000", "\"70000\" is not a port"),
            ("10.0.0.300,1", "\"10.0.0.300\" is neither"),
            ("h,1,eth0=x", "\"eth0\" is neither ifname nor ifaddr"),
            ("h,1,ifname=", "\"\" is not the name"),
            ("h,1,ifname=a-name-too-long-for-linux", "is not the name"),
            ("h,1,ifaddr=eth0", "\"eth0\" is neither an address"),
            ("ifname=eth0,h,1", "\"ifname=eth0\" is neither an address nor a host"),
            ("a\u{0}b,1", "is neither an address nor a host name"),
        ] {
            let said = active_clients(text).unwrap_err();
            assert!(said.contains(expected), "{text:?}: {said}");
        }
    }

    #[test]
    fn hosts_may_be_prefixes() {
        assert_eq!(
            hosts("10.0.0.1, probe.example;fd00::/64\t192.0.2.7/24"),
            Ok(["10.0.0.1", "probe.example", "fd00::/64", "192.0.2.0/24"].map(String::from).into())
        );
        assert!(hosts("10.0.0.1/33").unwrap_err().contains("\"10.0.0.1/33\" is neither"));
    }
}
