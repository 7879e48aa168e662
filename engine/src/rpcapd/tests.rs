//! From a command line and a file to a configuration, and the file read again.

use super::*;
use crate::control::NullAuth;

fn line(args: &[&str]) -> CommandLine {
    CommandLine::parse(args.iter().map(OsString::from)).unwrap()
}

fn nothing(_name: &str) -> Option<OsString> {
    None
}

fn run(args: &[&str]) -> Result<(Config, Vec<String>, Reloader), RpcapdError> {
    match prepare(&line(args), nothing)? {
        Task::Run { config, remarks, reloader } => Ok((*config, remarks, *reloader)),
        Task::Print(text) => panic!("{text}"),
    }
}

/// A folder with a file in it, and the file's name.
fn file(text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("rpcapd.ini").to_str().unwrap().to_owned();
    fs::write(&name, text).unwrap();
    (folder, name)
}

fn hosts(config: &Config) -> Vec<String> {
    config.sensors.iter().map(ToString::to_string).collect()
}

#[test]
fn the_start_of_the_reference_s_container_is_a_configuration() {
    let (_folder, name) = file(
        "ActiveClient = 10.10.10.10,2003\nActiveClient = 10.10.10.11,2103\nNullAuthPermit = YES\n",
    );
    let args = ["-v", "-f", &name, "-i", "any-eth", "-D"];
    let (config, remarks, _) = run(&args).unwrap();
    assert_eq!(hosts(&config), ["10.10.10.10:2003", "10.10.10.11:2103"]);
    assert_eq!(config.preselected.as_deref(), Some("any-eth"));
    assert!(config.interfaces.is_any() && config.listen.is_empty());
    assert_eq!(config.access.null, NullAuth::Everybody);
    assert_eq!(config.policy.control_ports, [2003, 2103]);
    assert_eq!(remarks, [""; 0]);
}

#[test]
fn ipv4_only_holds_for_names_of_sensors_too_and_through_a_reload() {
    let (_folder, name) = file("ActiveClient = h,1\nNullAuthPermit = YES\n");
    for (args, is_ipv4_only) in [(&["-v", "-f", &name][..], false), (&["-v4", "-f", &name], true)] {
        let (config, _, mut reloader) = run(args).unwrap();
        let again = reloader.reload().unwrap().unwrap();
        for config in [config, again] {
            let control = config.control(crate::control::SensorAddresses::default());
            assert_eq!(control.is_ipv4_only, is_ipv4_only, "{args:?}");
        }
    }
}

#[test]
fn a_broken_file_is_named_with_line_and_text() {
    let (_folder, name) = file("NullAuthPermit = YES\nActiveClient = h,http\n");
    let said = run(&["-v", "-f", &name]).unwrap_err().to_string();
    let expected = format!("{name}:2: ActiveClient = h,http: \"http\" is not a port");
    assert!(said.starts_with(&expected), "{said}");
    let said = run(&["-v", "-f", "/no/such.ini"]).unwrap_err().to_string();
    assert!(said.starts_with("-f /no/such.ini: No such file"), "{said}");
}

#[test]
fn who_could_not_authenticate_is_told_so() {
    let (_, remarks, _) = run(&["-v", "-a", "h"]).unwrap();
    assert!(remarks[0].starts_with("nobody can authenticate"), "{remarks:?}");
    let (config, remarks, _) = run(&["-v", "-n", "-a", "h"]).unwrap();
    assert_eq!((remarks.len(), config.access.null), (0, NullAuth::Everybody));
}

#[test]
fn what_s_saves_f_reads() {
    let (folder, _) = file("");
    let name = folder.path().join("saved.ini").to_str().unwrap().to_owned();
    let (config, ..) = run(&["-vn", "-a", "h,7,g", "-l", "10.0.0.0/8", "-s", &name]).unwrap();
    let (again, ..) = run(&["-v", "-f", &name]).unwrap();
    assert_eq!(hosts(&again), ["h:7", "g:2003"]);
    assert_eq!(hosts(&again), hosts(&config));
    assert_eq!(again.allowed_hosts, config.allowed_hosts);
    assert_eq!(again.access.null, NullAuth::Everybody);
    let said = run(&["-v", "-a", "h", "-s", "/no/such/folder/x"]).unwrap_err().to_string();
    assert!(said.starts_with("-s /no/such/folder/x: No such file"), "{said}");
}

