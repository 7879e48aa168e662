//! The manifest and the Dockerfile say what the program and Kubernetes understand.
//!
//! ```text
//! deploy/podtap.yaml --kubernetes-validate--> the schemas of Kubernetes
//!                    --PyYAML, as JSON------> names, capabilities, ports <--> README, contract
//! ```
//!
//! Both tools come from PyPI into a virtual environment under `target/`; without a network the
//! tests that need them say so and are skipped.

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::OnceLock;

    use serde_json::Value;

    const VALIDATOR: &str = "kubernetes-validate==1.37.0";
    /// The oldest and the newest that the validator carries and EKS offers, and one between.
    const KUBERNETES: [&str; 3] = ["1.30", "1.33", "1.37"];
    /// The reference's variables, each of which the tap honours.
    const REFERENCE_VARIABLES: [&str; 5] =
        ["EXTRAHOP_SENSOR_IP", "RPCAPD_TARGET_PORT", "PODNET", "SVCNET", "INTERFACE"];
    /// Flags of `podtap run`, from the contract of the command line; each has a variable
    /// `PODTAP_<FLAG>`.
    const RUN_FLAGS: [&str; 36] = [
        "--interface",
        "--sensor",
        "--port",
        "--podnet",
        "--svcnet",
        "--tapped-net",
        "--untapped-net",
        "--nodeport-range",
        "--overlay-ports",
        "--settle-ms",
        "--settle-memory",
        "--capture",
        "--election",
        "--filter",
        "--preselect",
        "--encoding",
        "--datagram-bytes",
        "--flush-us",
        "--latency",
        "--dedup-window-ms",
        "--ignore-dscp",
        "--dedup-memory",
        "--workers",
        "--snaplen",
        "--ring-memory",
        "--sensors-mode",
        "--listen",
        "--allow-hosts",
        "--null-auth",
        "--password-file",
        "--allow-promisc",
        "--sessions-per-sensor",
        "--balance-settle-ms",
        "--state-socket",
        "--metrics",
        "--print-config",
    ];

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
    }

    fn read(path: &str) -> String {
        fs::read_to_string(root().join(path)).unwrap()
    }

    /// The folder of the virtual environment's programs; `None`, said once, if it cannot be had.
    fn tools() -> Option<&'static Path> {
        static TOOLS: OnceLock<Option<PathBuf>> = OnceLock::new();
        TOOLS.get_or_init(install).as_deref()
    }

    fn install() -> Option<PathBuf> {
        let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kubernetes-validate");
        let bin = venv.join("bin");
        let ran = |command: &mut Command| {
            let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            output.status.success().then_some(()).ok_or(format!("{command:?}: {text}"))
        };
        let version = || ran(Command::new(bin.join("kubernetes-validate")).arg("--version"));
        let installed = version().or_else(|_| {
            ran(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
            ran(Command::new(bin.join("pip")).args(["install", "--quiet", VALIDATOR]))?;
            version()
        });
        installed.map_err(|reason| eprintln!("SKIPPED: no kubernetes-validate: {reason}")).ok()?;
        Some(bin)
    }

    fn validate(manifest: &Path, version: &str) -> Option<(bool, String)> {
        let mut command = Command::new(tools()?.join("kubernetes-validate"));
        command.args(["--strict", "--kubernetes-version", version]).arg(manifest);
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        Some((output.status.success(), String::from_utf8(text).unwrap()))
    }

    /// The manifest's documents.
    fn documents() -> Option<Vec<Value>> {
        let program = "import json, sys, yaml; \
                       json.dump(list(yaml.safe_load_all(open(sys.argv[1]))), sys.stdout)";
        let mut command = Command::new(tools()?.join("python3"));
        let output =
            command.args(["-c", program]).arg(root().join("deploy/podtap.yaml")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(serde_json::from_slice(&output.stdout).unwrap())
    }

    fn daemonset() -> Option<Value> {
        let documents = documents()?;
        documents.into_iter().find(|document| document["kind"] == "DaemonSet")
    }

    /// What stands in a list, each as text.
    fn texts(list: &Value) -> Vec<String> {
        let items = list.as_array().into_iter().flatten();
        items.map(|item| item.as_str().unwrap().to_owned()).collect()
    }

    fn variables(container: &Value) -> Vec<(String, String)> {
        let variables = container["env"].as_array().unwrap().iter();
        let text =
            |value: &Value| value.as_str().expect("a string, quoted if it is a number").into();
        variables.map(|variable| (text(&variable["name"]), text(&variable["value"]))).collect()
    }

    /// Every variable that the program reads.
    fn known_variables() -> BTreeSet<String> {
        let flags = RUN_FLAGS.iter().map(|flag| {
            let name = flag.trim_start_matches('-').replace('-', "_").to_uppercase();
            format!("PODTAP_{name}")
        });
        flags.chain(REFERENCE_VARIABLES.map(str::to_owned)).collect()
    }

    #[test]
    fn the_manifest_is_valid_for_kubernetes() {
        let manifest = root().join("deploy/podtap.yaml");
        for version in KUBERNETES {
            let Some((valid, text)) = validate(&manifest, version) else { return };
            assert!(valid, "{text}");
            assert!(text.contains("daemonset/podtap") && text.contains("namespace/extrahop"));
        }
    }

    #[test]
    fn the_validator_would_notice() {
        let manifest = read("deploy/podtap.yaml");
        let folder = tempfile::tempdir().unwrap();
        for (from, to) in [
            ("hostNetwork: true", "hostNetwork: 1"),
            ("hostNetwork: true", "hostNetwrok: true"),
            ("terminationGracePeriodSeconds: 10", "terminationGracePeriodSeconds: ten"),
        ] {
            assert!(manifest.contains(from));
            let path = folder.path().join("x.yaml");
            fs::write(&path, manifest.replace(from, to)).unwrap();
            let Some((valid, _)) = validate(&path, KUBERNETES[2]) else { return };
            assert!(!valid, "{to}");
        }
    }

    #[test]
    fn what_the_vendor_s_commands_rely_on_is_kept() {
        let Some(daemonset) = daemonset() else { return };
        assert_eq!(daemonset["metadata"]["namespace"], "extrahop");
        let template = &daemonset["spec"]["template"];
        for labels in [
            &daemonset["spec"]["selector"]["matchLabels"],
            &template["metadata"]["labels"],
            &daemonset["metadata"]["labels"],
        ] {
            assert_eq!(labels["component"], "extrahop-rpcapd");
        }
        let affinity = &template["spec"]["affinity"]["nodeAffinity"];
        let required = &affinity["requiredDuringSchedulingIgnoredDuringExecution"];
        let terms = required["nodeSelectorTerms"].as_array().unwrap();
        // Terms are alternatives: with a second one, the opt-out would be none.
        assert_eq!(terms.len(), 1);
        let mut opt_out = terms[0]["matchExpressions"].as_array().unwrap().iter();
        let key = |expression: &&Value| expression["key"] == "extrahop/norpcapd";
        assert_eq!(opt_out.find(key).unwrap()["operator"], "DoesNotExist");
        let names: Vec<String> = variables(&template["spec"]["containers"][0])
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        for name in REFERENCE_VARIABLES {
            assert!(names.iter().any(|given| given == name), "{name} is not in the manifest");
        }
    }

    #[test]
    fn the_program_knows_every_variable_and_flag() {
        let Some(daemonset) = daemonset() else { return };
        let container = &daemonset["spec"]["template"]["spec"]["containers"][0];
        let known = known_variables();
        for (name, value) in variables(container) {
            assert!(known.contains(&name), "{name}");
            assert!(!value.is_empty(), "{name}");
        }
        let args = texts(&container["args"]);
        assert_eq!(args[0], "run");
        for flag in &args[1..] {
            let name = flag.split('=').next().unwrap();
            assert!(RUN_FLAGS.contains(&name), "{flag}");
        }
    }

    #[test]
    fn the_probes_ask_where_the_metrics_are() {
        let Some(daemonset) = daemonset() else { return };
        let container = &daemonset["spec"]["template"]["spec"]["containers"][0];
        let variables = variables(container);
        let (_, address) = variables.iter().find(|(name, _)| name == "PODTAP_METRICS").unwrap();
        let address: std::net::SocketAddr = address.parse().unwrap();
        let port = &container["ports"][0];
        assert_eq!(port["containerPort"], address.port());
        for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
            let get = &container[probe]["httpGet"];
            assert_eq!((&get["path"], &get["port"]), (&Value::from(path), &port["name"]));
        }
    }

    #[test]
    fn no_more_is_granted_than_the_readme_says() {
        let readme = read("deploy/README.md");
        let granted: BTreeSet<String> = readme
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once("` | yes |"))
            .map(|(capability, _)| capability.to_owned())
            .collect();
        assert!(!granted.is_empty());
        let Some(daemonset) = daemonset() else { return };
        let pod = &daemonset["spec"]["template"]["spec"];
        assert_eq!(pod["containers"].as_array().unwrap().len(), 1);
        let security = &pod["containers"][0]["securityContext"];
        let added = texts(&security["capabilities"]["add"]);
        assert_eq!(added.into_iter().collect::<BTreeSet<_>>(), granted);
        assert_eq!(texts(&security["capabilities"]["drop"]), ["ALL"]);
        assert_eq!(security["privileged"], false);
        assert_eq!(security["allowPrivilegeEscalation"], false);
        assert_eq!(security["readOnlyRootFilesystem"], true);
        assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(pod["automountServiceAccountToken"], false);
        for absent in ["hostPID", "hostIPC", "volumes", "initContainers"] {
            assert!(pod[absent].is_null(), "{absent}");
        }
        let resources = &pod["containers"][0]["resources"];
        assert_eq!(resources["limits"]["memory"], resources["requests"]["memory"]);
        assert!(resources["limits"]["cpu"].is_null());
    }

    #[test]
    fn the_image_is_built_by_the_pinned_toolchain_and_named_by_the_version() {
        let dockerfile = read("deploy/Dockerfile");
        let pinned = read("rust-toolchain.toml");
        let channel = pinned.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap();
        let channel = channel.trim_matches('"');
        assert!(dockerfile.contains(&format!("\nFROM rust:{channel}-bookworm AS build\n")));
        assert!(dockerfile.contains(&format!("\nENV RUSTUP_TOOLCHAIN={channel}\n")));
        assert!(dockerfile.contains("\nENTRYPOINT [\"/usr/local/bin/podtap\"]\nCMD [\"run\"]\n"));
        for copied in ["engine", "bench", "tests"] {
            assert!(root().join(copied).join("Cargo.toml").exists());
            assert!(dockerfile.contains(&format!("\nCOPY {copied} {copied}\n")));
        }
        let tag = format!("podtap:{}", env!("CARGO_PKG_VERSION"));
        for file in ["deploy/Dockerfile", "deploy/podtap.yaml", "deploy/README.md"] {
            assert!(read(file).contains(&tag), "{file} has no {tag}");
        }
    }
}
