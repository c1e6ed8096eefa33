//! `[announce]`: VIPAs that lie in a NIC's own subnet.

use std::time::Duration;

use super::mistake::Mistakes;
use super::reader::Table;
use crate::announce::Settings;

const SLOWEST: Duration = Duration::from_secs(3600);

/// The table; left out: the default.
pub(super) fn read(table: Option<Table<'_>>, mistakes: &mut Mistakes<'_>) -> Settings {
    let default = Settings::default();
    let Some(mut table) = table else { return default };
    let interval = table.duration("interval", Duration::ZERO..=SLOWEST, default.interval, mistakes);
    table.finish(mistakes);
    Settings { interval }
}
