//! The control channel between host and guest: JSON, one message per line.
//!
//! It runs over the virtio-serial port named [`PORT_NAME`]. The guest says [`Line::Ready`] when it
//! has booted; after that the host sends [`Request`]s and the guest answers each with one
//! [`Reply`] that carries the request's id. Replies come in the order in which the work ends, so
//! that a long transfer does not delay a question. Receiving is asked for in two steps: the first
//! call opens the socket and returns a [`Ticket`] at once, so that the host knows when the other
//! guest may send, and [`Call::Result`] waits for the end.
//!
//! # Bounds
//! A line has at most [`MAX_LINE`] bytes, numbers have the limits that [`Call::check`] names, the
//! guest runs at most [`MAX_JOBS`] calls and keeps at most [`MAX_TICKETS`] tickets. What breaks a
//! bound is answered with a [`Refusal`] and changes nothing.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Name of the virtio-serial port the guest listens on.
pub const PORT_NAME: &str = "org.slipway.ctl";
/// Longest line either side accepts, in bytes, without its newline.
pub const MAX_LINE: usize = 16 * 1024;
/// Calls the guest works on at the same time.
pub const MAX_JOBS: usize = 16;
/// Receivers the guest keeps, running or ended and not yet asked for.
pub const MAX_TICKETS: usize = 16;
/// Largest payload of an ICMP echo or UDP datagram over IPv4, in bytes: 65,535 less the IPv4
/// and the ICMP or UDP header (RFC 791, RFC 792, RFC 768).
pub const MAX_PAYLOAD: u32 = 65_507;
/// Longest time any call may be asked to wait, in milliseconds.
pub const MAX_WAIT_MS: u32 = 600_000;
/// Most echoes of one [`Call::Ping`].
pub const MAX_PINGS: u32 = 10_000;
/// Most bytes of what a program of [`Call::Run`] prints that are told: doubled by escapes they fit into a line.
pub const MAX_OUTPUT: usize = 7 * 1024;
/// Most datagrams of one UDP transfer.
pub const MAX_DATAGRAMS: u32 = 1_000_000;
/// Smallest UDP test payload in bytes: sequence number and checksum, eight each.
pub const MIN_DATAGRAM: u32 = 16;
/// Most bytes of one TCP transfer: 64 GiB.
pub const MAX_STREAM: u64 = 64 << 30;

/// What the host asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Chosen by the host; the reply carries it.
    pub id: u64,
    /// What to do.
    pub call: Call,
}

/// The verbs of the control channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Kernel, NIC and boot time; answered with [`Answer::Info`].
    Info,
    /// ICMP echoes; answered with [`Answer::Ping`] after the last one.
    Ping(Ping),
    /// Listens for one TCP connection; answered with [`Answer::Ticket`] once it listens.
    TcpRecv(Receive),
    /// Sends one TCP stream; answered with [`Answer::Transfer`] once the peer has taken it all.
    TcpSend(TcpSend),
    /// Listens for UDP datagrams; answered with [`Answer::Ticket`] once it listens.
    UdpRecv(UdpReceive),
    /// Sends UDP datagrams; answered with [`Answer::Datagrams`].
    UdpSend(UdpSend),
    /// Waits for the end of a receiver and forgets it.
    Result(Claim),
    /// Runs a program that the host put into the image; answered with [`Answer::Ran`] at its end.
    Run(Run),
    /// Reboots the guest. The answer is [`Answer::Done`]; the guest's next word is
    /// [`Line::Ready`].
    Reboot,
    /// Powers the guest off, after [`Answer::Done`].
    Poweroff,
}

/// A series of ICMP echo requests, each sent after the answer to the one before or its time-out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ping {
    /// Whom to ask.
    pub dst: Ipv4Addr,
    /// Number of echoes, 1 to [`MAX_PINGS`].
    pub count: u32,
    /// Least time from one request to the next, in milliseconds; 0 sends back to back.
    #[serde(default)]
    pub interval_ms: u32,
    /// Payload of each echo in bytes, up to [`MAX_PAYLOAD`]. Echoes larger than the MTU are sent
    /// in fragments.
    #[serde(default = "default_ping_bytes")]
    pub size_bytes: u32,
    /// How long to wait for each answer, in milliseconds.
    #[serde(default = "default_echo_timeout_ms")]
    pub timeout_ms: u32,
}

/// A TCP receiver for one connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receive {
    /// Port to listen on; 0 lets the guest choose, the ticket names the choice.
    #[serde(default)]
    pub port: u16,
    /// How long to wait for the connection, and at any point of it for data, in milliseconds.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u32,
}

/// A TCP stream to send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpSend {
    /// The receiving guest.
    pub dst: Ipv4Addr,
    /// Its port, not 0.
    pub port: u16,
    /// Length of the stream, up to [`MAX_STREAM`].
    pub bytes: u64,
    /// Seed of the stream, see [`crate::pattern::Stream`].
    pub seed: u64,
    /// How long to wait at any point without progress, in milliseconds.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u32,
}

