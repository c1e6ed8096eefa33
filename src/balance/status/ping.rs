//! `ping`: milliseconds of an ICMP echo there and back.

use std::time::Instant;

use super::echo::EchoSocket;
use super::{Instance, Pending, Reading, StatusObject};

/// One echo a reading.
#[derive(Debug, Default)]
pub(super) struct Ping;

impl StatusObject for Ping {
    fn read<'a>(&'a mut self, instance: &'a Instance) -> Pending<'a> {
        Box::pin(async {
            let socket = EchoSocket::open(instance.address.ip(), true)?;
            let sent = Instant::now();
            socket.send(1, None).await?;
            socket.hear().await?;
            let value = Some(sent.elapsed().as_secs_f64() * 1000.0);
            Ok(Reading { value, ..Reading::default() })
        })
    }
}
