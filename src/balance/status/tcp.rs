//! `tcp`: does it take connections, and how long does that take?

use std::time::Instant;

use super::{Instance, Pending, Reading, StatusObject, at_port, stream};

/// Milliseconds until a connection stands.
#[derive(Debug)]
pub(super) struct Tcp {
    pub(super) port: Option<u16>,
}

impl StatusObject for Tcp {
    fn read<'a>(&'a mut self, instance: &'a Instance) -> Pending<'a> {
        Box::pin(async {
            let began = Instant::now();
            let _connection = stream::connect(at_port(instance, self.port)).await?;
            let value = Some(began.elapsed().as_secs_f64() * 1000.0);
            Ok(Reading { value, ..Reading::default() })
        })
    }
}
