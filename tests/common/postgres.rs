//! PostgreSQL: servers in a network, over data directories of their own.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use vipa::lab::{Namespace, Process};

use crate::fixture::{done, wait_until};

const AS_POSTGRES: [&str; 4] = ["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"];

/// Debian keeps the server's programs out of the way.
fn program(name: &str) -> String {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("postgresql (tools/packages.txt)");
    let found =
        versions.filter_map(Result::ok).map(|version| version.path().join("bin").join(name));
    let found = found.filter(|path| path.exists()).max().expect("postgresql (tools/packages.txt)");
    found.display().to_string()
}

/// Its user and group: it refuses to be root.
pub(crate) fn user() -> (u32, u32) {
    let users = fs::read_to_string("/etc/passwd").expect("a list of users");
    let line = users.lines().find(|line| line.starts_with("postgres:")).expect("its user");
    let mut fields = line.split(':').skip(2).map(|field| field.parse().expect("a number"));
    (fields.next().expect("a user"), fields.next().expect("a group"))
}

/// A data directory below `home` for whom `rules` (pg_hba.conf) let in, after these commands, one a line.
pub(crate) fn data(place: &Namespace, home: &Path, rules: &str, commands: &str) -> PathBuf {
    let of_postgres = home.join("postgres");
    fs::create_dir(&of_postgres).expect("a directory");
    let (user, group) = user();
    chown(&of_postgres, Some(user), Some(group)).expect("root's right");
    let data = of_postgres.join("data");
    let more = ["-U", "postgres", "-A", "trust", "-N", "--no-instructions"];
    let mut command = place.command("setpriv");
    done(command.args(AS_POSTGRES).arg(program("initdb")).arg("-D").arg(&data).args(more));
    fs::write(data.join("pg_hba.conf"), rules).expect("a file");
    let file = home.join("commands.sql");
    fs::write(&file, commands).expect("a file");
    let mut command = place.command("setpriv");
    command.args(AS_POSTGRES).arg(program("postgres")).arg("--single").arg("-D").arg(&data);
    done(command.arg("postgres").stdin(File::open(file).expect("a file")));
    data
}

/// Another data directory, as `data` is.
pub(crate) fn copy(data: &Path, name: &str) -> PathBuf {
    let copy = data.with_file_name(name);
    done(std::process::Command::new("cp").arg("-a").args([data, &copy]));
    copy
}

/// A server over `data` that listens at `at`, with these settings more; it may not let anybody in yet. It is to be asked to
/// [`quit`]: killed, it would leave its memory in the kernel.
pub(crate) fn start(place: &Namespace, data: &Path, at: SocketAddr, more: &[&str]) -> Process {
    let (address, port) = (at.ip().to_string(), at.port().to_string());
    let mut command = place.command("setpriv");
    command.args(AS_POSTGRES).arg(program("postgres")).arg("-D").arg(data);
    command.args(["-h", &address, "-p", &port]);
    let settings =
        ["unix_socket_directories=", "fsync=off", "max_connections=20", "shared_buffers=1MB"];
    settings.iter().chain(more).for_each(|setting| {
        command.args(["-c", setting]);
    });
    let process = Process::start(&mut command, &data.join("log"));
    process.unwrap_or_else(|e| panic!("postgres (tools/packages.txt): {e}"))
}

/// Asks a server to end at once, and waits for that.
pub(crate) fn quit(server: &mut Process) {
    done(std::process::Command::new("kill").args(["-QUIT", &server.pid().to_string()]));
    wait_until("PostgreSQL ends", || server.ended().is_some());
}
