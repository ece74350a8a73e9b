//! What every back end must do: one suite, passed by the fake and by the real ones. Feature `testing`.
//!
//! A back end's tests call [`check`] with a recipe for a VM of a given name in a given directory.
//! A violated rule is a panic that says which.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::devices::DiskSpec;
use crate::error::VmmError;
use crate::exit::ExitCause;
use crate::memory::Mib;
use crate::spec::{HOTPLUG_UNIT, VmSpec};
use crate::{Vm, VmState, Vmm};

/// Makes the specification of a VM that boots, with `memory_max` at least [`HOTPLUG_UNIT`] above
/// `memory`, `vcpus_max` above `vcpus`, one disk slot, and all its files and sockets below the given
/// directory.
pub type Recipe<'a> = &'a dyn Fn(&Path) -> VmSpec;

/// Checks all rules, one after the other, each with a VM of its own below `dir`, which must be empty.
///
/// # Panics
/// A rule is violated.
pub async fn check(vmm: &dyn Vmm, recipe: Recipe<'_>, dir: &Path) {
    let subject = Subject { vmm, recipe, dir };
    subject.tells_what_it_booted_and_ends_on_request().await;
    subject.pauses_resumes_and_resets().await;
    subject.tells_every_waiter_the_same().await;
    subject.refuses_every_verb_after_the_end().await;
    subject.refuses_an_invalid_specification_and_changes_nothing().await;
    subject.grows_up_to_its_ceiling_and_not_beyond().await;
    subject.grows_its_vcpus_and_takes_none_away().await;
    subject.takes_disks_as_long_as_it_has_slots().await;
    subject.leaves_nothing_when_dropped().await;
}

struct Subject<'a> {
    vmm: &'a dyn Vmm,
    recipe: Recipe<'a>,
    dir: &'a Path,
}

