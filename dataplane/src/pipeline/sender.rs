//! What judging a frame asks of its sender: which offloads it may ask for, which addresses it may use, and
//! that the FDB hears where it is.

use crate::fdb::Seen;
use crate::flow::L2;
use crate::offload::{self, Abilities, Offload, OffloadError};
use crate::pmd::Report;
use crate::port::Vport;
use crate::spoof;
use crate::stats::DropReason;
use crate::vring::VNET_HDR;
use crate::wire::VirtioNetHdr;

use super::Burst;
use super::memo::asks_nothing;

/// What is left to do to a frame, if it asks only for what it may and fits the vport's MTU; mostly
/// nothing.
///
/// # Errors
/// Why the frame goes nowhere.
#[inline]
pub fn check_offload(
    vport: &Vport,
    asked: &[u8; VNET_HDR],
    head: &[u8],
    frame_len: u32,
    sender: Abilities,
) -> Result<Option<Offload>, DropReason> {
    if asks_nothing(asked) {
        let fits = frame_len <= vport.rules.max_frame_bytes;
        return if fits { Ok(None) } else { Err(DropReason::TooLong) };
    }
    check_asked(vport, &VirtioNetHdr::parse(asked), head, frame_len, sender).map(Some)
}

#[inline(never)]
fn check_asked(
    vport: &Vport,
    asked: &VirtioNetHdr,
    head: &[u8],
    frame_len: u32,
    sender: Abilities,
) -> Result<Offload, DropReason> {
    let offload = offload::check(asked, head, frame_len, sender).map_err(|error| match error {
        OffloadError::ChecksumNotNegotiated | OffloadError::SegmentationNotNegotiated { .. } => {
            DropReason::OffloadNotNegotiated
        }
        _ => DropReason::BadOffload,
    })?;
    let longest = match &offload {
        Offload::Segment(work) => work.max_segment_len() as u32,
        Offload::Done { .. } | Offload::Checksum(_) => frame_len,
    };
    if longest > vport.rules.max_frame_bytes { Err(DropReason::TooLong) } else { Ok(offload) }
}

/// Whether the vport may use the source addresses in the frame.
///
/// # Errors
/// Why the frame goes nowhere.
#[inline]
pub fn anti_spoof(vport: &Vport, l2: &L2, head: &[u8], frame_len: u32) -> Result<(), DropReason> {
    spoof::ethernet(&vport.rules, l2)?;
    anti_spoof_ip(vport, l2, head, frame_len)
}

/// As [`anti_spoof`], where the Ethernet header is known to be good.
#[inline(always)]
pub(super) fn anti_spoof_ip(
    vport: &Vport,
    l2: &L2,
    head: &[u8],
    frame_len: u32,
) -> Result<(), DropReason> {
    match &vport.rules.bound {
        None => Ok(()),
        Some(bound) => bound.check(l2, head, frame_len),
    }
}

/// Tells the FDB that the source was seen, and the control thread if that is news.
#[inline]
pub(super) fn learn(burst: &Burst<'_>, l2: &L2, now_s: u32) {
    let rules = &burst.vport.rules;
    if !rules.learning || rules.mac == Some(l2.src) {
        return;
    }
    let port = burst.vport.id;
    match burst.fdb.seen(rules.segment, l2.src, port, now_s) {
        // A static entry elsewhere wins; replies go there, and the operator sees both.
        Seen::Fresh | Seen::Refreshed | Seen::Held { .. } => {}
        Seen::Unknown | Seen::Moved { .. } => {
            let sighted = Report::Sighted { segment: rules.segment, mac: l2.src, port };
            if !burst.reports.send(sighted) {
                burst.pmd.learn_overflow.add(1);
            }
        }
    }
}
