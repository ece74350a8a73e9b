//! An in-process VMM without processes: records what it is asked, keeps the rules of a real one, and
//! fails at any verb on request. Feature `testing`.
//!
//! Give it to whatever drives VMs, make each verb fail in turn, and look at [`FakeVmm::calls`] and
//! [`FakeVmm::running`] for what was left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::console::{Console, Feed};
use crate::devices::{DiskSpec, PciPath};
use crate::error::VmmError;
use crate::exit::{ExitCause, ExitReport};
use crate::memory::Mib;
use crate::rundir::RunDir;
use crate::spec::{HOTPLUG_UNIT, VmSpec};
use crate::{Vm, VmFuture, VmInfo, VmState, Vmm};

/// A verb of [`Vmm`] or [`Vm`] that may be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each is the verb of the same name")]
pub enum Verb {
    Boot,
    Stop,
    Pause,
    Resume,
    Reset,
    AddMemory,
    SetVcpus,
    AddDisk,
    RemoveDisk,
    Info,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Boot => "boot",
            Self::Stop => "stop",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Reset => "reset",
            Self::AddMemory => "add memory",
            Self::SetVcpus => "add vCPUs",
            Self::AddDisk => "add a disk",
            Self::RemoveDisk => "remove a disk",
            Self::Info => "tell its state",
        })
    }
}

/// The fake back end. Clones share everything.
#[derive(Clone, Debug, Default)]
pub struct FakeVmm(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    calls: Vec<(String, Verb)>,
    failing: BTreeSet<Verb>,
    running: BTreeMap<u32, Running>,
    booted: u32,
}

#[derive(Debug)]
struct Running {
    name: String,
    exit: watch::Sender<Option<ExitReport>>,
    console: (Console, Feed),
    guest: Arc<Mutex<Guest>>,
}

impl FakeVmm {
    /// A VMM that does as it is told.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on `verb` fails, for every VM, with [`VmmError::Injected`]. A `stop` that fails
    /// leaves the VM running.
    pub fn fail_at(&self, verb: Verb) {
        self.state().failing.insert(verb);
    }

    /// `verb` works again.
    pub fn work_at(&self, verb: Verb) {
        self.state().failing.remove(&verb);
    }

    /// All calls so far, the failed ones too, with the VM's name.
    pub fn calls(&self) -> Vec<(String, Verb)> {
        self.state().calls.clone()
    }

    /// The names of the VMs that have not ended.
    pub fn running(&self) -> Vec<String> {
        self.state().running.values().map(|vm| vm.name.clone()).collect()
    }

    /// The disks that are plugged into the VM `name`.
    pub fn disks(&self, name: &str) -> Vec<DiskSpec> {
        self.look(name, |guest| guest.disks.iter().flatten().cloned().collect()).unwrap_or_default()
    }

    /// Virtual CPUs and memory of the VM `name` as they are now; `None` if it does not run.
    pub fn size(&self, name: &str) -> Option<(u16, Mib)> {
        self.look(name, |guest| (guest.vcpus, guest.memory))
    }

