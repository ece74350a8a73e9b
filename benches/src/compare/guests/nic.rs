//! The guest's network card as its TCP stack sees it: a virtio driver's two rings.
//!
//! ```text
//!  used entries --burst--> Burst --one by one--> stack --> scratch --> descriptors, shown at the end
//! ```
//! The rings take and give frames in bursts, so that the other side's cache lines are touched once for many;
//! the stack wants them one by one. Memory of guests is shared with the switch, so the stack never holds a
//! reference into it: each frame is copied out once and in once.
//!
//! # Checksums
//! TCP's are neither written nor looked at, as where a card does it; the header of IPv4 has its own.
//! That holds for every arm alike. Frames are not marked as unfinished: switches that were not asked
//! about checksums carry them as they are.

use dataplane::testing::{DeviceFault, RxQueue, TxQueue};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::phy::{RxToken, TxToken};
use smoltcp::time::Instant;

/// Bytes of a frame without FCS: an MTU of 1500.
pub const FRAME_BYTES: usize = 1514;
/// Frames that are taken from a ring at once.
pub const BURST: usize = 32;

/// Frames that were taken from a ring, and the one that is being written. Guests that are driven by one
/// thread share it: it is empty whenever none of them is at work.
#[derive(Debug)]
pub struct Burst {
    frames: Box<[Frame]>,
    next: usize,
    count: usize,
    scratch: Frame,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    len: usize,
    bytes: [u8; FRAME_BYTES],
}

impl Frame {
    const EMPTY: Self = Self { len: 0, bytes: [0; FRAME_BYTES] };
}

impl Default for Burst {
    fn default() -> Self {
        let frames = vec![Frame::EMPTY; BURST].into();
        Self { frames, next: 0, count: 0, scratch: Frame::EMPTY }
    }
}

/// A card for as long as its guest is at work.
#[derive(Debug)]
pub struct Nic<'a> {
    rx: &'a mut RxQueue,
    tx: &'a mut TxQueue,
    burst: &'a mut Burst,
    fault: Option<DeviceFault>,
    work: usize,
}

impl<'a> Nic<'a> {
    /// A card over these rings.
    pub fn new(rx: &'a mut RxQueue, tx: &'a mut TxQueue, burst: &'a mut Burst) -> Self {
        Self { rx, tx, burst, fault: None, work: 0 }
    }

    /// Shows the switch what was sent; returns how many frames came and went.
    ///
    /// # Errors
    /// The switch broke the rules of a ring.
    pub fn finish(self) -> Result<usize, DeviceFault> {
        if self.work > 0 {
            self.tx.show();
        }
        self.fault.map_or(Ok(self.work), Err)
    }

    /// Looks for frames; whether there is one.
    fn has_frame(&mut self) -> Result<bool, DeviceFault> {
        if self.burst.next < self.burst.count {
            return Ok(true);
        }
        // Each may be answered; a frame in hand is never left for another guest.
        if self.tx.room()? < BURST {
            return Ok(false);
        }
        let (frames, mut count) = (&mut self.burst.frames, 0);
        self.rx.rx_burst(BURST, |frame| {
            let len = frame.len();
            // Nothing longer is sent here; what is, is not for us.
            if let Some(bytes) = frames[count].bytes.get_mut(..len) {
                frame.read(0, bytes);
                frames[count].len = len;
                count += 1;
            }
        })?;
        (self.burst.next, self.burst.count) = (0, count);
        self.work += count;
        Ok(count > 0)
    }

    fn or_fault<T: Default>(&mut self, outcome: Result<T, DeviceFault>) -> T {
        outcome.unwrap_or_else(|fault| {
            self.fault = Some(fault);
            T::default()
        })
    }
}

/// A received frame.
#[derive(Debug)]
pub struct Received<'a>(&'a Frame);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0.bytes[..self.0.len])
    }
}

/// Room for a frame.
#[derive(Debug)]
pub struct Room<'a> {
    tx: &'a mut TxQueue,
    scratch: &'a mut Frame,
    fault: &'a mut Option<DeviceFault>,
    work: &'a mut usize,
}

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let bytes = &mut self.scratch.bytes[..len];
        let outcome = write(bytes);
        match self.tx.put(|slot| slot.write(bytes)) {
            Ok(_there_is_room) => *self.work += 1,
            Err(fault) => *self.fault = Some(fault),
        }
        outcome
    }
}

