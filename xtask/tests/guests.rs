//! The switch with real guests: Linux kernels whose only NIC is a port of a slipwayd process.
//!
//! They need QEMU and the guest image (`cargo xtask guest`), but neither root nor KVM. A guest takes
//! seconds to boot in emulation; all waits are for events, with generous limits.

use std::path::Path;
use std::time::Duration;

use slipway_agent::protocol::Transfer;
use slipway_api::{LinkState, PortStats, RingState};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::timeout;
use vmm_glue::accel::Accel;
use vmm_glue::qemu::Qemu;
use vmm_glue::{HOTPLUG_UNIT, Mib, Vm as _};
use xtask::rig::{
    Guest, GuestPlan, Image, Leftovers, NO_CONFIG, NetworkSnapshot, Slipwayd, last_core, program,
};

/// For what takes seconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(180);
const MEGABYTE: u64 = 1_000_000;
/// Payload of a TCP segment at an MTU of 1500 bytes, with time stamps.
const SEGMENT: u64 = 1448;

/// A switch and what guests are booted from. Guests are declared later, and so dropped earlier.
struct Rig {
    switch: Option<Slipwayd>,
    qemu: Qemu,
    image: Image,
    before: NetworkSnapshot,
    folder: TempDir,
}

impl Rig {
    async fn new() -> Self {
        let image = Image::find().unwrap_or_else(|error| panic!("{error:#}"));
        let qemu = Qemu::discover().await.unwrap_or_else(|error| panic!("{error}"));
        let folder = tempfile::tempdir().unwrap();
        let mut rig = Self { switch: None, qemu, image, before: NetworkSnapshot::take(), folder };
        rig.start_switch().await;
        rig
    }

    async fn start_switch(&mut self) {
        let program = program().unwrap_or_else(|error| panic!("{error:#}"));
        let core = last_core().unwrap();
        let switch =
            Slipwayd::start(&program, Path::new(NO_CONFIG), self.folder.path(), core, &[]).await;
        self.switch = Some(switch.unwrap_or_else(|error| panic!("{error:#}")));
    }

    fn plan(&self, number: u8) -> GuestPlan {
        GuestPlan::new(number, Accel::Tcg, self.folder.path())
    }

    fn switch(&self) -> &Slipwayd {
        self.switch.as_ref().expect("the switch runs")
    }

    /// Adds the ports and boots the guests, all at once.
    async fn boot<const N: usize>(&self, plans: [GuestPlan; N]) -> [Guest; N] {
        let mut booting = JoinSet::new();
        for plan in plans {
            self.switch().add_port(&plan).await.unwrap();
            let (qemu, image) = (self.qemu.clone(), self.image.clone());
            booting.spawn(async move { Guest::boot(&qemu, &image, plan).await });
        }
        let booted = booting.join_all().await.into_iter();
        let mut guests: Vec<_> =
            booted.map(|guest| guest.unwrap_or_else(|error| panic!("{error:#}"))).collect();
        guests.sort_by_key(|guest| guest.plan().number);
        guests.try_into().expect("as many guests as plans")
    }

    async fn boot_two(&self) -> [Guest; 2] {
        self.boot([self.plan(1), self.plan(2)]).await
    }

    async fn stats_of(&self, guest: &Guest) -> PortStats {
        let stats = self.switch().client().stats().await.unwrap();
        let mut ports = stats.ports.into_iter();
        ports.find(|port| port.port == guest.plan().name).expect("the guest has a port")
    }

    /// Ends everything in order, and looks.
    async fn end(mut self, guests: impl IntoIterator<Item = Guest>) {
        for guest in guests {
            guest.stop().await.unwrap();
        }
        self.switch.take().expect("the switch runs").stop().await.unwrap();
        let path = self.folder.path().to_owned();
        Leftovers::settle(&path).await;
        self.folder.close().unwrap();
        let left = Leftovers::of(&path, &self.before);
        assert!(left.is_empty(), "{left}");
    }
}

