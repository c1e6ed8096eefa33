//! Servers on the default VIPA whose clients a rule speaks of: BIND asked by dig, nginx asked by curl. Both
//! answer from the address they were asked on, with the forwarder alive and dead (V2, V4).

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};

use vipa::lab::Namespace;
use vipa::lab::topology::vipas;
use vipa::wire::ip::Family;

use crate::fixture::{Bench, PATIENCE, Setup, wait_until};

const NAMED_PORT: u16 = 5300;
const NGINX_PORT: u16 = 8080;
/// Bytes of the file that nginx serves.
const FILE: usize = 3 << 20;

/// A server that dies with its test.
struct Server(Child);

impl Server {
    /// Starts a program and waits until its TCP port takes connections.
    fn start(host: &Namespace, program: &str, arguments: &[&str], port: u16) -> Server {
        let child = host
            .command(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{program} (tools/packages.txt): {e}"));
        let mut server = Server(child);
        for family in Family::BOTH {
            let address = SocketAddr::new(vipas(family)[0], port);
            wait_until(&format!("{program} listens on {address}"), || {
                let ended = server.0.try_wait().expect("a child");
                assert!(ended.is_none(), "{program} ended: {ended:?}");
                host.run(|| TcpStream::connect_timeout(&address, PATIENCE)).is_ok()
            });
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn named(host: &Namespace, directory: &Path) -> Server {
    let place = directory.display();
    let config = directory.join("named.conf");
    let options = format!(
        "options {{ directory \"{place}\"; pid-file none; session-keyfile none; managed-keys-directory \"{place}\";\n\
         listen-on port {NAMED_PORT} {{ any; }}; listen-on-v6 port {NAMED_PORT} {{ any; }};\n\
         recursion no; dnssec-validation no; }};\n\
         controls {{ }};\n\
         zone \"vipa.test\" {{ type primary; file \"{place}/zone\"; }};\n"
    );
    std::fs::write(&config, options).expect("a file");
    let zone = "$TTL 60\n@ IN SOA ns admin 1 60 60 60 60\n@ IN NS ns\nns IN A 192.0.2.1\n\
                answer IN TXT \"from named\"\n";
    std::fs::write(directory.join("zone"), zone).expect("a file");
    let config = config.display().to_string();
    Server::start(host, "named", &["-g", "-c", &config], NAMED_PORT)
}

fn nginx(host: &Namespace, directory: &Path, content: &[u8]) -> Server {
    let place = directory.display();
    std::fs::write(directory.join("file"), content).expect("a file");
    let config = directory.join("nginx.conf");
    let text = format!(
        "user root; daemon off; master_process off; pid {place}/nginx.pid; error_log {place}/nginx.log;\n\
         events {{ }}\n\
         http {{ access_log off; client_body_temp_path {place}/body; proxy_temp_path {place}/proxy;\n\
         fastcgi_temp_path {place}/fastcgi; uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;\n\
         server {{ listen {NGINX_PORT}; listen [::]:{NGINX_PORT}; root {place};\n\
         location = /who {{ return 200 \"$server_addr\"; }} }} }}\n"
    );
    std::fs::write(&config, text).expect("a file");
    let config = config.display().to_string();
    let prefix = directory.display().to_string();
    Server::start(host, "nginx", &["-p", &prefix, "-c", &config], NGINX_PORT)
}

/// dig refuses an answer from anyone but whom it asked, and curl's connection is one by its addresses.
fn ask_both(bench: &Bench, content: &[u8]) {
    let client = &bench.network.client;
    for vipa in Family::BOTH.into_iter().flat_map(vipas) {
        let at = format!("@{vipa}");
        let port = NAMED_PORT.to_string();
        let arguments = ["+short", "+notcp", "+time=1", "+tries=10", "-p", &port];
        let question = [&arguments[..], &[&at, "answer.vipa.test", "TXT"]].concat();
        assert_eq!(bench.run(client, "dig", &question).trim(), "\"from named\"", "{vipa}");

        let server = SocketAddr::new(vipa, NGINX_PORT);
        let who = format!("http://{server}/who");
        let said = bench.run(client, "curl", &["-sSg", "--max-time", "20", &who]);
        assert_eq!(said, vipa.to_string());
        let file = bench.scratch.path().join("fetched");
        let (url, to) = (format!("http://{server}/file"), file.display().to_string());
        bench.run(client, "curl", &["-sSgf", "--max-time", "20", "-o", &to, &url]);
        assert!(std::fs::read(&file).expect("curl wrote it") == content, "{vipa}: other bytes");
    }
}

#[test]
fn servers_answer_from_the_address_they_were_asked_on_forwarder_alive_and_dead() {
    let mut bench = Bench::start(&Setup::new(2).second_vipa(""));
    let content: Vec<u8> = (0..FILE as u64).map(|at| ((at * at) >> 7) as u8).collect();
    let directory = bench.scratch.path().to_owned();
    let _named = named(&bench.network.host, &directory);
    let _nginx = nginx(&bench.network.host, &directory, &content);
    for is_offloaded in [true, false] {
        bench.network.tx_checksum(is_offloaded).expect("ethtool");
        let before = bench.carried();
        ask_both(&bench, &content);
        assert!(bench.carried() > before + 20, "the answers went through the forwarder");
        bench.forwarder.kill();
        let before = bench.left();
        ask_both(&bench, &content);
        assert!(bench.left() > before + 20, "the kernel carried them meanwhile");
        bench.start_forwarder();
    }
}
