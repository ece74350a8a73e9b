//! The demo's steps, from the acceleration to the last counter, and what runs meanwhile.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use slipway_agent::protocol::{PingReport, Transfer};
use vmm_glue::accel::{Accel, AccelChoice, Chosen};
use vmm_glue::qemu::Qemu;
use vmm_glue::{ExitReport, Vm as _};

use super::report::{Findings, FirstPing};
use super::trace::Tracer;
use crate::accel;
use crate::progress::Progress;
use crate::rig::{Guest, GuestPlan, Image, NO_CONFIG, Slipwayd, last_core};

/// Echoes of a series.
const ECHOES: u32 = 20;
/// For a step that takes moments on an idle machine.
pub const SHORT: Duration = Duration::from_secs(60);
/// For the guests to boot; each has a shorter limit of its own that says more.
const BOOT: Duration = Duration::from_secs(400);
/// For a series of echoes, most of them late.
const PINGS: Duration = Duration::from_secs(240);
/// For the stream. It ends earlier when it stands still for a minute.
const STREAM: Duration = Duration::from_secs(1800);

/// What the steps need.
pub struct Act<'a> {
    /// Tells the time and the user.
    pub progress: &'a Progress,
    /// When everything was built.
    pub prepared: Duration,
    /// Who is to run the guests' instructions.
    pub accel: AccelChoice,
    /// Length of the stream.
    pub bytes: u64,
    /// The program.
    pub slipwayd: &'a Path,
    /// Of the guests.
    pub image: &'a Image,
    /// For all files and sockets.
    pub folder: &'a Path,
}

/// What runs. Ended in order by [`Stage::end`], killed when dropped.
#[derive(Debug, Default)]
pub struct Stage {
    guests: Vec<Guest>,
    slipwayd: Option<Slipwayd>,
}

impl Act<'_> {
    /// Takes all steps; what was started is left to `stage`.
    ///
    /// # Errors
    /// The first step that failed, by its name.
    pub async fn run(&self, stage: &mut Stage, tracer: &mut Tracer) -> Result<Findings> {
        let step = self.progress;
        let probe = accel::choose(self.image, self.accel, self.progress);
        let (qemu, Chosen { accel, .. }) = step.step("Acceleration", SHORT, probe).await?;

        let switch_started = step.elapsed();
        let switch = step.step("slipwayd", SHORT, self.start_switch(tracer)).await?;
        let switch = stage.slipwayd.insert(switch);
        let plans = [1, 2].map(|number| self.plan(number, accel, tracer));
        step.step("Two ports", SHORT, async {
            for plan in &plans {
                switch.add_port(plan).await?;
            }
            Ok(())
        })
        .await?;
        let boot = while_alive(switch.ended(), self.boot(&qemu, plans));
        let guests = step.step("Two guests", BOOT, boot).await?;
        stage.guests.extend(guests);
        let [one, two] = stage.guests.as_slice() else { bail!("There are not two guests") };

        let end = || first_end(switch, one, two);
        let ping = |from, to, count| while_alive(end(), all_answered(from, to, count));
        step.step("First ping", PINGS, ping(one, two, 1)).await?;
        let first_ping = FirstPing { at: step.elapsed(), prepared: self.prepared, switch_started };
        let there = step.step("Pings there", PINGS, ping(one, two, ECHOES)).await?;
        let back = step.step("Pings back", PINGS, ping(two, one, ECHOES)).await?;
        let name = format!("TCP stream of {} bytes", self.bytes);
        let stream = while_alive(end(), self.stream(one, two));
        let received = step.step(&name, STREAM, stream).await?;
        let stats =
            step.step("Counters", SHORT, async { Ok(switch.client().stats().await?) }).await?;
        Ok(Findings {
            machine: format!("QEMU {} with {accel}, Linux {}", qemu.version(), one.info().kernel),
            boots: [one, two].map(|g| (g.plan().name.clone(), g.boot_time())).to_vec(),
            pings: vec![(way(one, two), there), (way(two, one), back)],
            stream: way(one, two),
            received,
            ports: stats.ports,
            first_ping,
        })
    }

    async fn start_switch(&self, tracer: &mut Tracer) -> Result<Slipwayd> {
        let wrapper = tracer.wrapper(self.folder, "slipwayd");
        let config = Path::new(NO_CONFIG);
        Slipwayd::start(self.slipwayd, config, self.folder, last_core()?, &wrapper).await
    }

    fn plan(&self, number: u8, accel: Accel, tracer: &mut Tracer) -> GuestPlan {
        let mut plan = GuestPlan::new(number, accel, self.folder);
        plan.wrapper = tracer.wrapper(self.folder, &plan.name);
        plan
    }

    async fn boot(&self, qemu: &Qemu, [one, two]: [GuestPlan; 2]) -> Result<[Guest; 2]> {
        let boot = |plan| Guest::boot(qemu, self.image, plan);
        let (one, two) = tokio::try_join!(boot(one), boot(two))?;
        for guest in [&one, &two] {
            let took = guest.boot_time().as_secs_f64();
            let (name, address) = (&guest.plan().name, guest.plan().address());
            self.progress.say(&format!("  {name} is up as {address} after {took:.2} s"));
        }
        Ok([one, two])
    }

    async fn stream(&self, one: &Guest, two: &Guest) -> Result<Transfer> {
        let (sent, received) = one.send(two, self.bytes, STREAM).await?;
        ensure!(
            (sent.bytes, received.bytes) == (self.bytes, self.bytes)
                && sent.checksum == received.checksum,
            "What arrived is not what was sent: {} bytes of XXH64 {}, and {} of {}",
            sent.bytes,
            sent.checksum,
            received.bytes,
            received.checksum
        );
        Ok(received)
    }
}

/// Does `work`, but fails as soon as one of those who take part in it has ended.
async fn while_alive<T>(
    end: impl Future<Output = ExitReport>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        biased;
        outcome = work => outcome,
        report = end => bail!("{report}"),
    }
}

async fn first_end(switch: &Slipwayd, one: &Guest, two: &Guest) -> ExitReport {
    tokio::select! {
        report = switch.ended() => report,
        report = one.vm().wait() => report,
        report = two.vm().wait() => report,
    }
}

async fn all_answered(one: &Guest, two: &Guest, count: u32) -> Result<PingReport> {
    let report = one.ping(two, count).await?;
    let (received, way) = (report.received, way(one, two));
    ensure!(received == count, "{way}: {received} of {count} echoes were answered: {report:?}");
    Ok(report)
}

fn way(one: &Guest, two: &Guest) -> String {
    format!("{} -> {}", one.plan().name, two.plan().name)
}

impl Stage {
    /// What everybody said last.
    pub fn last_words(&self) -> String {
        let mut words = String::new();
        let mut add = |name: &str, tail: String| {
            // Writing to a string does not fail.
            let _ = writeln!(words, "The end of {name}:\n{tail}\n");
        };
        for guest in &self.guests {
            add(&format!("{}'s console", guest.plan().name), guest.console_tail());
        }
        if let Some(slipwayd) = &self.slipwayd {
            add("slipwayd's log", slipwayd.log_tail());
        }
        words
    }

    /// Ends the guests, then the switch.
    ///
    /// # Errors
    /// Something did not end as it should; all the others did nevertheless, or were killed.
    pub async fn end(self) -> Result<()> {
        let mut outcome = Ok(());
        for guest in self.guests {
            outcome = outcome.and(guest.stop().await);
        }
        if let Some(slipwayd) = self.slipwayd {
            outcome = outcome.and(slipwayd.stop().await);
        }
        outcome
    }
}
