//! nginx: one process in a network, with its files in a directory.

use std::path::Path;

use vipa::lab::{Namespace, Process};

/// nginx with these `server` blocks, which find `home` as their root; what it says is in `home`'s "log".
pub(crate) fn start(place: &Namespace, home: &Path, servers: &str) -> Process {
    let at = home.display();
    let config = format!(
        "user root; daemon off; master_process off; pid {at}/pid; error_log {at}/error;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
         fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
         root {at};\n{servers}\n}}\n"
    );
    let path = home.join("nginx.conf");
    std::fs::write(&path, config).expect("a directory takes files");
    let mut command = place.command("nginx");
    command.arg("-p").arg(home).arg("-c").arg(path);
    let process = Process::start(&mut command, &home.join("log"));
    process.unwrap_or_else(|e| panic!("nginx (tools/packages.txt): {e}"))
}
