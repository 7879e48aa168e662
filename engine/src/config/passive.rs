//! Settings of passive mode and of authentication: where, who, with what.
//!
//! ```text
//! --listen, --allow-hosts, --null-auth --> text --> addresses, hosts, rule
//! --password-file, PODTAP_PASSWORD ------> file or variable --> accounts
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;

use super::values::{list, number, prefix};
use crate::control::{AllowedHosts, ListenAddress, NullAuth, Passwords};

/// The variable that holds a password for any user. There is no such flag: everybody on the
/// machine can read a command line.
pub(super) const PASSWORD_VARIABLE: &str = "PODTAP_PASSWORD";
/// Port of passive mode.
const DEFAULT_PORT: u16 = 2002;
/// Largest password file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// `ADDR:PORT`, or either of them; IPv6 addresses in brackets when a port follows.
pub(super) fn listeners(text: &str) -> Result<Vec<ListenAddress>, String> {
    let mut listeners: Vec<ListenAddress> = Vec::new();
    for entry in list(text) {
        let listener = listener(entry)?;
        let is_same = |other: &ListenAddress| {
            other.port == listener.port
                && (other.ip == listener.ip || other.ip.is_none() || listener.ip.is_none())
        };
        if let Some(other) = listeners.iter().find(|other| is_same(other)) {
            return Err(format!("{entry:?} is already listened on: {other}"));
        }
        listeners.push(listener);
    }
    Ok(listeners)
}

fn listener(entry: &str) -> Result<ListenAddress, String> {
    let bare = entry.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(entry);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(ListenAddress { ip: Some(ip), port: DEFAULT_PORT });
    }
    if let Ok(address) = entry.parse::<SocketAddr>()
        && address.port() != 0
    {
        return Ok(ListenAddress { ip: Some(address.ip()), port: address.port() });
    }
    let port = entry.strip_prefix(['*', ':']).map_or(entry, |rest| rest.trim_start_matches(':'));
    number(port, 1..=65_535).map(|port| ListenAddress { ip: None, port }).map_err(|_refusal| {
        format!("{entry:?} is neither ADDR:PORT nor an address or a port from 1 to 65535")
    })
}

/// Addresses, prefixes, names.
pub(super) fn allowed_hosts(text: &str) -> Result<AllowedHosts, String> {
    let mut hosts = AllowedHosts::default();
    for entry in list(text) {
        match prefix(entry) {
            Ok(net) => hosts.nets.push(net),
            Err(refusal) if entry.contains(['/', ':']) => return Err(refusal),
            Err(_) => hosts.names.push(name(entry)?),
        }
    }
    Ok(hosts)
}

fn name(entry: &str) -> Result<String, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    // What looks like an address and is none would be asked of a name server, and never answered.
    let is_number = entry.chars().all(|c| c.is_ascii_digit() || c == '.');
    if !entry.chars().all(is_name) || is_number {
        return Err(format!("{entry:?} is neither an address, a prefix nor a host name"));
    }
    Ok(entry.to_owned())
}

/// Who may come without credentials.
pub(super) fn null_auth(text: &str) -> Result<NullAuth, String> {
    match text {
        "" => Ok(NullAuth::Sensors),
        _ => Ok(if switch(text)? { NullAuth::Everybody } else { NullAuth::Nobody }),
    }
}

/// Yes or no, in the words that people use.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "true" | "on" | "1" => Ok(true),
        "no" | "false" | "off" | "0" | "" => Ok(false),
        _ => Err(format!("{text:?} is neither yes nor no")),
    }
}

/// The accounts of a file; none for an empty name.
pub(super) fn password_file(path: &str) -> Result<Passwords, String> {
    if path.is_empty() {
        return Ok(Passwords::default());
    }
    let text = read(path).map_err(|error| format!("cannot read {path:?}: {error}"))?;
    let accounts = Passwords::parse(&text).map_err(|why| format!("{path:?}, {why}"))?;
    if accounts.is_empty() {
        return Err(format!("{path:?} has no account: nobody could authenticate"));
    }
    Ok(accounts)
}

fn read(path: &str) -> io::Result<String> {
    let file = File::open(path)?;
    let about = file.metadata()?;
    if about.is_file() && about.mode() & 0o004 != 0 {
        // A Secret's volume is world-readable unless it is told otherwise, so no more than this.
        tracing::warn!(path, "everybody on this machine can read the passwords: chmod o-r");
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB"));
    }
    String::from_utf8(bytes)
        .map_err(|_not_utf8| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn listeners_are_addresses_ports_or_both() {
        let text = "127.0.0.1, [::1]:99, 2010,fd00::1 ,:2011,*:2012,10.0.0.1:2003,[fd00::2]";
        let texts: Vec<_> = listeners(text).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "127.0.0.1:2002",
                "[::1]:99",
                "port 2010",
                "[fd00::1]:2002",
                "port 2011",
                "port 2012",
                "10.0.0.1:2003",
                "[fd00::2]:2002"
            ]
        );
        assert_eq!(listeners(""), Ok(vec![]));
        for bad in ["0", "65536", "10.0.0.1:0", "10.0.0.300", "host:2002", "2002,10.0.0.1", "[::1"]
        {
            listeners(bad).unwrap_err();
        }
    }

    #[test]
    fn hosts_are_addresses_prefixes_or_names() {
        let hosts = allowed_hosts("10.0.0.1, fd00::/64 ,probe.example,192.0.2.0/24").unwrap();
        assert_eq!((hosts.nets.len(), &*hosts.names), (3, &["probe.example".to_owned()][..]));
        for bad in ["10.0.0.300", "10.0.0.0/33", "10.0.0.1/8", "a b", "host:1"] {
            allowed_hosts(bad).unwrap_err();
        }
    }

    #[test]
    fn null_auth_has_three_answers() {
        assert_eq!(null_auth(""), Ok(NullAuth::Sensors));
        assert_eq!(null_auth("YES"), Ok(NullAuth::Everybody));
        assert_eq!(null_auth("no"), Ok(NullAuth::Nobody));
        null_auth("perhaps").unwrap_err();
    }

    #[test]
    fn a_password_file_is_read_or_refused_without_showing_it() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        assert!(password_file(&path).unwrap_err().contains("no account"));
        file.write_all(b"# people\nann:secret\n").unwrap();
        assert!(!password_file(&path).unwrap().is_empty());
        file.write_all(b"bob:").unwrap();
        let error = password_file(&path).unwrap_err();
        assert!(error.contains("line 3") && !error.contains("secret"), "{error}");
        assert!(password_file("/no/such/file").unwrap_err().contains("cannot read"));
        assert!(password_file("").unwrap().is_empty());
    }
}
