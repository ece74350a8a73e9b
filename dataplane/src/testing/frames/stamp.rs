//! Payloads that prove themselves.

use std::collections::HashMap;
use std::ops::Range;

use crate::testing::schedule::splitmix64;

/// Fewest payload bytes of a stamped frame: flow (4), sequence (8), checksum (4).
pub const STAMP_BYTES: usize = 16;

/// Which frame of which flow a payload is. The payload holds both, a checksum over all of it, and
/// a filling that follows from them, of any length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// Number of the flow.
    pub flow: u32,
    /// Number of the frame in its flow, from zero.
    pub sequence: u64,
}

/// Why a payload is not what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StampError {
    /// Too short to hold a stamp.
    #[error("payload of {len} bytes is shorter than a stamp")]
    Short {
        /// Bytes there are.
        len: usize,
    },
    /// The bytes do not match their checksum.
    #[error("payload of {len} bytes has checksum {found:#x}, its bytes make {right:#x}")]
    Corrupt {
        /// Bytes there are.
        len: usize,
        /// The checksum in the payload.
        found: u32,
        /// The checksum of the bytes.
        right: u32,
    },
}

impl Stamp {
    /// Fills `payload` with the stamp and what follows from it.
    ///
    /// # Panics
    /// When it is shorter than [`STAMP_BYTES`].
    pub fn fill(self, payload: &mut [u8]) {
        let (stamp, filling) = payload.split_at_mut(STAMP_BYTES);
        let seed = self.seed();
        Stream(seed).fill(0, filling);
        stamp[..4].copy_from_slice(&self.flow.to_le_bytes());
        stamp[4..12].copy_from_slice(&self.sequence.to_le_bytes());
        let sum = checksum(seed, filling);
        stamp[12..].copy_from_slice(&sum.to_le_bytes());
    }

    /// A payload of `len` bytes.
    ///
    /// # Panics
    /// When that is shorter than [`STAMP_BYTES`].
    pub fn payload(self, len: usize) -> Vec<u8> {
        let mut payload = vec![0; len];
        self.fill(&mut payload);
        payload
    }

    /// Reads the stamp of `payload` and proves all of its bytes.
    ///
    /// # Errors
    /// [`StampError`] when they are not what was sent.
    pub fn check(payload: &[u8]) -> Result<Self, StampError> {
        let len = payload.len();
        let Some((stamp, filling)) = payload.split_first_chunk::<STAMP_BYTES>() else {
            return Err(StampError::Short { len });
        };
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|n| stamp[at + n]));
        let sequence = u64::from(word(4)) | u64::from(word(8)) << 32;
        let claimed = Self { flow: word(0), sequence };
        let (found, right) = (word(12), checksum(claimed.seed(), filling));
        if found == right { Ok(claimed) } else { Err(StampError::Corrupt { len, found, right }) }
    }

    fn seed(self) -> u64 {
        let mut state = self.sequence ^ u64::from(self.flow).rotate_left(32);
        splitmix64(&mut state)
    }
}

/// A keyed sum of `bytes` and their number, eight at a time.
fn checksum(seed: u64, bytes: &[u8]) -> u32 {
    let mut sum = seed ^ bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        sum = (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
    (sum ^ (sum >> 32)) as u32
}

/// The endless bytes of a flow: what is at an offset follows from flow and offset alone, so a
/// receiver can judge any segment of it, wherever it was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream(pub u64);

impl Stream {
    /// Writes the bytes at `offset` of the stream.
    pub fn fill(self, offset: u64, bytes: &mut [u8]) {
        let mut bytes = bytes;
        let mut at = offset;
        while !bytes.is_empty() {
            let skip = (at % 8) as usize;
            let take = bytes.len().min(8 - skip);
            let (piece, rest) = bytes.split_at_mut(take);
            piece.copy_from_slice(&self.word(at / 8)[skip..skip + take]);
            bytes = rest;
            at += take as u64;
        }
    }

    /// Whether `bytes` are those at `offset` of the stream.
    pub fn matches(self, offset: u64, bytes: &[u8]) -> bool {
        let mut right = vec![0; bytes.len()];
        self.fill(offset, &mut right);
        right == bytes
    }

    fn word(self, index: u64) -> [u8; 8] {
        let mut state = self.0.wrapping_add(index.wrapping_mul(0x2545_f491_4f6c_dd1d));
        splitmix64(&mut state).to_le_bytes()
    }
}

/// What became of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlowCount {
    /// Frames that came, each counted once.
    pub received: u64,
    /// Sequence numbers below the highest seen that have not come.
    pub missing: u64,
    /// Frames that came after a later one.
    pub reordered: u64,
    /// Frames that came again.
    pub duplicated: u64,
}

#[derive(Debug, Default)]
struct Flow {
    count: FlowCount,
    next: u64,
    /// Sequence numbers below `next` that have not come.
    gaps: Vec<Range<u64>>,
}

