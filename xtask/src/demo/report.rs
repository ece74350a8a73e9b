//! What the demo found out, as a short table.

use std::fmt;
use std::time::Duration;

use slipway_agent::protocol::{PingReport, Transfer};
use slipway_api::{Drops, PortStats};

use super::trace::Netlink;

/// All there is to say.
#[derive(Debug)]
pub struct Report {
    /// What was seen while it ran.
    pub findings: Findings,
    /// What the processes said to rtnetlink all their lives.
    pub netlink: Netlink,
}

/// What was seen while it ran.
#[derive(Debug)]
pub struct Findings {
    /// The VMM and who ran the guests' instructions.
    pub machine: String,
    /// Each guest's name and time to boot.
    pub boots: Vec<(String, Duration)>,
    /// Who pinged whom, and what came of it.
    pub pings: Vec<(String, PingReport)>,
    /// Who sent to whom.
    pub stream: String,
    /// What the receiver of the stream says, the sender agreeing on length and checksum.
    pub received: Transfer,
    /// The switch's counters at the end.
    pub ports: Vec<PortStats>,
    /// How the time to the first answered ping was spent.
    pub first_ping: FirstPing,
}

/// The way to the first answered ping.
#[derive(Debug, Clone, Copy)]
pub struct FirstPing {
    /// When it was, counted from the command.
    pub at: Duration,
    /// When packages, programs and image were there.
    pub prepared: Duration,
    /// When slipwayd was started.
    pub switch_started: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Findings { machine, boots, pings, stream, received, ports: all, first_ping } =
            &self.findings;
        ports(f, all)?;
        writeln!(f)?;
        row(f, "Guests", machine)?;
        let boots = boots.iter().map(|(name, took)| format!("{name} {:.2} s", seconds(took)));
        row(f, "Guest boot", &list(boots))?;
        let FirstPing { at, prepared, switch_started } = first_ping;
        let after_start = at.saturating_sub(*switch_started);
        let probed = switch_started.saturating_sub(*prepared);
        let first = format!(
            "{:.1} s after the command: packages and builds {:.1} s, acceleration {:.1} s, \
             from slipwayd's start {:.2} s",
            seconds(at),
            seconds(prepared),
            seconds(&probed),
            seconds(&after_start),
        );
        row(f, "First ping", &first)?;
        for (who, report) in pings {
            row(f, &format!("Round trip {who}"), &round_trip(report))?;
        }
        row(f, &format!("TCP {stream}"), &throughput(received))?;
        row(f, "rtnetlink messages", &netlink(&self.netlink))
    }
}

/// One line per port.
fn ports(f: &mut fmt::Formatter<'_>, ports: &[PortStats]) -> fmt::Result {
    writeln!(
        f,
        "{:<6}{:>12}{:>14}{:>12}{:>14}  drops",
        "port", "frames in", "bytes in", "frames out", "bytes out"
    )?;
    for port in ports {
        let PortStats { port: name, ingress, egress, .. } = port;
        writeln!(
            f,
            "{name:<6}{:>12}{:>14}{:>12}{:>14}  {}",
            ingress.received_frames,
            ingress.received_bytes,
            egress.delivered_frames,
            egress.delivered_bytes,
            drops(&ingress.drops, &egress.drops),
        )?;
    }
    Ok(())
}

fn drops(ingress: &Drops, egress: &Drops) -> String {
    let of = |drops: &Drops, way: &str| -> Vec<String> {
        let counted = drops.iter().filter(|(_, count)| **count > 0);
        counted.map(|(reason, count)| format!("{count} {reason} ({way})")).collect()
    };
    let all = [of(ingress, "in"), of(egress, "out")].concat();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, value: &str) -> fmt::Result {
    writeln!(f, "{name:<24}{value}")
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

fn seconds(duration: &Duration) -> f64 {
    duration.as_secs_f64()
}

fn round_trip(report: &PingReport) -> String {
    let answered = format!("{} of {} answered", report.received, report.sent);
    let Some(rtt) = report.rtt_us else { return answered };
    let [min, avg, max] = [rtt.min, rtt.avg, rtt.max].map(|us| us / 1e3);
    format!("min {min:.2}, avg {avg:.2}, max {max:.2} ms; {answered}")
}

fn throughput(Transfer { bytes, checksum, seconds }: &Transfer) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let bytes = *bytes as f64;
    format!(
        "{:.1} MB in {seconds:.2} s, {:.0} Mbit/s; XXH64 {checksum} at both ends",
        bytes / 1e6,
        bytes * 8.0 / seconds / 1e6
    )
}

fn netlink(netlink: &Netlink) -> String {
    match netlink {
        Netlink::Counted { sockets, messages } => format!(
            "{messages} by slipwayd and the VMMs, on {sockets} sockets (every socket and send of \
             theirs was traced)"
        ),
        Netlink::NotMeasured(reason) => format!("not measured: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_named_by_reason_and_way() {
        let ingress = Drops::from([("spoofed".to_owned(), 2), ("denied".to_owned(), 0)]);
        let egress = Drops::from([("ring_full".to_owned(), 1)]);
        assert_eq!(drops(&ingress, &egress), "2 spoofed (in), 1 ring_full (out)");
        assert_eq!(drops(&Drops::new(), &Drops::new()), "none");
    }

    #[test]
    fn what_was_not_measured_is_no_zero() {
        let text = netlink(&Netlink::NotMeasured("ptrace is refused".to_owned()));
        assert_eq!(text, "not measured: ptrace is refused");
    }

    #[test]
    fn throughput_is_in_decimal_units() {
        let transfer = Transfer { bytes: 100_000_000, checksum: "c0ffee".into(), seconds: 0.5 };
        assert_eq!(
            throughput(&transfer),
            "100.0 MB in 0.50 s, 1600 Mbit/s; XXH64 c0ffee at both ends"
        );
    }
}
