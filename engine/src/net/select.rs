//! Which interfaces are tapped, and which roles are forced: lists of names and globs.
//!
//! ```text
//! "any-eth"      --parse--> every Ethernet interface
//! "eth0,eni*"    --parse--> names and globs (`*` any run, `?` one byte) --matches--> yes or no
//! ```
//!
//! A bad value names its flag, itself and what would do.

use super::{Role, View};
use crate::rpcap::ANY_ETH;

/// The kernel's IFNAMSIZ without the closing NUL.
const MAX_NAME_BYTES: usize = 15;

/// A list of interface names that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{flag} {value:?}: {reason}; give interface names or globs (*, ?) separated by commas")]
pub struct SelectionError {
    /// The flag that was given.
    pub flag: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What `--interface` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceSelection(Selected);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Selected {
    AnyEthernet,
    Listed(Globs),
}

impl Default for InterfaceSelection {
    fn default() -> Self {
        Self(Selected::AnyEthernet)
    }
}

impl InterfaceSelection {
    /// Reads `any-eth`, or names and globs separated by commas. `any-eth` within a list takes all.
    ///
    /// # Errors
    ///
    /// An empty entry, or one that no interface can be called.
    pub fn parse(value: &str) -> Result<Self, SelectionError> {
        let globs = Globs::parse("--interface", value)?;
        let is_any = globs.0.iter().any(|glob| glob == ANY_ETH);
        Ok(Self(if is_any { Selected::AnyEthernet } else { Selected::Listed(globs) }))
    }

    /// Whether an interface of that name is meant, if it is Ethernet.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match &self.0 {
            Selected::AnyEthernet => true,
            Selected::Listed(globs) => globs.matches(name),
        }
    }

    /// Whether every Ethernet interface is meant.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.0 == Selected::AnyEthernet
    }

    /// The plain names (no globs) of which no interface exists now.
    #[must_use]
    pub fn missing(&self, view: &View) -> Vec<String> {
        let Selected::Listed(globs) = &self.0 else { return Vec::new() };
        let exists = |name: &str| view.links.values().any(|link| link.name == name);
        let plain = globs.0.iter().filter(|glob| !glob.contains(['*', '?']));
        plain.filter(|name| !exists(name)).cloned().collect()
    }
}

/// Roles that the operator forces on interfaces, whatever their routes say; empty by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleOverrides(Vec<(Globs, Role)>);

impl RoleOverrides {
    /// Gives `role` to interfaces that `value`, a list as of `--interface`, matches. Of several
    /// lists that match one name, the first added counts.
    ///
    /// # Errors
    ///
    /// As [`InterfaceSelection::parse`]; the error names `flag`.
    pub fn force(
        &mut self,
        flag: &'static str,
        value: &str,
        role: Role,
    ) -> Result<(), SelectionError> {
        self.0.push((Globs::parse(flag, value)?, role));
        Ok(())
    }

    /// The role forced on that name, if any.
    #[must_use]
    pub fn role_of(&self, name: &str) -> Option<Role> {
        self.0.iter().find(|(globs, _)| globs.matches(name)).map(|&(_, role)| role)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Globs(Vec<String>);

impl Globs {
    fn parse(flag: &'static str, value: &str) -> Result<Self, SelectionError> {
        let fail = |reason| Err(SelectionError { flag, value: value.to_owned(), reason });
        let mut globs = Vec::new();
        for entry in value.split(',').map(str::trim) {
            if entry.is_empty() {
                return fail("an entry is empty".to_owned());
            }
            // A run of stars stands for nothing as well, so only the other bytes count.
            if entry.bytes().filter(|&byte| byte != b'*').count() > MAX_NAME_BYTES {
                return fail(format!("{entry:?} is longer than {MAX_NAME_BYTES} bytes"));
            }
            let is_illegal = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
            if entry == "." || entry == ".." || entry.contains(is_illegal) {
                return fail(format!("no interface can be called {entry:?}"));
            }
            globs.push(entry.to_owned());
        }
        Ok(Self(globs))
    }

    fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|glob| glob_matches(glob.as_bytes(), name.as_bytes()))
    }
}

