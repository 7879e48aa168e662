//! `scripts/lab`: a lab by hand. Parses, calls [`tests::lab`], prints.
#![expect(clippy::print_stdout, reason = "a command line's face")]

use clap::{Parser, Subcommand};
use std::{
    io::{BufRead as _, BufReader},
    net::{IpAddr, SocketAddr},
    os::unix::process::CommandExt as _,
    process::{self, ExitCode, Stdio},
};
use tests::lab::{
    Lab, LabError, LabSpec, Overlay, Protocol, Refusal, RelaySpec, Service, run_attached,
};

/// What a relay says when it has begun.
const RELAYING: &str = "relaying";

/// An EKS node group in network namespaces.
#[derive(Debug, Parser)]
#[command(name = "scripts/lab")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring a lab up.
    Up {
        /// Lower-case letters and digits; several labs can be up at once.
        #[arg(long, default_value = "lab")]
        name: String,
        /// Number of nodes, 1 to 200.
        #[arg(long, default_value_t = 2)]
        nodes: u8,
        /// Pods on each node, 0 to 100.
        #[arg(long, default_value_t = 2)]
        pods: u8,
        /// IPv6 addresses as well.
        #[arg(long)]
        ipv6: bool,
        /// MTU of the pods, bytes.
        #[arg(long, default_value_t = 1500)]
        mtu: u32,
        /// Frames leave the pods within the MTU and with checksums.
        #[arg(long)]
        no_pod_offloads: bool,
        /// Pods behind a secondary ENI on each node.
        #[arg(long, default_value_t = 0)]
        eni_pods: u8,
        /// Pods with branch ENIs (strict security groups for pods) on each node.
        #[arg(long, default_value_t = 0)]
        branch_pods: u8,
        /// Pods of an overlay on each node.
        #[arg(long, default_value_t = 0)]
        overlay_pods: u8,
        /// Which overlay: vxlan, vxlan:PORT, geneve or ipip.
        #[arg(long, default_value = "vxlan")]
        overlay: Overlay,
        /// Instances in the VPC that are no nodes: db, and cache among the nodes' subnets.
        #[arg(long)]
        bare: bool,
        /// Super-frames of up to 180 kB.
        #[arg(long)]
        big_tcp: bool,
    },
    /// Take a lab down, with everything that runs in it.
    Down {
        /// Which.
        #[arg(long, default_value = "lab")]
        name: String,
        /// All labs of this machine.
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
    /// Run a command on a host of the lab.
    Exec {
        /// Which lab.
        #[arg(long, default_value = "lab")]
        name: String,
        /// node1, node1-pod2, node1-branch1, vpc, inet, db or sensor.
        host: String,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        words: Vec<String>,
    },
    /// Add a ClusterIP service on every node.
    Service {
        /// Which lab.
        #[arg(long, default_value = "lab")]
        name: String,
        /// tcp or udp.
        #[arg(long, default_value = "tcp")]
        protocol: Protocol,
        /// The service's address and port, such as 172.20.0.10:80.
        address: SocketAddr,
        /// Address and port of each backend.
        backends: Vec<SocketAddr>,
        /// Port of the nodes' own addresses that leads there too.
        #[arg(long)]
        node_port: Option<u16>,
        /// By the node port only to backends of the same node, with the client's address.
        #[arg(long, requires = "node_port")]
        local_only: bool,
        /// Without backends: refuse by a TCP reset.
        #[arg(long)]
        reset: bool,
    },
    /// Make service addresses a node's own, as NodeLocal DNS does.
    NodeDns {
        /// Which lab.
        #[arg(long, default_value = "lab")]
        name: String,
        /// The node's number.
        node: usize,
        /// The addresses.
        #[arg(required = true)]
        addresses: Vec<IpAddr>,
    },
    /// Move frames between a trunk and the TAPs of its VLANs, or through an overlay's tunnel: run
    /// by `up`, inside a namespace.
    #[command(hide = true)]
    Relay {
        /// What to relay, as JSON.
        what: String,
    },
    /// Say what is up.
    Status {
        /// Only this lab.
        #[arg(long)]
        name: Option<String>,
    },
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {}", error.chain());
            match error {
                LabError::Invalid(_)
                | LabError::NotRoot
                | LabError::Exists(_)
                | LabError::NotUp(_)
                | LabError::NoHost { .. } => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(command: Command) -> Result<ExitCode, LabError> {
    match command {
        Command::Up {
            name,
            nodes,
            pods,
            ipv6,
            mtu,
            no_pod_offloads,
            eni_pods,
            branch_pods,
            overlay_pods,
            overlay,
            bare,
            big_tcp,
        } => {
            let lab = Lab::up(LabSpec {
                nodes,
                pods,
                ipv6,
                mtu,
                pod_offloads: !no_pod_offloads,
                eni_pods,
                branch_pods,
                overlay_pods,
                overlay,
                bare,
                big_tcp,
                ..LabSpec::new(name)
            })?;
            print(&lab)?;
            let relays = lab.relays();
            let name = lab.spec().name.clone();
            lab.keep();
            // Those of this process end with it: processes take over.
            if let Err(error) = relays.iter().try_for_each(start_relay) {
                Lab::down(&name)?;
                return Err(error);
            }
        }
        Command::Down { all: true, .. } => {
            for name in Lab::names()? {
                Lab::down(&name)?;
            }
        }
        Command::Down { name, all: false } => Lab::down(&name)?,
        Command::Exec { name, host, words } => {
            let lab = Lab::attach(&name)?;
            let status = run_attached(lab.host(&host)?, &words)?;
            // A command that a signal ended has no code of its own.
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            return Ok(ExitCode::from(code));
        }
        Command::Service { name, protocol, address, backends, node_port, local_only, reset } => {
            let refusal = if reset { Refusal::TcpReset } else { Refusal::PortUnreachable };
            let service = Service::new(protocol, address, &backends);
            let service = Service { node_port, local_only, refusal, ..service };
            Lab::attach(&name)?.add_service(&service)?;
        }
        Command::NodeDns { name, node, addresses } => {
            let lab = Lab::attach(&name)?;
            lab.host(&format!("node{node}"))?;
            lab.add_node_dns(node, &addresses)?;
        }
        Command::Relay { what } => {
            let relay: RelaySpec = serde_json::from_str(&what)
                .map_err(|error| LabError::Invalid(format!("relay {what:?}: {error}")))?;
            relay.run(|| println!("{RELAYING}"))?;
        }
        Command::Status { name: Some(name) } => print(&Lab::attach(&name)?)?,
        Command::Status { name: None } => {
            let names = Lab::names()?;
            if names.is_empty() {
                println!("no lab is up");
            }
            for name in names {
                match Lab::attach(&name) {
                    Ok(lab) => print(&lab)?,
                    Err(error) => println!("lab {name}: incomplete ({})", error.chain()),
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts a process that relays until the lab is taken down, and returns when it does.
fn start_relay(relay: &RelaySpec) -> Result<(), LabError> {
    let what = serde_json::to_string(relay)
        .map_err(|error| LabError::Invalid(format!("a relay as JSON: {error}")))?;
    let program = std::env::current_exe()
        .map_err(|source| LabError::Start { program: "scripts/lab relay".to_owned(), source })?;
    let mut command = process::Command::new("ip");
    command.args(["netns", "exec", relay.namespace()]).arg(program).args(["relay", &what]);
    // Not in the terminal's group: it stays when the caller is interrupted.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let failed = |source| LabError::Start { program: "scripts/lab relay".to_owned(), source };
    let mut child = command.spawn().map_err(failed)?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut line).map_err(failed)?;
    }
    if line.trim() == RELAYING {
        return Ok(());
    }
    Err(LabError::Unexpected {
        what: "scripts/lab relay".to_owned(),
        detail: format!("it ended before it relayed ({what})"),
    })
}

fn print(lab: &Lab) -> Result<(), LabError> {
    println!("lab {}, {} processes in it", lab.spec().name, lab.processes()?.len());
    for host in lab.hosts() {
        let veth = lab.pods().find(|pod| pod.name() == host.name()).map(|pod| pod.host_veth());
        let v6 = host.v6().map(|address| address.to_string()).unwrap_or_default();
        println!(
            "  {:<12} {:<14} {v6:<18} {:<16} {}",
            host.name(),
            host.v4().to_string(),
            veth.unwrap_or_default(),
            host.namespace()
        );
    }
    Ok(())
}
