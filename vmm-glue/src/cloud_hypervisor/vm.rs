//! One Cloud Hypervisor process as a [`Vm`].

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::OnceCell;

use super::api::{Info, PciDevice, Removal, Resize};
use super::client::{ApiError, Client};
use super::launch;
use crate::console::Console;
use crate::devices::{DiskSpec, PciPath};
use crate::error::VmmError;
use crate::exit::{ExitCause, ExitReport};
use crate::memory::Mib;
use crate::process::{Child, Launch};
use crate::rundir::RunDir;
use crate::spec::{CheckedSpec, HOTPLUG_UNIT};
use crate::{Vm, VmFuture, VmInfo, VmState};

const REQUEST_LIMIT: Duration = Duration::from_secs(10);
const QUIT_LIMIT: Duration = Duration::from_secs(2);
const END_LIMIT: Duration = Duration::from_millis(500);
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// A VM run by Cloud Hypervisor. Fields are dropped in this order: process, files.
#[derive(Debug)]
pub struct CloudHypervisorVm {
    name: String,
    memory_max: Option<Mib>,
    vcpus_max: u16,
    /// Of the disks that may be plugged, the ids of those that are.
    disks: tokio::sync::Mutex<Vec<String>>,
    disk_slots: usize,
    client: Client,
    child: Child,
    files: Mutex<RunDir>,
    is_stopping: AtomicBool,
    report: OnceCell<ExitReport>,
    resizing: tokio::sync::Mutex<()>,
}

impl CloudHypervisorVm {
    pub(super) async fn boot(program: &Path, spec: CheckedSpec<'_>) -> Result<Self, VmmError> {
        let config = launch::config(spec)?;
        spec.check_served()?;
        let mut files = RunDir::prepare(spec)?;
        let api_socket = files.socket(spec, "api.sock")?;
        let child = Child::spawn(Launch {
            name: spec.name.clone(),
            program: program.to_owned(),
            args: launch::arguments(&api_socket).into_iter().map(Into::into).collect(),
            wrapper: spec.wrapper.clone(),
            console_file: spec.console_file.clone(),
            stdin: None,
            cgroup_procs: spec.cgroup_procs.clone(),
        })
        .await?;
        let client = Client::new(&api_socket);
        let limit = spec.boot_timeout;
        let stage = Mutex::new("its API to answer");
        let enter = |next| *stage.lock().unwrap_or_else(PoisonError::into_inner) = next;
        let booting = async {
            ping(&client).await;
            enter("vm.create");
            client.put_json("vm.create", &config, REQUEST_LIMIT).await?;
            enter("vm.boot: the switch must connect to each NIC, or listen for it");
            client.put("vm.boot", limit).await
        };
        let outcome = tokio::select! {
            biased;
            report = child.wait() => Err(VmmError::Died(Box::new(report))),
            outcome = tokio::time::timeout(limit, booting) => match outcome {
                Ok(Ok(())) => Ok(()),
                Ok(Err(source)) => Err(VmmError::Api { name: spec.name.clone(), verb: "boot", source }),
                Err(_) => Err(VmmError::BootTimeout {
                    name: spec.name.clone(),
                    pid: child.pid(),
                    limit,
                    waiting_for: format!(
                        "Cloud Hypervisor was waited for, at {}",
                        stage.lock().unwrap_or_else(PoisonError::into_inner)
                    ),
                    stderr_tail: child.stderr_tail(),
                }),
            },
        };
        if let Err(error) = outcome {
            child.end().await?;
            return Err(error);
        }
        tracing::info!(vm = spec.name, pid = child.pid(), "VM booted");
        Ok(Self {
            name: spec.name.clone(),
            memory_max: spec.memory_max,
            vcpus_max: spec.vcpus_max.unwrap_or(spec.vcpus),
            disks: tokio::sync::Mutex::new(Vec::new()),
            disk_slots: spec.disk_slots.into(),
            client,
            child,
            files: Mutex::new(files),
            is_stopping: AtomicBool::new(false),
            report: OnceCell::new(),
            resizing: tokio::sync::Mutex::new(()),
        })
    }

    async fn explain(&self, verb: &'static str, source: ApiError) -> VmmError {
        if !matches!(source, ApiError::Refused { .. } | ApiError::Answer { .. })
            && let Ok(report) = tokio::time::timeout(END_LIMIT, self.ended()).await
        {
            return VmmError::Gone { report: Box::new(report), verb };
        }
        VmmError::Api { name: self.name.clone(), verb, source }
    }

    async fn put(&self, verb: &'static str, endpoint: &'static str) -> Result<(), VmmError> {
        match self.client.put(endpoint, REQUEST_LIMIT).await {
            Ok(()) => Ok(()),
            Err(source) => Err(self.explain(verb, source).await),
        }
    }

