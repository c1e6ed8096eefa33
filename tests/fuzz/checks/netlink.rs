//! What the kernel tells by route netlink, taken into the mirror: any bytes at all.

use vipa::link::mirror::Mirror;
use vipa::link::netlink;

const TABLE: u32 = 923;

pub(crate) fn check(data: &[u8]) {
    let mut mirror = Mirror::new([TABLE]);
    for notice in netlink::notices(data) {
        mirror.apply(notice);
    }
    // Held as the kernel would have it: each once, in tables that are asked for.
    for table in mirror.tables().collect::<Vec<u32>>() {
        assert!(mirror.routes(table).all(|route| route.table == table));
        for route in mirror.routes(table) {
            assert!(mirror.routes_at(table, route.prefix, route.metric).contains(route));
        }
    }
    let again = mirror.clone();
    for notice in netlink::notices(data) {
        mirror.apply(notice);
    }
    assert!(mirror.links.len() >= again.links.len() || data.len() >= 16);
}
