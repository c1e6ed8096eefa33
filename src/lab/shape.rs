//! What makes a veth more like a real NIC: a rate limit, and checksums that the kernel verifies.

use std::os::fd::AsFd;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use super::error::Step;
use super::{Error, Namespace, syscall};

/// linux/pkt_sched.h.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_BURST: u16 = 6;
/// TC_LINKLAYER_ETHERNET: the kernel then asks for no rate table.
const LINK_LAYER_ETHERNET: u8 = 1;

impl Namespace {
    /// Checksum offload of what `device` sends. veth hands a frame over with its checksum still to be
    /// computed, so a wrong one goes unnoticed; off, the kernel computes it here and the receiver
    /// verifies it. TSO follows: off, the wire carries frames of one MTU.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn tx_checksum(&self, device: &str, on: bool) -> Result<(), Error> {
        syscall::set_tx_checksum(self.control().as_fd(), device, on)
            .step(|| format!("checksum offload of {device} of {}", self.name()))
    }

    /// Limits what `device` sends (token bucket filter): `rate` in bit/s, up to 34 Gbit/s; `burst` is how
    /// many bytes may go at once, `limit` how many may wait.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn tbf(&self, device: &str, rate: u64, burst: u32, limit: u32) -> Result<(), Error> {
        let bytes_per_second = u32::try_from(rate / 8).map_err(|_| {
            Error::Text(format!("tbf: {rate} bit/s does not fit 32 bits of byte/s"))
        })?;
        // struct tc_tbf_qopt: two tc_ratespec (rate, peak rate), limit, buffer, mtu.
        let mut parameters = [0; 36];
        parameters[1] = LINK_LAYER_ETHERNET;
        parameters[8..12].copy_from_slice(&bytes_per_second.to_ne_bytes());
        parameters[24..28].copy_from_slice(&limit.to_ne_bytes());
        let mut message = TcMessage::with_index(self.index(device)?.cast_signed());
        message.header.parent = TcHandle::ROOT;
        message.header.handle = TcHandle { major: 1, minor: 0 };
        let option = |kind, value| TcOption::Other(DefaultNla::new(kind, value));
        message.attributes = vec![
            TcAttribute::Kind("tbf".to_owned()),
            TcAttribute::Options(vec![
                option(TCA_TBF_PARMS, parameters.to_vec()),
                option(TCA_TBF_BURST, burst.to_ne_bytes().to_vec()),
            ]),
        ];
        self.request(
            RouteNetlinkMessage::NewQueueDiscipline(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .step(|| format!("tbf on {device} of {}", self.name()))?;
        Ok(())
    }
}
