//! The cases of what programs rarely send. Each is made here, and kept in tests/replay.

use std::net::IpAddr;

use etherparse::{IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, PacketBuilderStep};
use vipa::wire::checksum::Sum;
use vipa::wire::packet::Headers;

use crate::judge::crc32c;
use crate::packets::fragments;
use crate::write::{At, MILLISECOND, Pcap, ethernet, pcapng};

/// A case, as its folder holds it.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) config: String,
    /// Name of the file.
    pub(crate) input: &'static str,
    pub(crate) arguments: &'static str,
    pub(crate) capture: Vec<u8>,
}

/// An address of each family.
#[derive(Clone, Copy, Debug)]
struct Host([u8; 4], u16);

const VIPA: Host = Host([203, 0, 113, 10], 0x10);
const SECOND: Host = Host([203, 0, 113, 11], 0x11);
/// Packets to it carry the second VIPA.
const RULED: Host = Host([10, 20, 0, 1], 0x99);
const OTHER: Host = Host([192, 0, 2, 1], 0x77);
const ROUTER: Host = Host([192, 0, 2, 254], 0xfe);
const NIC1: Host = Host([10, 1, 1, 2], 0xe1);
/// What the first and the second rewritten flow get.
const PORT: u16 = 61001;
const NEXT_PORT: u16 = 61002;
const V6: [bool; 2] = [false, true];

impl Host {
    fn six(self) -> [u8; 16] {
        let IpAddr::V6(address) = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, self.1]) else {
            unreachable!("eight words")
        };
        address.octets()
    }
}

fn config(more: &str) -> String {
    format!(
        r#"[virtual]
name = "vipa0"
addresses = ["203.0.113.10", "203.0.113.11", "2001:db8::10", "2001:db8::11"]

[forwarder]
flows = 1024

[[nic]]
name = "eth1"
gateway = ["10.1.1.1", "2001:db8:1::1"]

[[nic]]
name = "eth2"
gateway = ["10.1.2.1", "2001:db8:2::1"]
{more}
[[replay.nic]]
name = "eth1"
addresses = ["10.1.1.2/24", "2001:db8::e1/128"]

[[replay.nic]]
name = "eth2"
addresses = ["10.1.2.2/24", "2001:db8::e2/128"]
"#
    )
}

const RULES: &str = r#"
[[source.rule]]
destination = "10.20.0.0/16"
use = "203.0.113.11"
apply = "forwarder"

[[source.rule]]
destination = "2001:db8::99/128"
use = "2001:db8::11"
apply = "forwarder"
"#;

fn ip(v6: bool, from: Host, to: Host) -> PacketBuilderStep<IpHeaders> {
    PacketBuilder::ip(if v6 {
        let header = Ipv6Header {
            source: from.six(),
            destination: to.six(),
            hop_limit: 64,
            ..Default::default()
        };
        IpHeaders::Ipv6(header, Default::default())
    } else {
        let mut header = Ipv4Header::new(0, 64, IpNumber(0), from.0, to.0).expect("a header");
        header.identification = 7;
        IpHeaders::Ipv4(header, Default::default())
    })
}

fn udp(v6: bool, from: (Host, u16), to: (Host, u16), payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(v6, from.0, to.0).udp(from.1, to.1).write(&mut bytes, payload).expect("a packet");
    bytes
}

#[derive(Clone, Copy)]
enum Flags {
    Syn,
    SynAck,
    Ack,
    Fin,
}

fn tcp(v6: bool, from: (Host, u16), to: (Host, u16), flags: Flags, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let step = ip(v6, from.0, to.0).tcp(from.1, to.1, 1000, 64000);
    match flags {
        Flags::Syn => step.syn(),
        Flags::SynAck => step.syn().ack(9),
        Flags::Ack => step.ack(9),
        Flags::Fin => step.fin().ack(9),
    }
    .write(&mut bytes, payload)
    .expect("a packet");
    bytes
}

fn echo(v6: bool, from: Host, to: Host, id: u16, is_request: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let step = ip(v6, from, to);
    match (v6, is_request) {
        (false, true) => step.icmpv4_echo_request(id, 1).write(&mut bytes, b"ping"),
        (false, false) => step.icmpv4_echo_reply(id, 1).write(&mut bytes, b"ping"),
        (true, true) => step.icmpv6_echo_request(id, 1).write(&mut bytes, b"ping"),
        (true, false) => step.icmpv6_echo_reply(id, 1).write(&mut bytes, b"ping"),
    }
    .expect("a packet");
    bytes
}

fn raw(v6: bool, from: Host, to: Host, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(v6, from, to).write(&mut bytes, IpNumber(protocol), payload).expect("a packet");
    bytes
}

/// An ICMP error: kind and code of ICMP and of ICMPv6, what stands in its second word, and how many bytes of
/// layer 4 it quotes.
fn error(
    from: Host,
    to: Host,
    (four, six): ((u8, u8), (u8, u8)),
    word: u32,
    about: &[u8],
    quoted: usize,
) -> Vec<u8> {
    let v6 = about[0] >> 4 == 6;
    let start = Headers::parse(about).map_or(about.len(), |headers| headers.layer4_start);
    let quote = &about[..(start + quoted).min(about.len())];
    let mut bytes = Vec::new();
    let step = ip(v6, from, to);
    if v6 {
        step.icmpv6_raw(six.0, six.1, word.to_be_bytes()).write(&mut bytes, quote)
    } else {
        step.icmpv4_raw(four.0, four.1, word.to_be_bytes()).write(&mut bytes, quote)
    }
    .expect("an error");
    bytes
}

/// RFC 2453 section 3.9.1: a request for the whole table.
const RIP_REQUEST: [u8; 24] = {
    let mut request = [0; 24];
    request[0] = 1;
    request[1] = 2;
    request[23] = 16;
    request
};
/// RFC 2080 section 2.4.1: the same.
const RIPNG_REQUEST: [u8; 24] = {
    let mut request = [0; 24];
    request[0] = 1;
    request[1] = 1;
    request[23] = 16;
    request
};

