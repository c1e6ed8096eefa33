//! Devices of a namespace: veth pairs, bridges, up and down, MTU, counters.

use std::io;
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

use super::error::Step;
use super::{Error, Namespace};
use crate::wire::ethernet::MacAddr;

/// One end of a veth pair: where it is, its name, its MAC if that matters.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    namespace: &'a Namespace,
    name: &'a str,
    mac: Option<MacAddr>,
}

impl<'a> End<'a> {
    /// The end called `name` in `namespace`.
    pub fn new(namespace: &'a Namespace, name: &'a str) -> End<'a> {
        End { namespace, name, mac: None }
    }

    /// With this MAC address instead of a random one.
    pub fn mac(self, mac: MacAddr) -> End<'a> {
        End { mac: Some(mac), ..self }
    }

    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(self.name.to_owned()));
        message.attributes.extend(self.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        message
    }
}

impl<'a> From<(&'a Namespace, &'a str)> for End<'a> {
    fn from((namespace, name): (&'a Namespace, &'a str)) -> End<'a> {
        End::new(namespace, name)
    }
}

/// A cable between two namespaces (or two devices of one): both ends exist and are up when it returns.
///
/// # Errors
/// When a name is taken.
pub fn veth<'a>(a: impl Into<End<'a>>, b: impl Into<End<'a>>) -> Result<(), Error> {
    let (a, b) = (a.into(), b.into());
    let mut peer = b.message();
    peer.attributes.push(LinkAttribute::NetNsFd(b.namespace.as_raw_fd()));
    let mut message = a.message();
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    let step = || {
        format!("veth {} of {} - {} of {}", a.name, a.namespace.name(), b.name, b.namespace.name())
    };
    a.namespace
        .request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
        .step(step)?;
    a.namespace.link_up(a.name)?;
    b.namespace.link_up(b.name)
}

/// What passed a device since it exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames received; one of 64 KB counts once.
    pub rx_frames: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Received and dropped.
    pub rx_dropped: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// To be sent and dropped.
    pub tx_dropped: u64,
}

impl Namespace {
    /// A bridge that forwards from the first frame on (no STP, no multicast snooping), with these ports.
    ///
    /// # Errors
    /// When the name is taken or a port does not exist.
    pub fn bridge(&self, name: &str, ports: &[&str]) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![
                InfoBridge::ForwardDelay(0),
                InfoBridge::MulticastSnooping(false),
            ])),
        ]));
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .step(|| format!("bridge {name} in {}", self.name()))?;
        self.link_up(name)?;
        ports.iter().try_for_each(|port| self.enslave(port, name))
    }

    /// Makes `port` a port of `bridge`.
    ///
    /// # Errors
    /// When one of them does not exist.
    pub fn enslave(&self, port: &str, bridge: &str) -> Result<(), Error> {
        let controller = self.index(bridge)?;
        self.set_link(port, "as a port", |message| {
            message.attributes.push(LinkAttribute::Controller(controller));
        })
    }

    /// Takes `port` out of its bridge; it keeps its carrier.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn release(&self, port: &str) -> Result<(), Error> {
        self.set_link(port, "as no port", |message| {
            message.attributes.push(LinkAttribute::Controller(0));
        })
    }

    /// Sets the device up.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn link_up(&self, device: &str) -> Result<(), Error> {
        self.set_link(device, "up", |message| {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        })
    }

    /// Sets the device down; the other end of a cable loses carrier.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn link_down(&self, device: &str) -> Result<(), Error> {
        self.set_link(device, "down", |message| message.header.change_mask = LinkFlags::Up)
    }

    /// Sets the device's MTU.
    ///
    /// # Errors
    /// When there is no such device, or it cannot have that MTU.
    pub fn set_mtu(&self, device: &str, mtu: u32) -> Result<(), Error> {
        self.set_link(device, "mtu", |message| message.attributes.push(LinkAttribute::Mtu(mtu)))
    }

    /// Deletes the device, and with it the other end of a cable.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn delete_link(&self, device: &str) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = self.index(device)?;
        self.request(RouteNetlinkMessage::DelLink(message), 0)
            .step(|| format!("deleting {device} of {}", self.name()))?;
        Ok(())
    }

    /// The device's counters.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn counters(&self, device: &str) -> Result<Counters, Error> {
        let link = self.link(device)?;
        let counters = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Stats64(s) => Some(Counters {
                rx_frames: s.rx_packets,
                rx_bytes: s.rx_bytes,
                rx_dropped: s.rx_dropped,
                tx_frames: s.tx_packets,
                tx_bytes: s.tx_bytes,
                tx_dropped: s.tx_dropped,
            }),
            _ => None,
        });
        Ok(counters.unwrap_or_default())
    }

    /// The device's MAC address; zeros if it has none.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn mac(&self, device: &str) -> Result<MacAddr, Error> {
        let link = self.link(device)?;
        let mac = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            _ => None,
        });
        Ok(MacAddr(mac.unwrap_or_default()))
    }

    /// Is the device up, with carrier?
    ///
    /// # Errors
    /// When there is no such device.
    pub fn has_carrier(&self, device: &str) -> Result<bool, Error> {
        Ok(self.link(device)?.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp))
    }

    /// Bytes of the device's largest packet.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn mtu(&self, device: &str) -> Result<u32, Error> {
        let mtu = self.link(device)?.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        Ok(mtu.unwrap_or_default())
    }

    /// The device's index.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn index(&self, device: &str) -> Result<u32, Error> {
        Ok(self.link(device)?.header.index)
    }

    fn link(&self, device: &str) -> Result<LinkMessage, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(device.to_owned()));
        let step = || format!("device {device} of {}", self.name());
        let answers = self.request(RouteNetlinkMessage::GetLink(message), 0).step(step)?;
        let link = answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        });
        link.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV)).step(step)
    }

    fn set_link(
        &self,
        device: &str,
        what: &str,
        change: impl FnOnce(&mut LinkMessage),
    ) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(device.to_owned()));
        change(&mut message);
        self.request(RouteNetlinkMessage::SetLink(message), 0)
            .step(|| format!("setting {device} of {} {what}", self.name()))?;
        Ok(())
    }
}
