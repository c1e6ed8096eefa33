//! Captures of every kind, whole, broken and made up.

use proptest::prelude::*;

use super::reader::Order;
use super::*;

/// What is read of a packet: interface name, nanoseconds, original length, bytes.
type Read = (Option<String>, u64, u32, Vec<u8>);

/// All packets, and the error that ended them.
fn read(file: &[u8]) -> (Vec<Read>, Option<Error>) {
    let mut packets = Vec::new();
    let mut reader = match Reader::new(file) {
        Ok(reader) => reader,
        Err(error) => return (packets, Some(error)),
    };
    loop {
        match reader.next_packet() {
            Ok(Some(p)) => packets.push((
                p.interface.name.clone(),
                p.time,
                p.original_length,
                p.bytes.to_vec(),
            )),
            Ok(None) => return (packets, None),
            Err(error) => return (packets, Some(error)),
        }
    }
}

fn read_whole(file: &[u8]) -> Vec<Read> {
    let (packets, error) = read(file);
    assert!(error.is_none(), "{error:?}");
    packets
}

/// Bytes in either byte order.
struct Bytes(Order, Vec<u8>);

impl Bytes {
    fn u16(mut self, number: u16) -> Bytes {
        self.1.extend(if self.0 == Order::Big {
            number.to_be_bytes()
        } else {
            number.to_le_bytes()
        });
        self
    }

    fn u32(mut self, number: u32) -> Bytes {
        self.1.extend(if self.0 == Order::Big {
            number.to_be_bytes()
        } else {
            number.to_le_bytes()
        });
        self
    }