const PORT_UNREACHABLE: ((u8, u8), (u8, u8)) = ((3, 3), (1, 4));
const TIME_EXCEEDED: ((u8, u8), (u8, u8)) = ((11, 0), (3, 0));
const TOO_BIG: ((u8, u8), (u8, u8)) = ((3, 4), (2, 0));

/// Puts the header checksum of IPv4 right.
fn sealed(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        let length = usize::from(packet[0] & 0x0f) * 4;
        packet[10..12].fill(0);
        let sum = Sum::default().bytes(&packet[..length]).complement();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// The field as a sender leaves it to its NIC: the sum of the pseudo-header alone.
fn partial(mut packet: Vec<u8>) -> Vec<u8> {
    let headers = Headers::parse(&packet).expect("headers");
    let at = headers.checksum_at().expect("a checksum");
    let length = (headers.length - headers.layer4_start) as u32;
    let sum = Sum::pseudo_header(headers.source, headers.destination, headers.protocol, length);
    packet[at..at + 2].copy_from_slice(&sum.fold().to_be_bytes());
    packet
}

/// With the hop limit or time to live.
fn with_ttl(mut packet: Vec<u8>, ttl: u8) -> Vec<u8> {
    let at = if packet[0] >> 4 == 6 { 7 } else { 8 };
    packet[at] = ttl;
    sealed(packet)
}

fn sctp(from: u16, to: u16, chunk: u8) -> Vec<u8> {
    let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, chunk, 0, 0, 8, 1, 2, 3, 4]);
    let sum = crc32c(&bytes).to_le_bytes();
    bytes[8..12].copy_from_slice(&sum);
    bytes
}

