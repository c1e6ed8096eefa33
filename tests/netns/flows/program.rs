//! A program of the host that asks the client by whom it is spoken to: a shell, as whoever is named, in any
//! cgroup, over TCP or UDP.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use vipa::wire::ip::TCP;

use crate::fixture::Bench;

/// What starts it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Program<'a> {
    /// User id; `None`: root.
    pub(crate) user: Option<u32>,
    /// The directory of its cgroup.
    pub(crate) cgroup: Option<&'a Path>,
}

impl Program<'_> {
    /// Asks until there is an answer: by whom `to` was asked.
    pub(crate) fn ask(self, bench: &Bench, protocol: u8, to: SocketAddr) -> IpAddr {
        let name = if protocol == TCP { "tcp" } else { "udp" };
        let (address, port) = (to.ip(), to.port());
        let join = self.cgroup.map_or(String::new(), |directory| {
            format!("echo $$ > {}/cgroup.procs || exit 9; ", directory.display())
        });
        let become_user = self.user.map_or(String::new(), |user| {
            format!("setpriv --reuid {user} --regid {user} --clear-groups ")
        });
        // A datagram may get lost while a neighbour is looked for: asked again.
        let ask = if protocol == TCP {
            "head -n 1 <&3".to_owned()
        } else {
            "for n in 1 2 3 4 5 6 7 8 9 10; do echo who >&3; \
             timeout 2 dd bs=2048 count=1 <&3 2>/dev/null && exit 0; done; exit 1"
                .to_owned()
        };
        let inner = format!("exec 3<>/dev/{name}/{address}/{port}; {ask}");
        let script = format!("{join}exec {become_user}bash -c '{inner}'");
        let said = bench.run(&bench.network.host, "bash", &["-c", &script]);
        let by: Result<SocketAddr, _> = said.trim().parse();
        by.unwrap_or_else(|_| panic!("{said:?} is no address ({script})")).ip()
    }
}
