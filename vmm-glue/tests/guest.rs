//! The QEMU back end with the real guest kernel. `cargo xtask guest` builds it; the directory comes in
//! SLIPWAY_GUEST_DIR.

mod common;
#[path = "common/image.rs"]
mod image;

use std::path::Path;
use std::time::Duration;

use common::qemu;
use image::image;
use vmm_glue::accel::{Accel, AccelChoice, AccelError, Probe, probe};
use vmm_glue::{HOTPLUG_UNIT, Machine, Mib, Vm, VmSpec};

const LIMIT: Duration = Duration::from_secs(120);
/// The kernel's own first line, whatever its init prints.
const FIRST_LINE: &str = "Linux version";

fn spec(dir: &Path, machine: Machine) -> VmSpec {
    let (kernel, initrd) = image();
    let mut spec = VmSpec::new("guest", dir.join("run"));
    (spec.kernel, spec.initrd, spec.machine) = (Some(kernel), Some(initrd), machine);
    spec.memory = Mib::new(256);
    // The guest's init powers off without one.
    spec.control_socket = Some(dir.join("run/ctl.sock"));
    spec
}

async fn boots_twice(machine: Machine) {
    let dir = tempfile::tempdir().unwrap();
    let vm = qemu().await.boot(&spec(dir.path(), machine)).await.unwrap();
    let console = vm.console();
    // The machine's parameters arrived, and the clock needed no calibration.
    let ready = "slipway: ready";
    for text in [FIRST_LINE, "tsc=reliable", "calculated using timer frequency", "Run /init", ready]
    {
        let seen = tokio::time::timeout(LIMIT, console.wait_for(text)).await;
        assert!(matches!(seen, Ok(Ok(()))), "no '{text}' in:\n{}", console.tail(40));
    }
    let before = console.bytes_seen();
    vm.reset().await.unwrap();
    for text in [FIRST_LINE, "Run /init", ready] {
        let seen = tokio::time::timeout(LIMIT, console.wait_for_after(before, text)).await;
        assert!(
            matches!(seen, Ok(Ok(()))),
            "no '{text}' after the reset in:\n{}",
            console.tail(40)
        );
    }
    vm.stop(Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn a_q35_guest_boots_and_boots_again_after_a_reset() {
    boots_twice(Machine::Q35).await;
}

#[tokio::test]
async fn a_microvm_guest_boots_and_boots_again_after_a_reset() {
    boots_twice(Machine::Microvm).await;
}

#[tokio::test]
async fn a_running_guest_is_told_of_added_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(dir.path(), Machine::Q35);
    spec.memory_max = Some(Mib::new(512));
    let vm = qemu().await.boot(&spec).await.unwrap();
    let seen = tokio::time::timeout(LIMIT, vm.console().wait_for("Run /init")).await;
    assert!(matches!(seen, Ok(Ok(()))), "{}", vm.console().tail(40));
    vm.add_memory(HOTPLUG_UNIT).await.unwrap();
    assert_eq!(vm.info().await.unwrap().memory, Mib::new(384));
}

#[tokio::test]
async fn kvm_is_tried_once_and_its_outcome_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let (kernel, initrd) = image();
    let asked = Probe {
        kernel,
        initrd: Some(initrd),
        machine: Machine::Q35,
        cmdline: String::new(),
        ready: Some(FIRST_LINE.to_owned()),
        deadline: Duration::from_secs(5),
        dir: dir.path().to_owned(),
    };
    let qemu = qemu().await;
    let first = probe(&qemu, &asked, AccelChoice::Auto).await.unwrap();
    assert!(!first.reason.is_empty());
    let cache = dir.path().join("accel-probe.json");
    if cache.exists() {
        // The second run believes what is written there, so it did not try again.
        let text = std::fs::read_to_string(&cache).unwrap();
        std::fs::write(&cache, text.replace(&first.reason, "as remembered")).unwrap();
        let second = probe(&qemu, &asked, AccelChoice::Auto).await.unwrap();
        assert_eq!((second.accel, second.reason.as_str()), (first.accel, "as remembered"));
    } else {
        assert!(first.reason.contains("cannot be opened"), "{first:?}");
    }
    match probe(&qemu, &asked, AccelChoice::Kvm).await {
        Ok(forced) => assert_eq!((forced.accel, first.accel), (Accel::Kvm, Accel::Kvm)),
        Err(AccelError::KvmUnusable { .. }) => assert_eq!(first.accel, Accel::Tcg),
        Err(error) => panic!("{error}"),
    }
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
    assert!(left.len() <= 1, "left behind: {left:?}");
}