/// UDP-Lite and DCCP, whose checksum covers all of it here.
fn covered(v6: bool, from: Host, to: Host, protocol: u8, ports: [u16; 2]) -> Vec<u8> {
    let mut payload = ports.iter().flat_map(|port| port.to_be_bytes()).collect::<Vec<u8>>();
    // UDP-Lite: coverage 0 is all. DCCP: data offset 4 words, all covered, a request.
    payload.extend(if protocol == 136 { [0, 0, 0, 0] } else { [4, 0, 0, 0] });
    payload.extend([0, 0, 0, 1, 0, 0, 0, 2, 7, 7, 7, 7]);
    let mut packet = raw(v6, from, to, protocol, &payload);
    let headers = Headers::parse(&packet).expect("headers");
    let start = headers.layer4_start;
    let length = (packet.len() - start) as u32;
    let sum = Sum::pseudo_header(headers.source, headers.destination, protocol, length)
        .bytes(&packet[start..])
        .complement();
    packet[start + 6..start + 8].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// What a case is made of.
#[derive(Default)]
struct Making {
    packets: Vec<(At, u64, Vec<u8>)>,
    now: u64,
}

impl Making {
    fn after(&mut self, milliseconds: u64) -> &mut Making {
        self.now += milliseconds * MILLISECOND;
        self
    }

    /// The host sends it.
    fn out(&mut self, packet: Vec<u8>) -> &mut Making {
        self.packets.push((At::Tun, self.now, packet));
        self.after(1)
    }

    /// It comes in by eth1.
    fn back(&mut self, packet: Vec<u8>) -> &mut Making {
        self.frame(ethernet(1, &packet))
    }

    fn out_all(&mut self, packets: impl IntoIterator<Item = Vec<u8>>) {
        for packet in packets {
            self.out(packet);
        }
    }

    fn back_all(&mut self, packets: impl IntoIterator<Item = Vec<u8>>) {
        for packet in packets {
            self.back(packet);
        }
    }

    fn frame(&mut self, frame: Vec<u8>) -> &mut Making {
        self.packets.push((At::Nic(1), self.now, frame));
        self.after(1)
    }
}

fn case(
    name: &'static str,
    about: &'static str,
    config: String,
    make: impl FnOnce(&mut Making),
) -> Case {
    let mut making = Making::default();
    make(&mut making);
    let capture = pcapng(&making.packets);
    Case { name, about, config, input: "input.pcapng", arguments: "", capture }
}

fn ruled(name: &'static str, about: &'static str, make: impl FnOnce(&mut Making)) -> Case {
    case(name, about, config(RULES), make)
}

/// All of them.
pub(crate) fn cases() -> Vec<Case> {
    [
        headers(),
        fragmented(),
        checksums(),
        portless(),
        errors(),
        limits(),
        outside(),
        files(),
        rules(),
        services(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A client on another network, servers on eth1's.
const CLIENT: Host = Host([198, 51, 100, 7], 0xc7);
const SERVER: Host = Host([10, 1, 1, 80], 0x80);

/// Where the server of a family is, true: of IPv6.
type ServerAt = fn(bool) -> String;

/// A service of each family on the first VIPA, TCP and UDP port 80, with one server, or none.
fn served(
    name: &'static str,
    about: &'static str,
    (keys, server): (&str, Option<ServerAt>),
    make: impl FnOnce(&mut Making),
) -> Case {
    let mut services = String::new();
    for (family, vipa) in [("4", "203.0.113.10"), ("6", "[2001:db8::10]")] {
        for protocol in ["tcp", "udp"] {
            services += &format!(
                "\n[[service]]\nname = \"{protocol}{family}\"\naddress = \"{vipa}:80\"\nprotocol = \"{protocol}\"\n\
                 score = \"alive\"\n{keys}\n[[service.status]]\nname = \"alive\"\nkind = \"tcp\"\n"
            );
            if let Some(server) = server {
                let at = server(family == "6");
                services += &format!("[[service.server]]\nname = \"a\"\naddress = \"{at}\"\n");
            }
        }
    }
    // The servers of IPv6 are on the link as well.
    let config = config(&services).replace("2001:db8::e1/128", "2001:db8::e1/64");
    case(name, about, config, make)
}

fn on_port_8080(v6: bool) -> String {
    if v6 { "[2001:db8::80]:8080" } else { "10.1.1.80:8080" }.to_owned()
}

fn on_the_services_port(v6: bool) -> String {
    if v6 { "2001:db8::80" } else { "10.1.1.80" }.to_owned()
}

fn on_this_host(v6: bool) -> String {
    if v6 { "[2001:db8::11]:8080" } else { "203.0.113.11:8080" }.to_owned()
}

/// A connection and a datagram, and what comes back for `seen`, whom the server sees, on the port that `port` names.
fn asked(m: &mut Making, v6: bool, seen: Host, port: [u16; 2]) {
    m.back(tcp(v6, (CLIENT, 5000), (VIPA, 80), Flags::Syn, b""));
    m.back(tcp(v6, (SERVER, 8080), (seen, port[0]), Flags::SynAck, b""));
    m.back(tcp(v6, (CLIENT, 5000), (VIPA, 80), Flags::Ack, b"GET / HTTP/1.0\r\n\r\n"));
    m.back(tcp(v6, (SERVER, 8080), (seen, port[0]), Flags::Ack, b"HTTP/1.0 200 OK\r\n\r\n"));
    m.back(udp(v6, (CLIENT, 5000), (VIPA, 80), b"question"));
    m.back(udp(v6, (SERVER, 8080), (seen, port[1]), b"answer"));
}

fn services() -> Vec<Case> {
    vec![
        served(
            "service-nat",
            "a service's requests go to its server from a VIPA, and come back from the service's",
            ("mode = \"nat\"", Some(on_port_8080)),
            |m| {
                asked(m, false, VIPA, [PORT, NEXT_PORT]);
                asked(m, true, VIPA, [61003, 61004]);
                m.back(tcp(false, (CLIENT, 5000), (VIPA, 80), Flags::Fin, b""));
                m.back(tcp(false, (SERVER, 8080), (VIPA, PORT), Flags::Fin, b""));
                // To a port that is no service's: the kernel's.
                m.back(tcp(false, (CLIENT, 5000), (VIPA, 81), Flags::Syn, b""));
            },
        ),
        served(
            "service-keep-client",
            "with keep-client the server sees the client, and answers by way of this host",
            ("mode = \"nat\"\nkeep-client = true", Some(on_port_8080)),
            |m| V6.into_iter().for_each(|v6| asked(m, v6, CLIENT, [5000, 5000])),
        ),
        served(
            "service-direct",
            "in mode direct a request goes on as it is, to the server's MAC address",
            ("mode = \"direct\"", Some(on_the_services_port)),
            |m| {
                for v6 in V6 {
                    m.back(tcp(v6, (CLIENT, 5000), (VIPA, 80), Flags::Syn, b""));
                    m.back(tcp(v6, (CLIENT, 5000), (VIPA, 80), Flags::Ack, b"GET /"));
                    m.back(udp(v6, (CLIENT, 5000), (VIPA, 80), b"question"));
                }
            },
        ),
        served(
            "service-here",
            "a server on this host sees the client, and its answers come from the service's port",
            ("mode = \"nat\"", Some(on_this_host)),
            |m| {
                for v6 in V6 {
                    m.back(tcp(v6, (CLIENT, 5000), (VIPA, 80), Flags::Syn, b""));
                    m.out(partial(tcp(v6, (SECOND, 8080), (CLIENT, 5000), Flags::SynAck, b"")));
                    m.back(udp(v6, (CLIENT, 5000), (VIPA, 80), b"question"));
                    m.out(partial(udp(v6, (SECOND, 8080), (CLIENT, 5000), b"answer")));
                }
            },
        ),
        served(
            "service-own-client",
            "this host as a client of its own service: by the adapter there, by the adapter back",
            ("mode = \"nat\"", Some(on_port_8080)),
            |m| {
                for (v6, port) in [(false, PORT), (true, NEXT_PORT)] {
                    m.out(partial(tcp(v6, (VIPA, 40000), (VIPA, 80), Flags::Syn, b"")));
                    m.back(tcp(v6, (SERVER, 8080), (VIPA, port), Flags::SynAck, b""));
                    m.out(partial(tcp(v6, (VIPA, 40000), (VIPA, 80), Flags::Ack, b"GET /")));
                }
            },
        ),
        served(
            "service-own-client-here",
            "this host as a client of a server of its own, which sees a reserved port",
            ("mode = \"nat\"", Some(on_this_host)),
            |m| {
                for (v6, port) in [(false, PORT), (true, NEXT_PORT)] {
                    m.out(partial(tcp(v6, (VIPA, 40000), (VIPA, 80), Flags::Syn, b"")));
                    m.out(partial(tcp(v6, (SECOND, 8080), (VIPA, port), Flags::SynAck, b"")));
                }
                // Late: nobody's.
                m.out(tcp(false, (SECOND, 8080), (VIPA, 61099), Flags::Ack, b""));
            },
        ),
        served(
            "service-own-client-direct",
            "this host as a client of a direct server, which has the VIPAs itself: from a card's address",
            ("mode = \"direct\"", Some(on_the_services_port)),
            |m| {
                for (v6, port) in [(false, PORT), (true, NEXT_PORT)] {
                    m.out(partial(tcp(v6, (VIPA, 40000), (VIPA, 80), Flags::Syn, b"")));
                    m.back(tcp(v6, (SERVER, 80), (NIC1, port), Flags::SynAck, b""));
                }
            },
        ),
        served(
            "service-without-servers",
            "where no server is left TCP is reset and UDP told, but no flood of them",
            ("mode = \"nat\"", None),
            |m| {
                for v6 in V6 {
                    m.back(tcp(v6, (CLIENT, 5000), (VIPA, 80), Flags::Syn, b""));
                    m.back(tcp(v6, (CLIENT, 5000), (VIPA, 80), Flags::Ack, b"stray"));
                    m.back(udp(v6, (CLIENT, 5000), (VIPA, 80), b"question"));
                    m.out(tcp(v6, (VIPA, 40000), (VIPA, 80), Flags::Syn, b""));
                    m.out(udp(v6, (VIPA, 40000), (VIPA, 80), b"question"));
                }
                let now = m.now;
                for port in 6000..6060 {
                    m.now = now;
                    m.back(tcp(false, (CLIENT, port), (VIPA, 80), Flags::Syn, b""));
                }
            },
        ),
        served(
            "service-errors",
            "ICMP errors about what a service sent, from the server's side and from the client's",
            ("mode = \"nat\"", Some(on_port_8080)),
            |m| {
                for (v6, port) in [(false, PORT), (true, NEXT_PORT)] {
                    m.back(udp(v6, (CLIENT, 5000), (VIPA, 80), b"question"));
                    let sent = udp(v6, (VIPA, port), (SERVER, 8080), b"question");
                    m.back(error(SERVER, VIPA, PORT_UNREACHABLE, 0, &sent, 100));
                    m.back(error(ROUTER, VIPA, TOO_BIG, 1400, &sent, 8));
                    m.back(udp(v6, (SERVER, 8080), (VIPA, port), b"answer"));
                    let sent = udp(v6, (VIPA, 80), (CLIENT, 5000), b"answer");
                    m.back(error(CLIENT, VIPA, PORT_UNREACHABLE, 0, &sent, 100));
                }
            },
        ),
        served(
            "service-fragments",
            "fragments of a request and of its answer follow the first",
            ("mode = \"nat\"", Some(on_port_8080)),
            |m| {
                for (v6, port) in [(false, PORT), (true, NEXT_PORT)] {
                    let whole = udp(v6, (CLIENT, 5000), (VIPA, 80), &[7; 3000]);
                    m.back_all(fragments(&whole, 1448, 7));
                    let whole = udp(v6, (SERVER, 8080), (VIPA, port), &[8; 3000]);
                    m.back_all(fragments(&whole, 1448, 9).into_iter().rev());
                }
            },
        ),
    ]
}

fn headers() -> Vec<Case> {
    let options = |from: (Host, u16), to: (Host, u16)| {
        // Record route with one place, and padding (RFC 791 section 3.1).
        let mut packet = udp(false, from, to, b"options");
        packet[0] = 0x47;
        packet.splice(20..20, [7, 7, 4, 0, 0, 0, 0, 0]);
        let length = packet.len() as u16;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        sealed(packet)
    };
    let extended = |from: (Host, u16), to: (Host, u16), first: u8, headers: &[u8]| {
        let mut packet = udp(true, from, to, b"extended");
        packet[6] = first;
        packet.splice(40..40, headers.iter().copied());
        let length = packet.len() as u16 - 40;
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        packet
    };
    // Hop-by-hop, then destination options, both of padding alone; a routing header with no segment left.
    let options6 = [60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0];
    let mut routing = vec![17, 2, 4, 0, 0, 0, 0, 0];
    routing.extend(OTHER.six());
    vec![
        ruled("ipv4-options", "options of IPv4 stay as they are, both ways", |m| {
            m.out(options((VIPA, 40000), (RULED, 5300)))
                .back(options((RULED, 5300), (SECOND, PORT)));
        }),
        ruled(
            "ipv6-extension-headers",
            "hop-by-hop and destination options are walked, both ways",
            |m| {
                m.out(extended((VIPA, 40000), (RULED, 5300), 0, &options6));
                m.back(extended((RULED, 5300), (SECOND, PORT), 0, &options6));
            },
        ),
        ruled("ipv6-routing-header", "a routing header without segments left is walked", |m| {
            m.out(extended((VIPA, 40000), (RULED, 5300), 43, &routing));
            m.back(extended((RULED, 5300), (SECOND, PORT), 43, &routing));
        }),
        ruled("tcp-connection", "a connection under a rule from SYN to FIN, both families", |m| {
            for (v6, port) in [(false, PORT), (true, NEXT_PORT)] {
                let (host, peer, wire) = ((VIPA, 40000), (RULED, 443), (SECOND, port));
                m.out(tcp(v6, host, peer, Flags::Syn, b""));
                m.back(tcp(v6, peer, wire, Flags::SynAck, b""));
                m.out(tcp(v6, host, peer, Flags::Ack, b""));
                m.out(tcp(v6, host, peer, Flags::Ack, b"question"));
                m.back(tcp(v6, peer, wire, Flags::Ack, b"answer"));
                m.out(tcp(v6, host, peer, Flags::Fin, b""));
                m.back(tcp(v6, peer, wire, Flags::Fin, b""));
                m.out(tcp(v6, host, peer, Flags::Ack, b""));
            }
        }),
        ruled("syn-again", "a SYN sent again makes no second flow, rewritten or not", |m| {
            for peer in [(RULED, 443), (OTHER, 443)] {
                for _ in 0..3 {
                    m.out(tcp(false, (VIPA, 40000), peer, Flags::Syn, b"")).after(1000);
                }
            }
        }),
        ruled(
            "padding-of-the-link",
            "what lies behind a short packet on Ethernet is no part of it",
            |m| {
                m.out(udp(false, (VIPA, 40000), (RULED, 5300), b"?"));
                let mut frame = ethernet(1, &udp(false, (RULED, 5300), (SECOND, PORT), b"!"));
                frame.resize(60, 0xee);
                m.frame(frame);
            },
        ),
        ruled(
            "echo-identifiers",
            "echoes of one identifier to two hosts come back to the right one",
            |m| {
                for v6 in V6 {
                    m.out(echo(v6, VIPA, RULED, 4711, true)).out(echo(v6, VIPA, OTHER, 4711, true));
                }
                m.back(echo(false, RULED, SECOND, PORT, false));
                m.back(echo(true, RULED, SECOND, NEXT_PORT, false));
            },
        ),
    ]
}

fn fragmented() -> Vec<Case> {
    let out = |v6, id, byte: u8| {
        let payload: Vec<u8> = (0..3000_u32).map(|n| n as u8 ^ byte).collect();
        fragments(&udp(v6, (VIPA, 40000 + u16::from(byte)), (RULED, 5300), &payload), 1448, id)
    };
    let back = |v6, id| {
        let payload: Vec<u8> = (0..3000_u32).map(|n| n as u8).collect();
        fragments(&udp(v6, (RULED, 5300), (SECOND, PORT), &payload), 1448, id)
    };
    vec![
        ruled("fragments-in-order", "later fragments follow the first, both ways", |m| {
            m.out_all(out(false, 7, 0));
            m.back_all(back(false, 9));
        }),
        ruled("ipv6-fragments", "the same with IPv6's fragment header", |m| {
            m.out_all(out(true, 7, 0));
            m.back_all(back(true, 9));
        }),
        ruled("fragments-reversed", "later fragments that come first wait for the first", |m| {
            m.out_all(out(false, 7, 0).into_iter().rev());
            m.back_all(back(false, 9).into_iter().rev());
        }),
        ruled("fragments-interleaved", "fragments of two datagrams between each other", |m| {
            let (one, two) = (out(false, 7, 0), out(false, 8, 1));
            for (a, b) in one.into_iter().zip(two) {
                m.out(a).out(b);
            }
        }),
        ruled(
            "fragments-first-missing",
            "without a first one the later ones are dropped in time",
            |m| {
                m.out_all(out(false, 7, 0).into_iter().skip(1));
                m.back_all(back(false, 9).into_iter().skip(1));
                m.after(10_000).out(udp(false, (VIPA, 40000), (OTHER, 5300), b"later"));
            },
        ),
        ruled("fragments-first-twice", "a first fragment that comes twice changes nothing", |m| {
            let parts = out(false, 7, 0);
            m.out(parts[0].clone()).out(parts[0].clone());
            m.out_all(parts.into_iter().skip(1));
        }),
        ruled(
            "fragment-too-short",
            "a first fragment that ends within TCP's header is malformed (RFC 1858)",
            |m| {
                let parts =
                    fragments(&tcp(false, (VIPA, 40000), (RULED, 443), Flags::Syn, b"x"), 8, 7);
                m.out_all(parts);
            },
        ),
        ruled(
            "fragments-no-rule",
            "where no rule can change anything fragments wait for nothing",
            |m| {
                let whole = udp(false, (VIPA, 40000), (OTHER, 5300), &[7; 3000]);
                m.out_all(fragments(&whole, 1448, 7).into_iter().rev());
            },
        ),
        ruled(
            "fragments-of-others",
            "fragments from outside that are for no flow are the kernel's",
            |m| {
                let whole = udp(false, (OTHER, 5300), (SECOND, 5000), &[7; 3000]);
                m.back_all(fragments(&whole, 1448, 7));
            },
        ),
    ]
}

fn checksums() -> Vec<Case> {
    let damaged = |mut packet: Vec<u8>| {
        let last = packet.len() - 1;
        packet[last] ^= 0x55;
        packet
    };
    vec![
        ruled("udp-without-checksum", "UDP's checksum of zero stays zero (RFC 768)", |m| {
            for to in [RULED, OTHER] {
                let mut packet = udp(false, (VIPA, 40000), (to, 5300), b"unsummed");
                packet[26..28].fill(0);
                m.out(packet);
            }
            let mut answer = udp(false, (RULED, 5300), (SECOND, PORT), b"unsummed");
            answer[26..28].fill(0);
            m.back(answer);
        }),
        ruled(
            "wrong-checksums",
            "a checksum that is wrong in stays wrong out, and is counted",
            |m| {
                m.out(damaged(tcp(false, (VIPA, 40000), (RULED, 443), Flags::Syn, b"data")));
                m.out(damaged(udp(false, (VIPA, 40000), (RULED, 5300), b"data")));
                m.out(damaged(udp(true, (VIPA, 40000), (RULED, 5300), b"data")));
            },
        ),
        ruled(
            "partial-checksums",
            "a field that holds the pseudo-header's sum is completed",
            |m| {
                for v6 in V6 {
                    for to in [RULED, OTHER] {
                        m.out(partial(tcp(v6, (VIPA, 40000), (to, 443), Flags::Syn, b"")));
                        m.out(partial(udp(v6, (VIPA, 40000), (to, 5300), b"odd")));
                    }
                }
            },
        ),
        ruled("super-packet", "a TCP super-packet with a partial checksum passes whole", |m| {
            let data: Vec<u8> = (0..40_000_u32).map(|n| (n * 7) as u8).collect();
            m.out(tcp(false, (VIPA, 40000), (RULED, 443), Flags::Syn, b""));
            m.out(partial(tcp(false, (VIPA, 40000), (RULED, 443), Flags::Ack, &data)));
        }),
    ]
}

/// RFC 792.
fn timestamp_request() -> [u8; 20] {
    let mut message = [0; 20];
    message[0] = 13;
    let sum = Sum::default().bytes(&message).complement();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

fn portless() -> Vec<Case> {
    let both_ways = |name, about, protocol, there: Vec<u8>, back: Vec<u8>| {
        ruled(name, about, move |m| {
            for v6 in V6 {
                m.out(raw(v6, VIPA, RULED, protocol, &there));
                m.back(raw(v6, RULED, SECOND, protocol, &back));
                m.back(raw(v6, OTHER, SECOND, protocol, &back));
            }
        })
    };
    vec![
        both_ways(
            "sctp",
            "SCTP keeps its ports, and its CRC covers no address",
            132,
            sctp(5000, 7000, 1),
            sctp(7000, 5000, 2),
        ),
        ruled(
            "sctp-answer",
            "an INIT-ACK that the host sends keeps the address it was asked on",
            |m| {
                m.out(raw(false, VIPA, RULED, 132, &sctp(7000, 5000, 2)));
            },
        ),
        both_ways("esp", "ESP is told by its addresses", 50, vec![9; 40], vec![8; 40]),
        both_ways(
            "gre",
            "GRE is told by its addresses",
            47,
            [&[0, 0, 8, 0][..], &udp(false, (ROUTER, 9000), (OTHER, 9000), b"inside")].concat(),
            [&[0, 0, 8, 0][..], &udp(false, (OTHER, 9000), (ROUTER, 9000), b"inside")].concat(),
        ),
        both_ways("protocol-253", "so is a protocol that nobody knows", 253, vec![1], vec![2, 3]),
        ruled("ah", "AH in IPv4 is a protocol like any other here; what it signs breaks", |m| {
            m.out(raw(
                false,
                VIPA,
                RULED,
                51,
                &[59, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4],
            ));
        }),
        ruled(
            "udp-lite-and-dccp",
            "ports stay, and the checksums that cover addresses stay right",
            |m| {
                for v6 in V6 {
                    for protocol in [136, 33] {
                        m.out(covered(v6, VIPA, RULED, protocol, [40000, 5300]));
                        m.back(covered(v6, RULED, SECOND, protocol, [5300, 40000]));
                    }
                }
            },
        ),
        ruled("icmp-queries", "ICMP that is neither echo nor error passes as it is", |m| {
            m.out(raw(false, VIPA, RULED, 1, &timestamp_request()));
        }),
    ]
}

fn errors() -> Vec<Case> {
    let about = |v6| udp(v6, (SECOND, PORT), (RULED, 5300), b"question");
    let flow = |m: &mut Making, v6| {
        m.out(udp(v6, (VIPA, 40000), (RULED, 5300), b"question"));
    };
    vec![
        ruled(
            "icmp-error-8-bytes",
            "an error with eight bytes of the packet reaches the socket",
            |m| {
                flow(m, false);
                m.back(error(ROUTER, SECOND, PORT_UNREACHABLE, 0, &about(false), 8));
                m.back(error(ROUTER, SECOND, TIME_EXCEEDED, 0, &about(false), 8));
                m.back(error(ROUTER, SECOND, TOO_BIG, 1400, &about(false), 8));
            },
        ),
        ruled(
            "icmp-error-whole",
            "the same with all of the packet, whose checksum is put right too",
            |m| {
                flow(m, false);
                m.back(error(ROUTER, SECOND, PORT_UNREACHABLE, 0, &about(false), 100));
                m.out(tcp(false, (VIPA, 40000), (RULED, 443), Flags::Syn, b""));
                let sent = tcp(false, (SECOND, NEXT_PORT), (RULED, 443), Flags::Syn, b"");
                m.back(error(ROUTER, SECOND, TIME_EXCEEDED, 0, &sent, 100));
            },
        ),
        ruled("icmpv6-errors", "ICMPv6 errors about a rewritten flow", |m| {
            flow(m, true);
            for kind in [PORT_UNREACHABLE, TIME_EXCEEDED] {
                m.back(error(ROUTER, SECOND, kind, 0, &about(true), 100));
            }
            m.back(error(ROUTER, SECOND, TOO_BIG, 1400, &about(true), 8));
        }),
        ruled(
            "icmp-error-about-echo",
            "an error about a rewritten echo gets the identifier back",
            |m| {
                for (v6, id) in [(false, PORT), (true, NEXT_PORT)] {
                    m.out(echo(v6, VIPA, RULED, 4711, true));
                    m.back(error(
                        ROUTER,
                        SECOND,
                        TIME_EXCEEDED,
                        0,
                        &echo(v6, SECOND, RULED, id, true),
                        50,
                    ));
                }
            },
        ),
        ruled(
            "icmp-error-of-the-host",
            "an error that this host sends names what the other end knows",
            |m| {
                for (v6, port) in [(false, PORT), (true, NEXT_PORT)] {
                    m.out(udp(v6, (VIPA, 40000), (RULED, 5300), b"question"));
                    m.back(udp(v6, (RULED, 5300), (SECOND, port), b"answer"));
                    let heard = udp(v6, (RULED, 5300), (VIPA, 40000), b"answer");
                    m.out(error(VIPA, RULED, PORT_UNREACHABLE, 0, &heard, 100));
                }
            },
        ),
        ruled(
            "icmp-error-about-a-fragment",
            "an error that quotes a later fragment is the kernel's",
            |m| {
                flow(m, false);
                let sent = udp(false, (SECOND, PORT), (RULED, 5300), &[7; 3000]);
                let later = fragments(&sent, 1448, 7).remove(1);
                m.back(error(ROUTER, SECOND, TIME_EXCEEDED, 0, &later, 8));
            },
        ),
        ruled("icmp-error-of-others", "an error about no flow of ours is the kernel's", |m| {
            let sent = udp(false, (SECOND, 5000), (OTHER, 5300), b"question");
            m.back(error(ROUTER, SECOND, PORT_UNREACHABLE, 0, &sent, 8));
        }),
        ruled("icmp-error-bad-quote", "a quote that is too short, or none, is the kernel's", |m| {
            flow(m, false);
            m.back(error(ROUTER, SECOND, PORT_UNREACHABLE, 0, &about(false), 4));
            m.back(error(ROUTER, SECOND, PORT_UNREACHABLE, 0, &about(false)[..12], 0));
            m.back(raw(false, ROUTER, SECOND, 1, &[3, 3, 0xfc, 0xfc, 0, 0, 0, 0]));
        }),
    ]
}

fn limits() -> Vec<Case> {
    let two_ports = config(&format!("\n[source]\nports = \"61000-61001\"\n{RULES}"));
    let no_v6 = config(RULES).replace(", \"2001:db8:1::1\"", "").replace(", \"2001:db8:2::1\"", "");
    let small = config(RULES)
        .replace("name = \"eth1\"\naddresses", "name = \"eth1\"\nmtu = 1400\naddresses");
    let small =
        small.replace("name = \"eth2\"\naddresses", "name = \"eth2\"\nmtu = 1400\naddresses");
    let flags = |mut packet: Vec<u8>, flags: u8| {
        packet[6] = flags;
        sealed(packet)
    };
    vec![
        case(
            "ports-exhausted",
            "out of ports towards one destination, the others go on",
            two_ports,
            |m| {
                for port in 40000..40003 {
                    m.out(udp(false, (VIPA, port), (RULED, 5300), b"one"));
                }
                m.out(udp(false, (VIPA, 40002), (RULED, 5301), b"another port"));
            },
        ),
        ruled(
            "flow-table-full",
            "open flows that are rewritten are never evicted, new ones are dropped",
            |m| {
                for port in 20_000..21_030 {
                    m.out(tcp(false, (VIPA, port), (RULED, 443), Flags::Syn, b""));
                    m.out(tcp(false, (VIPA, port), (RULED, 443), Flags::Ack, b""));
                    m.now -= 2 * MILLISECOND;
                }
                m.out(udp(false, (VIPA, 40000), (OTHER, 5300), b"needs no entry"));
            },
        ),
        case(
            "default-on-the-link",
            "a card without a gateway of the family has its default route on the link",
            no_v6,
            |m| {
                m.out(udp(true, (VIPA, 40000), (OTHER, 5300), b"?"));
                m.out(udp(false, (VIPA, 40000), (OTHER, 5300), b"?"));
            },
        ),
        case(
            "too-big",
            "what is too big for its card is answered with the MTU that fits",
            small,
            |m| {
                for v6 in V6 {
                    m.out(udp(v6, (VIPA, 40000), (RULED, 5300), &[7; 1400]));
                    m.out(udp(v6, (VIPA, 40000), (RULED, 5300), &[7; 1300]));
                }
                m.out(flags(udp(false, (VIPA, 40000), (RULED, 5300), &[7; 1400]), 0x40));
                let heard = udp(false, (OTHER, 5300), (VIPA, 9), &[7; 1400]);
                m.out(error(VIPA, OTHER, PORT_UNREACHABLE, 0, &heard, 1400));
            },
        ),
        ruled(
            "ttl-of-others",
            "time to live is lowered for others, and told when it runs out",
            |m| {
                for v6 in V6 {
                    m.out(udp(v6, (ROUTER, 40000), (OTHER, 5300), b"forwarded"));
                    m.out(with_ttl(udp(v6, (ROUTER, 40001), (OTHER, 5300), b"expires"), 1));
                    m.out(with_ttl(udp(v6, (VIPA, 40002), (OTHER, 5300), b"own"), 1));
                }
            },
        ),
        ruled("flow-timeout", "a datagram flow that was silent for long gets another port", |m| {
            m.out(udp(false, (VIPA, 40000), (RULED, 5300), b"first"));
            m.after(100_000).out(udp(false, (VIPA, 40000), (RULED, 5300), b"same"));
            m.after(400_000).out(udp(false, (VIPA, 40001), (OTHER, 5300), b"time goes on"));
            m.after(40_000).out(udp(false, (VIPA, 40001), (OTHER, 5300), b"and on"));
            m.out(udp(false, (VIPA, 40000), (RULED, 5300), b"another"));
        }),
    ]
}

fn outside() -> Vec<Case> {
    let from = |source: [u8; 4], port: u16| {
        udp(false, (Host(source, 0), port), (SECOND, 61005), b"from nowhere")
    };
    vec![
        ruled("martians", "sources that cannot be are dropped by name", |m| {
            for source in [VIPA.0, SECOND.0, NIC1.0, [127, 0, 0, 1], [0; 4], [224, 0, 0, 1]] {
                m.back(from(source, 5300));
            }
            m.back(udp(true, (SECOND, 5300), (SECOND, 61005), b"from ourselves"));
        }),
        ruled(
            "dhcp-and-address-detection",
            "those who have no address yet are the kernel's",
            |m| {
                m.back(udp(false, (Host([0; 4], 0), 68), (Host([255; 4], 0), 67), b"discover"));
                let mut detection = Vec::new();
                PacketBuilder::ipv6([0; 16], SECOND.six(), 255)
                    .icmpv6_raw(135, 0, [0; 4])
                    .write(&mut detection, &SECOND.six())
                    .expect("a packet");
                m.back(detection);
            },
        ),
        ruled("multicast-and-broadcast", "multicast and broadcast keep to the kernel", |m| {
            for to in [[224, 0, 0, 251], [255; 4], [10, 1, 1, 255]] {
                let packet = |from| udp(false, (from, 5353), (Host(to, 0), 5353), b"all");
                let mut frame = ethernet(1, &packet(OTHER));
                frame[..6].fill(0xff);
                m.frame(frame).out(packet(VIPA));
            }
        }),
        ruled("no-flow", "what comes for a reserved port that no flow has", |m| {
            m.back(tcp(false, (OTHER, 443), (SECOND, PORT), Flags::Ack, b"late"));
            m.back(udp(true, (OTHER, 5300), (SECOND, PORT), b"late"));
            m.back(echo(false, OTHER, SECOND, PORT, false));
        }),
        ruled("kernels", "what is for the host's own sockets is left to the kernel", |m| {
            m.back(tcp(false, (OTHER, 40000), (VIPA, 443), Flags::Syn, b""));
            m.back(udp(true, (OTHER, 40000), (SECOND, 5300), b"question"));
            m.back(echo(false, OTHER, VIPA, 7, true));
        }),
        ruled("not-ip", "ARP and a VLAN's frames are no IP", |m| {
            let mut arp = vec![0xff; 6];
            arp.extend([2, 0, 0, 0, 1, 1, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
            arp.resize(60, 0);
            m.frame(arp);
            let mut vlan = ethernet(1, &udp(false, (RULED, 5300), (SECOND, PORT), b"tagged"));
            vlan.splice(12..12, [0x81, 0, 0, 5]);
            m.frame(vlan);
            m.out(vec![0x55; 40]);
        }),
        ruled("malformed", "packets that contradict themselves are dropped by name", |m| {
            let good = udp(false, (VIPA, 40000), (RULED, 5300), b"good");
            for end in [1, 12, 19, 24] {
                m.out(good[..end].to_vec());
            }
            let mut short_header = good.clone();
            short_header[0] = 0x44;
            m.out(short_header);
            let mut longer = good.clone();
            longer[3] = 200;
            m.out(longer);
            m.out(udp(true, (VIPA, 40000), (RULED, 5300), b"good")[..44].to_vec());
            let mut offset = tcp(false, (VIPA, 40000), (RULED, 443), Flags::Syn, b"");
            offset[32] = 0x10;
            m.out(offset);
            m.frame(vec![2, 0, 0]);
        }),
    ]
}

fn files() -> Vec<Case> {
    let packets = || {
        vec![
            udp(false, (VIPA, 40000), (RULED, 5300), b"question"),
            udp(true, (VIPA, 40000), (RULED, 5300), b"question"),
            tcp(false, (VIPA, 40000), (OTHER, 80), Flags::Syn, b""),
        ]
    };
    let file = |name, about, arguments, capture| Case {
        name,
        about,
        config: config(RULES),
        input: "input.pcap",
        arguments,
        capture,
    };
    let little = Pcap { is_big_endian: false, is_nanoseconds: false, link: 101, snap: 65535 };
    let big = Pcap { is_big_endian: true, is_nanoseconds: true, ..little };
    let frames: Vec<Vec<u8>> = packets()
        .iter()
        .map(|packet| ethernet(1, packet))
        .chain([ethernet(1, &tcp(false, (RULED, 443), (SECOND, PORT), Flags::Ack, b"late"))])
        .collect();
    let mut sections = pcapng(&[(At::Tun, 0, packets().remove(0))]);
    sections.extend(pcapng(&[(At::Tun, 5 * MILLISECOND, packets().remove(1))]));
    let mut torn = little.file(&packets());
    torn.truncate(torn.len() - 10);
    vec![
        file(
            "pcap-little-endian",
            "a pcap of raw IP is the adapter's, microseconds",
            "",
            little.file(&packets()),
        ),
        file(
            "pcap-big-endian",
            "the same of a machine with the other byte order, nanoseconds",
            "",
            big.file(&packets()),
        ),
        file(
            "pcap-ethernet",
            "a pcap of Ethernet is of the card that --in names",
            "--in eth1",
            Pcap { link: 1, ..little }.file(&frames),
        ),
        file(
            "snapped",
            "packets that the capture cut are counted and not run",
            "",
            Pcap { snap: 30, ..little }.file(&packets()),
        ),
        file(
            "torn",
            "a capture that breaks off is replayed up to there, and the byte is named",
            "",
            torn,
        ),
        Case {
            name: "two-sections",
            about: "sections of a pcapng have interfaces of their own",
            config: config(RULES),
            input: "input.pcapng",
            arguments: "",
            capture: sections,
        },
    ]
}

fn rules() -> Vec<Case> {
    let rule = |text: &str| config(&format!("\n[[source.rule]]\n{text}\n"));
    let physical = rule("use = \"physical\"\napply = \"forwarder\"");
    let local = rule("protocol = \"udp\"\nlocal-port = \"5060\"\nuse = \"203.0.113.11\"");
    let ordered = config(
        "\n[[source.rule]]\nprotocol = \"tcp\"\nport = \"25\"\nuse = \"physical\"\n\
         \n[[source.rule]]\nprotocol = \"tcp\"\nport = \"20-30\"\nuse = \"203.0.113.11\"\n\
         \n[[source.rule]]\nprotocol = \"icmp\"\nuse = \"203.0.113.11\"\n",
    );
    let unasked = rule("user = \"root\"\nuse = \"203.0.113.11\"");
    let bound = config(&format!("\n[source]\nbound = \"forward\"\n{RULES}"));
    let off = config("\n[source]\nsourcevipa = false\n");
    vec![
        case(
            "physical",
            "IGNORE: the address of the card that it leaves by, which the flow stays with",
            physical,
            |m| {
                for port in 40000..40008 {
                    m.out(udp(false, (VIPA, port), (OTHER, 5300), b"?"));
                    m.out(tcp(true, (VIPA, port), (OTHER, 443), Flags::Syn, b""));
                }
            },
        ),
        case("local-port", "a rule may name the port that a server has", local, |m| {
            m.out(udp(false, (VIPA, 5060), (OTHER, 5060), b"server"));
            m.out(udp(false, (VIPA, 5061), (OTHER, 5060), b"another server's answer"));
            m.out(udp(false, (VIPA, 40000), (OTHER, 5060), b"client"));
        }),
        case("first-match", "the first rule that matches wins", ordered, |m| {
            for port in [25, 26, 80] {
                m.out(tcp(false, (VIPA, 40000), (OTHER, port), Flags::Syn, b""));
            }
            m.out(echo(false, VIPA, OTHER, 9, true));
        }),
        case(
            "socket-unknown",
            "nobody can be asked for a user here: such a rule matches nothing",
            unasked,
            |m| {
                m.out(tcp(false, (VIPA, 40000), (OTHER, 80), Flags::Syn, b""));
            },
        ),
        case(
            "bound-forward",
            "with bound = forward a card's address is not yet defined",
            bound,
            |m| {
                m.out(udp(false, (NIC1, 40000), (OTHER, 5300), b"?"));
                m.out(udp(false, (NIC1, 40001), (RULED, 5300), b"?"));
                m.out(tcp(true, (NIC1, 40000), (OTHER, 443), Flags::Syn, b""));
            },
        ),
        ruled("bound-bypass", "without it a card's address is the application's choice", |m| {
            m.out(udp(false, (NIC1, 40000), (RULED, 5300), b"?"));
        }),
        case(
            "sourcevipa-off",
            "step 415: without SOURCEVIPA the physical address (435)",
            off,
            |m| {
                m.out(udp(false, (VIPA, 40000), (OTHER, 5300), b"?"));
                m.out(tcp(true, (VIPA, 40000), (OTHER, 443), Flags::Syn, b""));
            },
        ),
        ruled("rip", "RIP's own packets carry the physical address and keep their port", |m| {
            m.out(udp(false, (VIPA, 520), (RULED, 520), &RIP_REQUEST));
            m.out(udp(true, (VIPA, 521), (RULED, 521), &RIPNG_REQUEST));
        }),
        ruled("answers", "an answer keeps the address it was asked on, also under a rule", |m| {
            for v6 in V6 {
                m.out(tcp(v6, (VIPA, 443), (RULED, 50000), Flags::SynAck, b""));
                m.out(udp(v6, (VIPA, 5300), (RULED, 50000), b"answer"));
                m.out(echo(v6, VIPA, RULED, 7, false));
            }
        }),
        ruled("chosen-vipa", "a VIPA that the application chose stays", |m| {
            for v6 in V6 {
                m.out(tcp(v6, (SECOND, 40000), (OTHER, 443), Flags::Syn, b""));
            }
        }),
        ruled("unspecified", "a source that nobody named becomes the default VIPA", |m| {
            m.out(udp(false, (Host([0; 4], 0), 40000), (OTHER, 5300), b"?"));
        }),
    ]
}