impl Device for Nic<'_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Room<'a>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Room<'_>)> {
        let outcome = self.has_frame();
        if !self.or_fault(outcome) {
            return None;
        }
        let Burst { frames, next, scratch, .. } = &mut *self.burst;
        let frame = &frames[*next];
        *next += 1;
        let (tx, fault, work) = (&mut *self.tx, &mut self.fault, &mut self.work);
        Some((Received(frame), Room { tx, scratch, fault, work }))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Room<'_>> {
        let outcome = self.tx.room();
        if self.or_fault(outcome) == 0 {
            return None;
        }
        let (tx, scratch) = (&mut *self.tx, &mut self.burst.scratch);
        Some(Room { tx, scratch, fault: &mut self.fault, work: &mut self.work })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::ignored();
        checksum.ipv4 = Checksum::Both;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_BYTES;
        capabilities.checksum = checksum;
        capabilities
    }
}

#[cfg(test)]
mod tests {
    use dataplane::testing::GuestConfig;

    use super::*;
    use crate::local::Net;

    fn sent(net: &mut Net, burst: &mut Burst, frames: &[Vec<u8>]) -> usize {
        let pair = net.guests[0].pair(0);
        let mut nic = Nic::new(&mut pair.rx, &mut pair.tx, burst);
        for frame in frames {
            let Some(room) = nic.transmit(Instant::ZERO) else { break };
            room.consume(frame.len(), |bytes| bytes.copy_from_slice(frame));
        }
        nic.finish().unwrap()
    }

    fn frame(net: &Net, tag: u8, len: usize) -> Vec<u8> {
        let [from, to] = [0, 1].map(|n| net.address(n).0);
        let mut frame = [to, from].concat();
        frame.extend([0x88, 0xb5]);
        frame.resize(len, tag);
        frame
    }

    #[test]
    fn frames_come_one_by_one_as_they_were_sent_and_are_shown_at_the_end() {
        let mut net = Net::new();
        for _ in 0..2 {
            net.add(false, GuestConfig::default()).unwrap();
        }
        let mut burst = Burst::default();
        let frames: Vec<_> = (0..40).map(|n| frame(&net, n, 60 + 37 * usize::from(n))).collect();
        assert!(frames.iter().all(|frame| frame.len() <= FRAME_BYTES));
        assert_eq!(sent(&mut net, &mut burst, &frames), frames.len());
        assert_eq!((net.run(0).unwrap(), net.run(0).unwrap()), (32, 8));

        let pair = net.guests[1].pair(0);
        let mut nic = Nic::new(&mut pair.rx, &mut pair.tx, &mut burst);
        let mut received = Vec::new();
        while let Some((token, _)) = nic.receive(Instant::ZERO) {
            received.push(token.consume(<[u8]>::to_vec));
        }
        assert_eq!(received, frames);
        assert_eq!(nic.finish().unwrap(), frames.len());
    }

    #[test]
    fn a_full_ring_has_no_room_and_nothing_is_received_that_could_not_be_answered() {
        let mut net = Net::new();
        for _ in 0..2 {
            net.add(false, GuestConfig::default().ring_size(64)).unwrap();
        }
        let mut burst = Burst::default();
        let frames = vec![frame(&net, 7, 100); 100];
        assert_eq!(sent(&mut net, &mut burst, &frames), 64);
        // One frame comes back, and waits until there is room for the answer.
        let back = {
            let [from, to] = [1, 0].map(|n| net.address(n).0);
            [to.as_slice(), &from, &[0x88, 0xb5], &[9; 50]].concat()
        };
        net.guests[1].tx().send(&back).unwrap();
        assert_eq!(net.run(1).unwrap(), 1);
        let pair = net.guests[0].pair(0);
        let mut nic = Nic::new(&mut pair.rx, &mut pair.tx, &mut burst);
        assert!(nic.receive(Instant::ZERO).is_none());
        nic.finish().unwrap();
        while net.run(0).unwrap() > 0 {}
        let pair = net.guests[0].pair(0);
        let mut nic = Nic::new(&mut pair.rx, &mut pair.tx, &mut burst);
        let (token, _) = nic.receive(Instant::ZERO).unwrap();
        assert_eq!(token.consume(<[u8]>::to_vec), back);
        assert_eq!(nic.finish().unwrap(), 1);
    }
}
