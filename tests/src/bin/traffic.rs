//! Traffic by hand, inside whatever namespace it is started in:
//! `scripts/lab exec node1-pod1 -- target/debug/traffic http 10.0.2.101:8080`.
#![expect(clippy::print_stdout, reason = "a command line's face")]

use clap::{Parser, Subcommand, ValueEnum};
use std::{
    io,
    net::SocketAddr,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};
use tests::traffic::{Bulk, Datagrams, Dns, Http, Sent, Serve, Server};

/// Clients print what they sent as one JSON object.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until no request has come for a while.
    Serve {
        /// What to serve.
        kind: Kind,
        /// Addresses to listen on.
        #[arg(required = true)]
        addresses: Vec<SocketAddr>,
        /// End when idle for this many seconds.
        #[arg(long, default_value_t = 60)]
        idle_exit: u64,
    },
    /// HTTP requests.
    Http {
        /// Server or service.
        to: SocketAddr,
        /// How many.
        #[arg(long, default_value_t = 100)]
        requests: u32,
        /// Over how many connections.
        #[arg(long, default_value_t = 4)]
        connections: u32,
        /// Largest body, bytes.
        #[arg(long, default_value_t = 2000)]
        max_body: usize,
        /// Decides sizes and contents.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Port of the first connection.
        #[arg(long)]
        client_port: Option<u16>,
    },
    /// DNS queries over UDP.
    Dns {
        /// Server or service.
        to: SocketAddr,
        /// How many.
        #[arg(long, default_value_t = 100)]
        queries: u32,
        /// From how many ports.
        #[arg(long, default_value_t = 4)]
        sockets: u32,
        /// Part of every name.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Port of the first socket.
        #[arg(long)]
        client_port: Option<u16>,
    },
    /// Bytes over one TCP connection.
    Bulk {
        /// Server or service.
        to: SocketAddr,
        /// How many.
        #[arg(long, default_value_t = 10_000_000)]
        bytes: u64,
        /// Decides the contents.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// The client's port.
        #[arg(long)]
        client_port: Option<u16>,
        /// Payload bits a second, at most.
        #[arg(long)]
        bits_per_second: Option<u64>,
    },
    /// UDP datagrams that nobody answers.
    Datagrams {
        /// A `discard` server.
        to: SocketAddr,
        /// How many different ones.
        #[arg(long, default_value_t = 100)]
        count: u32,
        /// How often each.
        #[arg(long, default_value_t = 1)]
        times: u32,
        /// Payload of each, bytes.
        #[arg(long, default_value_t = 500)]
        payload: usize,
        /// Decides the contents.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// The client's port.
        #[arg(long)]
        client_port: Option<u16>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Http,
    Dns,
    Bulk,
    Discard,
}

fn main() -> ExitCode {
    let result = run(Args::parse().command).and_then(|sent| {
        if let Some(sent) = sent {
            println!("{}", serde_json::to_string(&sent)?);
        }
        Ok(())
    });
    if let Err(error) = result {
        eprintln!("traffic: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run(command: Command) -> io::Result<Option<Sent>> {
    match command {
        Command::Serve { kind, addresses, idle_exit } => {
            let serve = match kind {
                Kind::Http => Serve::Http,
                Kind::Dns => Serve::Dns,
                Kind::Bulk => Serve::Bulk,
                Kind::Discard => Serve::Discard,
            };
            let server = Server::listen(serve, &addresses)?;
            println!("serving");
            let mut seen = (0, Instant::now());
            while seen.1.elapsed() < Duration::from_secs(idle_exit) {
                thread::sleep(Duration::from_millis(100));
                if server.requests() != seen.0 {
                    seen = (server.requests(), Instant::now());
                }
            }
            Ok(None)
        }
        Command::Http { to, requests, connections, max_body, seed, client_port } => {
            Http { to, requests, connections, max_body, seed, client_port }.run().map(Some)
        }
        Command::Dns { to, queries, sockets, seed, client_port } => {
            Dns { to, queries, sockets, seed, client_port }.run().map(Some)
        }
        Command::Bulk { to, bytes, seed, client_port, bits_per_second } => {
            Bulk { to, bytes, seed, client_port, bits_per_second }.run().map(Some)
        }
        Command::Datagrams { to, count, times, payload, seed, client_port } => {
            Datagrams { to, count, times, payload, seed, client_port }.run().map(Some)
        }
    }
}
