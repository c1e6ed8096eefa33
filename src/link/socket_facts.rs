//! What only a socket knows, for source rules that the forwarder applies: its user and mark, by sock_diag(7),
//! and its cgroup.
//!
//! The kernel tells a cgroup by number, which is the inode of its directory. Numbers are never given twice, so
//! what was once found out about one stays true.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hashbrown::HashMap;

use super::nft::message::find;
use super::nft::socket::Requests;
use crate::config::Config;
use crate::forward::flow::Key;
use crate::forward::rewrite::Endpoint;
use crate::forward::socket::{Socket, SocketFacts};
use crate::wire::ip::{TCP, UDP};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Bytes of `struct inet_diag_msg`.
const MESSAGE: usize = 72;
/// Where in it the user id stands.
const USER: usize = 64;
const MARK: u16 = 15;
const CGROUP: u16 = 21;
/// `INET_DIAG_NOCOOKIE`, twice: any socket.
const ANY: [u8; 8] = [0xff; 8];

/// States of TCP in which the answer is no socket of a connection: TIME_WAIT, LISTEN, NEW_SYN_RECV.
const NO_CONNECTION: [u8; 3] = [6, 10, 12];

/// Asks the kernel for sockets.
#[derive(Debug)]
pub(super) struct Sockets {
    requests: Option<Requests>,
    cgroups: Cgroups,
    is_in_trouble: bool,
}

impl Sockets {
    /// For the rules of `config`. Says so if a rule names a cgroup and this host has no cgroup2.
    pub(super) fn of(config: &Config) -> Sockets {
        let named = config.source.rules.iter().filter_map(|rule| rule.cgroup.clone());
        let named: Vec<String> = named.collect();
        let root = if named.is_empty() { None } else { root() };
        if root.is_none() && !named.is_empty() {
            tracing::warn!("cgroup2 is not mounted here: rules for a cgroup match nothing");
        }
        Sockets { requests: None, cgroups: Cgroups::new(root, named), is_in_trouble: false }
    }

    /// The socket of this host that sends packets with this key.
    pub(super) fn ask(&mut self, key: &Key) -> Socket {
        let found = match self.diagnose(key) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                if !std::mem::replace(&mut self.is_in_trouble, true) {
                    tracing::warn!(%error, "sockets cannot be asked for: rules for them match nothing");
                }
                self.requests = None;
                None
            }
        };
        match found {
            Some(found) => Socket::Known(SocketFacts {
                user: found.user,
                mark: found.mark,
                cgroup: found.cgroup.and_then(|number| self.cgroups.path(number)),
            }),
            None => Socket::Unknown,
        }
    }

    fn diagnose(&mut self, key: &Key) -> io::Result<Option<Diagnosed>> {
        // Raw sockets and pings have none to ask for.
        if ![TCP, UDP].contains(&key.protocol()) {
            return Ok(None);
        }
        let requests = match &mut self.requests {
            Some(requests) => requests,
            None => {
                self.requests.insert(Requests::open(netlink_sys::protocols::NETLINK_SOCK_DIAG)?)
            }
        };
        let answer = requests.get(SOCK_DIAG_BY_FAMILY, &question(key))?;
        Ok(read(key.protocol(), &answer))
    }
}

