//! `[announce]`: VIPAs that lie in a NIC's own subnet.

use std::time::Duration;

use super::mistake::Mistakes;
use super::reader::Table;
use crate::announce::Settings;

/// What is announced without end must not fill a link.
const FASTEST: Duration = Duration::from_millis(100);
const SLOWEST: Duration = Duration::from_secs(3600);

/// The table; left out: the default.
pub(super) fn read(table: Option<Table<'_>>, mistakes: &mut Mistakes<'_>) -> Settings {
    let default = Settings::default();
    let Some(mut table) = table else { return default };
    let interval = table.duration("interval", Duration::ZERO..=SLOWEST, default.interval, mistakes);
    if !interval.is_zero() && interval < FASTEST {
        let span = table.get("interval").map_or(table.span(), |value| value.span());
        let found = format!("`interval` is {}ms", interval.as_millis());
        mistakes.error(span, found, "\"0s\" (never), or at least \"100ms\"");
    }
    table.finish(mistakes);
    Settings { interval }
}
