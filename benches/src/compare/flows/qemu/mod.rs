//! Real guests in QEMU: two of them, and iperf3 from the one to the other.
//!
//! The image is that of the tests and of the demo, with iperf3 in it; `cargo xtask compare` makes it, and finds out who
//! runs the guests' instructions here. Under QEMU's translator (TCG) the guests are the limit of every arm: then the
//! figure shows that bytes arrive, and nothing else. It is measured once then, and no target is about it.

mod guest;
mod segment;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use vmm_glue::accel::Accel;
use vmm_glue::qemu::Qemu;

use self::guest::Guest;
use self::segment::Segment;
use super::experiment::{Endpoints, Experiment, Point, Quantity};
use super::measurement::Reading;
use super::run::{Bench, Node};
use crate::belongings::Belongings;
use crate::compare::apart::Apart;
use crate::compare::arms::ArmKind::{self, Macvtap, OvsDpdk, Slipway, TapBridge, VhostNet};
use crate::interrupt;
use crate::peer::Programs;

const ARMS: [ArmKind; 5] = [Slipway, TapBridge, VhostNet, Macvtap, OvsDpdk];
const QUICK_ARMS: [ArmKind; 2] = [Slipway, TapBridge];
/// By hardware.
const KVM: &str = "KVM";
/// By QEMU's translator.
const TCG: &str = "TCG: correctness only";
/// How often the client asks for a server that is not there yet, and what it waits between.
const ASKED: usize = 40;
const PAUSE: Duration = Duration::from_millis(250);
/// What it says then.
const NOT_YET: &str = "unable to connect";

const RATE: Quantity = Quantity::new("gbit_per_s", "throughput", "Gbit/s", 2);

/// The figures.
pub const EXPERIMENTS: &[Experiment] = &[Experiment {
    id: "vm-qemu",
    title: "iperf3 (TCP) between two QEMU guests",
    endpoints: Endpoints::Qemu,
    axis: "run by",
    points: &[Point::always(KVM, 1), Point::always(TCG, 1)],
    table: &[
        RATE,
        Quantity::new("retransmits", "retransmits", "", 0),
        Quantity::new("received_mb", "arrived", "MB", 1),
    ],
    lines: &[RATE],
    curves: &[],
    scatter: None,
}];

/// What guests boot.
#[derive(Debug, Clone)]
pub struct Image {
    kernel: PathBuf,
    initrd: PathBuf,
    command_line: String,
    accel: Accel,
}

impl Image {
    /// Of a folder with `vmlinux`, `initrd.img`, `cmdline` and `accel`.
    ///
    /// # Errors
    /// One of them is not there, or not what it should be.
    pub fn read(folder: &Path) -> Result<Self> {
        let folder = fs::canonicalize(folder)
            .with_context(|| format!("Failed to resolve {}", folder.display()))?;
        let text = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).with_context(|| format!("Failed to read {}", path.display()))
        };
        let accel = match text("accel")?.trim() {
            "kvm" => Accel::Kvm,
            "tcg" => Accel::Tcg,
            other => bail!("{} says {other:?}, not kvm or tcg", folder.join("accel").display()),
        };
        let command_line = text("cmdline")?.trim().to_owned();
        let [kernel, initrd] = ["vmlinux", "initrd.img"].map(|name| folder.join(name));
        Ok(Self { kernel, initrd, command_line, accel })
    }

    const fn point(&self) -> &'static str {
        match self.accel {
            Accel::Kvm => KVM,
            Accel::Tcg => TCG,
        }
    }
}

/// The bench.
#[derive(Debug)]
pub struct Qemus {
    image: Option<Image>,
    slipwayd: PathBuf,
    quick: bool,
    /// Hugepages, for those that need them.
    _belongings: Option<Belongings>,
}

impl Qemus {
    /// For these arms. `quick`: less time, and two arms.
    ///
    /// # Errors
    /// There are no hugepages to be had for an arm that needs them.
    pub fn new(
        arms: &[ArmKind],
        image: Option<Image>,
        slipwayd: PathBuf,
        quick: bool,
    ) -> Result<Self> {
        let mut bench = Self { image, slipwayd, quick, _belongings: None };
        let mut pages = 0;
        for arm in arms {
            if bench.absence(*arm)?.is_none() {
                pages = pages.max(arm.hugepages());
            }
        }
        bench._belongings = if pages > 0 { Some(Belongings::take(pages)?) } else { None };
        Ok(bench)
    }
}

impl Bench for Qemus {
    fn endpoints(&self) -> Endpoints {
        Endpoints::Qemu
    }

    fn absence(&self, arm: ArmKind) -> Result<Option<String>> {
        let reason = if !ARMS.contains(&arm) {
            "not attached to QEMU here"
        } else if self.image.is_none() {
            "QEMU guests are booted by `cargo xtask compare` alone"
        } else if let Some(lack) = arm.lack()? {
            return Ok(Some(lack));
        } else if self.quick && !QUICK_ARMS.contains(&arm) {
            "left out of a quick run"
        } else {
            return Ok(None);
        };
        Ok(Some(reason.to_owned()))
    }

    fn has(&self, point: &Point) -> bool {
        self.image.as_ref().is_none_or(|image| image.point() == point.x)
    }

    fn rounds(&self, asked: usize) -> usize {
        let is_emulated = self.image.as_ref().is_some_and(|image| image.accel == Accel::Tcg);
        if is_emulated || self.quick { 1 } else { asked }
    }

