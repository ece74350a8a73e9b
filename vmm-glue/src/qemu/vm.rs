//! One QEMU process as a [`Vm`].
//!
//! # Threads
//! All verbs take `&self` and may run at the same time; only hot-adds of memory and CPUs wait for one
//! another, and so do those of disks.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{OnceCell, broadcast};

use super::hotplug::PluggedDisks;
use super::launch::{self, DIMM_SLOTS, Host};
use super::{Qemu, Qmp, QmpError};
use crate::accel::Accel;
use crate::console::Console;
use crate::devices::{DiskSpec, PciPath};
use crate::error::VmmError;
use crate::exit::{ExitCause, ExitReport};
use crate::host;
use crate::memory::Mib;
use crate::process::{Child, Launch};
use crate::rundir::RunDir;
use crate::spec::{CheckedSpec, HOTPLUG_UNIT, SocketMode};
use crate::{Vm, VmFuture, VmInfo, VmState};

pub(super) const COMMAND_LIMIT: Duration = Duration::from_secs(10);
const QUIT_LIMIT: Duration = Duration::from_secs(2);
/// Between the end of the monitor connection and the end of the process, and the other way round.
const END_LIMIT: Duration = Duration::from_millis(500);

/// A VM run by QEMU. Fields are dropped in this order: monitor, process, files.
#[derive(Debug)]
pub struct QemuVm {
    pub(super) name: String,
    memory_max: Option<Mib>,
    /// Without ACPI there is none, and the grace of a stop would be waited for in vain.
    has_power_button: bool,
    qmp: Qmp,
    child: Child,
    files: Mutex<RunDir>,
    is_stopping: AtomicBool,
    report: OnceCell<ExitReport>,
    pub(super) plugging: tokio::sync::Mutex<()>,
    next_dimm: AtomicUsize,
    pub(super) disks: tokio::sync::Mutex<PluggedDisks>,
    /// See [`launch::on_bus`].
    pub(super) disk_vectors: u32,
}

impl QemuVm {
    pub(super) async fn boot(qemu: &Qemu, spec: CheckedSpec<'_>) -> Result<Self, VmmError> {
        spec.check_served()?;
        let mut files = RunDir::prepare(spec)?;
        let qmp_socket = files.socket(spec, "qmp.sock")?;
        let facts =
            Host { version: qemu.version, tsc_khz: host::tsc_khz(), qmp_socket: &qmp_socket };
        let args = launch::arguments(spec, facts)?;
        let listener = UnixListener::bind(&qmp_socket).map_err(|source| VmmError::Socket {
            name: spec.name.clone(),
            what: format!("bind the monitor socket {}", qmp_socket.display()),
            source,
        })?;
        let child = Child::spawn(Launch {
            name: spec.name.clone(),
            program: qemu.program.clone(),
            args: args.into_iter().map(Into::into).collect(),
            wrapper: spec.wrapper.clone(),
            console_file: spec.console_file.clone(),
            stdin: None,
            cgroup_procs: spec.cgroup_procs.clone(),
        })
        .await?;

        let are_sockets_bound = AtomicBool::new(false);
        let connecting = connect(&child, listener, &qmp_socket, &are_sockets_bound);
        let outcome = tokio::select! {
            // Both ready: the process is dead, and its report says more than a broken connection.
            biased;
            report = child.wait() => Err(VmmError::Died(Box::new(report))),
            outcome = tokio::time::timeout(spec.boot_timeout, connecting) => match outcome {
                Ok(outcome) => outcome,
                Err(_) => Err(VmmError::BootTimeout {
                    name: spec.name.clone(),
                    pid: child.pid(),
                    limit: spec.boot_timeout,
                    waiting_for: awaited(spec, are_sockets_bound.into_inner()),
                    stderr_tail: child.stderr_tail(),
                }),
            },
        };
        let qmp = match outcome {
            Ok(qmp) => qmp,
            Err(error) => {
                // Drop would do it too, but would block this thread meanwhile.
                child.end().await?;
                return Err(error);
            }
        };
        tracing::info!(vm = spec.name, pid = child.pid(), accel = %spec.accel, "VM booted");
        Ok(Self {
            name: spec.name.clone(),
            memory_max: spec.memory_max,
            has_power_button: launch::has_acpi(&spec),
            qmp,
            child,
            files: Mutex::new(files),
            is_stopping: AtomicBool::new(false),
            report: OnceCell::new(),
            plugging: tokio::sync::Mutex::new(()),
            next_dimm: AtomicUsize::new(0),
            disks: tokio::sync::Mutex::new(PluggedDisks::new(spec.disk_slots, &spec.disks)),
            disk_vectors: if spec.accel == Accel::Tcg { 0 } else { 2 },
        })
    }

