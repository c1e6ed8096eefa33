//! What anybody on a link may send as ARP and as a neighbour advertisement: it is read as written, or not at all.

use vipa::wire::neighbour::{Advertisement, Arp};

/// The first byte chooses which.
pub(crate) fn check(data: &[u8]) {
    match data.split_first() {
        Some((0, bytes)) => {
            let Some(arp) = Arp::parse(bytes) else { return };
            assert_eq!(arp.bytes(), bytes[..28], "what is read is what stands there");
        }
        Some((_, bytes)) => {
            let Some(told) = Advertisement::parse(bytes) else { return };
            assert!(bytes.len() >= 24 && bytes[0] == 136 && !told.target.is_multicast());
            if let Some(mac) = told.mac {
                assert!(bytes.windows(6).any(|window| window == mac.0));
            }
        }
        None => {}
    }
}
