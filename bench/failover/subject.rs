//! Who is measured: vipa, and others in its place, with the router that fits each.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vipa::lab::topology::{Network, nic_name, vipas};
use vipa::lab::{Forwarder, Scratch};
use vipa::wire::ip::Family;

use crate::Error;
use crate::daemon::{Bfd, Daemon, Program, Timers};
use crate::traffic::Link;
use crate::trial::Failure;
use crate::vrrp::Directors;

pub(crate) const HOLD_DOWN: Duration = Duration::from_secs(1);

/// What runs on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// vipa; without BFD it probes by ARP, 300 ms × 3.
    Vipa,
    /// A routing daemon, with the VIPA on `lo`.
    Daemon(Program),
    /// Nobody: the VIPA on `lo`, equal-cost routes here and on the router. Both heed lost carrier, which is not the default.
    Kernel,
    /// The VIPA on `lo`, and two directors before it, one of which has the VIPA by VRRP.
    Keepalived,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    /// As `--subject` and the table name it.
    pub(crate) name: &'static str,
    pub(crate) host: Host,
    pub(crate) bfd: Option<Bfd>,
    pub(crate) timers: Timers,
    /// The router's program; FRR gives way to BIRD where it is missing. `None`: its routes are static.
    pub(crate) router: Option<Program>,
}

const fn vipa(name: &'static str, bfd: Option<Bfd>) -> Subject {
    Subject { name, host: Host::Vipa, bfd, timers: Timers::Short, router: Some(Program::Frr) }
}

const fn other(name: &'static str, program: Program, bfd: Option<Bfd>) -> Subject {
    let host = Host::Daemon(program);
    Subject { name, host, bfd, timers: Timers::Short, router: Some(Program::Frr) }
}

const fn without_routing(name: &'static str, host: Host, timers: Timers) -> Subject {
    Subject { name, host, bfd: None, timers, router: None }
}

pub(crate) const SUBJECTS: [Subject; 9] = [
    vipa("vipa-bfd50", Some(Bfd(50))),
    vipa("vipa-bfd20", Some(Bfd(20))),
    vipa("vipa-arp", None),
    other("frr-bfd50", Program::Frr, Some(Bfd(50))),
    other("bird-bfd50", Program::Bird, Some(Bfd(50))),
    Subject {
        name: "rip",
        host: Host::Daemon(Program::Bird),
        bfd: None,
        timers: Timers::Default,
        router: Some(Program::Bird),
    },
    without_routing("kernel", Host::Kernel, Timers::Short),
    without_routing("vrrp-1s", Host::Keepalived, Timers::Default),
    without_routing("vrrp-100ms", Host::Keepalived, Timers::Short),
];

impl Subject {
    /// RIP alone: minutes pass until a dead path is noticed.
    pub(crate) fn is_slow(&self) -> bool {
        self.router.is_some() && self.timers == Timers::Default
    }

    /// From the end of a failure until the link carries traffic again, at most; `None`: nothing is promised.
    pub(crate) fn hold_down(&self) -> Option<Duration> {
        (self.host == Host::Vipa).then_some(HOLD_DOWN)
    }

    /// Why it cannot be measured, if so; `frr`: where FRR is, or why it is nowhere.
    pub(crate) fn missing(&self, frr: &Result<PathBuf, String>) -> Option<String> {
        match self.host {
            Host::Daemon(Program::Frr) => frr.as_ref().err().cloned(),
            Host::Keepalived => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                let is_there =
                    std::env::split_paths(&path).any(|at| at.join("keepalived").exists());
                (!is_there).then(|| "keepalived is not installed (Debian: keepalived)".to_owned())
            }
            Host::Vipa | Host::Kernel | Host::Daemon(Program::Bird) => None,
        }
    }
}

