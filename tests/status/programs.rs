//! `exec`: what programs say, and that none of them outlives its reading.

use std::os::unix::fs::PermissionsExt;

use vipa::balance::status::template::Template;
use vipa::balance::status::{Administrative, Failure, Kind};

use crate::fixture::{Reader, SHORT, Site, is_running, wait_until};

fn exec(site: &Site, words: &[&str]) -> Reader {
    let command = words.iter().map(|word| Template::parse(word).expect("a template")).collect();
    site.reader(Kind::Exec { command }, "192.0.2.7:8080")
}

/// A reader of a script, with what it is given.
fn script(site: &Site, text: &str) -> Reader {
    let path = site.write("check", text);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("our own file");
    exec(site, &[&path, "{host}", "{port}", "{server}"])
}

/// A number of seconds that no other sleep has, so that it is found among all processes.
fn unique(number: u32) -> String {
    format!("{}.{number}", 100_000 + std::process::id())
}

#[test]
fn a_program_is_told_what_is_asked_and_says_a_number_or_words() {
    let site = Site::new("exec");
    let mut reader = script(
        &site,
        "#!/bin/sh\n[ \"$*\" = '192.0.2.7 8080 192.0.2.7:8080' ] || exit 9\n\
         [ \"$VIPA_SERVICE $VIPA_SERVER $VIPA_ADDRESS $VIPA_PORT\" = 'web a 192.0.2.7 8080' ] || exit 8\n\
         cat && echo '42.5 drain 50%' && echo 'not read' && echo 'nor this' >&2\n",
    );
    for _ in 0..3 {
        let reading = reader.read().expect("a reading");
        assert_eq!((reading.value, reading.words.weight), (Some(42.5), Some(0.5)));
        assert_eq!(reading.words.administrative, Some(Administrative::Drain));
    }
    // No shell is between: this is one argument.
    let mut reader = exec(&site, &["/bin/echo", "1; exit 5"]);
    let failure = reader.read().expect_err("words that are none");
    assert!(matches!(failure, Failure::Answer { .. }), "{failure}");
}

#[test]
fn the_program_of_the_readme_counts_connections() {
    let site = Site::new("exec");
    let readme = include_str!("../../README.md");
    let program = readme.split("```sh\n").find(|block| block.starts_with("#!/bin/sh\n"));
    let program = program.and_then(|block| block.split("```").next()).expect("a program");
    let mut reader = script(&site, program);
    reader.instance.address = site.serve(|mut stream| {
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    assert_eq!(reader.value(), 0.0);
    let address = reader.instance.address.to_string();
    let clients: Vec<_> = (0..3).map(|_| site.connect(&address)).collect();
    assert_eq!(reader.value(), 3.0);
    drop(clients);
}

#[test]
fn how_a_program_fails_is_told() {
    let site = Site::new("exec");
    for (text, wanted) in [
        ("exit 3", "answered exit status 3, wanted exit status 0"),
        ("echo no luck; exit 1", "answered exit status 1 and \"no luck\", wanted exit status 0"),
        ("kill -9 $$", "answered its end by signal 9, wanted exit status 0"),
        ("exit 0", "answered nothing, wanted a number"),
        ("echo NaN", "answered \"NaN\", wanted a finite number"),
    ] {
        let failure = script(&site, &format!("#!/bin/sh\n{text}\n")).read().expect_err(text);
        assert!(failure.to_string().starts_with(wanted), "{text}: {failure}");
    }
    let failure = exec(&site, &["/nonexistent"]).read().expect_err("no program");
    assert_eq!(failure.to_string(), "not reached: /nonexistent: No such file or directory");
}

#[test]
fn a_program_that_hangs_dies_with_its_children() {
    let site = Site::new("exec");
    let (own, child) = (unique(1), unique(2));
    let text = format!("#!/bin/sh\nsleep {child} & exec sleep {own}\n");
    let mut reader = script(&site, &text).within(SHORT);
    assert_eq!(reader.read(), Err(Failure::Timeout));
    wait_until("both are gone, and waited for", || {
        reader.turn();
        !is_running(&own) && !is_running(&child) && zombies("sleep") == 0
    });
}

#[test]
fn what_a_program_leaves_behind_holds_nobody_up_and_is_killed() {
    let site = Site::new("exec");
    let child = unique(3);
    // It has the output open, and the reading waits for the program alone.
    let mut reader = script(&site, &format!("#!/bin/sh\nsleep {child} &\necho 7\n"));
    assert_eq!(reader.value(), 7.0);
    wait_until("it is gone", || !is_running(&child));
}

#[test]
fn a_program_that_closes_its_output_early_is_waited_for() {
    let site = Site::new("exec");
    let text = "#!/bin/sh\necho 7\nexec >&-\nsleep 0.2\nexit 4\n";
    let failure = script(&site, text).read().expect_err("it fails later");
    assert!(failure.to_string().contains("exit status 4"), "{failure}");
}

#[test]
fn a_program_that_floods_is_stopped() {
    let site = Site::new("exec");
    let flood = format!("vipa-flood-{}", std::process::id());
    let mut reader = exec(&site, &["/usr/bin/yes", &flood]);
    assert_eq!(reader.read(), Err(Failure::TooMuch(4096)));
    wait_until("it is gone", || {
        reader.turn();
        !is_running(&flood)
    });
    // Just as much as is read.
    let text = "#!/bin/sh\nprintf '1 #%4093s' ''\n";
    assert_eq!(script(&site, text).value(), 1.0);
    let text = "#!/bin/sh\nprintf '1 #%4094s' ''\n";
    assert_eq!(script(&site, text).read(), Err(Failure::TooMuch(4096)));
}

#[test]
fn a_hundred_programs_at_once_all_come_to_their_reading() {
    let site = Site::new("exec");
    let mut readers: Vec<Reader> =
        (0..100).map(|n| exec(&site, &["/bin/echo", &n.to_string()])).collect();
    let values: Vec<f64> = std::thread::scope(|scope| {
        let reads: Vec<_> =
            readers.iter_mut().map(|reader| scope.spawn(move || reader.value())).collect();
        reads.into_iter().map(|read| read.join().expect("a value")).collect()
    });
    assert_eq!(values, (0..100).map(f64::from).collect::<Vec<_>>());
    assert_eq!(zombies("echo"), 0);
}

/// Programs of this name that this process started, that ended and were not waited for.
fn zombies(name: &str) -> usize {
    let own = std::process::id().to_string();
    let processes = std::fs::read_dir("/proc").expect("proc").filter_map(Result::ok);
    let stats =
        processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    let is_ours = |stat: &String| {
        let (front, rest) = stat.rsplit_once(')').unwrap_or_default();
        let mut fields = rest.split_ascii_whitespace();
        front.ends_with(&format!("({name}"))
            && fields.next() == Some("Z")
            && fields.next() == Some(&own)
    };
    stats.filter(is_ours).count()
}
