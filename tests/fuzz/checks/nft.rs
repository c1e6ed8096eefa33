//! What the kernel tells by nf_tables' netlink: any bytes at all.

use vipa::link::nft::message::{HEADER, attributes, find, messages, number, text};

pub(crate) fn check(data: &[u8]) {
    let mut told = 0;
    for message in messages(data) {
        told += HEADER + message.payload.len();
        assert!(message.errno().is_none_or(|errno| errno > i32::MIN));
        let payload = message.payload.get(4..).unwrap_or(&[]);
        nest(payload, 0);
    }
    assert!(told <= data.len());
}

fn nest(bytes: &[u8], depth: usize) {
    let mut told = 0;
    for (kind, value) in attributes(bytes) {
        told += 4 + value.len();
        assert!(find(bytes, kind).is_some());
        let _ = (number(value), text(value));
        if depth < 4 {
            nest(value, depth + 1);
        }
    }
    assert!(told <= bytes.len());
}
