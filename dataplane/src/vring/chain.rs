//! Walks one descriptor chain of a split ring (virtio 1.3, sections 2.7.5 and 2.7.5.3).
//!
//! The table is guest memory: each descriptor is fetched once and only the copy is judged. A walk
//! ends after at most as many links as the table has entries, and after
//! [`MAX_SEGMENTS`] buffers, empty ones included, so a chain is bounded work
//! whatever it says and however large the ring is.

use crate::vhost::mem::{GuestSlice, Lookup};

use super::{MAX_SEGMENTS, RingFault};

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Which way the buffers of a ring go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The switch reads: the guest's transmit ring.
    Transmit,
    /// The switch writes: the guest's receive ring.
    Receive,
}

/// One descriptor, fetched once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Desc {
    /// Guest-physical address of the buffer.
    pub gpa: u64,
    /// Length of the buffer in bytes.
    pub len: u32,
    flags: u16,
    next: u16,
}

impl Desc {
    /// Descriptor `index` of `table`; `None` if it is not inside.
    #[inline]
    pub fn fetch(table: &GuestSlice<'_>, index: u16) -> Option<Self> {
        let [gpa, rest] = table.fetch_16(u32::from(index) * 16)?;
        Some(Self { gpa, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 })
    }

    /// A descriptor of a packed ring, whose order says what is next.
    #[inline]
    pub(super) fn new(gpa: u64, len: u32, flags: u16) -> Self {
        Self { gpa, len, flags, next: 0 }
    }

    /// It is not the last of its chain.
    #[inline]
    pub(super) fn has_next(&self) -> bool {
        self.flags & NEXT != 0
    }

    /// It refers to a table of descriptors.
    #[inline]
    pub(super) fn is_indirect(&self) -> bool {
        self.flags & INDIRECT != 0
    }

    /// A chain of this descriptor alone, of the right direction: the one that rings are full of.
    #[inline]
    pub fn is_whole_chain(&self, direction: Direction) -> bool {
        let wanted = if direction == Direction::Receive { WRITE } else { 0 };
        self.flags & (NEXT | WRITE | INDIRECT) == wanted
    }
}

/// What a walk needs to know of the ring.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Which way the ring goes.
    pub direction: Direction,
    /// Whether VIRTIO_F_INDIRECT_DESC was negotiated.
    pub indirect: bool,
}

/// A chain with more buffers than the switch walks; it is the frame's fault, not the ring's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

/// Walks the chain that starts at `head` of `table`, gives each non-empty buffer to `visit`.
///
/// Returns the sum of the lengths in bytes, or [`TooMany`] when the chain is sound as far as it
/// was walked but has too many buffers or more than 4 GiB.
pub fn walk<'m>(
    lookup: &mut Lookup<'m>,
    table: GuestSlice<'_>,
    head: u16,
    rules: Rules,
    mut visit: impl FnMut(GuestSlice<'m>),
) -> Result<Result<u32, TooMany>, RingFault> {
    let mut table = table;
    let mut size = table_size(&table);
    let (mut index, mut links, mut buffers, mut total) = (head, 0u32, 0usize, 0u32);
    let mut in_indirect = false;
    loop {
        let next_out_of_range = RingFault::NextOutOfRange { next: index, size };
        let desc = Desc::fetch(&table, index).ok_or(next_out_of_range)?;
        links += 1;
        if desc.flags & INDIRECT != 0 {
            table = indirect_table(lookup, desc, rules, in_indirect)?;
            size = table_size(&table);
            (index, links, in_indirect) = (0, 0, true);
            continue;
        }
        check_direction(desc, rules.direction)?;
        buffers += 1;
        if buffers > MAX_SEGMENTS {
            return Ok(Err(TooMany));
        }
        if desc.len != 0 {
            let bad = RingFault::BadAddress { gpa: desc.gpa, len: desc.len };
            let slice = lookup.slice(desc.gpa, desc.len).ok_or(bad)?;
            let Some(sum) = total.checked_add(desc.len) else { return Ok(Err(TooMany)) };
            total = sum;
            visit(slice);
        }
        if desc.flags & NEXT == 0 {
            return Ok(Ok(total));
        }
        if links >= u32::from(size) {
            return Err(RingFault::Loop { head });
        }
        index = desc.next;
    }
}

fn table_size(table: &GuestSlice<'_>) -> u16 {
    // A ring has at most 32768 entries and an indirect table is bounded by `indirect_table`.
    (table.len() / 16) as u16
}

pub(super) fn indirect_table<'m>(
    lookup: &mut Lookup<'m>,
    desc: Desc,
    rules: Rules,
    nested: bool,
) -> Result<GuestSlice<'m>, RingFault> {
    if !rules.indirect {
        return Err(RingFault::IndirectNotNegotiated);
    }
    if nested {
        return Err(RingFault::NestedIndirect);
    }
    if desc.flags & NEXT != 0 {
        return Err(RingFault::IndirectLinked);
    }
    // A driver must not make a chain longer than the queue, of 32768 entries at most.
    if desc.len == 0 || !desc.len.is_multiple_of(16) || desc.len > 32_768 * 16 {
        return Err(RingFault::IndirectLength { len: desc.len });
    }
    let bad = RingFault::BadAddress { gpa: desc.gpa, len: desc.len };
    lookup.slice(desc.gpa, desc.len).ok_or(bad)
}

pub(super) fn check_direction(desc: Desc, direction: Direction) -> Result<(), RingFault> {
    match (direction, desc.flags & WRITE != 0) {
        (Direction::Transmit, true) => {
            Err(RingFault::WrongDirection { found: "writable", ring: "transmit" })
        }
        (Direction::Receive, false) => {
            Err(RingFault::WrongDirection { found: "read-only", ring: "receive" })
        }
        _ => Ok(()),
    }
}
