//! The fake VMM keeps the rules of a real one, and fails where it is told to.

use std::path::Path;
use std::time::Duration;

use vmm_glue::fake::{FakeVmm, Verb};
use vmm_glue::{DiskSpec, ExitCause, Mib, Vm, VmSpec, Vmm, VmmError};

fn recipe(dir: &Path) -> VmSpec {
    let mut spec = VmSpec::new("fake", dir.join("run"));
    (spec.memory_max, spec.vcpus_max, spec.disk_slots) = (Some(Mib::new(512)), Some(2), 1);
    spec
}

fn disk() -> DiskSpec {
    DiskSpec::readonly("extra", "/proc/self/exe")
}

#[tokio::test]
async fn the_fake_vmm_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let vmm = FakeVmm::new();
    vmm_glue::conformance::check(&vmm, &recipe, dir.path()).await;
    assert_eq!(vmm.running(), Vec::<String>::new());
}

async fn attempt(vmm: &FakeVmm, vm: &dyn Vm, spec: &VmSpec, verb: Verb) -> Result<(), VmmError> {
    match verb {
        Verb::Boot => vmm.boot(spec).await.map(drop),
        Verb::Stop => vm.stop(Duration::ZERO).await.map(drop),
        Verb::Pause => vm.pause().await,
        Verb::Resume => vm.resume().await,
        Verb::Reset => vm.reset().await,
        Verb::AddMemory => vm.add_memory(Mib::new(128)).await,
        Verb::SetVcpus => vm.set_vcpus(2).await,
        Verb::AddDisk => vm.add_disk(&disk()).await.map(drop),
        Verb::RemoveDisk => vm.remove_disk("extra").await,
        Verb::Info => vm.info().await.map(drop),
    }
}

#[tokio::test]
async fn each_verb_fails_on_request_and_works_again_and_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let (vmm, spec) = (FakeVmm::new(), recipe(dir.path()));
    let vm = vmm.boot(&spec).await.unwrap();
    let verbs = [
        Verb::Boot,
        Verb::Pause,
        Verb::Resume,
        Verb::Reset,
        Verb::AddMemory,
        Verb::SetVcpus,
        Verb::AddDisk,
        Verb::RemoveDisk,
        Verb::Info,
        Verb::Stop,
    ];
    for verb in verbs {
        vmm.fail_at(verb);
        let failed = attempt(&vmm, &*vm, &spec, verb).await;
        assert!(matches!(failed, Err(VmmError::Injected { .. })), "{verb}: {failed:?}");
        assert_eq!(vmm.running(), ["fake"], "{verb}");
        vmm.work_at(verb);
        assert!(attempt(&vmm, &*vm, &spec, verb).await.is_ok(), "{verb}");
        let twice = [("fake".to_owned(), verb), ("fake".to_owned(), verb)];
        assert!(vmm.calls().ends_with(&twice), "{verb}");
    }
    assert_eq!(vmm.running(), Vec::<String>::new());
}

#[tokio::test]
async fn an_end_from_outside_reaches_who_waits_with_the_last_console_lines() {
    let dir = tempfile::tempdir().unwrap();
    let vmm = FakeVmm::new();
    let vm = vmm.boot(&recipe(dir.path())).await.unwrap();
    assert!(vmm.print("fake", "Kernel panic\n"));
    assert!(vmm.end("fake", ExitCause::Signal(11)));
    let report = vm.wait().await;
    assert_eq!(report.cause, ExitCause::Signal(11));
    assert_eq!(report.console_tail, "Kernel panic");
    assert_eq!(vm.stop(Duration::ZERO).await.unwrap(), report, "the cause stays");
    assert!(!vmm.end("fake", ExitCause::GuestShutdown));
}