/// `struct inet_diag_req_v2` for one socket.
fn question(key: &Key) -> Vec<u8> {
    let (local, remote) = (key.source(), key.destination());
    // Of UDP the kernel looks as for a packet that arrives, of TCP as the socket itself sees it.
    let (from, to) = if key.protocol() == UDP { (remote, local) } else { (local, remote) };
    let family = if local.address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut request = vec![family as u8, key.protocol(), 0, 0];
    request.extend(u32::MAX.to_ne_bytes());
    let ports = [from, to].map(|end: Endpoint| end.port.to_be_bytes());
    request.extend(ports.concat());
    for end in [from, to] {
        let mut octets = match end.address {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        };
        octets.resize(16, 0);
        request.extend(octets);
    }
    request.extend([0; 4]); // bound to any device or none
    request.extend(ANY);
    request
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Diagnosed {
    user: u32,
    mark: u32,
    cgroup: Option<u64>,
}

/// Reads a `struct inet_diag_msg` and what follows it; `None`: it is no socket that sends.
fn read(protocol: u8, answer: &[u8]) -> Option<Diagnosed> {
    let word = |bytes: &[u8]| bytes.first_chunk().map(|b| u32::from_ne_bytes(*b));
    let state = *answer.get(1)?;
    if protocol == TCP && NO_CONNECTION.contains(&state) {
        return None;
    }
    let attributes = answer.get(MESSAGE..)?;
    Some(Diagnosed {
        user: word(answer.get(USER..)?)?,
        // Told to those alone who may set it, and never left out for them.
        mark: find(attributes, MARK).and_then(word).unwrap_or(0),
        cgroup: find(attributes, CGROUP)
            .and_then(|bytes| bytes.first_chunk().map(|b| u64::from_ne_bytes(*b))),
    })
}

/// Paths of cgroups by their numbers, as far as a rule names them or one above them.
#[derive(Debug)]
struct Cgroups {
    root: Option<PathBuf>,
    named: Vec<String>,
    /// `None`: none of those that rules name, nor below.
    known: HashMap<u64, Option<Arc<str>>, foldhash::fast::RandomState>,
}

/// Directories looked at in one go.
const DIRECTORIES: usize = 4096;
/// Numbers remembered; beyond, all are forgotten.
const REMEMBERED: usize = 16_384;

impl Cgroups {
    fn new(root: Option<PathBuf>, named: Vec<String>) -> Cgroups {
        Cgroups { root, named, known: HashMap::default() }
    }

    /// Path of the cgroup with this number, if a rule may be about it.
    fn path(&mut self, number: u64) -> Option<Arc<str>> {
        if let Some(known) = self.known.get(&number) {
            return known.clone();
        }
        let root = self.root.clone()?;
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        let mut left = DIRECTORIES;
        for top in self.named.clone() {
            // One that does not exist now may exist later.
            if let Ok(directory) = fs::metadata(root.join(&top)) {
                self.known.insert(directory.ino(), Some(top.as_str().into()));
                self.walk(&root, top, &mut left);
            }
        }
        if left == 0 {
            tracing::debug!(DIRECTORIES, "more cgroups than are looked at below those of rules");
        }
        self.known.entry(number).or_default().clone()
    }

    /// Learns the numbers of all cgroups below `path`.
    fn walk(&mut self, root: &Path, path: String, left: &mut usize) {
        let mut todo = vec![path];
        while let Some(path) = todo.pop() {
            for entry in fs::read_dir(root.join(&path)).into_iter().flatten().flatten() {
                if *left == 0 {
                    return;
                }
                let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
                let name = entry.file_name();
                if let (true, Some(name)) = (is_directory, name.to_str()) {
                    *left -= 1;
                    let below = format!("{path}/{name}");
                    self.known.insert(entry.ino(), Some(below.as_str().into()));
                    todo.push(below);
                }
            }
        }
    }
}

/// Where cgroup2 is mounted.
fn root() -> Option<PathBuf> {
    mount_point(&fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// The mount point of cgroup2 in a `mountinfo` (proc_pid_mountinfo(5)).
fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (fields, kind) = line.split_once(" - ")?;
        let path = fields.split(' ').nth(4)?;
        kind.starts_with("cgroup2 ").then(|| PathBuf::from(path.replace("\\040", " ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::flow::Side;

    #[test]
    fn cgroup2_is_found_beside_the_older_ones() {
        let mounts = "26 1 0:22 / /proc rw - proc proc rw\n\
                      30 25 0:27 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n\
                      31 25 0:28 / /sys/fs/cgroup/uni\\040fied rw,relatime shared:10 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(mounts), Some("/sys/fs/cgroup/uni fied".into()));
        assert_eq!(mount_point("26 1 0:22 / /proc rw - proc proc rw\n"), None);
    }

    #[test]
    fn a_cgroup_is_known_by_its_directory_and_those_below_it() {
        let root = std::env::temp_dir().join(format!("vipa-cgroups-{}", std::process::id()));
        let number = |path: &str| {
            fs::create_dir_all(root.join(path)).expect("made");
            fs::metadata(root.join(path)).expect("it is there").ino()
        };
        let (below, other) = (number("a/b/c"), number("x/y"));
        let mut cgroups = Cgroups::new(Some(root.clone()), vec!["a".into(), "late".into()]);
        assert_eq!(cgroups.path(below).as_deref(), Some("a/b/c"));
        assert_eq!(cgroups.path(number("a")).as_deref(), Some("a"));
        assert_eq!(cgroups.path(other), None);
        let late = number("late/one");
        assert_eq!(cgroups.path(late).as_deref(), Some("late/one"));
        fs::remove_dir_all(&root).expect("removed");
        assert_eq!(cgroups.path(below).as_deref(), Some("a/b/c"), "numbers are given once");
    }

    #[test]
    fn answers_are_read_and_torn_ones_are_none() {
        let mut answer = vec![0; MESSAGE];
        answer[1] = 2;
        answer[USER..USER + 4].copy_from_slice(&26u32.to_ne_bytes());
        for (kind, value) in [(MARK, &9u32.to_ne_bytes()[..]), (CGROUP, &77u64.to_ne_bytes())] {
            answer.extend((value.len() as u16 + 4).to_ne_bytes());
            answer.extend(kind.to_ne_bytes());
            answer.extend(value);
        }
        let wanted = Diagnosed { user: 26, mark: 9, cgroup: Some(77) };
        assert_eq!(read(TCP, &answer), Some(wanted));
        assert_eq!(read(TCP, &answer[..MESSAGE - 1]), None);
        answer[1] = 10;
        assert_eq!(read(TCP, &answer), None, "a listener is not who connects");
        assert_eq!(read(UDP, &answer[..MESSAGE]).map(|found| found.cgroup), Some(None));
    }

    #[test]
    fn the_kernel_tells_of_our_own_sockets() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let to = listener.local_addr().expect("bound");
        let stream = std::net::TcpStream::connect(to).expect("connected");
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a port");
        let udp_port = socket.local_addr().expect("bound").port();
        let end = |port| Endpoint { address: "127.0.0.1".parse().expect("it is one"), port };
        let port = stream.local_addr().expect("connected").port();
        let mut requests =
            Requests::open(netlink_sys::protocols::NETLINK_SOCK_DIAG).expect("netlink");
        for (protocol, from, to) in [(TCP, port, to.port()), (UDP, udp_port, 9)] {
            let key = Key::new(end(from), end(to), protocol, Side::Tun);
            let answer = requests.get(SOCK_DIAG_BY_FAMILY, &question(&key)).expect("it is there");
            let own = fs::metadata("/proc/self").expect("proc").uid();
            assert_eq!(read(protocol, &answer).map(|found| found.user), Some(own));
        }
        let nobody = Key::new(end(1), end(2), UDP, Side::Tun);
        let error = requests.get(SOCK_DIAG_BY_FAMILY, &question(&nobody)).expect_err("nobody");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
