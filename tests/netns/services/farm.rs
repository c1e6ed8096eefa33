//! Servers on the link behind a NIC of the host, and clients that ask.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::thread;
use std::time::Duration;

use vipa::lab::topology::vipas;
use vipa::lab::{Hop, Namespace, Process, Scratch, veth};
use vipa::wire::ip::Family;

use crate::fixture::{Bench, listens, start, wait_until};
use crate::nginx;

/// nginx listens here.
pub(crate) const WEB: u16 = 8080;
/// iperf3 listens here.
pub(crate) const BULK: u16 = 5201;

/// The address of server `number`, from 1, on the link behind eth2.
pub(crate) fn address(number: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 1, 2, 10 + number]),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10 + u16::from(number)]),
    }
}

/// How a configuration writes an address and port.
pub(crate) fn endpoint(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

/// A network on the link behind eth2 with the addresses of server `number`, and routes by the router.
pub(crate) fn place(bench: &Bench, number: u8) -> Namespace {
    let namespace = Namespace::new(&format!("server {number}")).expect("root");
    let port = format!("s{number}");
    let cables = bench.network.cables();
    veth((&namespace, "eth0"), (cables, port.as_str())).expect("a cable");
    cables.enslave(&port, "b2").expect("the bridge of eth2");
    for family in Family::BOTH {
        let address = address(number, family);
        let length = if family == Family::V4 { 24 } else { 64 };
        namespace.address(&format!("{address}/{length}"), "eth0").expect("an address");
    }
    namespace.route("0.0.0.0/0", &[Hop::via("10.1.2.1")], None).expect("a route");
    namespace.route("::/0", &[Hop::via("2001:db8:2::1")], None).expect("a route");
    namespace
}

/// A server with nginx, which says its number and who asks, and iperf3.
pub(crate) struct Server {
    pub(crate) number: u8,
    pub(crate) namespace: Namespace,
    nginx: Process,
    _iperf3: Process,
    scratch: Scratch,
    /// nginx's `server` block.
    web: String,
}

impl Server {
    /// Puts server `number` on the link behind eth2 and starts its programs.
    pub(crate) fn start(bench: &Bench, number: u8) -> Server {
        let namespace = place(bench, number);
        let who = "return 200 \"NUMBER $remote_addr $server_addr:$server_port\";";
        Server::with(namespace, number, &who.replace("NUMBER", &number.to_string()))
    }

    /// The same, whose nginx takes this long to say its number.
    pub(crate) fn slow(bench: &Bench, number: u8, delay: Duration) -> Server {
        let namespace = place(bench, number);
        let behind = namespace.run(|| TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = behind.local_addr().expect("an address");
        thread::spawn(move || {
            for mut stream in behind.incoming().map_while(Result::ok) {
                thread::spawn(move || {
                    let _ = stream.read(&mut [0; 4096]);
                    thread::sleep(delay);
                    let _ = write!(
                        stream,
                        "HTTP/1.0 200 OK\r\nContent-Length: 11\r\n\r\n{number} slow slow"
                    );
                });
            }
        });
        Server::with(namespace, number, &format!("proxy_pass http://{address};"))
    }

    fn with(namespace: Namespace, number: u8, who: &str) -> Server {
        let scratch = Scratch::new().expect("a scratch directory");
        let web = format!(
            "server {{ listen {WEB}; listen [::]:{WEB}; listen 80; listen [::]:80;\n\
             location = /who {{ {who} }} location = /status {{ stub_status; }} }}"
        );
        let nginx = start_nginx(&namespace, &scratch, number, &web);
        let arguments = ["-s", "-p", &BULK.to_string()];
        let iperf3 = start(&namespace, &scratch.path().join("iperf3"), "iperf3", &arguments);
        // It serves one client at a time: a connection that only asks would be that one.
        let socket = format!(":{BULK:04X} 00000000000000000000000000000000:0000 0A");
        wait_until("iperf3 listens", || {
            let listed = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/tcp6"));
            listed.is_ok_and(|listed| listed.contains(&socket))
        });
        Server { number, namespace, nginx, _iperf3: iperf3, scratch, web }
    }

    /// Where nginx finds what it serves.
    pub(crate) fn files(&self) -> &Path {
        self.scratch.path()
    }

    /// SIGKILL for nginx: its kernel resets what it had, and refuses what comes.
    pub(crate) fn kill_nginx(&mut self) {
        self.nginx.kill();
    }

    /// nginx is back.
    pub(crate) fn restart_nginx(&mut self) {
        self.nginx = start_nginx(&self.namespace, &self.scratch, self.number, &self.web);
    }

    /// It has the VIPAs on loopback and tells nobody: what mode direct wants of a server.
    pub(crate) fn owns_vipas(&self) {
        self.namespace.sysctl("net/ipv4/conf/all/arp_ignore", 1).expect("a setting");
        self.namespace.sysctl("net/ipv4/conf/all/arp_announce", 2).expect("a setting");
        for family in Family::BOTH {
            for vipa in vipas(family) {
                self.namespace
                    .address(&format!("{vipa}/{}", family.bits()), "lo")
                    .expect("an address");
            }
        }
    }

    /// Its kernel completes every checksum it sends, and so proves each one it gets.
    pub(crate) fn tx_checksum(&self, is_on: bool) {
        self.namespace.tx_checksum("eth0", is_on).expect("ethtool");
    }
}

fn start_nginx(place: &Namespace, scratch: &Scratch, number: u8, web: &str) -> Process {
    let mut nginx = nginx::start(place, scratch.path(), web);
    let at = Family::BOTH.map(|family| SocketAddr::new(address(number, family), WEB));
    listens(place, &mut nginx, &at);
    nginx
}

/// nginx on the host itself, on all of its addresses, as server `number`.
pub(crate) fn here(bench: &Bench, number: u8) -> Process {
    let web = format!(
        "server {{ listen {WEB}; listen [::]:{WEB};\n\
         location = /who {{ return 200 \"{number} $remote_addr $server_addr:$server_port\"; }} }}"
    );
    let directory = bench.scratch.path().join("nginx");
    std::fs::create_dir(&directory).expect("a directory");
    let mut nginx = nginx::start(&bench.network.host, &directory, &web);
    let listening = Family::BOTH.map(|family| SocketAddr::new(vipas(family)[1], WEB));
    listens(&bench.network.host, &mut nginx, &listening);
    nginx
}

/// Waits until every service has a server for new connections.
pub(crate) fn wait_for_servers(bench: &Bench) {
    let has_one =
        |service: &serde_json::Value| service["when_none"].is_null() && service["choice"] != "none";
    wait_until("every service has a server", || {
        let status = bench.status();
        let services = status["balance"]["services"].as_array().expect("services in the status");
        !services.is_empty() && services.iter().all(has_one)
    });
}

/// Who answers at `at`: the server's number, whom it saw, and where it was asked.
pub(crate) fn who(bench: &Bench, from: &Namespace, at: SocketAddr) -> (u8, IpAddr, String) {
    let url = format!("http://{at}/who");
    let said = bench.run(from, "curl", &["-sSgf", "--max-time", "20", &url]);
    let mut words = said.split(' ');
    let mut word = || words.next().unwrap_or_else(|| panic!("{said:?}"));
    let number = word().parse().expect("a number");
    let seen = word().parse().expect("an address");
    (number, seen, word().to_owned())
}