    fn is_tried(&self) -> bool {
        // Each turn boots its guests anew.
        false
    }

    fn start<'a>(&'a self, host: &'a Apart, arm: ArmKind) -> Result<Box<dyn Node + 'a>> {
        let image = self.image.as_ref().context("There is no image of guests")?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let programs = Programs { slipwayd: self.slipwayd.clone(), testpmd: None };
        let segment = Segment::start(arm, host, programs)?;
        let mut pair = Box::new(Pair { guests: Vec::new(), segment, runtime, quick: self.quick });
        let qemu = pair.runtime.block_on(Qemu::discover())?;
        for n in 0..2 {
            let nic = pair.segment.nic(n)?;
            let guest = pair.runtime.block_on(Guest::boot(&qemu, image, &pair.segment, n, nic))?;
            pair.guests.push(guest);
            pair.segment.connect(n)?;
        }
        for guest in &mut pair.guests {
            guest.wait_until_ready()?;
        }
        Ok(pair)
    }
}

/// Two guests. Ended in this order.
struct Pair {
    guests: Vec<Guest>,
    segment: Segment,
    runtime: Runtime,
    quick: bool,
}

impl Node for Pair {
    fn measure(&mut self, _experiment: &Experiment, _point: &Point) -> Result<Reading> {
        let seconds = if self.quick { "2" } else { "5" };
        let [client, server] = self.guests.as_mut_slice() else { bail!("There are no two guests") };
        server.begin_iperf3(&["--server", "--one-off"])?;
        let address = server.address.clone();
        let words = ["--client", &address, "--time", seconds, "--interval", "0", "--json"];
        for _ in 0..ASKED {
            interrupt::check()?;
            client.begin_iperf3(&words)?;
            let (status, output) = client.end_iperf3()?;
            let json: Value = serde_json::from_str(&output).unwrap_or_default();
            // With --json some versions call a failure a success: what tells is the word in the document.
            let error = json["error"].as_str();
            if status == 0 && error.is_none() {
                let (status, said) = server.end_iperf3()?;
                ensure!(status == 0, "iperf3's server ended with {status}: {said}");
                return reading(&output);
            }
            let is_early = error.is_some_and(|error| error.contains(NOT_YET));
            ensure!(is_early, "iperf3 ended with {status}: {output}");
            thread::sleep(PAUSE);
        }
        bail!("iperf3's server does not answer at {address} within {:?}", PAUSE * ASKED as u32)
    }

    fn stop(self: Box<Self>) -> Result<()> {
        let Self { guests, segment, runtime, .. } = *self;
        let mut ended = Ok(());
        for guest in guests {
            ended = ended.and(runtime.block_on(guest.stop()));
        }
        segment.stop().and(ended)
    }
}

/// What iperf3 found, in its own words.
fn reading(output: &str) -> Result<Reading> {
    let json: Value = serde_json::from_str(output)
        .with_context(|| format!("iperf3 printed no JSON, or more than was kept: {output}"))?;
    let end = &json["end"];
    let number = |sum: &str, key: &str| {
        let value = end[sum][key].as_f64();
        value.with_context(|| format!("iperf3 says nothing of {sum}.{key}: {end}"))
    };
    let bytes = number("sum_received", "bytes")?;
    ensure!(bytes > 0.0, "Nothing arrived: {end}");
    let mut reading = Reading::default();
    reading.value("gbit_per_s", number("sum_received", "bits_per_second")? / 1e9);
    reading.value("retransmits", number("sum_sent", "retransmits")?);
    reading.value("received_mb", bytes / 1e6);
    Ok(reading)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_iperf3_says_is_read_and_a_transfer_of_nothing_is_none() {
        let said = r#"{"end":{"sum_sent":{"bytes":300,"retransmits":4},
            "sum_received":{"bytes":250000000,"bits_per_second":1.0e9}}}"#;
        let read = reading(said).unwrap();
        let expected = [("gbit_per_s", 1.0), ("received_mb", 250.0), ("retransmits", 4.0)];
        assert_eq!(read.values, expected.map(|(key, value)| (key.to_owned(), value)).into());
        let error = reading(&said.replace("250000000", "0")).unwrap_err().to_string();
        assert!(error.contains("Nothing arrived"), "{error}");
        assert!(reading("{\"end\":{").is_err());
        assert!(reading("{\"error\":\"refused\"}").is_err());
    }

    #[test]
    fn emulated_guests_are_a_point_of_their_own_and_measured_once() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("cmdline", "quiet\n");
        for (accel, x, rounds) in [("tcg", "TCG: correctness only", 1), ("kvm", "KVM", 5)] {
            write("accel", accel);
            let image = Image::read(folder.path()).unwrap();
            let bench = Qemus::new(&[], Some(image), PathBuf::new(), false).unwrap();
            let points = EXPERIMENTS[0].points.iter().filter(|point| bench.has(point));
            assert_eq!(points.map(|point| point.x).collect::<Vec<_>>(), [x]);
            assert_eq!(bench.rounds(5), rounds);
        }
        write("accel", "hvf");
        let error = Image::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("\"hvf\""), "{error}");
        let without = Qemus::new(&[], None, PathBuf::new(), true).unwrap();
        let reason = without.absence(Slipway).unwrap().unwrap();
        assert!(reason.contains("cargo xtask compare"), "{reason}");
    }
}
