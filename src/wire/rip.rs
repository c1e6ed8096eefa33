//! RIP messages: version 1 (RFC 1058), version 2 (RFC 2453 section 4) and RIPng (RFC 2080 section 2.1).
//!
//! A checked view over what came in, and a writer for what goes out. What an entry means for a table is not known here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ip::{Family, Prefix};

/// UDP port of RIP (RFC 2453 section 3.1).
pub const PORT: u16 = 520;
/// UDP port of RIPng (RFC 2080 section 2.1).
pub const NG_PORT: u16 = 521;
/// No way there (RFC 2453 section 3.4.1).
pub const INFINITY: u8 = 16;
/// Entries of a RIP message at most, authentication included (RFC 2453 section 3.6).
pub const MOST_ENTRIES: usize = 25;

const HEADER: usize = 4;
const ENTRY: usize = 20;
const AF_UNSPECIFIED: u16 = 0;
const AF_INET: u16 = 2;
/// The metric of an entry that names the next hop of those behind it (RFC 2080 section 2.1.1).
const NEXT_HOP: u8 = 0xff;

/// Which of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// RFC 1058: no masks, broadcast.
    V1,
    /// RFC 2453.
    V2,
    /// RFC 2080.
    Ng,
}

impl Version {
    /// Of which family its routes are.
    pub fn family(self) -> Family {
        if self == Version::Ng { Family::V6 } else { Family::V4 }
    }

    fn number(self) -> u8 {
        if self == Version::V2 { 2 } else { 1 }
    }
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Asks for all or part of a table.
    Request,
    /// All or part of a table.
    Response,
}

/// One route of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where to; host bits as they came.
    pub address: IpAddr,
    /// Bits of the prefix; `None`: the message does not say (version 1, and version 2 with a mask of zero for anything but the default route).
    pub length: Option<u8>,
    /// Route tag (RFC 2453 section 4.2), kept as it is.
    pub tag: u16,
    /// By this router rather than the sender (RFC 2453 section 4.4, RFC 2080 section 2.1.1).
    pub next_hop: Option<IpAddr>,
    /// 1 to 16 where it is right; anything in what came in.
    pub metric: u32,
}

/// Why a message or an entry is no such thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Malformed {
    /// Not a header and whole entries, or too many of them.
    #[error("its length is not that of a header and entries")]
    Length,
    /// Neither request nor response (RFC 2453 section 3.6: the others are obsolete or private).
    #[error("neither request nor response")]
    Command,
    /// Version 0, or one of RIPng that is not 1.
    #[error("of no version that there is")]
    Version,
    /// Version 1, and a field that must be zero is not (RFC 2453 section 4.6, RFC 1058 section 3.4).
    #[error("a field that must be zero is not")]
    NotZero,
    /// An entry of another address family (RFC 2453 section 3.9.2: ignored).
    #[error("an entry of another address family")]
    AddressFamily,
    /// A mask with holes, or a prefix length past 128.
    #[error("no mask")]
    Mask,
}

/// A message that came in, without what signed it ([`crate::rip::auth`]), with its entries yet to be read.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// What it is.
    pub command: Command,
    /// Its version; what claims to be above 2 is read as 2 (RFC 2453 section 4.6).
    pub version: Version,
    entries: &'a [u8],
}

/// What stands at the place of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// A route.
    Route(Entry),
    /// Asks for the whole table, if nothing else stands beside it (RFC 2453 section 3.9.1).
    WholeTable,
}

impl<'a> Message<'a> {
    /// Checks header and length.
    ///
    /// # Errors
    /// Why it is no message of `family`'s RIP.
    pub fn parse(bytes: &'a [u8], family: Family) -> Result<Message<'a>, Malformed> {
        let (header, entries) = bytes.split_at_checked(HEADER).ok_or(Malformed::Length)?;
        let most = if family == Family::V4 { MOST_ENTRIES } else { usize::MAX };
        if !entries.len().is_multiple_of(ENTRY) || entries.len() / ENTRY > most {
            return Err(Malformed::Length);
        }
        let command = match header[0] {
            1 => Command::Request,
            2 => Command::Response,
            _ => return Err(Malformed::Command),
        };
        let version = match (family, header[1]) {
            (_, 0) => return Err(Malformed::Version),
            (Family::V6, 1) => Version::Ng,
            (Family::V6, _) => return Err(Malformed::Version),
            (Family::V4, 1) => Version::V1,
            (Family::V4, _) => Version::V2,
        };
        if version == Version::V1 && header[2..4] != [0, 0] {
            return Err(Malformed::NotZero);
        }
        let message = Message { command, version, entries };
        let is_zero = |entry: &[u8]| entry[2..4] == [0; 2] && entry[8..16] == [0; 8];
        if version == Version::V1 && !message.raw().all(is_zero) {
            return Err(Malformed::NotZero);
        }
        Ok(message)
    }

    /// Entries, as many as there are bytes for.
    pub fn len(&self) -> usize {
        self.entries.len() / ENTRY
    }

    /// Has it no entry?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn raw(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.entries.chunks_exact(ENTRY)
    }

