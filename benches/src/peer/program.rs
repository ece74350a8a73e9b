//! Programs of others: found, run to their end, kept running and ended.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::runtime::Runtime;
use vmm_glue::process::{Child, Launch};

use crate::interrupt;

/// How long a start or an end may take on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(30);
/// Between two looks at what has no event to wait for.
const LOOK: Duration = Duration::from_millis(10);

/// Where `program` is: itself if it has a slash, else in PATH or where system programs are.
pub fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(program.into()).filter(|path: &PathBuf| path.exists());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|path| path.exists())
}

/// Runs `command` to its end and returns what it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("Failed to run {name}"))?;
    succeeded(&name, &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether the program `name` ended well.
///
/// # Errors
/// It did not, with what it said.
pub fn succeeded(name: &str, output: &Output) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} failed: {}: {}", output.status, said.trim());
    Ok(())
}

/// A program that runs until it is told to end. Dropping it kills it.
#[derive(Debug)]
pub struct Service {
    name: &'static str,
    child: Child,
    runtime: Runtime,
}

impl Service {
    /// Starts `program`, its threads on `cores` until they pin themselves.
    pub fn start(
        name: &'static str,
        program: &Path,
        args: Vec<OsString>,
        env: &[(&str, &Path)],
        cores: &[usize],
        stdin: Option<OwnedFd>,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let cores: Vec<_> = cores.iter().map(usize::to_string).collect();
        let mut wrapper: Vec<_> =
            ["taskset", "-c", &cores.join(","), "env"].map(String::from).into();
        wrapper.extend(env.iter().map(|(name, value)| format!("{name}={}", value.display())));
        let program = program.to_owned();
        let launch =
            Launch { name: name.to_owned(), program, args, wrapper, stdin, ..Launch::default() };
        let child = runtime.block_on(Child::spawn(launch))?;
        Ok(Self { name, child, runtime })
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// For requests to it.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Waits until `is_ready` says so.
    ///
    /// # Errors
    /// The program has ended, with its last words; it is not ready in time; someone wants us to end.
    pub fn wait_until(&self, mut is_ready: impl FnMut() -> bool) -> Result<()> {
        for _ in 0..LIMIT.as_millis() / LOOK.as_millis() {
            interrupt::check()?;
            if is_ready() {
                return Ok(());
            }
            if self.child.has_ended() {
                let report = self.runtime.block_on(self.child.wait());
                bail!("{} has ended: {report}\n{}", self.name, self.tail());
            }
            std::thread::sleep(LOOK);
        }
        bail!("{} was not ready within {LIMIT:?}; its last words:\n{}", self.name, self.tail())
    }

    /// The last lines it printed.
    pub fn tail(&self) -> String {
        [self.child.console().tail(LINES), self.child.stderr_tail()].join("\n")
    }

    /// What it printed, the part that is kept: the newest 64 KiB.
    pub fn printed(&self) -> String {
        self.child.console().tail(usize::MAX)
    }

    /// How many bytes it printed so far.
    pub fn printed_bytes(&self) -> u64 {
        self.child.console().bytes_seen()
    }

    /// What it printed after the first `bytes`, of the part that is kept. Blanks at the end are left out
    /// and may stand for some before.
    pub fn printed_after(&self, bytes: u64) -> String {
        let new = self.printed_bytes().saturating_sub(bytes) as usize;
        let printed = self.printed();
        printed.get(printed.len().saturating_sub(new)..).unwrap_or_default().to_owned()
    }

    /// Whether it printed `text` in the part that is kept.
    pub fn has_printed(&self, text: &str) -> bool {
        self.printed().contains(text)
    }

    /// Ends it by SIGTERM.
    ///
    /// # Errors
    /// It took too long and was killed.
    pub fn stop(self) -> Result<()> {
        self.child.terminate();
        self.runtime.block_on(async {
            if tokio::time::timeout(LIMIT, self.child.wait()).await.is_err() {
                self.child.end().await?;
                bail!("{} did not end within {LIMIT:?} and was killed", self.name);
            }
            Ok(())
        })
    }
}

/// Lines of a program's output in an error.
const LINES: usize = 20;
