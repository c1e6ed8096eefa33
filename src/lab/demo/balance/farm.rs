//! The servers on the link behind a NIC of the host, and those who have sessions with them past the host.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::server::SESSION;
use super::{SERVERS_BEHIND, START_LIMIT};
use crate::lab::error::Step;
use crate::lab::process::Process;
use crate::lab::topology::Network;
use crate::lab::{Error, Hop, Namespace, veth};

const PORT: u16 = 8080;
/// Name, sessions at the start, and what it takes to answer. Each policy puts them into another order, with wide steps.
const SERVERS: [(&str, usize, Duration); 3] = [
    ("a", 5, Duration::from_millis(8)),
    ("b", 20, Duration::from_millis(2)),
    ("c", 30, Duration::from_millis(24)),
];
/// How many log in at a server that is loaded.
pub(super) const LOAD: usize = 60;
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Server {
    name: &'static str,
    address: SocketAddr,
    pause: Duration,
    namespace: Namespace,
    process: Option<Process>,
    sessions: Vec<TcpStream>,
}

/// All servers.
#[derive(Debug)]
pub(super) struct Farm {
    servers: Vec<Server>,
    /// Whence sessions come.
    client: Namespace,
    program: PathBuf,
}

impl Farm {
    /// Puts the servers into the network, starts them, and lets the first log in. The calling thread must live as long as they are to.
    ///
    /// # Errors
    /// When one does not start.
    pub(super) fn new(network: &Network, program: PathBuf) -> Result<Farm, Error> {
        let mut farm = Farm { servers: Vec::new(), client: network.client.clone(), program };
        for (number, (name, sessions, pause)) in (1..).zip(SERVERS) {
            let namespace = Namespace::new(name)?;
            let port = format!("s{number}");
            let link = SERVERS_BEHIND;
            veth((&namespace, "eth0"), (network.cables(), port.as_str()))?;
            network.cables().enslave(&port, &format!("b{link}"))?;
            let address = IpAddr::from([10, 1, link, 10 + number]);
            namespace.address(&format!("{address}/24"), "eth0")?;
            namespace.route("0.0.0.0/0", &[Hop::via(&format!("10.1.{link}.1"))], None)?;
            namespace.tx_checksum("eth0", false)?;
            farm.servers.push(Server {
                name,
                address: SocketAddr::new(address, PORT),
                pause,
                namespace,
                process: None,
                sessions: Vec::new(),
            });
            farm.start(name)?;
            farm.log_in(name, sessions)?;
        }
        Ok(farm)
    }

    pub(super) fn names(&self) -> Vec<&'static str> {
        self.servers.iter().map(|server| server.name).collect()
    }

    /// A line about what they are like.
    pub(super) fn describe(&self) -> String {
        let one = |server: &Server| {
            let (name, sessions, pause) = (server.name, server.sessions.len(), server.pause);
            format!("{name} has {sessions} and takes {pause:?}")
        };
        self.servers.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    /// They as a part of the forwarder's configuration.
    pub(super) fn config(&self) -> String {
        let mut text = String::new();
        for Server { name, address, .. } in &self.servers {
            let _ =
                write!(text, "\n[[service.server]]\nname = \"{name}\"\naddress = \"{address}\"\n");
        }
        text
    }

    /// Starts a server.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub(super) fn start(&mut self, name: &str) -> Result<(), Error> {
        let program = self.program.clone();
        let server = self.server(name)?;
        let mut command = server.namespace.command(program);
        command.args(["demo-server", name, &server.address.to_string()]);
        command.arg(server.pause.as_millis().to_string());
        let log = Path::new("/run").join(format!("server-{name}")); // ours alone, see `enter`
        server.process = Some(Process::start(&mut command, &log)?);
        Ok(())
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// There is no such server.
    pub(super) fn kill(&mut self, name: &str) -> Result<(), Error> {
        self.server(name)?.process = None;
        Ok(())
    }

    /// So many more have a session with a server.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn log_in(&mut self, name: &str, count: usize) -> Result<(), Error> {
        let client = self.client.clone();
        let server = self.server(name)?;
        let address = server.address;
        let sessions = client.run(|| log_in(address, count));
        server.sessions.extend(sessions.step(|| format!("sessions with server {name}"))?);
        Ok(())
    }

    fn server(&mut self, name: &str) -> Result<&mut Server, Error> {
        let server = self.servers.iter_mut().find(|server| server.name == name);
        server.ok_or_else(|| Error::Program(format!("there is no server {name:?}")))
    }
}

fn log_in(address: SocketAddr, count: usize) -> std::io::Result<Vec<TcpStream>> {
    let deadline = Instant::now() + START_LIMIT;
    let connect = || loop {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            // It has just been started.
            Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            result => return result,
        }
    };
    let mut sessions = Vec::with_capacity(count);
    for _ in 0..count {
        let mut session = connect()?;
        session.set_read_timeout(Some(PATIENCE))?;
        write!(session, "GET {SESSION} HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
        sessions.push(session);
    }
    for session in &mut sessions {
        // Any of the answer will do.
        session.read_exact(&mut [0])?;
    }
    Ok(sessions)
}
