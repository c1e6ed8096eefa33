//! Servers on the link behind a NIC of the host, and clients that ask.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Child, Stdio};

use vipa::lab::topology::vipas;
use vipa::lab::{Hop, Namespace, Scratch, veth};
use vipa::wire::ip::Family;

use crate::fixture::{Bench, PATIENCE, wait_until};

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

/// A program that dies with its test.
pub(crate) struct Program(Child);

impl Program {
    /// Starts it in a namespace, and waits until `at` takes connections.
    pub(crate) fn start(
        place: &Namespace,
        program: &str,
        arguments: &[&str],
        at: &[SocketAddr],
    ) -> Program {
        let child = place
            .command(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{program} (tools/packages.txt): {e}"));
        let mut program_ = Program(child);
        for address in at {
            wait_until(&format!("{program} listens on {address}"), || {
                let ended = program_.0.try_wait().expect("a child");
                assert!(ended.is_none(), "{program} ended: {ended:?}");
                place.run(|| TcpStream::connect_timeout(address, PATIENCE)).is_ok()
            });
        }
        program_
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A server with nginx, which says its number and who asks, and iperf3.
pub(crate) struct Server {
    pub(crate) namespace: Namespace,
    _nginx: Program,
    _iperf3: Program,
    _scratch: Scratch,
}

impl Server {
    /// Puts server `number` on the link behind eth2 and starts its programs.
    pub(crate) fn start(bench: &Bench, number: u8) -> Server {
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
        let scratch = Scratch::new().expect("a scratch directory");
        let nginx = nginx(&namespace, &scratch, number);
        let iperf3 = Program::start(&namespace, "iperf3", &["-s", "-p", &BULK.to_string()], &[]);
        // It serves one client at a time: a connection that only asks would be that one.
        let socket = format!(":{BULK:04X} 00000000000000000000000000000000:0000 0A");
        wait_until("iperf3 listens", || {
            let listed = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/tcp6"));
            listed.is_ok_and(|listed| listed.contains(&socket))
        });
        Server { namespace, _nginx: nginx, _iperf3: iperf3, _scratch: scratch }
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

fn nginx(namespace: &Namespace, scratch: &Scratch, number: u8) -> Program {
    let place = scratch.path().display();
    let config = scratch.path().join("nginx.conf");
    let text = format!(
        "user root; daemon off; master_process off; pid {place}/nginx.pid; error_log {place}/nginx.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; client_body_temp_path {place}/body; proxy_temp_path {place}/proxy;\n\
         fastcgi_temp_path {place}/fastcgi; uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;\n\
         server {{ listen {WEB}; listen [::]:{WEB}; listen 80; listen [::]:80; root {place};\n\
         location = /who {{ return 200 \"{number} $remote_addr $server_addr:$server_port\"; }}\n\
         location = /status {{ stub_status; }} }} }}\n"
    );
    std::fs::write(&config, text).expect("a file");
    let config = config.display().to_string();
    let prefix = scratch.path().display().to_string();
    let at = Family::BOTH.map(|family| SocketAddr::new(address(number, family), WEB));
    Program::start(namespace, "nginx", &["-p", &prefix, "-c", &config], &at)
}

/// nginx on the host itself, on all of its addresses, as server `number`.
pub(crate) fn here(bench: &Bench, number: u8) -> Program {
    let place = bench.scratch.path().display().to_string();
    let config = bench.scratch.path().join("nginx.conf");
    let text = format!(
        "user root; daemon off; master_process off; pid {place}/nginx.pid; error_log {place}/nginx.log;\n\
         events {{ }}\n\
         http {{ access_log off; client_body_temp_path {place}/body; proxy_temp_path {place}/proxy;\n\
         fastcgi_temp_path {place}/fastcgi; uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;\n\
         server {{ listen {WEB}; listen [::]:{WEB};\n\
         location = /who {{ return 200 \"{number} $remote_addr $server_addr:$server_port\"; }} }} }}\n"
    );
    std::fs::write(&config, text).expect("a file");
    let config = config.display().to_string();
    let listening = Family::BOTH.map(|family| SocketAddr::new(vipas(family)[1], WEB));
    Program::start(&bench.network.host, "nginx", &["-p", &place, "-c", &config], &listening)
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
