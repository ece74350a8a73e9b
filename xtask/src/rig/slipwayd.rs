//! One slipwayd process with a run directory of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use slipway_api::client::Client;
use slipway_api::{Mac, PortMode, PortSpec};
use tokio::time::timeout;
use vmm_glue::process::{Child, Launch};
use vmm_glue::{ConsoleClosed, ExitCause, ExitReport};

use super::GuestPlan;
use super::private_host::only_child;
use crate::workspace;

/// What slipwayd logs once its API and its threads are there.
const READY: &str = "slipwayd is ready";
/// How long a start or an end may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// The last of the cores that this process may run on: the first ones have more to do with
/// interrupts and everybody else's work.
///
/// # Errors
/// The kernel does not tell.
pub fn last_core() -> Result<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("Failed to ask for our cores")?;
    let is_allowed = |core: &usize| allowed.is_set(*core).unwrap_or(false);
    (0..CpuSet::count()).rev().find(is_allowed).context("We may run on no core")
}

/// The slipwayd to test: the one that `SLIPWAYD` names, or the release build of this tree, made if
/// need be. Blocks meanwhile.
///
/// # Errors
/// It does not compile.
pub fn program() -> Result<PathBuf> {
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    if let Some(program) = std::env::var_os("SLIPWAYD") {
        return Ok(program.into());
    }
    // Whoever comes second waits here, not for cargo's lock. A build that panicked left no path.
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if built.is_none() {
        *built = Some(workspace::build_slipwayd()?);
    }
    built.clone().context("There is no slipwayd")
}

/// A running switch. Dropping it kills the process.
#[derive(Debug)]
pub struct Slipwayd {
    child: Child,
    client: Client,
}

/// A configuration that leaves everything at its default.
pub const NO_CONFIG: &str = "/dev/null";

impl Slipwayd {
    /// Starts `program` with the configuration in `config`, `run_dir`, which must exist, and one PMD
    /// thread on `core`; under `wrapper`, see [`vmm_glue::VmSpec::wrapper`]. Returns once it serves its API.
    ///
    /// # Errors
    /// It could not be run, ended, or was not ready in time; with what it logged.
    pub async fn start(
        program: &Path,
        config: &Path,
        run_dir: &Path,
        core: usize,
        wrapper: &[String],
    ) -> Result<Self> {
        let arguments = [
            "--config".into(),
            config.into(),
            "--cores".into(),
            core.to_string().into(),
            "--run-dir".into(),
            run_dir.into(),
        ];
        Self::launch(program, &arguments, &run_dir.join("slipwayd.sock"), wrapper).await
    }

    /// Starts `program` with these arguments under `wrapper`. Returns once it serves its API, on
    /// `socket`.
    ///
    /// # Errors
    /// See [`Slipwayd::start`].
    pub async fn launch(
        program: &Path,
        arguments: &[OsString],
        socket: &Path,
        wrapper: &[String],
    ) -> Result<Self> {
        let child = Child::spawn(Launch {
            name: "slipwayd".to_owned(),
            program: program.to_owned(),
            args: arguments.to_vec(),
            wrapper: wrapper.to_vec(),
            ..Launch::default()
        })
        .await?;
        match timeout(LIMIT, child.stderr().wait_for(READY)).await {
            Ok(Ok(())) => {}
            Ok(Err(ConsoleClosed { .. })) => bail!("{}", child.wait().await),
            Err(_) => bail!("It was not ready within {LIMIT:?}; its log:\n{}", child.stderr_tail()),
        }
        Ok(Self { child, client: Client::new(socket).with_timeout(LIMIT) })
    }

    /// The API.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Returns once it has ended, with the reason. Cancel safe.
    pub async fn ended(&self) -> ExitReport {
        self.child.wait().await
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        self.child.stderr_tail()
    }

    /// Adds the port that the NIC of the guest of `plan` will be served by.
    ///
    /// # Errors
    /// The switch refused, in its words.
    pub async fn add_port(&self, plan: &GuestPlan) -> Result<()> {
        let spec = PortSpec {
            vni: super::VNI,
            mac: Some(Mac(plan.mac().0)),
            socket: Some(plan.nic_socket()),
            mode: PortMode::Connect,
            queue_pairs: plan.queue_pairs,
            ..PortSpec::named(plan.name.clone())
        };
        self.client.create_port(&spec).await.map(drop).context("slipwayd refused the port")
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// It did not end in time and was killed, or says that it failed.
    pub async fn stop(self) -> Result<()> {
        self.child.terminate();
        self.ends().await
    }

    /// The same on a private host: our child is nsenter there, which passes no signals on.
    ///
    /// # Errors
    /// See [`Slipwayd::stop`].
    pub async fn stop_on_host(self) -> Result<()> {
        let pid = Pid::from_raw(only_child(self.pid())?.cast_signed());
        kill(pid, Signal::SIGTERM).context("Failed to signal slipwayd")?;
        self.ends().await
    }

    async fn ends(&self) -> Result<()> {
        match timeout(LIMIT, self.child.wait()).await {
            Ok(report) if report.cause == ExitCause::Code(0) => Ok(()),
            Ok(report) => bail!("{report}"),
            Err(_) => bail!("It did not end within {LIMIT:?}; its log:\n{}", self.log_tail()),
        }
    }

    /// Ends it by SIGKILL, as a crash would.
    ///
    /// # Errors
    /// It is stuck in the kernel.
    pub async fn kill(self) -> Result<()> {
        self.child.end().await?;
        Ok(())
    }
}
