//! The guest of the tests, tested: against a switch made of `vhost` and `virtio-queue`, so that a
//! failure elsewhere can be blamed on the switch.

mod reference;

use std::time::Duration;

use dataplane::testing::{Guest, GuestConfig, VirtioNetHdr, features};
use reference::{Reference, Wiring};

const OFFERED: u64 = features::PLAIN | features::TX_OFFLOADS | features::RX_OFFLOADS;
const TIMEOUT: Duration = Duration::from_secs(20);

fn echo(offered: u64) -> (tempfile::TempDir, Reference) {
    let dir = tempfile::tempdir().unwrap();
    let switch = Reference::start(dir.path(), 1, Wiring::Echo, offered);
    (dir, switch)
}

#[test]
fn a_frame_comes_back_as_it_was_sent() {
    let (_dir, switch) = echo(OFFERED);
    let mut guest = Guest::connect(switch.socket(0), GuestConfig::default()).unwrap();
    assert_eq!(guest.acked(), features::PLAIN);
    let frame: Vec<u8> = (0..60).collect();
    guest.send(&frame).unwrap();
    let (header, received) = guest.recv(TIMEOUT).unwrap().unwrap();
    assert_eq!(received, frame);
    assert_eq!(header, VirtioNetHdr { num_buffers: 1, ..VirtioNetHdr::default() });
    assert!(guest.tx().drain(TIMEOUT).unwrap());
}

#[test]
fn a_frame_crosses_from_one_guest_to_another() {
    let dir = tempfile::tempdir().unwrap();
    let switch = Reference::start(dir.path(), 2, Wiring::Cross, OFFERED);
    let mut sender = Guest::connect(switch.socket(0), GuestConfig::default()).unwrap();
    let mut receiver = Guest::connect(switch.socket(1), GuestConfig::default()).unwrap();
    sender.send(&[7; 1500]).unwrap();
    assert_eq!(receiver.recv(TIMEOUT).unwrap().unwrap().1, [7; 1500]);
    assert_eq!(sender.recv(Duration::ZERO).unwrap(), None);
}
