//! What the frames before were found to be, remembered for one burst.

use crate::flow::L2;
use crate::frame::{Frame, HEAD, Scratch};
use crate::port::Vport;
use crate::tables::Tables;
use crate::vring::VNET_HDR;
use crate::wire::ethernet;

use super::Decision;
use super::sender::anti_spoof_ip;

/// What the frames before were found to be, for one burst: most have one sender and one destination.
/// A change of the tables shows with the next burst.
pub(super) struct Memo {
    pub src: u64,
    pub dst: u64,
    /// Where `dst` is.
    pub route: Decision,
    /// Receive rings there.
    pub rings: u16,
    /// The Ethernet part of the last frame that was routed.
    pub l2: Option<L2>,
    /// Where frames went whose like go there as well, by [`place`](Self::place).
    known: [Option<Known>; 8],
}

/// An Ethernet header, and the bin of the frames that have it.
struct Known {
    header: (u64, u64),
    l2: L2,
    bin: usize,
}

impl Default for Memo {
    fn default() -> Self {
        // Keys have 48 bits: these are no one's.
        let known = [const { None }; 8];
        Self { src: !0, dst: !0, route: Decision::Flood, rings: 0, l2: None, known }
    }
}

impl Memo {
    /// The bin of a frame that asks for nothing, may go, and has the Ethernet header of one before: so its
    /// source was learned, and its destination looked up. What depends on more than that header is
    /// judged of every frame.
    #[inline(always)]
    pub fn repeats(&self, vport: &Vport, scratch: &Scratch, frame: &Frame<'_>) -> Option<usize> {
        let known = self.known[Self::place(scratch)].as_ref()?;
        let is_same = frame.drop.is_none()
            && ethernet_header(scratch.head()) == known.header
            && asks_nothing(scratch.vnet())
            && frame.len <= vport.rules.max_frame_bytes;
        let may = is_same && {
            let head = &scratch.head()[..usize::from(frame.head_len)];
            anti_spoof_ip(vport, &known.l2, head, frame.len).is_ok()
        };
        may.then_some(known.bin)
    }

    /// The frame went to `bin`, and so will those with its Ethernet header. Not if it may be a question
    /// (ARP, groups), nor if that header goes on in VLAN tags.
    pub fn remember(&mut self, scratch: &Scratch, bin: usize) {
        let is_plain =
            |l2: &L2| l2.tags == 0 && !l2.is_to_group() && l2.ethertype != ethernet::ETHERTYPE_ARP;
        let header = ethernet_header(scratch.head());
        if let Some(l2) = self.l2.filter(is_plain) {
            self.known[Self::place(scratch)] = Some(Known { header, l2, bin });
        }
    }

    /// Neighbours often have addresses that differ in the last bits.
    #[inline]
    fn place(scratch: &Scratch) -> usize {
        usize::from(scratch.head()[5] % 8)
    }
}

/// The 14 bytes of the Ethernet header, in two words that overlap.
#[inline]
fn ethernet_header(head: &[u8; HEAD]) -> (u64, u64) {
    let word = |at: usize| u64::from_ne_bytes(*head[at..].first_chunk().expect("128 bytes"));
    (word(0), word(6))
}

/// Neither flags nor a GSO type.
#[inline]
pub(super) fn asks_nothing(asked: &[u8; VNET_HDR]) -> bool {
    u16::from_le_bytes([asked[0], asked[1]]) == 0
}

/// Receive rings to spread frames over, where there is one vport that they go to.
pub(super) fn receive_rings(route: Decision, tables: &Tables) -> u16 {
    match route {
        Decision::Output(port) => tables.port(port).map_or(0, |out| out.rx_enabled()),
        Decision::Flood | Decision::Answer(_) | Decision::Drop(_) => 0,
    }
}