    /// The monitor, for verbs that only QEMU has.
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// The VMM process.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Runs a monitor command and reads its answer as `T`. When the process turns out to have
    /// ended, its report is the error.
    pub(super) async fn run<T: DeserializeOwned>(
        &self,
        verb: &'static str,
        command: &str,
        arguments: Value,
    ) -> Result<T, VmmError> {
        let outcome = self.qmp.execute(command, arguments, COMMAND_LIMIT).await;
        let outcome = outcome.and_then(|answer| {
            T::deserialize(&answer).map_err(|_| QmpError::Answer {
                command: command.to_owned(),
                answer: answer.to_string().chars().take(200).collect(),
            })
        });
        match outcome {
            Ok(answer) => Ok(answer),
            Err(source) => Err(self.explain(verb, source).await),
        }
    }

    async fn explain(&self, verb: &'static str, source: QmpError) -> VmmError {
        if matches!(source, QmpError::Closed { .. } | QmpError::Timeout { .. })
            && let Ok(report) = tokio::time::timeout(END_LIMIT, self.ended()).await
        {
            return VmmError::Gone { report: Box::new(report), verb };
        }
        VmmError::Qmp { name: self.name.clone(), verb, source }
    }

    /// The report, the same for all: who asks first fixes the cause.
    async fn ended(&self) -> ExitReport {
        let report = self.report.get_or_init(|| async {
            let mut report = self.child.wait().await;
            // What QEMU told before it ended may still be unread.
            let _ = tokio::time::timeout(END_LIMIT, self.qmp.closed()).await;
            let reason = self.qmp.shutdown_reason();
            report.cause = match (self.is_stopping.load(Ordering::SeqCst), reason.as_deref()) {
                (true, _) => ExitCause::Requested,
                (false, Some("guest-shutdown")) => ExitCause::GuestShutdown,
                (false, Some("guest-panic")) => ExitCause::GuestPanic,
                (false, _) => report.cause,
            };
            report
        });
        report.await.clone()
    }

    async fn end(&self, grace: Duration) -> Result<ExitReport, VmmError> {
        // An end that was not ours keeps its cause.
        if !self.child.has_ended() {
            self.is_stopping.store(true, Ordering::SeqCst);
            self.ask_to_end(grace).await;
            self.child.end().await?;
        }
        let report = self.ended().await;
        self.files.lock().unwrap_or_else(PoisonError::into_inner).remove();
        Ok(report)
    }

    /// Power button, then `quit`, each with its limit. What fails here is killed by the caller.
    async fn ask_to_end(&self, grace: Duration) {
        let ask = async |command: &str, limit: Duration| {
            let asked = async {
                match self.qmp.execute(command, Value::Null, limit).await {
                    // QEMU may end before it answers.
                    Ok(_) | Err(QmpError::Closed { .. }) => drop(self.child.wait().await),
                    Err(error) => tracing::warn!(vm = self.name, %error, "QEMU refused to end"),
                }
            };
            // Not in time: the next, harder step follows.
            let _ = tokio::time::timeout(limit, asked).await;
        };
        if !grace.is_zero() && self.has_power_button {
            ask("system_powerdown", grace).await;
        }
        ask("quit", QUIT_LIMIT).await;
    }