/// Every echo is answered.
async fn assert_pings(one: &Guest, two: &Guest) {
    for (from, to) in [(one, two), (two, one)] {
        let report = from.ping(to, 5).await.unwrap();
        assert_eq!((report.received, report.corrupted), (5, 0), "{report:?}");
    }
}

/// Pings until an echo is answered: after an interruption, what is sent meanwhile may be lost.
async fn assert_recovers(one: &Guest, two: &Guest) {
    let recovered = async {
        while one.ping_within(two, Duration::from_millis(500)).await.unwrap().received == 0 {}
    };
    let recovered = timeout(LIMIT, recovered).await;
    assert!(recovered.is_ok(), "no answer; console of the asker:\n{}", one.console_tail());
}

/// All of it arrives as it was sent.
async fn assert_streams(one: &Guest, two: &Guest, bytes: u64) -> Transfer {
    let (sent, received) = one.send(two, bytes, LIMIT).await.unwrap();
    assert_eq!((sent.bytes, received.bytes), (bytes, bytes));
    assert_eq!(sent.checksum, received.checksum);
    received
}

#[tokio::test]
async fn two_guests_ping_each_other_and_large_segments_pass_in_one_piece() {
    let rig = Rig::new().await;
    let [one, two] = rig.boot_two().await;
    assert_pings(&one, &two).await;
    let before = rig.stats_of(&one).await;
    assert_streams(&one, &two, 50 * MEGABYTE).await;
    let (sent, received) = (rig.stats_of(&one).await, rig.stats_of(&two).await);
    let frames = sent.ingress.received_frames - before.ingress.received_frames;
    assert!(frames < 50 * MEGABYTE / SEGMENT / 4, "{frames} frames: they were cut");
    assert_eq!(received.egress.delivered_bytes, sent.ingress.received_bytes);
    assert!(sent.ingress.drops.is_empty() && received.egress.drops.is_empty(), "{sent:?}");
    rig.end([one, two]).await;
}

#[tokio::test]
async fn a_guest_that_takes_no_large_segments_gets_them_cut_by_the_switch() {
    let rig = Rig::new().await;
    let plain = GuestPlan { receives_segments: false, ..rig.plan(2) };
    let [one, two] = rig.boot([rig.plan(1), plain]).await;
    let offloads = &two.info().nic.as_ref().unwrap().offloads;
    assert!(!offloads.iter().any(|name| name.starts_with("guest_tso")), "{offloads:?}");
    let bytes = 20 * MEGABYTE;
    assert_streams(&one, &two, bytes).await;
    let whole = rig.stats_of(&one).await.ingress.received_frames;
    assert!(whole < bytes / SEGMENT / 4, "{whole} frames: the sender cut them itself");
    let received = two.agent().info(LIMIT).await.unwrap().nic.unwrap().received_frames;
    assert!(received >= bytes / SEGMENT, "{received} frames received: some were not cut");
    // The other way nothing needs cutting.
    assert_streams(&two, &one, MEGABYTE).await;
    rig.end([one, two]).await;
}

#[tokio::test]
async fn a_guest_reboots_while_its_neighbours_talk_and_is_there_again() {
    let rig = Rig::new().await;
    let [one, two, three] = rig.boot([1, 2, 3].map(|number| rig.plan(number))).await;
    assert_pings(&one, &three).await;
    // By the guest's own doing, and then by the machine's reset button in the midst of it.
    let (stream, ready) =
        tokio::join!(one.send(&two, 200 * MEGABYTE, LIMIT), three.agent().reboot(LIMIT));
    let (sent, received) = stream.unwrap();
    assert_eq!(sent.checksum, received.checksum);
    assert_ne!(ready.unwrap().boot_id, three.info().boot_id);
    assert_pings(&one, &three).await;

    let pinging = three.ping(&one, 1000);
    tokio::select! {
        report = pinging => panic!("{report:?} before the reset"),
        reset = three.vm().reset() => reset.unwrap(),
    }
    three.agent().wait_ready(LIMIT).await.unwrap();
    assert_pings(&one, &three).await;
    rig.end([one, two, three]).await;
}

