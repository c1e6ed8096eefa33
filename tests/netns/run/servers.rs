//! Servers on the default VIPA whose clients a rule speaks of: BIND asked by dig, nginx asked by curl. Both
//! answer from the address they were asked on, with the forwarder alive and dead (V2, V4).

use std::net::SocketAddr;
use std::path::Path;

use vipa::lab::topology::vipas;
use vipa::lab::{Namespace, Process};
use vipa::wire::ip::Family;

use crate::fixture::{Bench, Setup, listens, start};
use crate::{bind, nginx};

const NGINX_PORT: u16 = 8080;
/// Bytes of the file that nginx serves.
const FILE: usize = 3 << 20;

fn named(host: &Namespace, directory: &Path) -> Process {
    let arguments = bind::set_up(directory, "answer IN TXT \"from named\"\n");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut named = start(host, &directory.join("named.log"), "named", &arguments);
    listens(host, &mut named, &at(bind::PORT));
    named
}

fn nginx(host: &Namespace, directory: &Path, content: &[u8]) -> Process {
    std::fs::write(directory.join("file"), content).expect("a file");
    let server = format!(
        "server {{ listen {NGINX_PORT}; listen [::]:{NGINX_PORT};\n\
         location = /who {{ return 200 \"$server_addr\"; }} }}"
    );
    let mut nginx = nginx::start(host, directory, &server);
    listens(host, &mut nginx, &at(NGINX_PORT));
    nginx
}

/// Where a server on all addresses is reached.
fn at(port: u16) -> [SocketAddr; 2] {
    Family::BOTH.map(|family| SocketAddr::new(vipas(family)[0], port))
}

/// dig refuses an answer from anyone but whom it asked, and curl's connection is one by its addresses.
fn ask_both(bench: &Bench, content: &[u8]) {
    let client = &bench.network.client;
    for vipa in Family::BOTH.into_iter().flat_map(vipas) {
        let at = format!("@{vipa}");
        let port = bind::PORT.to_string();
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
    let directory = bench.scratch.path().join("servers");
    std::fs::create_dir(&directory).expect("a directory");
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