/// A UDP receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UdpReceive {
    /// Port to listen on; 0 lets the guest choose, the ticket names the choice.
    #[serde(default)]
    pub port: u16,
    /// How many datagrams end the transfer, 1 to [`MAX_DATAGRAMS`].
    pub datagrams: u32,
    /// How long without a datagram ends it as well, in milliseconds.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u32,
}

/// UDP datagrams to send. Each carries its number and the XXH64 of the rest of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UdpSend {
    /// The receiving guest.
    pub dst: Ipv4Addr,
    /// Its port, not 0.
    pub port: u16,
    /// Number of datagrams, 1 to [`MAX_DATAGRAMS`].
    pub datagrams: u32,
    /// Payload of each in bytes, [`MIN_DATAGRAM`] to [`MAX_PAYLOAD`]; sent in fragments when
    /// larger than the MTU allows.
    pub size_bytes: u32,
    /// Seed of the payload.
    pub seed: u64,
    /// Pause between two datagrams in microseconds, at most 1,000,000.
    #[serde(default)]
    pub interval_us: u32,
}

/// Asks for the end of a receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The receiver, from [`Ticket::ticket`].
    pub ticket: u64,
    /// How long to wait, in milliseconds. A ticket that is not done by then can be asked for
    /// again.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u32,
}

/// A program to run. Its standard input is empty, and what it says to standard error goes to the console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Its path, and its arguments.
    pub words: Vec<String>,
    /// How long it may take, in milliseconds; then it is killed.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u32,
}

const fn default_ping_bytes() -> u32 {
    56
}
const fn default_echo_timeout_ms() -> u32 {
    1_000
}
const fn default_timeout_ms() -> u32 {
    60_000
}

/// What the guest says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// The guest has booted; calls made before this line get no reply.
    Ready(Ready),
    /// The end of a call.
    Reply(Reply),
}

/// The guest has booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The kernel's random name of this boot; another after a reboot.
    pub boot_id: String,
    /// Time from the kernel's start to this line, in milliseconds of the guest's clock.
    pub ready_ms: u64,
}

/// The end of a call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's id; absent when the line was so broken that it had none to read.
    pub id: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Ok(Answer),
    /// It was not.
    Error(Refusal),
}

/// What a call found out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Of [`Call::Info`].
    Info(Info),
    /// Of [`Call::Ping`].
    Ping(PingReport),
    /// Of [`Call::TcpRecv`] and [`Call::UdpRecv`].
    Ticket(Ticket),
    /// Of [`Call::TcpSend`], and of [`Call::Result`] for a TCP receiver.
    Transfer(Transfer),
    /// Of [`Call::UdpSend`], and of [`Call::Result`] for a UDP receiver.
    Datagrams(Datagrams),
    /// Of [`Call::Run`].
    Ran(Ran),
    /// Of [`Call::Reboot`] and [`Call::Poweroff`].
    Done,
}

/// The guest, as it sees itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// As in [`Line::Ready`].
    pub boot_id: String,
    /// As in [`Line::Ready`].
    pub ready_ms: u64,
    /// The kernel's release, as `uname -r` prints it.
    pub kernel: String,
    /// The NIC `eth0`, when there is one.
    pub nic: Option<Nic>,
}

/// The guest's NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The interface's name.
    pub name: String,
    /// Its MAC address, `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether the device reports a carrier.
    pub carrier: bool,
    /// The address and prefix length it was given on the kernel's command line.
    pub ip: Option<String>,
    /// The feature bits that driver and device agreed on (virtio 1.3, 5.1.3), as sixteen
    /// hexadecimal digits.
    pub virtio_features: String,
    /// Names of those bits among them that are offloads.
    pub offloads: Vec<String>,
    /// Frames the device handed to the driver so far; a large segment that came whole is one.
    pub received_frames: u64,
    /// Frames the driver handed to the device so far.
    pub sent_frames: u64,
}

/// The end of a series of echoes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PingReport {
    /// Echo requests handed to the kernel.
    pub sent: u32,
    /// Answers in time and with the payload that was sent.
    pub received: u32,
    /// Answers whose payload differed.
    pub corrupted: u32,
    /// Round-trip times of `received`; absent when there were none.
    pub rtt_us: Option<Rtt>,
    /// The last error the kernel gave instead of sending or receiving.
    pub last_error: Option<String>,
}

/// Round-trip times in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rtt {
    /// The least.
    pub min: f64,
    /// The mean.
    pub avg: f64,
    /// The median.
    pub p50: f64,
    /// The greatest.
    pub max: f64,
}

/// A receiver that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// Its name for [`Call::Result`].
    pub ticket: u64,
    /// The port it listens on.
    pub port: u16,
}

/// One end of a finished TCP stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transfer {
    /// Length of the stream.
    pub bytes: u64,
    /// XXH64 of the stream, as sixteen hexadecimal digits; equal at both ends.
    pub checksum: String,
    /// From the first to the last byte, as this end saw it.
    pub seconds: f64,
}