    fn look<T>(&self, name: &str, look: impl FnOnce(&Guest) -> T) -> Option<T> {
        let state = self.state();
        let vm = state.running.values().find(|vm| vm.name == name)?;
        Some(look(&vm.guest.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Ends a VM from outside, as a crash or a guest's power-off does. Returns whether it ran.
    pub fn end(&self, name: &str, cause: ExitCause) -> bool {
        let mut state = self.state();
        let pid = state.running.iter().find(|(_, vm)| vm.name == name).map(|(pid, _)| *pid);
        pid.is_some_and(|pid| state.end(pid, cause))
    }

    /// Lets the guest `name` print `text` on its console. Returns whether it runs.
    pub fn print(&self, name: &str, text: &str) -> bool {
        let state = self.state();
        let vm = state.running.values().find(|vm| vm.name == name);
        vm.map(|vm| vm.console.1.push(text.as_bytes())).is_some()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, name: &str, verb: Verb) -> Result<(), VmmError> {
        let mut state = self.state();
        state.calls.push((name.to_owned(), verb));
        match state.failing.contains(&verb) {
            true => Err(VmmError::Injected { name: name.to_owned(), verb }),
            false => Ok(()),
        }
    }
}

impl State {
    fn end(&mut self, pid: u32, cause: ExitCause) -> bool {
        let ended = self.running.remove(&pid);
        let was_running = ended.is_some();
        if let Some(Running { name, exit, console: (console, _feed), .. }) = ended {
            let console_tail = console.tail(20);
            let stderr_tail = String::new();
            exit.send_replace(Some(ExitReport { name, pid, cause, console_tail, stderr_tail }));
        }
        was_running
    }
}

impl Vmm for FakeVmm {
    fn name(&self) -> String {
        "fake VMM".to_owned()
    }

    fn boot<'a>(&'a self, spec: &'a VmSpec) -> VmFuture<'a, Result<Box<dyn Vm>, VmmError>> {
        Box::pin(async move {
            self.call(&spec.name, Verb::Boot)?;
            let checked = spec.check()?;
            let files = RunDir::prepare(checked)?;
            let (exit_sender, exit) = watch::channel(None);
            let (console, feed) = Console::new();
            let mut state = self.state();
            state.booted += 1;
            // Beyond any pid of Linux (2^22), so that nobody signals a process by mistake.
            let pid = (1 << 30) + state.booted;
            let name = spec.name.clone();
            let guest = Arc::new(Mutex::new(Guest {
                state: VmState::Running,
                memory: spec.memory,
                vcpus: spec.vcpus,
                disks: vec![None; spec.disk_slots.into()],
            }));
            let running = Running {
                name,
                exit: exit_sender,
                console: (console.clone(), feed),
                guest: Arc::clone(&guest),
            };
            state.running.insert(pid, running);
            drop(state);
            let (spec, files) = (spec.clone(), Mutex::new(files));
            Ok(Box::new(FakeVm { vmm: self.clone(), spec, pid, guest, exit, console, files })
                as Box<dyn Vm>)
        })
    }
}

#[derive(Debug)]
struct FakeVm {
    vmm: FakeVmm,
    spec: VmSpec,
    pid: u32,
    guest: Arc<Mutex<Guest>>,
    exit: watch::Receiver<Option<ExitReport>>,
    console: Console,
    files: Mutex<RunDir>,
}

#[derive(Debug)]
struct Guest {
    state: VmState,
    memory: Mib,
    vcpus: u16,
    /// By slot, the plugged ones.
    disks: Vec<Option<DiskSpec>>,
}

impl FakeVm {
    fn refuse_disk(&self, id: &str, why: &str) -> VmmError {
        VmmError::Disk {
            name: self.spec.name.clone(),
            disk: id.to_owned(),
            path: PathBuf::new(),
            why: why.to_owned(),
        }
    }

    /// Records the call and refuses it if told so, or if the VM has ended.
    fn call(&self, verb: Verb, gone_verb: &'static str) -> Result<MutexGuard<'_, Guest>, VmmError> {
        self.vmm.call(&self.spec.name, verb)?;
        if let Some(report) = &*self.exit.borrow() {
            return Err(VmmError::Gone { report: Box::new(report.clone()), verb: gone_verb });
        }
        Ok(self.guest.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn ended(&self) -> ExitReport {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|report| report.clone());
        ended.unwrap_or_else(|| unreachable!("a running fake VM keeps its sender"))
    }
}

impl Drop for FakeVm {
    fn drop(&mut self) {
        self.vmm.state().end(self.pid, ExitCause::Requested);
    }
}

impl Vm for FakeVm {
    fn wait(&self) -> VmFuture<'_, ExitReport> {
        Box::pin(self.ended())
    }

    fn stop(&self, _grace: Duration) -> VmFuture<'_, Result<ExitReport, VmmError>> {
        Box::pin(async {
            self.vmm.call(&self.spec.name, Verb::Stop)?;
            self.vmm.state().end(self.pid, ExitCause::Requested);
            self.files.lock().unwrap_or_else(PoisonError::into_inner).remove();
            Ok(self.ended().await)
        })
    }

    fn pause(&self) -> VmFuture<'_, Result<(), VmmError>> {
        Box::pin(async {
            self.call(Verb::Pause, "pause").map(|mut guest| guest.state = VmState::Paused)
        })
    }

    fn resume(&self) -> VmFuture<'_, Result<(), VmmError>> {
        Box::pin(async {
            self.call(Verb::Resume, "resume").map(|mut guest| guest.state = VmState::Running)
        })
    }

    fn reset(&self) -> VmFuture<'_, Result<(), VmmError>> {
        Box::pin(async { self.call(Verb::Reset, "reset").map(drop) })
    }