#[tokio::test]
async fn guests_outlive_a_killed_switch_and_talk_through_the_next_one() {
    let mut rig = Rig::new().await;
    let [one, two] = rig.boot_two().await;
    assert_pings(&one, &two).await;
    rig.switch.take().unwrap().kill().await.unwrap();
    rig.start_switch().await;
    for guest in [&one, &two] {
        rig.switch().add_port(guest.plan()).await.unwrap();
    }
    assert_recovers(&one, &two).await;
    assert_streams(&one, &two, 10 * MEGABYTE).await;
    let info = one.agent().info(LIMIT).await.unwrap();
    assert_eq!(info.boot_id, one.info().boot_id, "the guest did not notice");
    rig.end([one, two]).await;
}

#[tokio::test]
async fn a_port_that_is_removed_and_added_again_carries_its_guest_again() {
    let rig = Rig::new().await;
    let [one, two] = rig.boot_two().await;
    assert_pings(&one, &two).await;
    rig.switch().client().delete_port(&two.plan().name).await.unwrap();
    let lost = one.ping_within(&two, Duration::from_millis(500)).await.unwrap();
    assert_eq!(lost.received, 0, "the port is gone");
    rig.switch().add_port(two.plan()).await.unwrap();
    assert_recovers(&one, &two).await;
    assert_streams(&two, &one, 10 * MEGABYTE).await;
    rig.end([one, two]).await;
}

#[tokio::test]
async fn a_guest_that_dies_takes_nobody_along_and_its_port_waits_for_the_next() {
    let rig = Rig::new().await;
    let [one, two, three] = rig.boot([1, 2, 3].map(|number| rig.plan(number))).await;
    let plan = three.plan().clone();
    let (stream, ()) = tokio::join!(one.send(&two, 100 * MEGABYTE, LIMIT), async {
        drop(three);
    });
    let (sent, received) = stream.unwrap();
    assert_eq!(sent.checksum, received.checksum);
    let port = rig.switch().client().get_port(&plan.name).await.unwrap();
    assert_eq!(port.link, LinkState::Waiting);
    let [three] = rig.boot([plan]).await;
    assert_pings(&one, &three).await;
    rig.end([one, two, three]).await;
}

#[tokio::test]
async fn a_guest_of_two_cpus_talks_on_two_queue_pairs() {
    let rig = Rig::new().await;
    let wide = GuestPlan { vcpus: 2, queue_pairs: 2, ..rig.plan(1) };
    let [one, two] = rig.boot([wide, rig.plan(2)]).await;
    assert_pings(&one, &two).await;
    assert_streams(&one, &two, 20 * MEGABYTE).await;
    assert_streams(&two, &one, 20 * MEGABYTE).await;
    let port = rig.switch().client().get_port(&one.plan().name).await.unwrap();
    let running = port.rings.iter().filter(|ring| ring.state == RingState::Running);
    assert_eq!(running.count(), 4, "{:?}", port.rings);
    rig.end([one, two]).await;
}

#[tokio::test]
async fn memory_is_added_to_a_guest_while_it_talks() {
    let rig = Rig::new().await;
    // With several queue pairs QEMU before 8.0 tells of the memory once for each.
    let memory_max = Some(Mib::new(512));
    let growing = GuestPlan { memory_max, vcpus: 2, queue_pairs: 2, ..rig.plan(1) };
    let [one, two] = rig.boot([growing, rig.plan(2)]).await;
    let regions = async || {
        let port = rig.switch().client().get_port(&one.plan().name).await.unwrap();
        port.memory.iter().map(|region| region.size_bytes).sum::<u64>()
    };
    let before = regions().await;
    let (stream, added) =
        tokio::join!(one.send(&two, 100 * MEGABYTE, LIMIT), one.vm().add_memory(HOTPLUG_UNIT));
    added.unwrap();
    let (sent, received) = stream.unwrap();
    assert_eq!(sent.checksum, received.checksum);
    assert_eq!(regions().await, before + HOTPLUG_UNIT.bytes());
    assert_pings(&one, &two).await;
    rig.end([one, two]).await;
}
