//! A guest with an address, and the frames it sends.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use dataplane::testing::Guest;
use dataplane::testing::frames::{FrameBuilder, Mac, Stamp, payload_range};

use super::TIMEOUT;

/// The address of station `n`.
pub fn mac(n: u32) -> Mac {
    let [a, b, c, d] = n.to_be_bytes();
    [0x02, 0x5a, a, b, c, d]
}

/// A UDP datagram whose payload says which it is: frame `sequence` of `flow`.
pub fn stamped(from: Mac, to: Mac, flow: u32, sequence: u64, payload_len: usize) -> Vec<u8> {
    let payload = Stamp { flow, sequence }.payload(payload_len);
    let [_, _, a, b, c, d] = from;
    FrameBuilder::new(from, to)
        .ipv4(Ipv4Addr::from([10, b, c, d]), Ipv4Addr::new(10, a, 0, 1))
        .udp(1024 + flow as u16, 9)
        .payload(&payload)
        .build()
}

/// Which frame it is; its payload is whole.
pub fn stamp_of(frame: &[u8]) -> Stamp {
    let payload = payload_range(frame).expect("a frame made by `stamped`");
    Stamp::check(&frame[payload]).unwrap()
}

/// A port, its guest, and the address that the guest uses.
#[derive(Debug)]
pub struct Station {
    /// The port's name.
    pub port: String,
    pub mac: Mac,
    /// The port's socket.
    pub socket: PathBuf,
    pub guest: Guest,
    sent: u64,
}

impl Station {
    /// Station `n` behind `port`.
    pub fn new(port: String, n: u32, socket: PathBuf, guest: Guest) -> Self {
        Self { port, mac: mac(n), socket, guest, sent: 0 }
    }

    /// Sends a frame to `to`; returns which it is.
    pub fn send(&mut self, to: Mac) -> Stamp {
        self.send_from(self.mac, to)
    }

    /// Sends a frame that claims to be from `from`; returns which it is.
    pub fn send_from(&mut self, from: Mac, to: Mac) -> Stamp {
        let [.., n] = self.mac;
        let stamp = Stamp { flow: u32::from(n), sequence: self.sent };
        self.sent += 1;
        let len = 16 + (stamp.sequence as usize * 37) % 1400;
        self.guest.send(&stamped(from, to, stamp.flow, stamp.sequence, len)).unwrap();
        stamp
    }

    /// The switch has done all there is to do with the frames sent so far.
    pub fn drain(&mut self) {
        assert!(self.guest.tx().drain(TIMEOUT).unwrap(), "{}: frames are stuck", self.port);
    }

    /// The next frame is that one.
    pub fn expect(&mut self, stamp: Stamp) {
        assert_eq!(self.next(), stamp, "{}", self.port);
    }

    /// Which the next frame is.
    pub fn next(&mut self) -> Stamp {
        let received = self.guest.recv(TIMEOUT).unwrap();
        let (_, frame) = received.unwrap_or_else(|| panic!("{} received nothing", self.port));
        stamp_of(&frame)
    }

    /// Nothing came. The senders are drained.
    pub fn expect_nothing(&mut self) {
        let mut came = Vec::new();
        self.guest.rx().rx_burst(1, |frame| came = frame.to_vec()).unwrap();
        assert!(came.is_empty(), "{} received {:?}", self.port, stamp_of(&came));
    }

    /// Sends a frame to `to`, which receives it, and the other way round.
    pub fn talk(&mut self, to: &mut Self) {
        let there = self.send(to.mac);
        to.expect(there);
        let back = to.send(self.mac);
        self.expect(back);
    }
}