    /// Its entries in order; a wrong one does not spoil the others (RFC 2453 section 3.9.2).
    pub fn items(&self) -> impl Iterator<Item = Result<Item, Malformed>> + use<'a> {
        let (version, command, is_alone) = (self.version, self.command, self.len() == 1);
        let mut next_hop = None;
        self.raw().filter_map(move |raw| {
            let item = match version {
                Version::Ng => ng_item(raw, &mut next_hop),
                _ => Some(item(raw, version)),
            }?;
            Some(match item {
                Ok(Item::WholeTable) if command == Command::Request && is_alone => item,
                Ok(Item::WholeTable) => Err(Malformed::AddressFamily),
                other => other,
            })
        })
    }
}

fn u16_at(raw: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([raw[at], raw[at + 1]])
}

fn u32_at(raw: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]])
}

fn item(raw: &[u8], version: Version) -> Result<Item, Malformed> {
    let metric = u32_at(raw, 16);
    match u16_at(raw, 0) {
        AF_INET => {}
        AF_UNSPECIFIED if metric == u32::from(INFINITY) => return Ok(Item::WholeTable),
        _ => return Err(Malformed::AddressFamily),
    }
    let address = u32_at(raw, 4);
    let mask = u32_at(raw, 8);
    let length = match version {
        // RFC 2453 section 3.7: 0.0.0.0 is the default route.
        _ if address == 0 && mask == 0 => Some(0),
        Version::V1 => None,
        _ if mask == 0 => None,
        _ if mask.leading_ones() + mask.trailing_zeros() == 32 => Some(mask.leading_ones() as u8),
        _ => return Err(Malformed::Mask),
    };
    let next_hop = u32_at(raw, 12);
    Ok(Item::Route(Entry {
        address: Ipv4Addr::from(address).into(),
        length,
        tag: if version == Version::V2 { u16_at(raw, 2) } else { 0 },
        next_hop: (next_hop != 0).then(|| Ipv4Addr::from(next_hop).into()),
        metric,
    }))
}

/// `None`: the entry named a next hop for those behind it.
fn ng_item(raw: &[u8], next_hop: &mut Option<IpAddr>) -> Option<Result<Item, Malformed>> {
    let mut octets = [0; 16];
    octets.copy_from_slice(&raw[..16]);
    let address = Ipv6Addr::from(octets);
    let (tag, length, metric) = (u16_at(raw, 16), raw[18], raw[19]);
    if metric == NEXT_HOP {
        // RFC 2080 section 2.1.1: anything but a link-local address means the sender.
        *next_hop = address.is_unicast_link_local().then_some(address.into());
        return None;
    }
    if address.is_unspecified() && length == 0 && metric == INFINITY {
        // In a request with nothing beside it; else it is the default route, unreachable.
        return Some(Ok(Item::WholeTable));
    }
    if length > 128 {
        return Some(Err(Malformed::Mask));
    }
    let metric = u32::from(metric);
    let (address, next_hop) = (address.into(), *next_hop);
    Some(Ok(Item::Route(Entry { address, length: Some(length), tag, next_hop, metric })))
}

/// A route to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Where to.
    pub prefix: Prefix,
    /// Route tag.
    pub tag: u16,
    /// 1 to 16.
    pub metric: u8,
}

/// The header of a message.
pub fn header(command: Command, version: Version) -> [u8; HEADER] {
    let command = match command {
        Command::Request => 1,
        Command::Response => 2,
    };
    [command, version.number(), 0, 0]
}

/// Appends a route. Its next hop is ourselves.
pub fn put(message: &mut Vec<u8>, version: Version, told: Told) {
    let (length, metric) = (told.prefix.length(), told.metric);
    match told.prefix.address() {
        IpAddr::V4(address) => {
            let is_v2 = version == Version::V2;
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            message.extend(AF_INET.to_be_bytes());
            message.extend(if is_v2 { told.tag } else { 0 }.to_be_bytes());
            message.extend(address.octets());
            message.extend(if is_v2 { mask } else { 0 }.to_be_bytes());
            message.extend([0; 4]);
            message.extend(u32::from(metric).to_be_bytes());
        }
        IpAddr::V6(address) => {
            message.extend(address.octets());
            message.extend(told.tag.to_be_bytes());
            message.extend([length, metric]);
        }
    }
}

/// A request for the whole table (RFC 2453 section 3.9.1, RFC 2080 section 2.4.1).
pub fn request_for_all(version: Version) -> Vec<u8> {
    let mut message = header(Command::Request, version).to_vec();
    message.extend([0; ENTRY - 1]);
    message.push(INFINITY);
    message
}