/// One end of a finished UDP transfer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Datagrams {
    /// Datagrams sent, or received whole and for the first time.
    pub datagrams: u32,
    /// Payload bytes of these.
    pub bytes: u64,
    /// Datagrams that came again.
    pub repeated: u32,
    /// Datagrams whose checksum was wrong.
    pub corrupted: u32,
    /// From the first to the last datagram, as this end saw it.
    pub seconds: f64,
}

/// The end of a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// Its exit code, or 128 and the signal that ended it.
    pub status: i32,
    /// The first [`MAX_OUTPUT`] bytes that it printed, with a question mark for what is no text.
    pub output: String,
}

/// Why a call was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people: what failed, with its value, and what to do.
    pub message: String,
}

/// The kinds of [`Refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The line is too long, no JSON, or names what does not exist.
    Malformed,
    /// A number is out of its range.
    OutOfRange,
    /// Too many calls or receivers at once.
    Busy,
    /// No such receiver.
    UnknownTicket,
    /// It did not come about in the time given.
    TimedOut,
    /// The guest's kernel refused.
    Failed,
}

impl Refusal {
    /// A refusal of kind `code`.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl Call {
    /// Checks the ranges of all numbers.
    ///
    /// # Errors
    /// [`RefusalCode::OutOfRange`], naming field, value and range.
    pub fn check(&self) -> Result<(), Refusal> {
        let wait = |ms| in_range("timeout_ms", u64::from(ms), 1, u64::from(MAX_WAIT_MS));
        match self {
            Self::Info | Self::Reboot | Self::Poweroff => Ok(()),
            Self::Ping(ping) => {
                in_range("count", ping.count.into(), 1, MAX_PINGS.into())?;
                in_range("interval_ms", ping.interval_ms.into(), 0, MAX_WAIT_MS.into())?;
                in_range("size_bytes", ping.size_bytes.into(), 0, MAX_PAYLOAD.into())?;
                wait(ping.timeout_ms)
            }
            Self::TcpRecv(receive) => wait(receive.timeout_ms),
            Self::TcpSend(send) => {
                in_range("port", send.port.into(), 1, u16::MAX.into())?;
                in_range("bytes", send.bytes, 0, MAX_STREAM)?;
                wait(send.timeout_ms)
            }
            Self::UdpRecv(receive) => {
                in_range("datagrams", receive.datagrams.into(), 1, MAX_DATAGRAMS.into())?;
                wait(receive.timeout_ms)
            }
            Self::UdpSend(send) => {
                in_range("port", send.port.into(), 1, u16::MAX.into())?;
                in_range("datagrams", send.datagrams.into(), 1, MAX_DATAGRAMS.into())?;
                in_range("interval_us", send.interval_us.into(), 0, 1_000_000)?;
                let (least, most) = (MIN_DATAGRAM.into(), MAX_PAYLOAD.into());
                in_range("size_bytes", send.size_bytes.into(), least, most)
            }
            Self::Result(claim) => wait(claim.timeout_ms),
            Self::Run(run) => {
                in_range("words", run.words.len() as u64, 1, MAX_LINE as u64)?;
                wait(run.timeout_ms)
            }
        }
    }
}

fn in_range(name: &str, value: u64, least: u64, most: u64) -> Result<(), Refusal> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let message = format!("{name} is {value}; give a number from {least} to {most}");
    Err(Refusal::new(RefusalCode::OutOfRange, message))
}

/// A line of the host that is not worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The request's id, if the line had a readable one.
    pub id: Option<u64>,
    /// What to answer.
    pub refusal: Refusal,
}

/// Reads a line of the host, without its newline.
///
/// # Errors
/// [`RefusalCode::Malformed`] or [`RefusalCode::OutOfRange`], to be answered under the id that
/// could be read.
pub fn parse_request(line: &[u8]) -> Result<Request, Refused> {
    /// A request of whose fields only the id can be believed.
    #[derive(Deserialize)]
    struct IdOnly {
        id: u64,
    }
    if line.len() > MAX_LINE {
        return Err(Refused { id: None, refusal: overlong() });
    }
    let request: Request = serde_json::from_slice(line).map_err(|error| {
        let id = serde_json::from_slice::<IdOnly>(line).ok().map(|only| only.id);
        let message = format!("The request is not understood: {error}");
        Refused { id, refusal: Refusal::new(RefusalCode::Malformed, message) }
    })?;
    match request.call.check() {
        Ok(()) => Ok(request),
        Err(refusal) => Err(Refused { id: Some(request.id), refusal }),
    }
}

/// The refusal of a line of more than [`MAX_LINE`] bytes.
pub fn overlong() -> Refusal {
    let message = format!("The request is longer than {MAX_LINE} bytes; send a shorter one");
    Refusal::new(RefusalCode::Malformed, message)
}

/// Writes `message` as one line, newline included.
pub fn to_line(message: &impl Serialize) -> Vec<u8> {
    // The messages of this module have string keys and no custom serialisers, the two ways in
    // which serde_json can fail on a `Vec`.
    let mut line = serde_json::to_vec(message).expect("control messages are plain JSON");
    line.push(b'\n');
    line
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