#[test]
fn help_and_settings_are_printed_and_nothing_is_run() {
    for (args, expected) in
        [(&["-h"][..], "usage: rpcapd"), (&["-v", "-a", "h", "--print-config"], "# rpcapd -a")]
    {
        let Task::Print(text) = prepare(&line(args), nothing).unwrap() else { panic!("{args:?}") };
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn the_file_read_again_changes_sensors_hosts_and_null_authentication_only() {
    let (_folder, name) = file("ActiveClient = a,1\nActiveClient = b,2\nNullAuthPermit = YES\n");
    let (old, _, mut reloader) = run(&["-v", "-f", &name, "-t", "8000"]).unwrap();
    fs::write(&name, "ActiveClient = b,2\nActiveClient = c,3\nPassiveClient = 10.0.0.1\n").unwrap();
    let new = reloader.reload().unwrap().unwrap();
    let changes = Changes::between(&old.sensors, &new.sensors);
    let texts = |list: &[crate::control::SensorTarget]| {
        list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(texts(&changes.added), "c:3");
    assert_eq!(texts(&changes.removed), "a:1");
    assert_eq!(texts(&changes.kept), "b:2");
    assert_eq!(new.allowed_hosts.nets.len(), 1);
    assert_eq!(new.access.null, NullAuth::Nobody);
    assert_eq!(new.policy.control_ports, [2, 3]);
    assert_eq!(new.datagram_bytes, Some(8000));
}

#[test]
fn a_file_that_became_wrong_changes_nothing_and_says_why() {
    let (_folder, name) = file("ActiveClient = a,1\nNullAuthPermit = YES\n");
    let (_, _, mut reloader) = run(&["-v", "-f", &name]).unwrap();
    for (text, expected) in [
        ("ActiveClient = a,1\nActiveClient = b,x\n", ":2: ActiveClient = b,x: \"x\" is not a port"),
        ("NullAuthPermit = YES\n", "-v: active mode only, and no sensor"),
    ] {
        fs::write(&name, text).unwrap();
        let said = reloader.reload().unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }
    fs::remove_file(&name).unwrap();
    assert!(reloader.reload().unwrap_err().to_string().contains("No such file"));
    fs::write(&name, "ActiveClient = b,1\n").unwrap();
    assert_eq!(hosts(&reloader.reload().unwrap().unwrap()), ["b:1"]);
}

#[test]
fn without_a_file_there_is_nothing_to_read_again() {
    let (_, _, mut reloader) = run(&["-vn", "-a", "h"]).unwrap();
    assert!(reloader.reload().unwrap().is_none());
}

/// An Ethernet interface of this machine.
fn interface() -> Option<String> {
    let view = crate::net::snapshot(InterfaceSelection::default(), RoleOverrides::default());
    view.unwrap().links.values().find(|link| link.is_ethernet).map(|link| link.name.clone())
}

#[test]
fn a_file_whose_sensor_wants_an_interface_that_is_not_tapped_changes_nothing() {
    let Some(present) = interface() else {
        return eprintln!("SKIPPED: no Ethernet interface here for ifname=");
    };
    let (_folder, name) = file("ActiveClient = a,1\nNullAuthPermit = YES\n");
    let new = format!("ActiveClient = a,1\nActiveClient = b,2,ifname={present}\n");
    let (_, _, mut reloader) = run(&["-v", "-f", &name, "-i", "elsewhere"]).unwrap();
    let (_, _, mut of_all) = run(&["-v", "-f", &name, "-i", "any-eth"]).unwrap();
    fs::write(&name, new).unwrap();
    let said = reloader.reload().unwrap_err().to_string();
    let expected = format!("sensor b:2/{present}: its interface {present} is not tapped");
    assert!(said.starts_with(&expected), "{said}");
    assert_eq!(hosts(&of_all.reload().unwrap().unwrap()), ["a:1", &format!("b:2/{present}")]);
    // A file that can be used is taken over all the same.
    fs::write(&name, "ActiveClient = c,3\n").unwrap();
    assert_eq!(hosts(&reloader.reload().unwrap().unwrap()), ["c:3"]);
}

/// What is logged meanwhile.
fn logged(doing: impl FnOnce()) -> String {
    let (mut log, writer) = std::io::pipe().unwrap();
    let subscriber = tracing_subscriber::fmt().with_writer(std::sync::Mutex::new(writer)).finish();
    tracing::subscriber::with_default(subscriber, doing);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut log, &mut text).unwrap();
    text
}

#[test]
fn a_file_read_again_by_which_nobody_can_authenticate_is_said_to_be_one() {
    let (_folder, name) = file("ActiveClient = a,1\nNullAuthPermit = YES\n");
    let (_, _, mut reloader) = run(&["-v", "-f", &name]).unwrap();
    for (line, is_said) in [("YES", false), ("NO", true)] {
        fs::write(&name, format!("ActiveClient = a,1\nNullAuthPermit = {line}\n")).unwrap();
        let log = logged(|| drop(reloader.reload().unwrap()));
        assert!(log.contains("read again"), "{log}");
        assert_eq!(log.contains("nobody can authenticate"), is_said, "{log}");
    }
}

#[test]
fn what_does_not_fit_the_machine_names_its_option() {
    for (option, value, expected) in
        [("-i", "nope0", "rpcapd -i: no such interface: nope0"), ("-z", "1000", "rpcapd -z: ")]
    {
        let (config, ..) = run(&["-vn", "-a", "h", option, value]).unwrap();
        let error = crate::supervisor::Machine::check(&config).unwrap_err();
        if matches!(error, crate::supervisor::StartError::Privilege { .. }) {
            return eprintln!("SKIPPED: {error}");
        }
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}