/// Counts stamped frames: all there, in order, once?
#[derive(Debug, Default)]
pub struct Ledger {
    flows: HashMap<u32, Flow>,
    corrupt: u64,
}

impl Ledger {
    /// Judges the payload of a received frame and enters it.
    ///
    /// # Errors
    /// [`StampError`] when the payload is not what was sent; counted as corrupt.
    pub fn enter(&mut self, payload: &[u8]) -> Result<Stamp, StampError> {
        let stamp = Stamp::check(payload).inspect_err(|_| self.corrupt += 1)?;
        self.flows.entry(stamp.flow).or_default().enter(stamp.sequence);
        Ok(stamp)
    }

    /// What became of `flow`.
    pub fn flow(&self, flow: u32) -> FlowCount {
        self.flows.get(&flow).map(|flow| flow.count).unwrap_or_default()
    }

    /// What became of all flows together.
    pub fn total(&self) -> FlowCount {
        self.flows.values().fold(FlowCount::default(), |sum, flow| FlowCount {
            received: sum.received + flow.count.received,
            missing: sum.missing + flow.count.missing,
            reordered: sum.reordered + flow.count.reordered,
            duplicated: sum.duplicated + flow.count.duplicated,
        })
    }

    /// Payloads that were not what was sent.
    pub fn corrupt(&self) -> u64 {
        self.corrupt
    }

    /// Whether `frames` frames came, none missing, doubled, reordered or corrupt.
    pub fn is_perfect(&self, frames: u64) -> bool {
        let right = FlowCount { received: frames, ..FlowCount::default() };
        self.total() == right && self.corrupt == 0
    }
}

impl Flow {
    fn enter(&mut self, sequence: u64) {
        if sequence >= self.next {
            if sequence > self.next {
                self.gaps.push(self.next..sequence);
                self.count.missing += sequence - self.next;
            }
            self.next = sequence.saturating_add(1);
            self.count.received += 1;
            return;
        }
        let Some(index) = self.gaps.iter().position(|gap| gap.contains(&sequence)) else {
            self.count.duplicated += 1;
            return;
        };
        let gap = self.gaps.swap_remove(index);
        let parts = [gap.start..sequence, sequence + 1..gap.end];
        self.gaps.extend(parts.into_iter().filter(|part| !part.is_empty()));
        self.count.missing -= 1;
        self.count.reordered += 1;
        self.count.received += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamped_payload_of_any_length_is_read_back() {
        for len in [16, 17, 18, 24, 1458, 65_000] {
            let stamp = Stamp { flow: 3, sequence: len as u64 };
            assert_eq!(Stamp::check(&stamp.payload(len)), Ok(stamp));
        }
    }

    #[test]
    fn any_flipped_bit_and_any_lost_byte_is_noticed() {
        let sent = Stamp { flow: 1, sequence: 2 }.payload(100);
        for bit in 0..800 {
            let mut payload = sent.clone();
            payload[bit / 8] ^= 1 << (bit % 8);
            assert!(Stamp::check(&payload).is_err(), "bit {bit}");
        }
        assert!(Stamp::check(&sent[..99]).is_err());
        assert_eq!(Stamp::check(&sent[..15]), Err(StampError::Short { len: 15 }));
    }

    #[test]
    fn a_stream_is_the_same_however_it_is_cut() {
        let stream = Stream(42);
        let mut whole = vec![0; 1000];
        stream.fill(0, &mut whole);
        for (start, end) in [(0, 1), (3, 20), (7, 8), (8, 24), (501, 1000)] {
            assert!(stream.matches(start as u64, &whole[start..end]));
        }
        assert!(!stream.matches(1, &whole[..8]));
    }

    #[test]
    fn the_ledger_tells_loss_reordering_doubling_and_corruption_apart() {
        let mut ledger = Ledger::default();
        for sequence in [0, 1, 5, 3, 3, 6] {
            ledger.enter(&Stamp { flow: 9, sequence }.payload(32)).unwrap();
        }
        assert!(ledger.enter(&[0; 32]).is_err());
        let right = FlowCount { received: 5, missing: 2, reordered: 1, duplicated: 1 };
        assert_eq!((ledger.flow(9), ledger.corrupt()), (right, 1));
        assert!(!ledger.is_perfect(5));
        assert_eq!(ledger.flow(8), FlowCount::default());
    }

    #[test]
    fn a_ledger_of_frames_all_in_order_is_perfect() {
        let mut ledger = Ledger::default();
        for sequence in 0..10 {
            for flow in 0..3 {
                ledger.enter(&Stamp { flow, sequence }.payload(20)).unwrap();
            }
        }
        assert!(ledger.is_perfect(30) && !ledger.is_perfect(29));
    }
}
