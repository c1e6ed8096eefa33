//! The commands, one file each. Exit status: 0 done, 1 failed, 2 bad use or configuration.

mod check;
mod demo;
mod down;
mod drain;
mod explain;
mod failure;
mod forwarder;
mod output;
mod plan;
mod reload;
mod replay;
mod run;
mod server;
mod status;
mod table;
mod target;

pub use explain::End;
pub use failure::Failure;
pub use server::{Policy, Server};

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// An IP address that belongs to no network card, on whichever of them lives.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the forwarder: set up the virtual adapter and carry its traffic until told to stop.
    Run(Run),
    /// Tell the neighbours that the VIPAs are gone, wait, and stop the forwarder; the kernel forwards on.
    Drain(Drain),
    /// Delete the virtual adapter and restore every original setting.
    Down(Down),
    /// Check a configuration: exit 0, or 2 with every mistake.
    Check(Check),
    /// Show what a running forwarder does.
    Status(StatusOf),
    /// Add, remove, drain or check the servers of a running forwarder's services.
    Server(Server),
    /// Give a service of a running forwarder another policy.
    Policy(Policy),
    /// Have a running forwarder read its configuration again; what stays as it was goes on.
    Reload(Reload),
    /// Run a capture through the real forwarder, without privilege.
    Replay(Replay),
    /// Explain which source address, NIC and next hop the first packet of a flow gets, and why.
    Explain(Explain),
    /// Watch the main job on a private network on this machine.
    Demo(Demo),
    /// Be a server of `demo --balance`, which starts it.
    #[command(hide = true)]
    DemoServer(DemoServer),
}