    fn u64(mut self, number: u64) -> Bytes {
        self.1.extend(if self.0 == Order::Big {
            number.to_be_bytes()
        } else {
            number.to_le_bytes()
        });
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Bytes {
        self.1.extend(bytes);
        self
    }

    /// With zeros up to a multiple of four.
    fn padded(mut self, bytes: &[u8]) -> Bytes {
        self.1.extend(bytes);
        self.1.resize(self.1.len().next_multiple_of(4), 0);
        self
    }

    fn option(self, code: u16, value: &[u8]) -> Bytes {
        self.u16(code).u16(value.len() as u16).padded(value)
    }

    fn block(self, kind: u32, body: impl FnOnce(Bytes) -> Bytes) -> Bytes {
        let body = body(Bytes(self.0, Vec::new())).1;
        let total = body.len() as u32 + 12;
        self.u32(kind).u32(total).bytes(&body).u32(total)
    }

    fn section(self) -> Bytes {
        self.block(0x0a0d_0d0a, |b| b.u32(pcapng::BYTE_ORDER).u16(1).u16(0).u64(u64::MAX))
    }

    fn interface(self, link: u16, snap: u32, options: impl FnOnce(Bytes) -> Bytes) -> Bytes {
        self.block(1, |b| options(b.u16(link).u16(0).u32(snap)))
    }

    fn enhanced(self, interface: u32, ticks: u64, original: u32, packet: &[u8]) -> Bytes {
        self.block(6, |b| {
            b.u32(interface)
                .u32((ticks >> 32) as u32)
                .u32(ticks as u32)
                .u32(packet.len() as u32)
                .u32(original)
                .padded(packet)
        })
    }
}

const ORDERS: [Order; 2] = [Order::Big, Order::Little];

fn pcap(order: Order, magic: u32, link: u32, packets: &[(u32, u32, u32, &[u8])]) -> Vec<u8> {
    let header = Bytes(order, Vec::new()).u32(magic).u16(2).u16(4);
    let mut file = header.u64(0).u32(65_535).u32(link);
    for (seconds, part, original, bytes) in packets {
        file = file.u32(*seconds).u32(*part).u32(bytes.len() as u32).u32(*original).bytes(bytes);
    }
    file.1
}

/// Every kind of block that matters, in two sections of two byte orders.
fn pcapng() -> Vec<u8> {
    let file = Bytes(Order::Big, Vec::new())
        .section()
        .interface(101, 0, |b| b.option(1, b"a comment").option(2, b"vipa0").option(0, b""))
        .interface(1, 6, |b| b.option(9, &[9]).option(2, b"eth1"))
        .enhanced(1, 5, 3, b"abc")
        .block(0x0bad, |b| b.bytes(b"unknown!"))
        .enhanced(0, 5, 4, b"wxyz")
        .block(3, |b| b.u32(9).padded(b"simple789"))
        // An obsolete packet block: interface and drops in 16 bits.
        .block(2, |b| b.u16(1).u16(7).u32(0).u32(8).u32(2).u32(2).padded(b"ob"));
    let mut file = Bytes(Order::Little, file.1)
        .section()
        .interface(1, 6, |b| b.option(14, &2_i64.to_le_bytes()).option(9, &[3]))
        .enhanced(0, 1, 90, b"snapped");
    file = file.block(3, |b| b.u32(9).padded(b"simple"));
    file.1
}

fn named(name: &str) -> Option<String> {
    Some(name.to_owned())
}

#[test]
fn pcap_is_read_in_both_byte_orders_and_resolutions() {
    for order in ORDERS {
        for (magic, nanoseconds) in [(0xa1b2_c3d4, 2_000_003_000), (0xa1b2_3c4d, 2_000_000_003)] {
            let file = pcap(order, magic, 1, &[(2, 3, 5, b"hello"), (4, 0, 900, b"cut")]);
            let packets = read_whole(&file);
            assert_eq!(packets[0], (None, nanoseconds, 5, b"hello".to_vec()));
            assert_eq!(packets[1], (None, 4_000_000_000, 900, b"cut".to_vec()));
            let mut reader = Reader::new(file.as_slice()).expect("a capture");
            let is_snapped = |reader: &mut Reader<&[u8]>| {
                reader.next_packet().expect("it reads").expect("a packet").is_snapped()
            };
            assert!(!is_snapped(&mut reader));
            assert!(is_snapped(&mut reader));
        }
    }
}

#[test]
fn link_types_are_those_of_the_registry() {
    for (number, link) in [
        (1, Link::Ethernet),
        (101, Link::Ip),
        (228, Link::Ip),
        (229, Link::Ip),
        (113, Link::Other(113)),
        // A frame check sequence of four bytes is told in the upper bits.
        (0x2400_0001, Link::Ethernet),
    ] {
        let file = pcap(Order::Little, 0xa1b2_c3d4, number, &[(0, 0, 1, b"x")]);
        let mut reader = Reader::new(file.as_slice()).expect("a capture");
        assert_eq!(reader.next_packet().expect("it reads").expect("a packet").interface.link, link);
    }
}

#[test]
fn pcapng_is_read_with_all_its_kinds_of_blocks() {
    assert_eq!(
        read_whole(&pcapng()),
        [
            (named("eth1"), 5, 3, b"abc".to_vec()),
            (named("vipa0"), 5_000, 4, b"wxyz".to_vec()),
            (named("vipa0"), 5_000, 9, b"simple789".to_vec()),
            (named("eth1"), 8, 2, b"ob".to_vec()),
            // Interfaces are counted anew; two seconds and a millisecond.
            (None, 2_001_000_000, 90, b"snapped".to_vec()),
            (None, 2_001_000_000, 9, b"simple".to_vec()),
        ]
    );
}

#[test]
fn what_is_written_is_read_again() {
    let mut writer = Writer::new(Vec::new(), [("vipa0", Link::Ip), ("eth1", Link::Ethernet)]);
    let packets: Vec<Vec<u8>> = (0..70_000_usize).map(|n| vec![n as u8; n % 130]).collect();
    for (at, packet) in (0_u32..).zip(&packets) {
        writer.write(at % 2, u64::from(at) << 20, packet).expect("memory");
    }
    let file = writer.finish().expect("memory");
    let again = read_whole(&file);
    assert_eq!(again.len(), packets.len());
    for ((at, packet), read) in (0_u32..).zip(&packets).zip(again) {
        let name = if at % 2 == 0 { "vipa0" } else { "eth1" };
        let length = packet.len() as u32;
        assert_eq!(read, (named(name), u64::from(at) << 20, length, packet.clone()));
    }
}

/// Where the header ends, and each packet.
fn boundaries(file: &[u8]) -> Vec<u64> {
    let mut reader = Reader::new(file).expect("a capture");
    let mut found = vec![0, reader.offset()];
    while reader.next_packet().expect("it reads").is_some() {
        found.push(reader.offset());
    }
    found
}

#[test]
fn a_truncated_capture_names_the_byte_where_it_breaks() {
    let microseconds = 0xa1b2_c3d4;
    let classic = pcap(Order::Big, microseconds, 101, &[(1, 2, 3, b"abc"), (4, 5, 6, b"123456")]);
    let modern = pcapng();
    for file in [classic, modern] {
        let whole = read_whole(&file);
        let ends = boundaries(&file);
        let mut errors = 0;
        for end in 0..file.len() {
            let (packets, error) = read(&file[..end]);
            assert_eq!(packets[..], whole[..packets.len()], "{end} bytes");
            let Some(error) = error else {
                // Nothing tells a capture that ends between two records from a whole one.
                continue;
            };
            errors += 1;
            let Error::Malformed { offset, fault } = &error else { panic!("{error}") };
            let Fault::Truncated { there, .. } = fault else { panic!("{error}") };
            assert_eq!(offset + *there as u64, end as u64, "{error}");
            // It is the record behind the last one that was whole.
            let passed = if packets.is_empty() { 0 } else { ends[packets.len() + 1] };
            assert!(*offset >= passed, "{error}, behind {passed}");
            assert!(error.to_string().starts_with(&format!("at byte {offset}: the file ends")));
        }
        assert!(errors > file.len() / 2, "{errors} of {}", file.len());
    }
}

#[test]
fn what_is_no_capture_is_told_by_its_first_bytes() {
    for (file, told) in [
        (&b""[..], "at byte 0: the file ends 0 bytes into the header of a capture"),
        (b"\x7fELF\x02", "at byte 0: neither pcap nor pcapng (it begins with 0x7f454c46)"),
        (
            b"\x0a\x0d\x0d\x0a\0\0\0\x1cabcd",
            "at byte 0: a section header without byte-order magic (0x61626364)",
        ),
    ] {
        assert_eq!(read(file).1.expect("an error").to_string(), told);
    }
    let mut old = pcap(Order::Little, 0xa1b2_c3d4, 1, &[]);
    old[4] = 1;
    let told = read(&old).1.expect("an error").to_string();
    assert_eq!(told, "at byte 0: pcap of version 1.4, which is not known here");
}

#[test]
fn what_contradicts_itself_is_told_with_its_place() {
    let head = || Bytes(Order::Little, Vec::new()).section().interface(1, 0, |b| b);
    let at = head().1.len();
    let told = |file: Bytes| read(&file.1).1.expect("an error").to_string();
    let cases = [
        (head().enhanced(1, 0, 3, b"abc"), "a packet of interface 1, of 1 that are described"),
        (
            head().block(6, |b| b.u32(0).u64(0).u32(9).u32(9).padded(b"short")),
            "a packet of 9 bytes in a block with room for 8",
        ),
        (
            head().block(6, |b| b.u32(0).u64(0).u32(1 << 20).u32(9)),
            "a packet of 1048576 bytes, more than 262144",
        ),
        (
            head().block(6, |b| b.u32(0)),
            "a block of 16 bytes; a length is a multiple of four and large enough for what is in it",
        ),
        (
            head().u32(6).u32(30),
            "a block of 30 bytes; a length is a multiple of four and large enough for what is in it",
        ),
        (head().u32(6).u32(2 << 20), "a block of 2097152 bytes, more than 1048576"),
        (
            head().u32(5).u32(16).u32(0).u32(20),
            "a block whose length is 16 at its beginning and 20 at its end",
        ),
        (
            head().block(1, |b| b.u16(1).u16(0).u32(0).u16(2).u16(400)),
            "an option of 400 bytes in a block with room for 0",
        ),
    ];
    for (file, wanted) in cases {
        assert_eq!(told(file), format!("at byte {at}: {wanted}"));
    }
    let mut long = pcap(Order::Big, 0xa1b2_c3d4, 1, &[]);
    long.extend([[0; 8], [0, 9, 0, 0, 0, 9, 0, 0]].concat());
    let (_, error) = read(&long);
    let wanted = "at byte 24: a packet of 589824 bytes, more than 262144";
    assert_eq!(error.expect("an error").to_string(), wanted);
}

#[test]
fn a_block_larger_than_memory_is_passed_over() {
    let large = vec![7; 3 << 20];
    let head = || Bytes(Order::Little, Vec::new()).section().interface(1, 0, |b| b);
    let file = head().block(0x0bad, |b| b.bytes(&large)).enhanced(0, 1, 3, b"abc");
    assert_eq!(read_whole(&file.1).len(), 1);
    let at = head().1.len();
    let cut = &file.1[..at + (2 << 20)];
    let told = read(cut).1.expect("an error").to_string();
    assert_eq!(told, format!("at byte {at}: the file ends 2097152 bytes into a block"));
}

#[test]
fn a_file_that_cannot_be_read_is_told_with_its_place() {
    struct Broken(Vec<u8>);
    impl io::Read for Broken {
        fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Err(io::Error::other("a bad sector"));
            }
            let count = self.0.len().min(space.len());
            space[..count].copy_from_slice(&self.0[..count]);
            self.0.drain(..count);
            Ok(count)
        }
    }
    let file = pcap(Order::Big, 0xa1b2_c3d4, 1, &[(0, 0, 3, b"abc")]);
    let length = file.len();
    let mut reader = Reader::new(Broken(file)).expect("a header");
    assert!(reader.next_packet().expect("a packet").is_some());
    let told = reader.next_packet().expect_err("it is broken").to_string();
    assert_eq!(told, format!("at byte {length}: cannot be read: a bad sector"));
}

proptest! {
    #[test]
    fn nothing_panics(
        is_modern: bool, at in 0_usize..400, bytes in proptest::collection::vec(any::<u8>(), 1..9),
    ) {
        let mut file = if is_modern {
            pcapng()
        } else {
            pcap(Order::Little, 0xa1b2_3c4d, 1, &[(1, 2, 3, b"abc"), (4, 5, 6, b"123456")])
        };
        for (place, byte) in file.iter_mut().skip(at % 300).zip(bytes) {
            *place = byte;
        }
        // Ends, one way or another.
        let (packets, _) = read(&file);
        prop_assert!(packets.len() <= file.len());
    }
}
