//! Gathers the set-up messages of one ring and yields a [`RingSetup`] once all of them are there.
//!
//! # How it works
//! A front end describes a ring with several messages in any order (SET_VRING_NUM, _ADDR, _BASE,
//! _KICK, and optionally _CALL, _ERR, _ENABLE). A polled ring has no later sign to start: it must
//! start as soon as the description is complete, and not a message sooner.
//!
//! ```text
//!   empty --messages--> complete --started--> running --paused (memory, features)--> complete
//!     ^                                          |
//!     '------------- halted (GET_VRING_BASE) ----'
//! ```
//! A halted ring forgets its description (size, addresses, base, kick), so that it starts again
//! only when the front end described it anew, in whatever order: a ring at yesterday's addresses
//! would write into memory that the guest uses for something else by now. Call and error
//! descriptors and the enabled state outlive the halt.
//!
//! # Bounds
//! Nothing here does I/O or knows time; every method is a handful of comparisons.

use virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;

use super::device::RingSetup;
use super::eventfd::EventFd;

/// Largest ring (virtio 1.3, 2.7: "a maximum Queue Size of 32768").
pub const MAX_RING_SIZE: u16 = 32768;

/// Why a set-up message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// Not a power of two, or out of range.
    #[error(
        "Ring {index} with {num} descriptors; a power of two from 2 to {MAX_RING_SIZE} is needed"
    )]
    Size {
        /// Ring index.
        index: u16,
        /// The size asked for.
        num: u32,
    },
    /// A part of the ring is not aligned (virtio 1.3, 2.7).
    #[error("Ring {index} has its {part} at {addr:#x}, which is no multiple of {align}")]
    Alignment {
        /// Ring index.
        index: u16,
        /// Which part.
        part: &'static str,
        /// Its address in the VMM.
        addr: u64,
        /// What it must be a multiple of.
        align: u64,
    },
    /// The ring runs.
    #[error("{message} for ring {index}, which runs; stop it with GET_VRING_BASE first")]
    Running {
        /// Ring index.
        index: u16,
        /// The message refused.
        message: &'static str,
    },
}

/// The three parts of a split ring, in addresses of the VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingAddr {
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
}

/// How the guest tells us of available buffers.
#[derive(Debug, Clone, Default)]
enum Kick {
    #[default]
    Unknown,
    Poll,
    Event(EventFd),
}

/// What is known of one ring.
#[derive(Debug)]
pub struct Ring {
    index: u16,
    size: Option<u16>,
    addr: Option<RingAddr>,
    base: Option<u32>,
    kick: Kick,
    call: Option<EventFd>,
    err: Option<EventFd>,
    enabled: bool,
    running: bool,
    /// Where the ring stood when it was last heard of; the answer to GET_VRING_BASE.
    stands_at: u32,
}

impl Ring {
    /// A ring of which nothing is known, disabled (vhost-user specification, "Ring states").
    pub fn new(index: u16) -> Self {
        Self {
            index,
            size: None,
            addr: None,
            base: None,
            kick: Kick::Unknown,
            call: None,
            err: None,
            enabled: false,
            running: false,
            stands_at: 0,
        }
    }

    /// Whether the ring was started and not stopped since.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Where the ring stands, as far as is known: what [`RingSetup::base`] is made of.
    pub fn stands_at(&self) -> u32 {
        self.stands_at
    }

    /// SET_VRING_NUM.
    pub fn set_num(&mut self, num: u32) -> Result<(), SetupError> {
        let index = self.index;
        let size = u16::try_from(num)
            .ok()
            .filter(|size| size.is_power_of_two() && (2..=MAX_RING_SIZE).contains(size))
            .ok_or(SetupError::Size { index, num })?;
        if self.running && self.size != Some(size) {
            return Err(SetupError::Running { index, message: "SET_VRING_NUM" });
        }
        self.size = Some(size);
        Ok(())
    }

    /// SET_VRING_ADDR.
    pub fn set_addr(&mut self, addr: RingAddr) -> Result<(), SetupError> {
        let index = self.index;
        let parts = [
            ("descriptor table", addr.desc, 16),
            ("available ring", addr.avail, 2),
            ("used ring", addr.used, 4),
        ];
        for (part, addr, align) in parts {
            if !addr.is_multiple_of(align) {
                return Err(SetupError::Alignment { index, part, addr, align });
            }
        }
        if self.running && self.addr != Some(addr) {
            return Err(SetupError::Running { index, message: "SET_VRING_ADDR" });
        }
        self.addr = Some(addr);
        Ok(())
    }

