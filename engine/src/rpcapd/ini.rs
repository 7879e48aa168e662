//! `rpcapd.ini`.
//!
//! ```text
//! bytes --lines--> "Key = value  # comment" --by key--> Ini | IniError (line, text, why)
//! ```
//!
//! Pure: no file, no network, no look-up. It takes what libpcap's and ExtraHop's parsers take, and what
//! people expect of either: spaces and tabs anywhere, a last line without its end, CR LF, no port.
//! What is wrong is an error, since a sensor that is silently left out is a loss; keys that nobody
//! knows are remarked upon and ignored, as the reference ignores them.

use super::clients::{ActiveClient, active_clients, hosts};

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ini {
    /// `ActiveClient`, one for each line.
    pub sensors: Vec<ActiveClient>,
    /// `PassiveClient`: who may connect.
    pub hosts: Vec<String>,
    /// `NullAuthPermit`; `None` if the file does not say.
    pub null_auth: Option<bool>,
    /// What was ignored, with its line.
    pub remarks: Vec<String>,
}

/// A line that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}: {text}: {reason}")]
pub struct IniError {
    /// Counted from 1.
    pub line: usize,
    /// The line, made printable and not too long.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

const KEYS: [&str; 3] = ["ActiveClient", "PassiveClient", "NullAuthPermit"];
/// More than any file of 64 sensors needs; outside input has an end.
const MOST_BYTES: usize = 1 << 20;

/// Reads a whole file.
///
/// # Errors
///
/// The first line that cannot be used.
pub fn parse(bytes: &[u8]) -> Result<Ini, IniError> {
    let mut ini = Ini::default();
    if bytes.len() > MOST_BYTES {
        let reason = format!("{} bytes, at most {MOST_BYTES}", bytes.len());
        return Err(IniError { line: 1, text: "the file is too large".into(), reason });
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    for (line, bytes) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let result = match std::str::from_utf8(bytes) {
            Ok(text) => take(&mut ini, line, text),
            Err(_not_text) => Err("it is not UTF-8".into()),
        };
        result.map_err(|reason| IniError { line, text: shown(bytes), reason })?;
    }
    Ok(ini)
}

fn take(ini: &mut Ini, line: usize, text: &str) -> Result<(), String> {
    let text = text.split('#').next().unwrap_or_default().trim();
    if text.is_empty() {
        return Ok(());
    }
    let (key, value) = text.split_once('=').ok_or("there is no `=`")?;
    let value = value.trim();
    match key.trim_end() {
        "ActiveClient" => match <[ActiveClient; 1]>::try_from(active_clients(value)?) {
            Ok([client]) => ini.sensors.push(client),
            Err(clients) if clients.is_empty() => return Err("there is no host".into()),
            Err(clients) => return Err(format!("{} hosts, where there is one", clients.len())),
        },
        "PassiveClient" => match hosts(value)? {
            // Nobody named is everybody allowed: hardly what was meant.
            hosts if hosts.is_empty() => return Err("there is no host".into()),
            hosts => ini.hosts.extend(hosts),
        },
        "NullAuthPermit" => {
            ini.null_auth = Some(match value {
                "YES" => true,
                // The second is what the reference's own help calls it.
                "NO" | "NOT" => false,
                _ => return Err(format!("{value:?} is neither YES nor NO")),
            });
        }
        other => {
            let meant = KEYS.iter().find(|key| key.eq_ignore_ascii_case(other));
            let hint = meant.map(|key| format!(": {key}?")).unwrap_or_default();
            ini.remarks.push(format!("{line}: {:?} is not a key, ignored{hint}", short(other)));
        }
    }
    Ok(())
}

const SHOWN: usize = 100;

fn short(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

/// A line as it can be put into a log.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = short(text.trim());
    text.chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect()
}

/// The file that says the same, as the reference's `-s` writes it.
#[must_use]
pub fn to_text(sensors: &[ActiveClient], hosts: &[String], null_auth: bool) -> String {
    let mut text = String::from(
        "# Configuration of podtap rpcapd.\n\n\
         # Hosts that may connect (passive mode): PassiveClient = <name, address or prefix>\n\n",
    );
    for host in hosts {
        text.push_str(&format!("PassiveClient = {host}\n"));
    }
    text.push_str(
        "\n# Hosts to connect to (active mode): ActiveClient = <name or address>, <port | DEFAULT>\n\n",
    );
    for sensor in sensors {
        text.push_str(&format!("ActiveClient = {sensor}\n"));
    }
    let null_auth = if null_auth { "YES" } else { "NO" };
    text.push_str(&format!(
        "\n# Clients without a password: YES or NO\n\nNullAuthPermit = {null_auth}\n"
    ));
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sensors(text: &str) -> Vec<String> {
        parse(text.as_bytes()).unwrap().sensors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_file_that_init_sh_writes_is_read() {
        let ini = parse(
            b"ActiveClient = 10.10.10.10,2003\nActiveClient = 10.10.10.11,2003\nNullAuthPermit = YES\n",
        )
        .unwrap();
        assert_eq!((ini.sensors.len(), ini.null_auth), (2, Some(true)));
        assert!(ini.hosts.is_empty() && ini.remarks.is_empty());
    }

    #[test]
    fn lines_are_forgiven_what_people_write() {
        for (text, expected) in [
            ("ActiveClient = 10.0.0.2,2103", "10.0.0.2,2103"),
            ("ActiveClient=10.0.0.2, 2103\r\n", "10.0.0.2,2103"),
            ("ActiveClient = 10.0.0.2;2103 # c", "10.0.0.2,2103"),
            ("ActiveClient = 10.0.0.2 , 2103\n", "10.0.0.2,2103"),
            ("\t ActiveClient\t=\t10.0.0.2\t2103\n", "10.0.0.2,2103"),
            ("ActiveClient = 10.0.0.2\n", "10.0.0.2,2003"),
            ("ActiveClient = 10.0.0.2,DEFAULT", "10.0.0.2,2003"),
            ("ActiveClient = 10.0.0.2,\n", "10.0.0.2,2003"),
            ("\u{feff}ActiveClient = a,1", "a,1"),
            ("ActiveClient = a,1,ifname=eth0\n", "a,1,ifname=eth0"),
            (
                "ActiveClient = a, 1, ifname = eth0, ifaddr = 10.0.0.0/8",
                "a,1,ifname=eth0,ifaddr=10.0.0.0/8",
            ),
            ("ActiveClient = fd00::1,9", "fd00::1,9"),
        ] {
            assert_eq!(sensors(text), [expected], "{text:?}");
        }
        assert_eq!(sensors("\n\r\n   \n# ActiveClient = a\n #x\n\t#\n"), [""; 0]);
    }

    #[test]
    fn clients_that_may_connect_and_null_authentication_are_read() {
        let ini = parse(
            b"PassiveClient = a, b;10.0.0.0/8\nPassiveClient = c\nNullAuthPermit = YES\nNullAuthPermit=NO",
        )
        .unwrap();
        assert_eq!(ini.hosts, ["a", "b", "10.0.0.0/8", "c"]);
        assert_eq!(ini.null_auth, Some(false), "the last line counts");
        assert_eq!(parse(b"NullAuthPermit = NOT\n").unwrap().null_auth, Some(false));
        assert_eq!(parse(b"").unwrap(), Ini::default());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line_and_text() {
        for (text, expected) in [
            ("\n\nActiveClient 10.0.0.2\n", "3: ActiveClient 10.0.0.2: there is no `=`"),
            ("# x\nActiveClient =\n", "2: ActiveClient =: there is no host"),
            ("ActiveClient = a,http", "1: ActiveClient = a,http: \"http\" is not a port"),
            ("ActiveClient = a,1,b,2", "1: ActiveClient = a,1,b,2: 2 hosts, where there is one"),
            ("ActiveClient = a,1,ifnam=x", "\"ifnam\" is neither ifname nor ifaddr"),
            ("PassiveClient = 10.0.0.0/40", "\"10.0.0.0/40\" is neither"),
            ("PassiveClient = \r\n", "1: PassiveClient =: there is no host"),
            ("NullAuthPermit = yes\n", "1: NullAuthPermit = yes: \"yes\" is neither YES nor NO"),
            ("NullAuthPermit\n", "there is no `=`"),
            ("ActiveClient = a\u{1b}[2J,1", "1: ActiveClient = a\\u{1b}[2J,1: "),
        ] {
            let said = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(said.contains(expected), "{text:?}: {said}");
            assert_eq!(said.lines().count(), 1);
        }
        let said = parse(b"NullAuthPermit = YES\n\xff\xfe = 1\n").unwrap_err();
        assert_eq!((said.line, said.reason.as_str()), (2, "it is not UTF-8"));
        let said = parse(&vec![b'#'; MOST_BYTES + 1]).unwrap_err().to_string();
        assert!(said.contains("too large"), "{said}");
    }

    #[test]
    fn an_unknown_key_is_remarked_upon_and_ignored() {
        let ini = parse(b"UserName = x\nnullauthpermit = YES\nActiveClient = a\n").unwrap();
        assert_eq!((ini.sensors.len(), ini.null_auth), (1, None));
        assert_eq!(
            ini.remarks,
            [
                "1: \"UserName\" is not a key, ignored",
                "2: \"nullauthpermit\" is not a key, ignored: NullAuthPermit?"
            ]
        );
    }

    #[test]
    fn what_is_saved_reads_back_the_same() {
        let ini = parse(
            b"ActiveClient = a,7,ifname=eth1,ifaddr=10.0.0.0/8\nActiveClient = fd00::1\nPassiveClient = b 10.0.0.0/8\nNullAuthPermit = NO",
        )
        .unwrap();
        let text = to_text(&ini.sensors, &ini.hosts, false);
        assert_eq!(parse(text.as_bytes()).unwrap(), ini);
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _answer = parse(&bytes);
        }

        #[test]
        fn no_line_of_known_words_breaks_the_parser(
            words in proptest::collection::vec("ActiveClient|PassiveClient|NullAuthPermit|=|,|;| |\t|#|\r|\n|ifname|ifaddr|DEFAULT|YES|a|::1|10.0.0.0/8|2003", 0..40),
        ) {
            if let Ok(ini) = parse(words.concat().as_bytes()) {
                let again = to_text(&ini.sensors, &ini.hosts, ini.null_auth.unwrap_or(false));
                let again = parse(again.as_bytes()).unwrap();
                prop_assert_eq!((again.sensors, again.hosts), (ini.sensors, ini.hosts));
            }
        }
    }
}
