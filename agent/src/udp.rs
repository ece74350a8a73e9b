//! UDP datagrams from guest to guest, each with a number and a checksum of its own, so that a
//! fragment put together wrongly is told from one that was lost.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::Duration;

use slipway_agent::pattern::{Digest, Stream};
use slipway_agent::protocol::{
    Answer, Datagrams, MAX_PAYLOAD, MIN_DATAGRAM, Refusal, RefusalCode, UdpReceive, UdpSend,
};

use crate::clock;

/// A receiver that listens.
pub struct Receiver {
    socket: UdpSocket,
    datagrams: u32,
}

impl Receiver {
    /// Listens on the port asked for.
    pub fn listen(receive: &UdpReceive) -> Result<Self, Refusal> {
        let bind = || -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, receive.port))?;
            socket.set_read_timeout(Some(Duration::from_millis(receive.timeout_ms.into())))?;
            Ok(socket)
        };
        let socket = bind()
            .map_err(|error| failed(&format!("listen on UDP port {}", receive.port), &error))?;
        Ok(Self { socket, datagrams: receive.datagrams })
    }

    /// The port it listens on.
    pub fn port(&self) -> Result<u16, Refusal> {
        let address = self.socket.local_addr();
        address.map(|address| address.port()).map_err(|error| failed("name the port", &error))
    }

    /// Receives until all datagrams are there, or none has come for the time-out.
    pub fn run(self) -> Result<Answer, Refusal> {
        let mut seen = vec![false; self.datagrams as usize];
        let mut report = Datagrams::default();
        let (mut first, mut last) = (None, None);
        let mut buffer = vec![0; MAX_PAYLOAD as usize];
        while report.datagrams < self.datagrams {
            let length = match self.socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if is_timeout(&error) => break,
                Err(error) => return Err(failed("receive a datagram", &error)),
            };
            last = Some(clock::now());
            first = first.or(last);
            match open(&buffer[..length]).and_then(|number| seen.get_mut(number)) {
                None => report.corrupted += 1,
                Some(true) => report.repeated += 1,
                Some(seen) => {
                    *seen = true;
                    report.datagrams += 1;
                    report.bytes += length as u64;
                }
            }
        }
        report.seconds = first.zip(last).map_or(0.0, |(first, last)| (last - first).as_secs_f64());
        Ok(Answer::Datagrams(report))
    }
}

/// Sends the datagrams.
pub fn send(send: &UdpSend) -> Result<Answer, Refusal> {
    let address = (send.dst, send.port);
    let connect = || -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(address)?;
        Ok(socket)
    };
    let socket =
        connect().map_err(|error| failed(&format!("open a socket to {address:?}"), &error))?;
    let (mut pattern, mut report) = (Stream::new(send.seed), Datagrams::default());
    let mut buffer = vec![0; send.size_bytes as usize];
    let started = clock::now();
    for number in 0..send.datagrams {
        seal(number, &mut pattern, &mut buffer);
        socket.send(&buffer).map_err(|error| {
            let size = send.size_bytes;
            failed(&format!("send datagram {number} of {size} bytes to {address:?}"), &error)
        })?;
        report.datagrams += 1;
        report.bytes += buffer.len() as u64;
        if send.interval_us > 0 && number + 1 < send.datagrams {
            thread::sleep(Duration::from_micros(send.interval_us.into()));
        }
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(Answer::Datagrams(report))
}

/// Fills `datagram` (at least [`MIN_DATAGRAM`] bytes): checksum of the rest, number, pattern.
fn seal(number: u32, pattern: &mut Stream, datagram: &mut [u8]) {
    let (checksum, rest) = datagram.split_at_mut(8);
    let (head, payload) = rest.split_at_mut(MIN_DATAGRAM as usize - 8);
    head.copy_from_slice(&u64::from(number).to_le_bytes());
    pattern.fill(payload);
    checksum.copy_from_slice(&checksum_of(rest).to_le_bytes());
}

/// The number of a datagram whose checksum is right.
fn open(datagram: &[u8]) -> Option<usize> {
    let (checksum, rest) = datagram.split_first_chunk()?;
    let number = rest.first_chunk()?;
    let is_intact = u64::from_le_bytes(*checksum) == checksum_of(rest);
    is_intact.then(|| u64::from_le_bytes(*number).try_into().ok()).flatten()
}

fn checksum_of(bytes: &[u8]) -> u64 {
    let mut digest = Digest::default();
    digest.update(bytes);
    digest.value()
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

fn failed(what: &str, error: &io::Error) -> Refusal {
    Refusal::new(RefusalCode::Failed, format!("Failed to {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_datagram_opens_to_its_number_and_one_flipped_bit_does_not() {
        let mut datagram = [0; 100];
        seal(7, &mut Stream::new(1), &mut datagram);
        assert_eq!(open(&datagram), Some(7));
        for at in 0..datagram.len() {
            let mut flipped = datagram;
            flipped[at] ^= 1;
            assert_eq!(open(&flipped), None, "byte {at}");
        }
    }

    #[test]
    fn a_datagram_cut_short_does_not_open() {
        let mut datagram = [0; 100];
        seal(7, &mut Stream::new(1), &mut datagram);
        for length in 0..datagram.len() {
            assert_eq!(open(&datagram[..length]), None, "{length} bytes");
        }
    }
}