    fn add_memory(&self, size: Mib) -> VmFuture<'_, Result<(), VmmError>> {
        Box::pin(async move {
            let mut guest = self.call(Verb::AddMemory, "add memory")?;
            let is_unit = size != Mib::new(0) && size.is_multiple_of(HOTPLUG_UNIT);
            let sum = guest.memory.checked_add(size);
            match (is_unit, sum, self.spec.memory_max) {
                (true, Some(sum), Some(max)) if sum <= max => {
                    guest.memory = sum;
                    Ok(())
                }
                _ => Err(VmmError::Memory {
                    name: self.spec.name.clone(),
                    asked_mib: size.get(),
                    allowed: "ask for multiples of 128 MiB within `memory_max`".to_owned(),
                }),
            }
        })
    }

    fn set_vcpus(&self, count: u16) -> VmFuture<'_, Result<(), VmmError>> {
        Box::pin(async move {
            let mut guest = self.call(Verb::SetVcpus, "add vCPUs")?;
            let max = self.spec.vcpus_max.unwrap_or(self.spec.vcpus);
            if !(guest.vcpus..=max).contains(&count) {
                let allowed = format!("it has {}, and may have up to {max}", guest.vcpus);
                let name = self.spec.name.clone();
                return Err(VmmError::Vcpus { name, asked: count, allowed });
            }
            guest.vcpus = count;
            Ok(())
        })
    }

    fn add_disk<'a>(&'a self, disk: &'a DiskSpec) -> VmFuture<'a, Result<PciPath, VmmError>> {
        Box::pin(async move {
            let mut guest = self.call(Verb::AddDisk, "add a disk")?;
            disk.check(&self.spec.name)?;
            disk.is_block_device(&self.spec.name)?;
            let cold = self.spec.disks.iter().map(|disk| &disk.id);
            if cold
                .chain(guest.disks.iter().flatten().map(|disk| &disk.id))
                .any(|id| *id == disk.id)
            {
                return Err(self.refuse_disk(&disk.id, "the VM has a disk of this id"));
            }
            let Some(free) = guest.disks.iter().position(Option::is_none) else {
                return Err(self.refuse_disk(&disk.id, "all slots are in use"));
            };
            guest.disks[free] = Some(disk.clone());
            Ok(PciPath::new([0x1e - u8::try_from(free).unwrap_or_default(), 0]))
        })
    }

    fn remove_disk<'a>(&'a self, id: &'a str) -> VmFuture<'a, Result<(), VmmError>> {
        Box::pin(async move {
            let mut guest = self.call(Verb::RemoveDisk, "remove a disk")?;
            match guest
                .disks
                .iter_mut()
                .find(|disk| disk.as_ref().is_some_and(|disk| disk.id == id))
            {
                Some(disk) => {
                    *disk = None;
                    Ok(())
                }
                None => Err(self.refuse_disk(id, "it was not plugged by `add_disk`")),
            }
        })
    }

    fn info(&self) -> VmFuture<'_, Result<VmInfo, VmmError>> {
        Box::pin(async {
            self.call(Verb::Info, "tell its state").map(|guest| VmInfo {
                name: self.spec.name.clone(),
                pid: self.pid,
                state: guest.state.clone(),
                vcpus: guest.vcpus,
                memory: guest.memory,
            })
        })
    }

    fn console(&self) -> &Console {
        &self.console
    }
}
