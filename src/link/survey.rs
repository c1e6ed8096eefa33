//! Reads the routes of our tables anew while the router goes on: the kernel drops some without a word (those over a device that goes
//! down), and a table of many thousands takes longer to read than a turn of the router may last. So it is read a piece a turn, on a
//! socket of its own; what is found is compared at once, and kept only in a second reading, where something is other. A table that
//! changed meanwhile is left as events have told it.

use std::collections::VecDeque;
use std::io;

use super::mirror::{self, Mirror};
use super::netlink::{Netlink, Notice, errno};
use super::{Error, Result, request};
use crate::wire::ip::Family;

/// Pieces read in a turn, of some two hundred routes each.
const PIECES: usize = 2;
/// A table that keeps changing is read so often, then left to the next survey.
const TRIES: u8 = 3;

/// What is being read.
#[derive(Debug)]
pub(super) struct Survey {
    netlink: Netlink,
    waiting: VecDeque<(u32, Family)>,
    reading: Option<Reading>,
}

#[derive(Debug)]
struct Reading {
    table: u32,
    family: Family,
    /// Next hops found that the mirror holds.
    known: usize,
    /// What is found, where it is to replace what the mirror holds.
    found: Option<Mirror>,
    /// Of the mirror that it is for, at the beginning.
    version: u64,
    /// By a change in the kernel.
    is_disturbed: bool,
    tries: u8,
}

impl Survey {
    /// Nothing is read yet.
    ///
    /// # Errors
    /// No socket.
    pub(super) fn open() -> io::Result<Survey> {
        Ok(Survey { netlink: Netlink::open()?, waiting: VecDeque::new(), reading: None })
    }

    /// Has these tables read, behind those that wait already.
    pub(super) fn begin(&mut self, tables: impl Iterator<Item = u32>) {
        for table in tables {
            for family in Family::BOTH {
                if !self.waiting.contains(&(table, family)) {
                    self.waiting.push_back((table, family));
                }
            }
        }
    }

    /// Is there anything left to read?
    pub(super) fn is_under_way(&self) -> bool {
        self.reading.is_some() || !self.waiting.is_empty()
    }

    /// What is being read is of no use: the mirror was filled anew.
    pub(super) fn forget(&mut self) {
        self.waiting.clear();
        // Read to its end all the same: a socket has one dump at a time.
        self.reading.iter_mut().for_each(|reading| {
            (reading.tries, reading.is_disturbed) = (TRIES, true);
        });
    }

    /// Reads on; true if a route of `mirror` is other now.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn go_on(&mut self, mirror: &mut Mirror) -> Result<bool> {
        self.read_on(mirror).map_err(|source| {
            self.reading = None;
            Error::Netlink { what: "routes", source }
        })
    }

    fn read_on(&mut self, mirror: &mut Mirror) -> io::Result<bool> {
        for _ in 0..PIECES {
            let mut reading = match self.reading.take() {
                Some(reading) => reading,
                None => match self.waiting.pop_front() {
                    Some(next) => self.begin_reading(next, 0, None, mirror)?,
                    None => return Ok(false),
                },
            };
            let is_last = match self.netlink.more() {
                Ok(piece) => {
                    reading.is_disturbed |= piece.is_disturbed;
                    piece.notices.into_iter().for_each(|notice| reading.take(notice, mirror));
                    piece.is_last
                }
                // Nothing was ever put into this table; a kernel without IPv6.
                Err(e) if matches!(errno(&e), Some(libc::ENOENT | libc::EOPNOTSUPP)) => true,
                Err(e) => {
                    // What was begun on the old one may never end.
                    self.netlink = Netlink::open()?;
                    return Err(e);
                }
            };
            if !is_last {
                self.reading = Some(reading);
            } else if self.is_news(reading, mirror)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn begin_reading(
        &mut self,
        (table, family): (u32, Family),
        tries: u8,
        found: Option<Mirror>,
        mirror: &Mirror,
    ) -> io::Result<Reading> {
        self.netlink.begin_dump(&request::routes(table, family))?;
        let (known, version) = (0, mirror.version());
        Ok(Reading { table, family, known, found, version, is_disturbed: false, tries })
    }

    /// At the end of a table: true if the mirror is other now.
    fn is_news(&mut self, reading: Reading, mirror: &mut Mirror) -> io::Result<bool> {
        let (table, family) = (reading.table, reading.family);
        let is_disturbed = reading.is_disturbed || reading.version != mirror.version();
        let is_same = !is_disturbed && reading.known == mirror.next_hops(table, family);
        match reading.found {
            Some(found) if !is_disturbed => {
                mirror.take_routes(found, table, family);
                return Ok(true);
            }
            None if is_same => return Ok(false),
            _ => {}
        }
        if reading.tries + 1 < TRIES {
            let found = Some(Mirror::new([table]));
            let again = self.begin_reading((table, family), reading.tries + 1, found, mirror)?;
            self.reading = Some(again);
        }
        Ok(false)
    }
}

impl Reading {
    fn take(&mut self, notice: Notice, mirror: &Mirror) {
        match &mut self.found {
            Some(found) => drop(found.apply(notice)),
            None => {
                let route = mirror::route_of(&notice);
                self.known += route.filter(|route| mirror.holds(route)).map_or(0, |r| r.size());
            }
        }
    }
}
