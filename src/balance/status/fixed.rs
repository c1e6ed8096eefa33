//! `fixed`: a value that is stated, not read: a server's `capacity`.

use super::answer::told;
use super::{Failure, Instance, Pending, Reading, StatusObject};

/// Always the same.
#[derive(Debug)]
pub(super) struct Fixed {
    /// Where the server states none.
    pub(super) value: Option<f64>,
}

impl Fixed {
    fn value(&self, instance: &Instance) -> Result<Reading, Failure> {
        let value = instance.capacity.or(self.value);
        let missing = || told("no capacity", "`capacity` of the server");
        Ok(Reading { value: Some(value.ok_or_else(missing)?), ..Reading::default() })
    }
}

impl StatusObject for Fixed {
    fn read<'a>(&'a mut self, instance: &'a Instance) -> Pending<'a> {
        Box::pin(std::future::ready(self.value(instance)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::status::tests::instance;

    #[test]
    fn the_servers_own_capacity_comes_first() {
        let value = |capacity, value| {
            let instance = Instance { capacity, ..instance("127.0.0.1:1") };
            Fixed { value }.value(&instance).map(|reading| reading.value)
        };
        assert_eq!(value(Some(2.0), Some(1.0)), Ok(Some(2.0)));
        assert_eq!(value(None, Some(1.0)), Ok(Some(1.0)));
        assert!(value(None, None).is_err());
    }
}