    async fn reboot(&self) -> Result<(), VmmError> {
        const VERB: &str = "reset";
        let mut events = self.qmp.events();
        self.run::<Value>(VERB, "system_reset", Value::Null).await?;
        // The answer only says that the reset was asked for; the event says that it happened.
        let happened = async {
            loop {
                match events.recv().await {
                    Ok(event) if event.name == "RESET" => return Ok(()),
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return Err(()),
                }
            }
        };
        let closed = async {
            self.qmp.closed().await;
            Err(())
        };
        let either = async {
            tokio::select! { outcome = happened => outcome, outcome = closed => outcome }
        };
        let command = "system_reset".to_owned();
        match tokio::time::timeout(COMMAND_LIMIT, either).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(())) => Err(self.explain(VERB, QmpError::Closed { command }).await),
            Err(_) => {
                Err(self.explain(VERB, QmpError::Timeout { command, limit: COMMAND_LIMIT }).await)
            }
        }
    }

    async fn plug_memory(&self, size: Mib) -> Result<(), VmmError> {
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
        let _one_at_a_time = self.plugging.lock().await;
        let now = self.memory(VERB).await?;
        if now.checked_add(size).is_none_or(|sum| sum > max) {
            return refuse(format!("it has {now}, and `memory_max` is {max}"));
        }
        let dimms: Vec<Value> = self.run(VERB, "query-memory-devices", Value::Null).await?;
        if dimms.len() >= DIMM_SLOTS {
            return refuse(format!("all {DIMM_SLOTS} slots are in use"));
        }
        // A number of its own for each try, so that a cancelled one is in nobody's way.
        let number = self.next_dimm.fetch_add(1, Ordering::Relaxed);
        let backend = format!("dimm{number}-ram");
        let object = json!({
            "qom-type": "memory-backend-memfd", "id": backend, "size": size.bytes(), "share": true,
        });
        self.run::<Value>(VERB, "object-add", object).await?;
        let device = json!({
            "driver": "pc-dimm", "id": format!("dimm{number}"), "memdev": backend,
        });
        let plugged = self.run::<Value>(VERB, "device_add", device).await;
        if plugged.is_err()
            && let Err(error) = self.run::<Value>(VERB, "object-del", json!({"id": backend})).await
        {
            tracing::warn!(vm = self.name, %error, "Unused memory stays with QEMU");
        }
        plugged.map(drop)
    }

    /// Boot memory and plugged memory.
    async fn memory(&self, verb: &'static str) -> Result<Mib, VmmError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Summary {
            base_memory: u64,
            #[serde(default)]
            plugged_memory: u64,
        }
        let command = "query-memory-size-summary";
        let summary: Summary = self.run(verb, command, Value::Null).await?;
        let bytes = summary.base_memory.saturating_add(summary.plugged_memory);
        Mib::from_bytes(bytes).ok_or_else(|| VmmError::Qmp {
            name: self.name.clone(),
            verb,
            source: QmpError::Answer {
                command: command.to_owned(),
                answer: format!("{bytes} bytes"),
            },
        })
    }

    async fn look(&self) -> Result<VmInfo, VmmError> {
        const VERB: &str = "tell its state";
        #[derive(Deserialize)]
        struct Status {
            status: String,
        }
        let Status { status } = self.run(VERB, "query-status", Value::Null).await?;
        let cpus: Vec<Value> = self.run(VERB, "query-cpus-fast", Value::Null).await?;
        Ok(VmInfo {
            name: self.name.clone(),
            pid: self.child.pid(),
            state: match status.as_str() {
                "running" => VmState::Running,
                "paused" => VmState::Paused,
                _ => VmState::Other(status),
            },
            vcpus: u16::try_from(cpus.len()).unwrap_or(u16::MAX),
            memory: self.memory(VERB).await?,
        })
    }
}