    /// Brings the VM into `state` by `endpoint`, unless it is there: the API refuses a pause of a
    /// paused VM.
    async fn bring(
        &self,
        verb: &'static str,
        state: VmState,
        endpoint: &'static str,
    ) -> Result<(), VmmError> {
        match self.look(verb).await?.state == state {
            true => Ok(()),
            false => self.put(verb, endpoint).await,
        }
    }

    async fn look(&self, verb: &'static str) -> Result<VmInfo, VmmError> {
        let info: Info = match self.client.get("vm.info", REQUEST_LIMIT).await {
            Ok(info) => info,
            Err(source) => return Err(self.explain(verb, source).await),
        };
        let Some(memory) = Mib::from_bytes(info.memory_actual_size) else {
            let words = format!("{} bytes of memory", info.memory_actual_size);
            let source = serde::de::Error::custom(words);
            let source = ApiError::Answer { endpoint: "vm.info", source };
            return Err(VmmError::Api { name: self.name.clone(), verb, source });
        };
        Ok(VmInfo {
            name: self.name.clone(),
            pid: self.child.pid(),
            state: match info.state.as_str() {
                "Running" => VmState::Running,
                "Paused" => VmState::Paused,
                _ => VmState::Other(info.state),
            },
            vcpus: info.config.cpus.boot_vcpus,
            memory,
        })
    }

    async fn grow(&self, size: Mib) -> Result<(), VmmError> {
        const VERB: &str = "add memory";
        let refuse = |allowed: String| {
            Err(VmmError::Memory { name: self.name.clone(), asked_mib: size.get(), allowed })
        };
        if size == Mib::new(0) || !size.is_multiple_of(HOTPLUG_UNIT) {
            return refuse(format!("ask for a multiple of {HOTPLUG_UNIT}"));
        }
        let Some(max) = self.memory_max else {
            return refuse("boot the VM with `memory_max` set".to_owned());
        };
        let _one_at_a_time = self.resizing.lock().await;
        let now = self.look(VERB).await?.memory;
        let Some(sum) = now.checked_add(size).filter(|sum| *sum <= max) else {
            return refuse(format!("it has {now}, and `memory_max` is {max}"));
        };
        let resize = Resize { desired_ram: Some(sum.bytes()), ..Resize::default() };
        match self.client.put_json("vm.resize", &resize, REQUEST_LIMIT).await {
            Ok(()) => Ok(()),
            Err(source) => Err(self.explain(VERB, source).await),
        }
    }

    async fn resize_cpus(&self, count: u16) -> Result<(), VmmError> {
        const VERB: &str = "add vCPUs";
        let _one_at_a_time = self.resizing.lock().await;
        let now = self.look(VERB).await?.vcpus;
        if count < now || count > self.vcpus_max {
            return Err(VmmError::Vcpus {
                name: self.name.clone(),
                asked: count,
                allowed: format!("it has {now}, and may have up to {}", self.vcpus_max),
            });
        }
        let resize = Resize { desired_vcpus: Some(count), ..Resize::default() };
        match self.client.put_json("vm.resize", &resize, REQUEST_LIMIT).await {
            Ok(()) => Ok(()),
            Err(source) => Err(self.explain(VERB, source).await),
        }
    }

    async fn plug_disk(&self, disk: &DiskSpec) -> Result<PciPath, VmmError> {
        const VERB: &str = "add a disk";
        disk.check(&self.name)?;
        self.look(VERB).await?;
        let refuse = |why: String| VmmError::Disk {
            name: self.name.clone(),
            disk: disk.id.clone(),
            path: disk.path.clone(),
            why,
        };
        disk.is_block_device(&self.name)?;
        let mut disks = self.disks.lock().await;
        if disks.len() >= self.disk_slots {
            let slots = self.disk_slots;
            return Err(refuse(format!("all {slots} slots are in use; raise `disk_slots`")));
        }
        let body = launch::disk(disk);
        let added = self.client.put_for("vm.add-disk", &body, REQUEST_LIMIT).await;
        let PciDevice { bdf } = match added {
            Ok(device) => device,
            Err(source) => return Err(self.explain(VERB, source).await),
        };
        disks.push(disk.id.clone());
        slot_of(&bdf)
            .map(|slot| PciPath::new([slot]))
            .ok_or_else(|| refuse(format!("Cloud Hypervisor put it at '{bdf}', no PCI address")))
    }