/// What is in vipa's place, not running yet.
#[derive(Debug)]
pub(crate) enum Running {
    Vipa(Forwarder, #[expect(dead_code, reason = "its files are deleted with it")] Scratch),
    Daemon(Box<Daemon>),
    Kernel,
    Directors(Directors),
}

impl Running {
    pub(crate) fn prepare(
        subject: &Subject,
        network: &Network,
        frr: &Path,
    ) -> Result<Running, Error> {
        match subject.host {
            Host::Vipa => {
                let files = Scratch::new()?;
                let config = files.path().join("vipa.toml");
                std::fs::write(&config, config_of(subject, network))?;
                let program = Path::new(env!("CARGO_BIN_EXE_vipa"));
                let forwarder = Forwarder::new(&network.host, program, &config, files.path())?;
                Ok(Running::Vipa(forwarder, files))
            }
            Host::Daemon(program) => {
                let daemon = Daemon::new(program, &network.host, frr)?;
                Ok(Running::Daemon(Box::new(daemon)))
            }
            Host::Kernel => Ok(Running::Kernel),
            Host::Keepalived => Ok(Running::Directors(Directors::new(network)?)),
        }
    }

    pub(crate) fn start(&mut self, subject: &Subject, network: &Network) -> Result<(), Error> {
        match self {
            Running::Vipa(forwarder, _) => Ok(forwarder.start()?),
            Running::Daemon(daemon) => {
                // Part of its start: without it the VIPA is nowhere.
                let vipa = vipas(Family::V4)[0];
                network.host.address(&format!("{vipa}/32"), "lo")?;
                let links: Vec<String> = network.nics().map(nic_name).collect();
                let links: Vec<&str> = links.iter().map(String::as_str).collect();
                daemon.start(&links, subject.bfd, subject.timers)
            }
            Running::Kernel => Ok(network.route_by_kernel()?),
            Running::Directors(directors) => directors.start(subject.timers),
        }
    }

    /// The link that `failure` is to meet. Each failure has one of its own: what failed a moment ago has a longer hold-down. With
    /// directors it is the master's, whose link is not the host's.
    pub(crate) fn link(&self, network: &Network, failure: Failure) -> Link {
        match (self, failure) {
            (Running::Directors(directors), _) => {
                Link { namespace: directors.master().clone(), nic: 1 }
            }
            (_, Failure::Carrier) => Link { namespace: network.host.clone(), nic: 1 },
            (_, Failure::Grey) => Link { namespace: network.host.clone(), nic: 2 },
        }
    }

    /// What vipa, or keepalived, said so far.
    pub(crate) fn log(&self) -> String {
        match self {
            Running::Vipa(forwarder, _) => forwarder.log(),
            Running::Directors(directors) => directors.log(),
            Running::Daemon(_) | Running::Kernel => String::new(),
        }
    }

    /// Turns of vipa's router and path loops that came too late.
    pub(crate) fn late(&self) -> u64 {
        let Running::Vipa(forwarder, _) = self else { return 0 };
        let status = forwarder.status().unwrap_or_default();
        let of = |part: &str| status[part]["late"].as_u64().unwrap_or_default();
        of("router") + of("paths")
    }
}

fn config_of(subject: &Subject, network: &Network) -> String {
    let mut text = format!(
        "[virtual]\nname = \"vipa0\"\naddresses = [\"{}\"]\n\n\
         [rip]\nversions = [2]\nupdate = \"5s\"\ntimeout = \"15s\"\ngarbage = \"10s\"\n",
        vipas(Family::V4)[0]
    );
    for nic in network.nics() {
        let (name, hold_down) = (nic_name(nic), HOLD_DOWN.as_millis());
        let _ = write!(text, "\n[[nic]]\nname = \"{name}\"\nhold-down = \"{hold_down}ms\"\n");
    }
    match subject.bfd {
        Some(Bfd(interval)) => {
            let _ = write!(
                text,
                "\n[path]\nprobe = \"bfd\"\n[path.bfd]\ntransmit = \"{interval}ms\"\n\
                 receive = \"{interval}ms\"\nmultiplier = 3\n"
            );
        }
        None => text.push_str("\n[path]\nprobe = \"neighbour\"\ninterval = \"300ms\"\nfall = 3\n"),
    }
    text
}