impl Vm for QemuVm {
    fn wait(&self) -> VmFuture<'_, ExitReport> {
        Box::pin(self.ended())
    }

    fn stop(&self, grace: Duration) -> VmFuture<'_, Result<ExitReport, VmmError>> {
        Box::pin(self.end(grace))
    }

    fn pause(&self) -> VmFuture<'_, Result<(), VmmError>> {
        Box::pin(async { self.run::<Value>("pause", "stop", Value::Null).await.map(drop) })
    }

    fn resume(&self) -> VmFuture<'_, Result<(), VmmError>> {
        Box::pin(async { self.run::<Value>("resume", "cont", Value::Null).await.map(drop) })
    }

    fn reset(&self) -> VmFuture<'_, Result<(), VmmError>> {
        Box::pin(self.reboot())
    }

    fn add_memory(&self, size: Mib) -> VmFuture<'_, Result<(), VmmError>> {
        Box::pin(self.plug_memory(size))
    }

    fn set_vcpus(&self, count: u16) -> VmFuture<'_, Result<(), VmmError>> {
        Box::pin(self.plug_vcpus(count))
    }

    fn add_disk<'a>(&'a self, disk: &'a DiskSpec) -> VmFuture<'a, Result<PciPath, VmmError>> {
        Box::pin(self.plug_disk(disk))
    }

    fn remove_disk<'a>(&'a self, id: &'a str) -> VmFuture<'a, Result<(), VmmError>> {
        Box::pin(self.unplug_disk(id))
    }

    fn info(&self) -> VmFuture<'_, Result<VmInfo, VmmError>> {
        Box::pin(self.look())
    }

    fn console(&self) -> &Console {
        self.child.console()
    }
}

/// Waits for QEMU to connect to `listener`, and then to greet. The socket is gone afterwards: there
/// is one monitor connection, and it is ours.
async fn connect(
    child: &Child,
    listener: UnixListener,
    path: &Path,
    are_sockets_bound: &AtomicBool,
) -> Result<Qmp, VmmError> {
    let accepted = listener.accept().await;
    let socket = |source| VmmError::Socket {
        name: path.display().to_string(),
        what: "accept QEMU's monitor connection".to_owned(),
        source,
    };
    let (stream, _) = accepted.map_err(socket)?;
    are_sockets_bound.store(true, Ordering::Relaxed);
    drop(listener);
    // The guard of the run directory removes the path again, and finds nothing.
    let _ = std::fs::remove_file(path);
    match Qmp::negotiate(stream).await {
        Ok(qmp) => Ok(qmp),
        // The connection of a dying QEMU closes before the process is gone: its report says more.
        Err(QmpError::Closed { .. })
            if let Ok(report) = tokio::time::timeout(END_LIMIT, child.wait()).await =>
        {
            Err(VmmError::Died(Box::new(report)))
        }
        Err(source) => {
            let name = path.display().to_string();
            Err(VmmError::Qmp { name, verb: "greet", source })
        }
    }
}

fn awaited(spec: CheckedSpec<'_>, are_sockets_bound: bool) -> String {
    if !are_sockets_bound {
        return "QEMU did not open its sockets".to_owned();
    }
    let sockets = |mode| {
        let nics = spec.nics.iter().filter(move |nic| nic.mode == mode);
        nics.map(|nic| nic.socket.display().to_string()).collect::<Vec<_>>().join(", ")
    };
    let (ours, theirs) = (sockets(SocketMode::VmmListens), sockets(SocketMode::SwitchListens));
    match (ours.is_empty(), theirs.is_empty()) {
        (true, true) => "QEMU's monitor did not greet".to_owned(),
        (false, true) => format!("the switch did not connect to (all of) {ours}"),
        (true, false) => format!("the switch did not listen on (all of) {theirs}"),
        (false, false) => {
            format!("the switch neither connected to {ours} nor listened on {theirs}")
        }
    }
}