/// Greedy with one step back: on a mismatch the last star takes one byte more. At most
/// `glob.len() * name.len()` steps.
fn glob_matches(glob: &[u8], name: &[u8]) -> bool {
    let (mut g, mut n) = (0, 0);
    let mut last_star: Option<(usize, usize)> = None;
    while n < name.len() {
        match glob.get(g) {
            Some(b'*') => {
                last_star = Some((g, n));
                g += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => {
                g += 1;
                n += 1;
            }
            _ => {
                let Some((star, taken)) = last_star else { return false };
                last_star = Some((star, taken + 1));
                g = star + 1;
                n = taken + 1;
            }
        }
    }
    glob[g..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::Link;

    fn link(ifindex: u32, name: &str) -> (u32, Link) {
        let link = Link {
            ifindex,
            name: name.to_owned(),
            kind: String::new(),
            is_ethernet: true,
            is_up: true,
            is_running: true,
            is_loopback: false,
            mac: Vec::new(),
            mtu: 1500,
            addresses: Vec::new(),
            role: Role::Other,
            slot: 0,
            is_tapped: true,
        };
        (ifindex, link)
    }

    #[test]
    fn names_and_globs_select() {
        let selection = InterfaceSelection::parse("eth0, eni*,vlan?").unwrap();
        assert!(!selection.is_any());
        for name in ["eth0", "eni", "eni0123456789a", "vlan1"] {
            assert!(selection.matches(name), "{name}");
        }
        for name in ["eth1", "eth00", "en", "xeni1", "vlan", "vlan12", ""] {
            assert!(!selection.matches(name), "{name}");
        }
    }

    #[test]
    fn any_eth_takes_everything_also_within_a_list() {
        for value in ["any-eth", " any-eth ", "eth0,any-eth"] {
            let selection = InterfaceSelection::parse(value).unwrap();
            assert!(selection.is_any() && selection.matches("whatever"), "{value:?}");
        }
        assert_eq!(InterfaceSelection::parse("any-eth").unwrap(), InterfaceSelection::default());
    }

    #[test]
    fn a_bad_list_names_flag_and_value() {
        for value in ["", "eth0,", ",", "a b", "eth0/1", "0123456789abcdef", "..", "eth0:1"] {
            let error = InterfaceSelection::parse(value).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--interface {value:?}: ")), "{error}");
        }
        assert!(InterfaceSelection::parse("0123456789abcde,a*0123456789abcd*").is_ok());
    }

    #[test]
    fn only_plain_names_can_be_missing() {
        let view = View { links: [link(1, "eth0")].into(), ..View::default() };
        let selection = InterfaceSelection::parse("eth0,eth1,eni*,vlan?").unwrap();
        assert_eq!(selection.missing(&view), ["eth1"]);
        assert!(InterfaceSelection::default().missing(&view).is_empty());
    }

    #[test]
    fn the_first_override_that_matches_counts() {
        let mut overrides = RoleOverrides::default();
        overrides.force("--uplink", "eth*", Role::Uplink).unwrap();
        overrides.force("--pod-interface", "eth1,tap*", Role::Pod).unwrap();
        assert_eq!(overrides.role_of("eth1"), Some(Role::Uplink));
        assert_eq!(overrides.role_of("tap7"), Some(Role::Pod));
        assert_eq!(overrides.role_of("lo"), None);
        let error = overrides.force("--uplink", "", Role::Uplink).unwrap_err();
        assert!(error.to_string().starts_with("--uplink \"\""), "{error}");
    }

    /// The definition, exponential and obvious.
    fn slow_match(glob: &[u8], name: &[u8]) -> bool {
        match (glob, name) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => {
                slow_match(rest, name) || (!name.is_empty() && slow_match(glob, &name[1..]))
            }
            ([b'?', rest @ ..], [_, tail @ ..]) => slow_match(rest, tail),
            ([byte, rest @ ..], [first, tail @ ..]) => byte == first && slow_match(rest, tail),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn globs_match_as_their_definition_says(glob in "[ab*?]{0,8}", name in "[ab]{0,8}") {
            let (glob, name) = (glob.as_bytes(), name.as_bytes());
            prop_assert_eq!(glob_matches(glob, name), slow_match(glob, name));
        }
    }
}
