//! When a guest is told of used buffers: what `model_ring` does not cover, as `virtio-queue` knows
//! neither call descriptors nor NO_INTERRUPT.

mod common;

use common::rig::{BUFFERS, Rig, readable};
use dataplane::testing::features::EVENT_IDX;
use dataplane::testing::local;
use dataplane::vhost::device::RingSetup;
use dataplane::vhost::eventfd::EventFd;
use dataplane::vring::chain::Direction;
use dataplane::vring::ring::Ring;

const SIZE: u16 = 32;

fn rig(features: u64) -> (Rig, EventFd) {
    let mut rig = Rig::new(Direction::Transmit, SIZE, features);
    let call = EventFd::new().unwrap();
    let setup = local::ring_setup(&rig.driver, 0, 0, features);
    let setup = RingSetup { call: Some(call.clone()), ..setup };
    rig.ring = Ring::new(&setup, &rig.map, Direction::Transmit).unwrap();
    rig.driver.raw_desc(0, readable(BUFFERS.gpa, 100));
    set_no_interrupt(&rig, false);
    (rig, call)
}

/// Whether the driver wants no interrupts, without EVENT_IDX (virtio 1.3, section 2.7.7).
fn set_no_interrupt(rig: &Rig, on: bool) {
    rig.driver.avail().write(0, &u16::from(on).to_le_bytes());
}

fn use_buffers(rig: &mut Rig, n: u16) {
    (0..n).for_each(|_| rig.driver.raw_push(0));
    rig.driver.publish();
    assert_eq!(rig.pop().0.len(), usize::from(n));
}

/// Where the driver wants to be told of buffer `index` (virtio 1.3, section 2.7.10).
fn set_used_event(rig: &Rig, index: u16) {
    let at = 4 + 2 * usize::from(SIZE);
    rig.driver.avail().write(at, &index.to_le_bytes());
}

#[test]
fn one_burst_is_one_notification() {
    let (mut rig, call) = rig(0);
    for n in [1, 5, SIZE] {
        use_buffers(&mut rig, n);
        assert!(call.drain());
        assert!(!call.drain());
    }
}

#[test]
fn guest_that_wants_no_interrupt_gets_none() {
    let (mut rig, call) = rig(0);
    set_no_interrupt(&rig, true);
    use_buffers(&mut rig, 3);
    assert!(!call.drain());
    set_no_interrupt(&rig, false);
    use_buffers(&mut rig, 3);
    assert!(call.drain());
}

#[test]
fn event_index_inside_a_burst_is_a_notification_and_one_beside_it_is_none() {
    let (mut rig, call) = rig(EVENT_IDX);
    use_buffers(&mut rig, 4);
    assert!(call.drain(), "the first buffers after a start");
    for (event, is_due) in [(3, false), (4, true), (11, true), (12, false), (0x8000, false)] {
        let (mut rig, call) = self::rig(EVENT_IDX);
        use_buffers(&mut rig, 4);
        call.drain();
        set_used_event(&rig, event);
        use_buffers(&mut rig, 8);
        assert_eq!(call.drain(), is_due, "event {event} of buffers 4 to 11");
    }
}

#[test]
fn nobody_is_told_while_there_is_no_call() {
    let (mut rig, call) = rig(0);
    rig.ring.set_call(None);
    use_buffers(&mut rig, 3);
    assert!(!call.drain());
}

#[test]
fn call_that_comes_back_after_the_index_went_round_announces_the_next_buffer() {
    let (mut rig, call) = rig(EVENT_IDX);
    use_buffers(&mut rig, 1);
    assert!(call.drain());
    rig.ring.set_call(None);
    // All the way round, to one before the place of the last notification.
    (0..2047).for_each(|_| use_buffers(&mut rig, 32));
    use_buffers(&mut rig, 31);
    assert_eq!(rig.driver.raw_used_idx(), 0);

    rig.ring.set_call(Some(call.clone()));
    set_used_event(&rig, 0);
    use_buffers(&mut rig, 1);
    assert!(call.drain(), "the driver asked to be told of buffer 0");
}

#[test]
fn arming_finds_what_came_before_and_asks_for_a_kick_otherwise() {
    for features in [0, EVENT_IDX] {
        let (mut rig, _call) = rig(features);
        let asks_for_kick = |rig: &mut Rig| {
            let before = rig.driver.kicks();
            rig.driver.kick_if_asked();
            rig.driver.kicks() > before
        };
        if features & EVENT_IDX != 0 {
            rig.driver.reset(true);
            rig.driver.raw_desc(0, readable(BUFFERS.gpa, 100));
            rig.restart(0);
        }
        assert_eq!(rig.ring.arm(), Ok(false));
        rig.offer_head(0);
        assert!(asks_for_kick(&mut rig));
        assert_eq!(rig.ring.arm(), Ok(true), "the buffer came before");
        assert_eq!(rig.pop().0.len(), 1);
        rig.ring.disarm();
        rig.offer_head(0);
        rig.offer_head(0);
        let is_quiet = !asks_for_kick(&mut rig);
        assert!(is_quiet || features & EVENT_IDX != 0, "a polled ring was kicked");
    }
}