/// `vipa run`.
#[derive(Clone, Debug, Args)]
pub struct Run {
    /// The configuration.
    #[arg(value_name = "CONFIG")]
    pub config: PathBuf,
    /// Where state is kept [default: $RUNTIME_DIRECTORY, else /run/vipa].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// When told to stop, tell the neighbours by RIP that the VIPAs are gone, and forward three seconds more.
    #[arg(long)]
    pub withdraw: bool,
    /// Log more; twice: everything.
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// `vipa drain`.
#[derive(Clone, Debug, Args)]
pub struct Drain {
    /// The forwarder of its adapter is meant; left out: the only one of this network namespace.
    #[arg(value_name = "CONFIG")]
    pub config: Option<PathBuf>,
    /// The same, without a configuration.
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub adapter: Option<String>,
    /// How long the neighbours have to take another way.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = drain::wait)]
    pub wait: Duration,
    /// Where state is kept [default: $RUNTIME_DIRECTORY, else /run/vipa].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// One JSON object, when it has stopped.
    #[arg(long)]
    pub json: bool,
}

/// `vipa down`.
#[derive(Clone, Debug, Args)]
pub struct Down {
    /// Its adapter is taken down; left out: the only one of this network namespace.
    #[arg(value_name = "CONFIG", conflicts_with = "adapter")]
    pub config: Option<PathBuf>,
    /// The adapter, where no configuration is at hand.
    #[arg(long, value_name = "NAME")]
    pub adapter: Option<String>,
    /// Stop the forwarder first, if one runs.
    #[arg(long)]
    pub stop: bool,
    /// Where state is kept [default: $RUNTIME_DIRECTORY, else /run/vipa].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Log more; twice: everything.
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// `vipa check`.
#[derive(Clone, Debug, Args)]
pub struct Check {
    /// The configuration.
    #[arg(value_name = "CONFIG")]
    pub config: PathBuf,
    /// List what `run` would set up, and what on this host would behave differently.
    #[arg(long)]
    pub plan: bool,
}

/// `vipa status`.
#[derive(Clone, Debug, Args)]
pub struct StatusOf {
    /// One JSON object.
    #[arg(long)]
    pub json: bool,
    /// The adapter, where this network namespace has several.
    #[arg(long, value_name = "NAME")]
    pub adapter: Option<String>,
    /// Where state is kept [default: $RUNTIME_DIRECTORY, else /run/vipa].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

/// `vipa reload`.
#[derive(Clone, Debug, Args)]
pub struct Reload {
    /// One JSON object.
    #[arg(long)]
    pub json: bool,
    /// The adapter, where this network namespace has several.
    #[arg(long, value_name = "NAME")]
    pub adapter: Option<String>,
    /// Where state is kept [default: $RUNTIME_DIRECTORY, else /run/vipa].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

/// `vipa replay`.
#[derive(Clone, Debug, Args)]
pub struct Replay {
    /// The configuration; its [replay] stands for what a kernel would tell.
    #[arg(long, value_name = "CONFIG")]
    pub config: PathBuf,
    /// The capture, pcap or pcapng.
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// What comes out, pcapng with an interface for each device.
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Where Ethernet packets came in, in a capture that names no interfaces.
    #[arg(long = "in", value_name = "NIC")]
    pub nic: Option<String>,
    /// One JSON object on stdout, and nothing else there.
    #[arg(long)]
    pub json: bool,
}

/// `vipa explain`.
#[derive(Clone, Debug, Args)]
pub struct Explain {
    /// The configuration; with --live only its adapter's name is read.
    #[arg(long, value_name = "CONFIG", required_unless_present = "live")]
    pub config: Option<PathBuf>,
    /// tcp, udp, icmp, or an IANA number.
    #[arg(long, value_name = "P")]
    pub protocol: String,
    /// Source as the host sends it: an address, with a port or without (203.0.113.10:40000, [2001:db8::10]:40000).
    #[arg(long, value_name = "A[:p]")]
    pub from: End,
    /// Destination: an address, and a port of TCP and UDP.
    #[arg(long, value_name = "B[:p]")]
    pub to: End,
    /// The user who made the socket, a name or a number.
    #[arg(long, value_name = "U")]
    pub user: Option<String>,
    /// As if this NIC were down; may be said several times.
    #[arg(long, value_name = "NIC")]
    pub down: Vec<String>,
    /// Ask the forwarder that runs here: NICs, routes and neighbours as they are now.
    #[arg(long)]
    pub live: bool,
    /// The adapter, where this network namespace has several.
    #[arg(long, value_name = "NAME", requires = "live", conflicts_with = "config")]
    pub adapter: Option<String>,
    /// Where state is kept [default: $RUNTIME_DIRECTORY, else /run/vipa].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// One JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `vipa demo`.
#[derive(Clone, Debug, Args)]
pub struct Demo {
    /// Watch a service instead: three servers that are loaded, killed, drained, and another policy midway.
    #[arg(long)]
    pub balance: bool,
    /// One JSON object on stdout, and nothing else there.
    #[arg(long)]
    pub json: bool,
}

/// `vipa demo-server`.
#[derive(Clone, Debug, Args)]
pub struct DemoServer {
    /// What it calls itself.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Where it serves.
    #[arg(value_name = "ADDRESS")]
    pub address: SocketAddr,
    /// Before each answer.
    #[arg(value_name = "MILLISECONDS")]
    pub pause: u64,
}

/// Does what the command line asks for. A failure is told in a line on stderr, mistakes of a
/// configuration in as many as they need.
pub fn call(arguments: &Arguments) -> ExitCode {
    let done = match &arguments.command {
        Command::Run(run) => run::run(run),
        Command::Drain(drain) => drain::run(drain),
        Command::Down(down) => down::run(down),
        Command::Check(check) => check::run(check),
        Command::Status(status) => status::run(status),
        Command::Server(server) => server::run(server),
        Command::Policy(policy) => server::policy(policy),
        Command::Reload(reload) => reload::run(reload),
        Command::Replay(replay) => replay::run(replay),
        Command::Explain(explain) => explain::run(explain),
        Command::Demo(demo) => demo::run(demo),
        Command::DemoServer(server) => demo::serve(server),
    };
    done.unwrap_or_else(|failure| {
        eprintln!("{failure}");
        failure.exit_code()
    })
}
