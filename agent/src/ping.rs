//! ICMP echoes over a datagram socket of protocol ICMP, for which the kernel does identifier,
//! checksum and demultiplexing (icmp(7)); what arrives are answers to this socket alone.

use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, connect, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use slipway_agent::pattern::Stream;
use slipway_agent::protocol::{Answer, Ping, PingReport, Refusal, RefusalCode, Rtt};

use crate::clock;

/// Length of the ICMP echo header in bytes (RFC 792).
const HEADER: usize = 8;

enum Echo {
    Answered(Duration),
    Corrupted,
    Lost(Option<Errno>),
}

/// Sends the echoes and waits for their answers.
pub fn run(ping: &Ping) -> Result<Answer, Refusal> {
    let socket = open(ping).map_err(|errno| {
        let message = format!("Failed to open an ICMP socket to {}: {errno}", ping.dst);
        Refusal::new(RefusalCode::Failed, message)
    })?;
    let mut report =
        PingReport { sent: 0, received: 0, corrupted: 0, rtt_us: None, last_error: None };
    let mut times = Vec::new();
    let mut payload = vec![0; ping.size_bytes as usize];
    Stream::new(0).fill(&mut payload);
    let mut buffer = vec![0; HEADER + payload.len() + 1];
    for number in 0..ping.count {
        let started = clock::now();
        report.sent += 1;
        match echo(&socket, number as u16, &payload, &mut buffer, ping.timeout_ms) {
            Echo::Answered(time) => {
                report.received += 1;
                times.push(time.as_secs_f64() * 1e6);
            }
            Echo::Corrupted => report.corrupted += 1,
            Echo::Lost(None) => {}
            Echo::Lost(Some(errno)) => report.last_error = Some(errno.to_string()),
        }
        if number + 1 < ping.count {
            let interval = Duration::from_millis(ping.interval_ms.into());
            thread::sleep(interval.saturating_sub(started.elapsed()));
        }
    }
    report.rtt_us = summary(&mut times);
    Ok(Answer::Ping(report))
}

fn open(ping: &Ping) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, SockProtocol::Icmp)?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(ping.dst, 0)))?;
    Ok(socket)
}

/// One echo. Answers to earlier ones, which came after their time-out, are passed over.
fn echo(socket: &OwnedFd, number: u16, payload: &[u8], buffer: &mut [u8], timeout_ms: u32) -> Echo {
    let request = request(number, payload);
    let started = clock::now();
    let deadline = started + Duration::from_millis(timeout_ms.into());
    if let Err(errno) = send(socket.as_raw_fd(), &request, MsgFlags::empty()) {
        return Echo::Lost(Some(errno));
    }
    loop {
        match receive_before(deadline, socket, buffer) {
            Err(Errno::EAGAIN) => return Echo::Lost(None),
            Err(Errno::EINTR) => {}
            Err(errno) => return Echo::Lost(Some(errno)),
            Ok(length) => {
                let time = started.elapsed();
                let answer = &buffer[..length];
                if answer.get(6..HEADER) != Some(&number.to_be_bytes()[..]) {
                    continue;
                }
                let intact = answer[HEADER..] == *payload;
                return if intact { Echo::Answered(time) } else { Echo::Corrupted };
            }
        }
    }
}

/// An echo request; identifier and checksum are the kernel's to fill in.
fn request(number: u16, payload: &[u8]) -> Vec<u8> {
    const ECHO_REQUEST: u8 = 8;
    let mut request = vec![ECHO_REQUEST, 0, 0, 0, 0, 0];
    request.extend(number.to_be_bytes());
    request.extend(payload);
    request
}

/// Receives a message, or fails with EAGAIN once `deadline` is past.
fn receive_before(deadline: Instant, socket: &OwnedFd, buffer: &mut [u8]) -> nix::Result<usize> {
    let left = deadline.saturating_duration_since(clock::now());
    // A time-out of zero would wait for ever (socket(7), SO_RCVTIMEO).
    let left = i64::try_from(left.as_micros()).unwrap_or(i64::MAX);
    if left == 0 {
        return Err(Errno::EAGAIN);
    }
    setsockopt(socket, sockopt::ReceiveTimeout, &TimeVal::microseconds(left))?;
    recv(socket.as_raw_fd(), buffer, MsgFlags::empty())
}

fn summary(times: &mut [f64]) -> Option<Rtt> {
    times.sort_by(f64::total_cmp);
    let (min, max) = (*times.first()?, *times.last()?);
    let avg = times.iter().sum::<f64>() / times.len() as f64;
    Some(Rtt { min, avg, p50: times[times.len() / 2], max })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_header_number_and_payload() {
        assert_eq!(request(0x0102, b"ab"), [8, 0, 0, 0, 0, 0, 1, 2, b'a', b'b']);
    }

    #[test]
    fn the_summary_of_three_times_has_the_middle_one_as_median() {
        let rtt = summary(&mut [30.0, 10.0, 20.0]).unwrap();
        assert_eq!(rtt, Rtt { min: 10.0, avg: 20.0, p50: 20.0, max: 30.0 });
    }

    #[test]
    fn no_times_have_no_summary() {
        assert_eq!(summary(&mut []), None);
    }
}
