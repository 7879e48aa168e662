//! `scripts/lab`: a lab by hand. Parses, calls [`tests::lab`], prints.
#![expect(clippy::print_stdout, reason = "a command line's face")]

use clap::{Parser, Subcommand};
use std::{net::SocketAddr, process::ExitCode};
use tests::lab::{Lab, LabError, LabSpec, Protocol, Service, run_attached};

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
        /// node1, node1-pod2, vpc, inet or sensor.
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
        Command::Up { name, nodes, pods, ipv6, mtu, no_pod_offloads } => {
            let pod_offloads = !no_pod_offloads;
            let spec = LabSpec { nodes, pods, ipv6, mtu, pod_offloads, ..LabSpec::new(name) };
            let lab = Lab::up(spec)?;
            print(&lab)?;
            lab.keep();
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
        Command::Service { name, protocol, address, backends } => {
            Lab::attach(&name)?.add_service(&Service::new(protocol, address, &backends))?;
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
