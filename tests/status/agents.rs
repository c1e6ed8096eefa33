//! `agent-check` beside HAProxy itself: one agent answers both, and what HAProxy makes of the line is what we read.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use vipa::balance::status::{Administrative, Kind, Words};

use crate::fixture::{Site, wait_until};

/// Weight of the server in HAProxy's configuration.
const WEIGHT: f64 = 100.0;

/// An agent that answers every connection with the line of the moment, and HAProxy that asks it.
struct Bench {
    site: Site,
    line: Arc<Mutex<(String, usize)>>,
    agent: std::net::SocketAddr,
}

impl Bench {
    fn start() -> Bench {
        let mut site = Site::new("agents");
        let line = Arc::new(Mutex::new(("up ready 100%\n".to_owned(), 0)));
        let said = line.clone();
        let agent = site.serve(move |mut stream| {
            // HAProxy and we both say "vipa" first.
            let mut asked = [0; 5];
            if stream.read_exact(&mut asked).is_ok() && asked == *b"vipa\n" {
                let mut said = said.lock().expect("no panic");
                let _ = stream.write_all(said.0.as_bytes());
                said.1 += 1;
            }
        });
        let socket = site.path("haproxy.sock").display().to_string();
        let config = format!(
            "global\n  stats socket {socket} level admin\n\
             defaults\n  mode tcp\n  timeout client 5s\n  timeout server 5s\n  timeout connect 5s\n\
             backend be\n  server srv 127.0.0.1:9 weight 100 agent-check agent-addr 127.0.0.1 \
             agent-port {} agent-send vipa\\n agent-inter 20ms\n",
            agent.port(),
        );
        let config = site.write("haproxy.cfg", &config);
        site.start("haproxy", &["-db", "-f", &config]);
        let bench = Bench { site, line, agent };
        wait_until("HAProxy runs", || bench.ask_haproxy("show info").is_some());
        bench
    }

    fn ask_haproxy(&self, command: &str) -> Option<String> {
        let mut socket = UnixStream::connect(self.site.path("haproxy.sock")).ok()?;
        socket.write_all(format!("{command}\n").as_bytes()).ok()?;
        let mut said = String::new();
        socket.read_to_string(&mut said).ok()?;
        Some(said)
    }

    /// From now on the agent says this; returns when HAProxy has heard it three times over.
    fn say(&self, line: &str) {
        *self.line.lock().expect("no panic") = (line.to_owned(), 0);
        wait_until("HAProxy asks", || self.line.lock().expect("no panic").1 >= 4);
    }

    /// What HAProxy holds of the server: is it up, its administrative state, weight, and most connections.
    fn state(&self) -> (bool, Administrative, f64, u32) {
        let state = self.ask_haproxy("show servers state be").expect("HAProxy answers");
        let mut lines = state.lines().skip(1);
        let names = lines.next().expect("names").trim_start_matches("# ");
        let values = lines.next().expect("a server");
        let fields: HashMap<&str, &str> =
            names.split_ascii_whitespace().zip(values.split_ascii_whitespace()).collect();
        let number = |name: &str| fields[name].parse::<u32>().expect("a number");
        let administrative = match number("srv_admin_state") & 0x09 {
            0 => Administrative::Ready,
            8 => Administrative::Drain,
            _ => Administrative::Maintenance,
        };
        let stat = self.ask_haproxy("show stat be 4 -1").expect("HAProxy answers");
        let mut lines = stat.lines();
        let names = lines.next().expect("names").trim_start_matches("# ").split(',');
        let most = names.zip(lines.next().expect("a server").split(','));
        let most = most.filter(|(name, _)| *name == "slim").map(|(_, value)| value).next();
        let most = most.and_then(|value| value.parse().ok()).unwrap_or(0);
        (number("srv_op_state") != 0, administrative, f64::from(number("srv_uweight")), most)
    }
}

#[test]
fn haproxy_and_we_read_an_agents_line_alike() {
    let bench = Bench::start();
    let kind = Kind::AgentCheck { port: None, send: "vipa\n".into() };
    let mut reader = bench.site.reader(kind, bench.agent);
    let mut believed = (true, Administrative::Ready, WEIGHT, 0);
    for line in [
        // HAProxy's own case (reg-tests/checks/agent-check.vtc).
        "75%,maxconn:30,maint,down\n",
        "up,ready,100%\n",
        "drain\n",
        "ready\n",
        "down\n",
        "up\n",
        "stopped # by hand\n",
        "UP\tReady  50%\r\n",
        "fail #up ready 100%\n",
        "maint,up\n",
        "ready,drain,maxconn:7\n",
        "drain,ready 10%,20%\n",
        "0%\n",
        "150% agitated\n",
        "down,up\n",
        "up,down\n",
        "up\ndown\n",
        " ,\t, \n",
        "# nothing to say\n",
        "maxconn:0 200%\n",
    ] {
        bench.say(line);
        let Words { weight, most_connections, administrative, is_up } =
            reader.read().unwrap_or_else(|failure| panic!("{line:?}: {failure}")).words;
        // Words that were not said leave everything as it was.
        believed = (
            is_up.unwrap_or(believed.0),
            administrative.unwrap_or(believed.1),
            weight.map_or(believed.2, |share| share * WEIGHT),
            most_connections.unwrap_or(believed.3),
        );
        // In maintenance HAProxy holds every server for down, and asks no agent about it.
        let state = bench.state();
        let is_maintained = believed.1 == Administrative::Maintenance;
        let expected = (believed.0 && !is_maintained, believed.1, believed.2, believed.3);
        assert_eq!(state, expected, "{line:?}");
    }
}

#[test]
fn a_line_that_breaks_off_or_is_none_of_the_grammar_is_told() {
    let site = Site::new("agents");
    for (line, wanted) in [
        ("up", "answered \"up\" without an end, wanted a line"),
        ("", "answered nothing, wanted a line"),
        ("hello\n", "answered \"hello\", wanted a number, or words"),
    ] {
        let kind = Kind::AgentCheck { port: None, send: "?".into() };
        let failure = site.reader(kind, site.answer(line)).read().expect_err(line);
        assert!(failure.to_string().starts_with(wanted), "{line:?}: {failure}");
    }
}

#[test]
fn an_agent_on_a_port_of_its_own_that_is_asked_nothing() {
    let site = Site::new("agents");
    let agent = site.serve(|mut stream| {
        let _ = stream.write_all(b"up 3\n");
    });
    let kind = Kind::AgentCheck { port: Some(agent.port()), send: String::new() };
    let reading = site.reader(kind, "127.0.0.1:9").read().expect("a line");
    assert_eq!((reading.value, reading.words.is_up), (Some(3.0), Some(true)));
}