    /// SET_VRING_BASE. Whether there is such a place depends on the layout of the ring: whoever starts it
    /// looks.
    pub fn set_base(&mut self, base: u32) -> Result<(), SetupError> {
        let index = self.index;
        if self.running {
            return Err(SetupError::Running { index, message: "SET_VRING_BASE" });
        }
        self.base = Some(base);
        self.stands_at = base;
        Ok(())
    }

    /// SET_VRING_KICK. A running ring must be paused first, so that the new one is used.
    pub fn set_kick(&mut self, kick: Option<EventFd>) {
        self.kick = kick.map_or(Kick::Poll, Kick::Event);
    }

    /// SET_VRING_CALL.
    pub fn set_call(&mut self, call: Option<EventFd>) {
        self.call = call;
    }

    /// SET_VRING_ERR. A running ring must be paused first, so that the new one is used.
    pub fn set_err(&mut self, err: Option<EventFd>) {
        self.err = err;
    }

    /// SET_VRING_ENABLE. Returns whether this changed anything.
    pub fn set_enabled(&mut self, on: bool) -> bool {
        std::mem::replace(&mut self.enabled, on) != on
    }

    /// The ring to start, if it does not run and all is known. `covered` says whether so many
    /// bytes at an address of the VMM lie in the memory table.
    pub fn to_start(&self, features: u64, covered: impl Fn(u64, u32) -> bool) -> Option<RingSetup> {
        let (size, addr, base) = (self.size?, self.addr?, self.base?);
        let kick = match &self.kick {
            Kick::Unknown => return None,
            Kick::Poll => None,
            Kick::Event(event) => Some(event.clone()),
        };
        if self.running {
            return None;
        }
        let entries = u32::from(size);
        // With the event index at the end (virtio 1.3, 2.7), or event areas (2.8).
        let (avail, used) = match features & (1 << VIRTIO_F_RING_PACKED) {
            0 => (6 + 2 * entries, 6 + 8 * entries),
            _ => (4, 4),
        };
        let in_memory = covered(addr.desc, 16 * entries)
            && covered(addr.avail, avail)
            && covered(addr.used, used);
        in_memory.then(|| RingSetup {
            index: self.index,
            size,
            desc: addr.desc,
            avail: addr.avail,
            used: addr.used,
            base,
            kick,
            call: self.call.clone(),
            err: self.err.clone(),
            features,
            enabled: self.enabled,
        })
    }

    /// The device runs the ring.
    pub fn started(&mut self) {
        self.running = true;
    }

    /// The device stopped the ring, which stands at `next` and may go on there.
    pub fn paused(&mut self, next: u32) {
        self.running = false;
        self.base = Some(next);
        self.stands_at = next;
    }