    async fn unplug_disk(&self, id: &str) -> Result<(), VmmError> {
        const VERB: &str = "remove a disk";
        self.look(VERB).await?;
        let mut disks = self.disks.lock().await;
        let Some(at) = disks.iter().position(|disk| disk == id) else {
            return Err(VmmError::Disk {
                name: self.name.clone(),
                disk: id.to_owned(),
                path: PathBuf::new(),
                why: "it was not plugged by `add_disk`".to_owned(),
            });
        };
        let removal = Removal { id: launch::device_id(id) };
        match self.client.put_json("vm.remove-device", &removal, REQUEST_LIMIT).await {
            Ok(()) => drop(disks.remove(at)),
            Err(source) => return Err(self.explain(VERB, source).await),
        }
        Ok(())
    }

    async fn ended(&self) -> ExitReport {
        let report = self.report.get_or_init(|| async {
            let mut report = self.child.wait().await;
            report.cause = match (self.is_stopping.load(Ordering::SeqCst), report.cause) {
                (true, _) => ExitCause::Requested,
                // It has no other reason to end well without being asked.
                (false, ExitCause::Code(0)) => ExitCause::GuestShutdown,
                (false, cause) => cause,
            };
            report
        });
        report.await.clone()
    }

    async fn end(&self, grace: Duration) -> Result<ExitReport, VmmError> {
        // An end that was not ours keeps its cause.
        if !self.child.has_ended() {
            self.is_stopping.store(true, Ordering::SeqCst);
            if !grace.is_zero() {
                self.ask_to_end("vm.power-button", grace).await;
            }
            self.ask_to_end("vmm.shutdown", QUIT_LIMIT).await;
            self.child.end().await?;
        }
        let report = self.ended().await;
        self.files.lock().unwrap_or_else(PoisonError::into_inner).remove();
        Ok(report)
    }

    /// What fails here is killed by the caller.
    async fn ask_to_end(&self, endpoint: &'static str, limit: Duration) {
        let asked = async {
            match self.client.put(endpoint, limit).await {
                // It may end before it answers.
                Ok(()) | Err(ApiError::Protocol { .. } | ApiError::Connect { .. }) => {
                    drop(self.child.wait().await);
                }
                Err(error) => tracing::warn!(vm = self.name, %error, "The VMM refused to end"),
            }
        };
        // Not in time: the next, harder step follows.
        let _ = tokio::time::timeout(limit, asked).await;
    }
}

/// Returns when the API answers. It binds its socket itself and tells nobody, so this tries, with
/// growing pauses; the caller sets the limit.
async fn ping(client: &Client) {
    #[derive(Deserialize)]
    struct Pong {}
    let mut pause = FIRST_PAUSE;
    while client.get::<Pong>("vmm.ping", REQUEST_LIMIT).await.is_err() {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The slot in `0000:00:05.0` (domain, bus, slot, function; the bus is the root bus).
fn slot_of(bdf: &str) -> Option<u8> {
    let (_, slot) = bdf.rsplit_once(':')?;
    let (slot, _function) = slot.split_once('.')?;
    u8::from_str_radix(slot, 16).ok().filter(|slot| *slot < 32)
}

impl Vm for CloudHypervisorVm {
    fn wait(&self) -> VmFuture<'_, ExitReport> {
        Box::pin(self.ended())
    }

    fn stop(&self, grace: Duration) -> VmFuture<'_, Result<ExitReport, VmmError>> {
        Box::pin(self.end(grace))
    }

    fn pause(&self) -> VmFuture<'_, Result<(), VmmError>> {
        Box::pin(self.bring("pause", VmState::Paused, "vm.pause"))
    }

    fn resume(&self) -> VmFuture<'_, Result<(), VmmError>> {
        Box::pin(self.bring("resume", VmState::Running, "vm.resume"))
    }

    fn reset(&self) -> VmFuture<'_, Result<(), VmmError>> {
        Box::pin(self.put("reset", "vm.reboot"))
    }

    fn add_memory(&self, size: Mib) -> VmFuture<'_, Result<(), VmmError>> {
        Box::pin(self.grow(size))
    }

    fn set_vcpus(&self, count: u16) -> VmFuture<'_, Result<(), VmmError>> {
        Box::pin(self.resize_cpus(count))
    }

    fn add_disk<'a>(&'a self, disk: &'a DiskSpec) -> VmFuture<'a, Result<PciPath, VmmError>> {
        Box::pin(self.plug_disk(disk))
    }

    fn remove_disk<'a>(&'a self, id: &'a str) -> VmFuture<'a, Result<(), VmmError>> {
        Box::pin(self.unplug_disk(id))
    }

    fn info(&self) -> VmFuture<'_, Result<VmInfo, VmmError>> {
        Box::pin(self.look("tell its state"))
    }

    fn console(&self) -> &Console {
        self.child.console()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slot_of_a_plugged_disk_is_read_from_its_address() {
        assert_eq!(slot_of("0000:00:1f.0"), Some(0x1f));
        for bad in ["", "0000:00:20.0", "0000:00:05", "5"] {
            assert_eq!(slot_of(bad), None, "{bad:?}");
        }
    }
}
