//! Every kind of status object that an application can move: what it tells moves the preference, through the whole
//! program. Two servers, and a service for each kind.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use vipa::lab::topology::vipas;
use vipa::lab::{Process, Scratch};
use vipa::wire::ip::Family;

use super::farm::{Server, WEB, address, endpoint, who};
use crate::fixture::{Bench, Setup, listens, start, wait_until};

const NUMBERS: [u8; 2] = [1, 2];
const REDIS: u16 = 6379;
const AGENT: u16 = 7777;
const FIRST_PORT: u16 = 8100;

/// Each kind, and what its status object says beside that.
fn kinds(files: &Path) -> Vec<(&'static str, String)> {
    let files = files.display();
    let page = |rest: &str| format!("url = \"http://{{server}}/{rest}");
    vec![
        ("http-json", page("stats\"\nselect = \"/load/now\"")),
        ("prometheus", page("metrics\"\nmetric = \"node_load1\"\nlabels = { host = \"it\" }")),
        ("http", page("stats\"\nnumber-after = \"now\\\":\"")),
        ("agent-check", format!("port = {AGENT}")),
        ("exec", format!("command = [\"/bin/cat\", \"{files}/{{host}}/load\"]")),
        ("file", format!("path = \"{files}/{{host}}/load\"")),
        ("maildir", format!("path = \"{files}/{{host}}/mail\"\nread = \"messages\"")),
        ("redis", format!("port = {REDIS}\nfield = \"connected_clients\"")),
        ("push", "max-age = \"1h\"".to_owned()),
    ]
}

/// One server, and all that tells of its load.
struct Loaded {
    server: Server,
    files: PathBuf,
    agent: Arc<Mutex<usize>>,
    redis: SocketAddr,
    clients: Vec<TcpStream>,
    _process: Process,
}

impl Loaded {
    fn start(bench: &Bench, files: &Path, number: u8, load: usize) -> Loaded {
        let server = Server::start(bench, number);
        let place = &server.namespace;
        let files = files.join(address(number, Family::V4).to_string());
        fs::create_dir_all(files.join("mail/ann/new")).expect("a directory");
        for part in ["cur", "tmp"] {
            fs::create_dir(files.join("mail/ann").join(part)).expect("a directory");
        }
        let agent = Arc::new(Mutex::new(load));
        let listener = place.run(|| TcpListener::bind(("0.0.0.0", AGENT))).expect("a port");
        let shared = Arc::clone(&agent);
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let load = *shared.lock().expect("no panic");
                let _ = writeln!(stream, "up {load}");
            }
        });
        let redis = SocketAddr::new(address(number, Family::V4), REDIS);
        let directory = files.display().to_string();
        let port = REDIS.to_string();
        let arguments =
            ["--port", &port, "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir"];
        let arguments = [&arguments[..], &[&directory]].concat();
        let mut process = start(place, &files.join("log"), "redis-server", &arguments);
        listens(place, &mut process, &[redis]);
        let mut loaded =
            Loaded { server, files, agent, redis, clients: Vec::new(), _process: process };
        loaded.bears(bench, load);
        loaded
    }

    /// Its load is this from now on, whatever tells of it.
    fn bears(&mut self, bench: &Bench, load: usize) {
        *self.agent.lock().expect("no panic") = load;
        let write = |path: PathBuf, text: String| {
            // As a whole: what is read is the old file or the new one.
            let beside = path.with_extension("new");
            fs::write(&beside, text).expect("a file");
            fs::rename(beside, path).expect("a file");
        };
        let web = self.server.files();
        write(web.join("stats"), format!("{{\"load\": {{\"now\":{load}}}}}"));
        write(web.join("metrics"), format!("node_load1{{host=\"it\"}} {load}\n"));
        write(self.files.join("load"), format!("{load}\n"));
        let mail = self.files.join("mail/ann/new");
        fs::remove_dir_all(&mail).expect("it is there");
        fs::create_dir(&mail).expect("a directory");
        (0..load).for_each(|n| fs::write(mail.join(format!("{n}.host")), "a").expect("a file"));
        let connect = || TcpStream::connect(self.redis).expect("a connection");
        self.clients = self.server.namespace.run(|| (0..load).map(|_| connect()).collect());
        bench.operate(&format!("server push push/s{} load {load}", self.server.number));
    }
}

fn choice(bench: &Bench, service: &str) -> String {
    let status = bench.status();
    let services = status["balance"]["services"].as_array().expect("services");
    let of = services.iter().find(|one| one["name"] == service).expect("the service");
    of["choice"].as_str().expect("a name").to_owned()
}

#[test]
fn what_each_kind_tells_moves_the_preference() {
    let setup = Setup::new(2);
    let vipa = vipas(Family::V4)[0];
    let files = Scratch::new().expect("a directory");
    let kinds = kinds(files.path());
    let setup = kinds.iter().zip(FIRST_PORT..).fold(setup, |setup, ((kind, keys), port)| {
        let servers = NUMBERS.map(|number| {
            let at = endpoint(address(number, Family::V4), WEB);
            format!("[[service.server]]\nname = \"s{number}\"\naddress = \"{at}\"\n")
        });
        setup.whole_service(&format!(
            "name = \"{kind}\"\naddress = \"{}\"\nprotocol = \"tcp\"\nmode = \"nat\"\nscore = \"load\"\n{}\
             [[service.status]]\nname = \"load\"\nkind = \"{kind}\"\nevery = \"100ms\"\ntimeout = \"10s\"\n{keys}\n",
            endpoint(vipa, port),
            servers.concat()
        ))
    });
    let bench = Bench::start(&setup);
    let mut servers =
        NUMBERS.map(|number| Loaded::start(&bench, files.path(), number, 2 * usize::from(number)));
    for (preferred, load_of_first) in [("s1", 2), ("s2", 9)] {
        servers[0].bears(&bench, load_of_first);
        for ((kind, _), port) in kinds.iter().zip(FIRST_PORT..) {
            wait_until(&format!("{kind} prefers {preferred}"), || {
                choice(&bench, kind) == preferred
            });
            let (number, _, _) = who(&bench, &bench.network.client, SocketAddr::new(vipa, port));
            assert_eq!(format!("s{number}"), preferred, "{kind}");
        }
    }
}
