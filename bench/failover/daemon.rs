//! FRR 10.3 and BIRD 2, on the router or in vipa's place on the host: RIP, with BFD or without.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vipa::lab::{Namespace, Process, Scratch};

use crate::Error;

const PATIENCE: Duration = Duration::from_secs(10);

/// BFD's transmit and receive interval; three packets missing are a dead path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bfd(pub(crate) u32);

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Frr,
    Bird,
}

/// RIP's timers, or VRRP's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timers {
    /// 30, 180, 120 s (RFC 2453); keepalived: VRRP 2, each second.
    Default,
    /// As short as each program goes: FRR 5, 15, 10 s; BIRD 1, 3, 5 s, or FRR's where it speaks to FRR; keepalived: VRRP 3, each
    /// 100 ms.
    Short,
}

/// Running; dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Daemon {
    program: Program,
    namespace: Namespace,
    /// FRR's name for this instance; BIRD's control socket.
    handle: String,
    processes: Vec<Process>,
    files: Scratch,
    root: PathBuf,
}

impl Daemon {
    /// Not started; `root`: where trixie's FRR is unpacked.
    pub(crate) fn new(
        program: Program,
        namespace: &Namespace,
        root: &Path,
    ) -> Result<Daemon, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let files = Scratch::new()?;
        let handle = match program {
            Program::Frr => format!("n{}", NEXT.fetch_add(1, Ordering::Relaxed)),
            Program::Bird => files.path().join("ctl").display().to_string(),
        };
        let (namespace, root) = (namespace.clone(), root.to_owned());
        Ok(Daemon { program, namespace, handle, processes: Vec::new(), files, root })
    }

    /// On `links`; tells of all that is directly connected, and takes several ways at once.
    pub(crate) fn start(
        &mut self,
        links: &[&str],
        bfd: Option<Bfd>,
        timers: Timers,
    ) -> Result<(), Error> {
        match self.program {
            Program::Frr => self.frr(links, bfd, timers),
            Program::Bird => self.bird(links, bfd, timers),
        }
    }

    /// BFD sessions that are up.
    pub(crate) fn sessions_up(&self) -> Result<usize, Error> {
        let (said, up) = match self.program {
            Program::Frr => (self.vtysh(&["-c", "show bfd peers json"])?, "\"status\":\"up\""),
            Program::Bird => {
                let mut command = self.namespace.command("birdc");
                let output = command.args(["-s", &self.handle, "show bfd sessions"]).output()?;
                (String::from_utf8_lossy(&output.stdout).into_owned(), " Up ")
            }
        };
        Ok(said.matches(up).count())
    }

    fn run(&mut self, command: &mut Command) -> Result<(), Error> {
        self.processes.push(Process::start(command, &self.files.path().join("log"))?);
        Ok(())
    }

    fn waits_for(&self, path: &Path) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        while !path.exists() {
            if Instant::now() > deadline {
                let log = self.processes.last().map(Process::log).unwrap_or_default();
                return Err(format!("{} did not appear: {log}", path.display()).into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn vtysh(&self, arguments: &[&str]) -> Result<String, Error> {
        let mut command = self.namespace.command("chroot");
        let output = command
            .arg(&self.root)
            .args(["/usr/bin/vtysh", "-N", &self.handle])
            .args(arguments)
            .output()?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("vtysh {arguments:?}: {why}").into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn frr(&mut self, links: &[&str], bfd: Option<Bfd>, timers: Timers) -> Result<(), Error> {
        let mut text = String::new();
        if let Some(Bfd(interval)) = bfd {
            let _ = write!(
                text,
                "bfd\n profile fast\n  detect-multiplier 3\n  receive-interval {interval}\n  \
                 transmit-interval {interval}\n exit\nexit\n"
            );
            for link in links {
                let _ =
                    write!(text, "interface {link}\n ip rip bfd\n ip rip bfd profile fast\nexit\n");
            }
        }
        text.push_str("router rip\n version 2\n allow-ecmp\n redistribute connected\n");
        if timers == Timers::Short {
            text.push_str(" timers basic 5 15 10\n");
        }
        if bfd.is_some() {
            text.push_str(" bfd default-profile fast\n");
        }
        for link in links {
            let _ = writeln!(text, " network {link}");
        }
        text.push_str("exit\n");
        let (run, etc) = (self.root.join("run/frr"), self.root.join("etc/frr"));
        let (run, etc) = (run.join(&self.handle), etc.join(&self.handle));
        fs::create_dir_all(&run)?;
        fs::create_dir_all(&etc)?;
        fs::write(etc.join("vtysh.conf"), "")?;
        fs::write(etc.join("all.conf"), text)?;
        // In this order: one that asks zebra before it listens asks again much later.
        for name in ["zebra", "mgmtd", "bfdd", "ripd"] {
            let mut command = self.namespace.command("chroot");
            command.arg(&self.root).arg(format!("/usr/lib/frr/{name}")).args([
                "-N",
                &self.handle,
                "-u",
                "root",
                "-g",
                "root",
                "--log",
                "stdout",
            ]);
            self.run(&mut command)?;
            self.waits_for(&run.join(format!("{name}.vty")))?;
        }
        self.vtysh(&["-f", &format!("/etc/frr/{}/all.conf", self.handle)]).map(drop)
    }

    fn bird(&mut self, links: &[&str], bfd: Option<Bfd>, timers: Timers) -> Result<(), Error> {
        let names = links.iter().map(|link| format!("\"{link}\"")).collect::<Vec<_>>().join(", ");
        let times = match timers {
            Timers::Default => "",
            Timers::Short => "update time 5; timeout time 15; garbage time 10;",
        };
        let mut text = format!(
            "router id 10.9.0.{id};\nprotocol device {{ scan time 1; }}\n\
             protocol direct {{ ipv4; }}\n\
             protocol kernel {{ ipv4 {{ export where source = RTS_RIP; }}; merge paths yes; }}\n",
            id = 1 + u8::from(links[0].starts_with("eth")),
        );
        let with_bfd = if bfd.is_some() { "bfd yes;" } else { "" };
        let _ = writeln!(
            text,
            "protocol rip {{ ipv4 {{ import all; export all; }}; ecmp yes; \
             interface {names} {{ {times} check link yes; {with_bfd} }}; }}"
        );
        if let Some(Bfd(interval)) = bfd {
            let _ = writeln!(
                text,
                "protocol bfd {{ interface {names} {{ interval {interval} ms; multiplier 3; }}; }}"
            );
        }
        let config = self.files.path().join("bird.conf");
        fs::write(&config, text)?;
        let mut command = self.namespace.command("bird");
        command.args(["-f", "-s", &self.handle, "-c"]).arg(&config);
        self.run(&mut command)?;
        self.waits_for(Path::new(&self.handle))
    }
}

/// Makes the unpacked FRR ready for `chroot`; what is mounted is gone with this process's own mounts.
pub(crate) fn mount_root(root: &Path) -> Result<(), Error> {
    let mount = |arguments: &[&str], to: &str| -> Result<(), Error> {
        let target = root.join(to);
        let output = Command::new("mount").args(arguments).arg(&target).output()?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("mounting {}: {why}", target.display()).into());
        }
        Ok(())
    };
    mount(&["-t", "proc", "proc"], "proc")?;
    mount(&["--rbind", "/dev"], "dev")?;
    for directory in ["run", "etc/frr", "var/lib/frr", "var/tmp"] {
        mount(&["-t", "tmpfs", "tmpfs"], directory)?;
    }
    Ok(())
}
