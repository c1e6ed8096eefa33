//! Captures, pcap and pcapng: any bytes at all. What was read is written again, and read alike.

use vipa::capture::{Link, Reader, Writer};

/// More than any input of the fuzzer holds.
const MOST: usize = 10_000;

pub(crate) fn check(data: &[u8]) {
    let Ok(mut reader) = Reader::new(data) else { return };
    let mut writer = Writer::new(Vec::new(), [("raw", Link::Ip), ("wire", Link::Ethernet)]);
    let mut read = Vec::new();
    while let Ok(Some(packet)) = reader.next_packet() {
        assert!(packet.bytes.len() <= data.len());
        let number = u32::from(packet.interface.link == Link::Ethernet);
        writer.write(number, packet.time, packet.bytes).expect("a Vec takes all");
        read.push((number, packet.time, packet.bytes.to_vec()));
        assert!(read.len() <= MOST, "a packet takes bytes");
        assert!(reader.offset() <= data.len() as u64);
    }
    let file = writer.finish().expect("a Vec takes all");
    let mut again = Reader::new(file.as_slice()).expect("our own");
    for (number, time, bytes) in read {
        let packet = again.next_packet().expect("our own").expect("as many");
        assert_eq!((packet.number, packet.time, packet.bytes), (number, time, bytes.as_slice()));
    }
    assert!(matches!(again.next_packet(), Ok(None)));
}