/// Routes that fit into a message of RIPng on a link with this MTU (RFC 2080 section 2.1).
pub fn ng_most(mtu: u32) -> usize {
    (mtu.max(1280) as usize - 40 - 8 - HEADER) / ENTRY
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(address: [u8; 4], mask: [u8; 4], hop: [u8; 4], metric: u8) -> Vec<u8> {
        [&[0, 2, 0, 7][..], &address, &mask, &hop, &[0, 0, 0, metric]].concat()
    }

    fn message(version: u8, entries: &[Vec<u8>]) -> Vec<u8> {
        [&[2, version, 0, 0][..], &entries.concat()].concat()
    }

    #[test]
    fn what_is_written_is_read_back() {
        for (version, prefix) in [
            (Version::V2, "10.1.0.0/16"),
            (Version::V2, "0.0.0.0/0"),
            (Version::V2, "203.0.113.10/32"),
            (Version::Ng, "2001:db8::/32"),
            (Version::Ng, "::/0"),
        ] {
            let prefix: Prefix = prefix.parse().expect("a prefix");
            let mut bytes = header(Command::Response, version).to_vec();
            put(&mut bytes, version, Told { prefix, tag: 9, metric: 3 });
            let read = Message::parse(&bytes, version.family()).expect("a message");
            let items: Vec<_> = read.items().collect();
            let address = prefix.address();
            let length = Some(prefix.length());
            let wanted = Entry { address, length, tag: 9, next_hop: None, metric: 3 };
            assert_eq!(items, [Ok(Item::Route(wanted))], "{prefix}");
        }
    }

    #[test]
    fn rfc2453_3_6_a_length_that_is_not_of_whole_entries_is_refused() {
        let whole = message(2, &[entry([10, 0, 0, 0], [255, 0, 0, 0], [0; 4], 1)]);
        assert!(Message::parse(&whole, Family::V4).is_ok());
        for cut in 0..whole.len() {
            let is_header = cut == HEADER;
            assert_eq!(Message::parse(&whole[..cut], Family::V4).is_ok(), is_header, "{cut}");
        }
        let long = message(2, &vec![entry([10, 0, 0, 0], [255, 0, 0, 0], [0; 4], 1); 26]);
        assert_eq!(Message::parse(&long, Family::V4).err(), Some(Malformed::Length));
    }

    #[test]
    fn rfc2453_4_6_versions() {
        let good = entry([10, 0, 0, 0], [255, 0, 0, 0], [0; 4], 1);
        let version = |number| {
            Message::parse(&message(number, std::slice::from_ref(&good)), Family::V4)
                .map(|m| m.version)
        };
        assert_eq!(version(0), Err(Malformed::Version));
        assert_eq!(version(1), Err(Malformed::NotZero));
        assert_eq!(version(2), Ok(Version::V2));
        assert_eq!(version(3), Ok(Version::V2));
    }

    #[test]
    fn rfc2453_4_3_masks() {
        let length = |address, mask| {
            let bytes = message(2, &[entry(address, mask, [0; 4], 1)]);
            let read = Message::parse(&bytes, Family::V4).expect("a message");
            match read.items().next() {
                Some(Ok(Item::Route(entry))) => Ok(entry.length),
                Some(Err(error)) => Err(error),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(length([10, 0, 0, 0], [255, 0, 0, 0]), Ok(Some(8)));
        assert_eq!(length([10, 0, 0, 0], [0; 4]), Ok(None));
        assert_eq!(length([0; 4], [0; 4]), Ok(Some(0)));
        assert_eq!(length([10, 0, 0, 0], [255, 0, 255, 0]), Err(Malformed::Mask));
    }

    #[test]
    fn rfc2080_2_1_1_a_next_hop_holds_until_the_next_one() {
        let hop: Ipv6Addr = "fe80::7".parse().expect("an address");
        let mut bytes = header(Command::Response, Version::Ng).to_vec();
        let route = |bytes: &mut Vec<u8>, prefix: &str| {
            let prefix = prefix.parse().expect("a prefix");
            put(bytes, Version::Ng, Told { prefix, tag: 0, metric: 1 });
        };
        let next_hop = |bytes: &mut Vec<u8>, hop: Ipv6Addr| {
            bytes.extend(hop.octets());
            bytes.extend([0, 0, 0, NEXT_HOP]);
        };
        route(&mut bytes, "2001:db8:1::/48");
        next_hop(&mut bytes, hop);
        route(&mut bytes, "2001:db8:2::/48");
        route(&mut bytes, "2001:db8:3::/48");
        next_hop(&mut bytes, Ipv6Addr::UNSPECIFIED);
        route(&mut bytes, "2001:db8:4::/48");
        let hops: Vec<Option<IpAddr>> = Message::parse(&bytes, Family::V6)
            .expect("a message")
            .items()
            .map(|item| match item {
                Ok(Item::Route(entry)) => entry.next_hop,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(hops, [None, Some(hop.into()), Some(hop.into()), None]);
    }

    #[test]
    fn a_request_for_all_is_read_as_one_only_where_it_stands_alone() {
        for version in [Version::V1, Version::V2, Version::Ng] {
            let mut bytes = request_for_all(version);
            let items = |bytes: &[u8]| -> Vec<bool> {
                let read = Message::parse(bytes, version.family()).expect("a message");
                read.items().map(|item| item == Ok(Item::WholeTable)).collect()
            };
            assert_eq!(items(&bytes), [true]);
            bytes.extend_from_within(4..);
            assert_eq!(items(&bytes), [false, false]);
        }
    }
}