impl Subject<'_> {
    async fn boot(&self) -> (Box<dyn Vm>, VmSpec) {
        let spec = (self.recipe)(self.dir);
        let vm = self.vmm.boot(&spec).await;
        (vm.unwrap_or_else(|error| panic!("the recipe does not boot: {error}")), spec)
    }

    fn assert_nothing_left(&self, rule: &str) {
        let left: Vec<PathBuf> = fs::read_dir(self.dir)
            .expect("the directory is there")
            .flatten()
            .map(|e| e.path())
            .collect();
        assert!(left.is_empty(), "{rule}: {left:?} left behind");
    }

    async fn tells_what_it_booted_and_ends_on_request(&self) {
        let (vm, spec) = self.boot().await;
        let info = vm.info().await.expect("a running VM tells its state");
        assert_eq!((info.name.as_str(), info.vcpus), (spec.name.as_str(), spec.vcpus));
        assert_eq!((info.state, info.memory), (VmState::Running, spec.memory));
        let report = vm.stop(Duration::ZERO).await.expect("it stops");
        assert_eq!((report.pid, &report.cause), (info.pid, &ExitCause::Requested));
        self.assert_nothing_left("stop");
        assert_eq!(vm.stop(Duration::ZERO).await.expect("it has stopped"), report);
    }

    async fn pauses_resumes_and_resets(&self) {
        let (vm, _) = self.boot().await;
        let state = async || vm.info().await.expect("it runs").state;
        vm.pause().await.expect("it pauses");
        vm.pause().await.expect("a paused VM may be paused");
        assert_eq!(state().await, VmState::Paused);
        vm.resume().await.expect("it resumes");
        assert_eq!(state().await, VmState::Running);
        let before = vm.info().await.expect("it runs").pid;
        vm.reset().await.expect("it resets");
        let after = vm.info().await.expect("it runs after a reset");
        assert_eq!((after.state, after.pid), (VmState::Running, before));
    }

    async fn tells_every_waiter_the_same(&self) {
        let (vm, _) = self.boot().await;
        let stop = vm.stop(Duration::ZERO);
        let (one, two, three) = tokio::join!(vm.wait(), vm.wait(), stop);
        assert_eq!((&one, &two), (&two, &three.expect("it stops")));
        assert_eq!(vm.wait().await, one, "a late waiter");
    }

    async fn refuses_every_verb_after_the_end(&self) {
        let (vm, spec) = self.boot().await;
        vm.stop(Duration::ZERO).await.expect("it stops");
        let outcomes = [
            vm.pause().await,
            vm.resume().await,
            vm.reset().await,
            vm.add_memory(HOTPLUG_UNIT).await,
            vm.set_vcpus(2).await,
            vm.add_disk(&DiskSpec::readonly("late", "/proc/self/exe")).await.map(drop),
            vm.remove_disk("late").await,
            vm.info().await.map(drop),
        ];
        for outcome in outcomes {
            match outcome {
                Err(VmmError::Gone { report, .. }) => assert_eq!(report.name, spec.name),
                other => panic!("after the end: {other:?} is not the end's report"),
            }
        }
    }

    async fn refuses_an_invalid_specification_and_changes_nothing(&self) {
        let mut spec = (self.recipe)(self.dir);
        spec.vcpus = 0;
        let refused = self.vmm.boot(&spec).await;
        assert!(matches!(refused, Err(VmmError::Spec(_))), "no vCPU: {refused:?}");
        self.assert_nothing_left("a refused specification");
    }

    async fn grows_up_to_its_ceiling_and_not_beyond(&self) {
        let (vm, spec) = self.boot().await;
        let max = spec.memory_max.expect("the recipe sets a ceiling");
        for size in [Mib::new(0), Mib::new(1), max, Mib::new(u32::MAX)] {
            let refused = vm.add_memory(size).await;
            assert!(matches!(refused, Err(VmmError::Memory { .. })), "{size}: {refused:?}");
        }
        assert_eq!(vm.info().await.expect("it runs").memory, spec.memory, "refused, unchanged");
        vm.add_memory(HOTPLUG_UNIT).await.expect("there is room");
        let grown = spec.memory.checked_add(HOTPLUG_UNIT).expect("small");
        assert_eq!(vm.info().await.expect("it runs").memory, grown);
    }

    async fn grows_its_vcpus_and_takes_none_away(&self) {
        let (vm, spec) = self.boot().await;
        let max = spec.vcpus_max.expect("the recipe sets a ceiling");
        assert!(max > spec.vcpus, "the recipe leaves room");
        for count in [0, spec.vcpus - 1, max + 1] {
            let refused = vm.set_vcpus(count).await;
            assert!(matches!(refused, Err(VmmError::Vcpus { .. })), "{count}: {refused:?}");
        }
        vm.set_vcpus(spec.vcpus).await.expect("it has as many");
        vm.set_vcpus(max).await.expect("there is room");
        assert_eq!(vm.info().await.expect("it runs").vcpus, max);
        let refused = vm.set_vcpus(spec.vcpus).await;
        assert!(matches!(refused, Err(VmmError::Vcpus { .. })), "taken away: {refused:?}");
    }

    /// A removal needs a guest, so only what is refused is looked at here.
    async fn takes_disks_as_long_as_it_has_slots(&self) {
        let (vm, spec) = self.boot().await;
        assert_eq!(spec.disk_slots, 1, "the recipe sets one slot");
        let disk = DiskSpec::readonly("one", "/proc/self/exe");
        let missing = DiskSpec::readonly("one", "/nowhere");
        let refused = vm.add_disk(&missing).await;
        assert!(matches!(refused, Err(VmmError::Disk { .. })), "no file: {refused:?}");
        let path = vm.add_disk(&disk).await.expect("there is a slot");
        assert!(!path.to_string().is_empty());
        let more = DiskSpec { id: "two".to_owned(), ..disk.clone() };
        for disk in [&disk, &more] {
            let refused = vm.add_disk(disk).await;
            assert!(matches!(refused, Err(VmmError::Disk { .. })), "{}: {refused:?}", disk.id);
        }
        let refused = vm.remove_disk("two").await;
        assert!(matches!(refused, Err(VmmError::Disk { .. })), "not there: {refused:?}");
    }

    async fn leaves_nothing_when_dropped(&self) {
        let (vm, _) = self.boot().await;
        let pid = vm.info().await.expect("it runs").pid;
        drop(vm);
        self.assert_nothing_left("drop");
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "drop: process {pid} left behind");
    }
}
