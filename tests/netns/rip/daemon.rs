//! FRR or BIRD on the router of the lab's network.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;

use vipa::lab::topology::Network;
use vipa::lab::{Process, Scratch};

use crate::fixture::wait_until;

/// Signs and wants to be signed to, as each of them writes it: FRR on an interface, BIRD on an interface.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Signed {
    pub(crate) frr: &'static str,
    pub(crate) bird: &'static str,
    /// What BIRD says of BFD on its interfaces; empty: it does not speak it.
    pub(crate) bfd: &'static str,
}

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Frr,
    Bird,
}

/// Running; dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Daemon {
    processes: Vec<Process>,
    _files: Scratch,
}

impl Daemon {
    /// On the router, by each of its links to the host; it tells of its own networks, and takes several ways at once.
    pub(crate) fn start(kind: Kind, network: &Network, signed: Signed) -> Daemon {
        network.forget_vipas().expect("the lab's static routes");
        let files = Scratch::new().expect("a scratch directory");
        let mut daemon = Daemon { processes: Vec::new(), _files: files };
        let directory = daemon._files.path().to_owned();
        match kind {
            Kind::Frr => daemon.frr(network, &directory, signed.frr),
            Kind::Bird => daemon.bird(network, &directory, signed),
        }
        daemon
    }

    /// Killed without a word to anybody.
    pub(crate) fn kill(&mut self) {
        self.processes.iter_mut().for_each(Process::kill);
    }

    fn run(&mut self, network: &Network, directory: &Path, program: &str, arguments: &[&str]) {
        let mut command = network.router.command(program);
        command.args(arguments);
        let log = directory.join("log");
        let process = Process::start(&mut command, &log)
            .unwrap_or_else(|e| panic!("{program} (tools/packages.txt): {e}"));
        self.processes.push(process);
    }

    fn frr(&mut self, network: &Network, directory: &Path, signed: &str) {
        let links = network.ports();
        let on_each =
            |line: &str| -> String { links.iter().map(|link| line.replace('@', link)).collect() };
        let zebra = "hostname router\n".to_owned();
        let ripd = format!(
            "{}router rip\n version 2\n timers basic 5 20 10\n allow-ecmp\n redistribute connected\n{}",
            on_each(&format!("interface @\n{signed}exit\n")),
            on_each(" network @\n"),
        );
        let ripngd = format!(
            "router ripng\n timers basic 5 20 10\n allow-ecmp\n redistribute connected\n{}",
            on_each(" network @\n")
        );
        let (user, group) = frr_user();
        chown(directory, Some(user), Some(group)).expect("root's right");
        let path = |name: &str| directory.join(name).display().to_string();
        for (name, config) in [("zebra", zebra), ("ripd", ripd), ("ripngd", ripngd)] {
            let file = path(&format!("{name}.conf"));
            fs::write(&file, config).expect("a scratch directory takes files");
            chown(&file, Some(user), Some(group)).expect("root's right");
            let program = format!("/usr/lib/frr/{name}");
            let (socket, pid) = (path("zserv"), path(&format!("{name}.pid")));
            let vty = directory.display().to_string();
            let arguments =
                ["-f", &file, "-i", &pid, "-z", &socket, "--vty_socket", &vty, "--log", "stdout"];
            self.run(network, directory, &program, &arguments);
            wait_until("zebra listens", || Path::new(&socket).exists());
        }
    }

    fn bird(&mut self, network: &Network, directory: &Path, signed: Signed) {
        let (rip, bfd) = match signed.bfd {
            "" => ("", String::new()),
            keys => ("bfd yes;", format!("protocol bfd {{ interface \"r*\" {{ {keys} }}; }}\n")),
        };
        let signed = signed.bird;
        let kernel = |family: &str| {
            format!(
                "protocol kernel {{ {family} {{ export where source = RTS_RIP; }}; \
                 merge paths yes; }}\n"
            )
        };
        let config = format!(
            "router id 10.9.0.1;\nprotocol device {{ scan time 1; }}\n{bfd}\
             protocol direct {{ ipv4; ipv6; }}\n{}{}\
             protocol rip {{ ipv4 {{ import all; export all; }}; ecmp yes; \
             interface \"r*\" {{ check link yes; {rip} {signed} }}; }}\n\
             protocol rip ng {{ ipv6 {{ import all; export all; }}; ecmp yes; \
             interface \"r*\" {{ check link yes; {rip} }}; }}\n",
            kernel("ipv4"),
            kernel("ipv6"),
        );
        let path = |name: &str| directory.join(name).display().to_string();
        let (file, socket) = (path("bird.conf"), path("bird.ctl"));
        fs::write(&file, config).expect("a scratch directory takes files");
        self.run(network, directory, "bird", &["-f", "-c", &file, "-s", &socket]);
        wait_until("BIRD listens", || Path::new(&socket).exists());
    }
}

/// User and group that FRR gives its rights up to.
fn frr_user() -> (u32, u32) {
    let users = fs::read_to_string("/etc/passwd").expect("a list of users");
    let line = users.lines().find(|line| line.starts_with("frr:")).expect("FRR's user");
    let mut fields = line.split(':').skip(2).map(|field| field.parse().expect("a number"));
    (fields.next().expect("a user"), fields.next().expect("a group"))
}