    /// The ring is stopped, at `next` if the device knew, until the front end describes it anew.
    pub fn halted(&mut self, next: Option<u32>) {
        self.running = false;
        self.stands_at = next.unwrap_or(self.stands_at);
        self.size = None;
        self.addr = None;
        self.base = None;
        self.kick = Kick::Unknown;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ADDR: RingAddr = RingAddr { desc: 0x1000, avail: 0x2000, used: 0x3000 };
    const EVERYWHERE: fn(u64, u32) -> bool = |_, _| true;

    fn complete() -> Ring {
        let mut ring = Ring::new(1);
        ring.set_num(256).unwrap();
        ring.set_addr(ADDR).unwrap();
        ring.set_base(7).unwrap();
        ring.set_kick(None);
        ring
    }

    #[test]
    fn a_ring_size_must_be_a_power_of_two_in_range() {
        let mut ring = Ring::new(0);
        for num in [0, 1, 3, 255, 32769, 65536, 65538, u32::MAX] {
            assert_eq!(ring.set_num(num), Err(SetupError::Size { index: 0, num }));
        }
        for num in [2, 4, 256, 32768] {
            assert_eq!(ring.set_num(num), Ok(()));
        }
    }

    #[test]
    fn misaligned_parts_are_refused_by_name() {
        let mut ring = Ring::new(0);
        let part = |result| match result {
            Err(SetupError::Alignment { part, .. }) => part,
            other => panic!("{other:?}"),
        };
        assert_eq!(part(ring.set_addr(RingAddr { desc: 0x1008, ..ADDR })), "descriptor table");
        assert_eq!(part(ring.set_addr(RingAddr { avail: 0x2001, ..ADDR })), "available ring");
        assert_eq!(part(ring.set_addr(RingAddr { used: 0x3002, ..ADDR })), "used ring");
    }

    #[test]
    fn a_ring_outside_memory_waits_for_memory() {
        let ring = complete();
        // 256 descriptors: 4096, 518 and 2054 bytes.
        let upto = |end: u64| move |addr: u64, len: u32| addr + u64::from(len) <= end;
        assert!(ring.to_start(0, upto(0x3000 + 2053)).is_none());
        assert!(ring.to_start(0, upto(0x3000 + 2054)).is_some());
    }

    #[test]
    fn a_paused_ring_goes_on_where_it_stood_and_a_halted_one_waits_to_be_described() {
        let mut ring = complete();
        ring.started();
        assert!(ring.to_start(0, EVERYWHERE).is_none());
        ring.paused(42);
        assert_eq!(ring.to_start(0, EVERYWHERE).unwrap().base, 42);
        ring.started();
        ring.halted(Some(43));
        assert_eq!(ring.stands_at(), 43);
        ring.set_kick(None);
        ring.set_base(43).unwrap();
        ring.set_num(256).unwrap();
        assert!(ring.to_start(0, EVERYWHERE).is_none(), "addresses were not confirmed");
        ring.set_addr(ADDR).unwrap();
        assert!(ring.to_start(0, EVERYWHERE).is_some());
    }

    #[test]
    fn a_running_ring_keeps_its_description() {
        let mut ring = complete();
        ring.started();
        assert_eq!(ring.set_num(256), Ok(()), "the same again changes nothing");
        assert_eq!(ring.set_addr(ADDR), Ok(()));
        assert!(matches!(ring.set_num(512), Err(SetupError::Running { .. })));
        let elsewhere = RingAddr { desc: 0x8000, ..ADDR };
        assert!(matches!(ring.set_addr(elsewhere), Err(SetupError::Running { .. })));
        assert!(matches!(ring.set_base(7), Err(SetupError::Running { .. })));
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Num(u32),
        Addr(u64),
        Base(u32),
        Kick,
        Enable(bool),
        Pause(u32),
        Halt,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => prop::sample::select(vec![256, 512, 3, 0]).prop_map(Step::Num),
            3 => prop::sample::select(vec![0x1000, 0x8000, 0x1001]).prop_map(Step::Addr),
            3 => prop::sample::select(vec![0, 9, 0x1_0000]).prop_map(Step::Base),
            3 => Just(Step::Kick),
            1 => any::<bool>().prop_map(Step::Enable),
            1 => any::<u32>().prop_map(Step::Pause),
            1 => Just(Step::Halt),
        ];
        prop::collection::vec(step, 0..60)
    }

    /// What a reader of the specification keeps in mind: which parts are there.
    #[derive(Default)]
    struct Model {
        size: Option<u16>,
        desc: Option<u64>,
        base: Option<u32>,
        kick: bool,
        running: bool,
    }

    proptest! {
        /// Over any sequence of messages the ring starts exactly when the last missing part
        /// arrives, once between stops, and with the latest valid parts.
        #[test]
        fn a_ring_starts_once_and_only_when_complete(steps in steps()) {
            let (mut ring, mut model) = (Ring::new(3), Model::default());
            for step in steps {
                match step {
                    Step::Num(num) if ring.set_num(num).is_ok() => model.size = Some(num as u16),
                    Step::Addr(desc) if ring.set_addr(RingAddr { desc, ..ADDR }).is_ok() => {
                        model.desc = Some(desc);
                    }
                    Step::Base(base) if ring.set_base(base).is_ok() => model.base = Some(base),
                    Step::Kick => {
                        ring.set_kick(None);
                        model.kick = true;
                    }
                    Step::Enable(on) => { ring.set_enabled(on); }
                    Step::Pause(next) if model.running => {
                        ring.paused(next);
                        model = Model { base: Some(next), running: false, ..model };
                    }
                    Step::Halt => {
                        ring.halted(None);
                        model = Model::default();
                    }
                    _ => {}
                }
                let complete =
                    model.size.is_some() && model.desc.is_some() && model.base.is_some() && model.kick;
                let start = ring.to_start(5, EVERYWHERE);
                prop_assert_eq!(start.is_some(), complete && !model.running);
                if let Some(setup) = start {
                    prop_assert_eq!(Some(setup.size), model.size);
                    prop_assert_eq!(Some(setup.desc), model.desc);
                    prop_assert_eq!(Some(setup.base), model.base);
                    ring.started();
                    model.running = true;
                }
            }
        }
    }
}
