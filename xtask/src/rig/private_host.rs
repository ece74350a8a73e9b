//! A host of our own to run containerd on: the machine's files and kernel, but mounts, network and
//! process numbers apart.
//!
//! ```text
//!  us ---> setpriv: die with us ---> unshare ---> sleep: process 1 of the host
//!   `----> nsenter ---> setpriv: die with nsenter ---> any program in there
//! ```
//! Whatever containerd, its shims, CNI plugins and pods make (mounts, bridges, veth devices, named network
//! namespaces, processes that detach themselves) is made in there. The machine does not see it,
//! and it cannot outlive process 1: when that ends, and it does so even if we are killed, the kernel
//! ends every process of the host, and with the last one mounts and devices go. So what a runtime
//! *ought* to have cleaned up must be looked for before ([`PrivateHost::pids`],
//! [`PrivateHost::mounts`], [`PrivateHost::devices`]).
//!
//! Files are the machine's, but for `/run`, which is empty: shims bind their sockets there. Of folders
//! named to [`PrivateHost::overlay`] the host has its own version: what is written there stays there.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::process::Command;
use tokio::time::timeout;
use vmm_glue::ConsoleClosed;
use vmm_glue::process::{Child, Launch};

/// How long starting and ending may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(10);
/// Process 1 inherits whoever lost their parent. It ignores their ends, so the kernel reaps them.
const INIT: &str = "mount -t tmpfs run /run && mkdir /run/netns && ip link set lo up && \
                    echo ready && exec env --ignore-signal=CHLD sleep infinity";

/// A host apart from the machine. Dropping it ends all that runs there.
#[derive(Debug)]
pub struct PrivateHost {
    unshare: Child,
    /// Process 1, by the machine's count.
    init: u32,
    mounts: BTreeSet<PathBuf>,
}

impl PrivateHost {
    /// Makes one.
    ///
    /// # Errors
    /// We are not root, or a tool is missing; in the words of the tool.
    pub async fn start() -> Result<Self> {
        let options = "--mount --net --pid --fork --kill-child --mount-proc --propagation slave";
        let args = options.split(' ').chain(["sh", "-ec", INIT]).map(Into::into).collect();
        let unshare = Child::spawn(Launch {
            name: "the private host".to_owned(),
            program: "unshare".into(),
            args,
            ..Launch::default()
        })
        .await?;
        match timeout(LIMIT, unshare.console().wait_for("ready")).await {
            Ok(Ok(())) => {}
            Ok(Err(ConsoleClosed { .. })) => bail!("{}", unshare.wait().await),
            Err(_) => bail!("The private host was not ready within {LIMIT:?}"),
        }
        let init = only_child(unshare.pid())?;
        let mut host = Self { unshare, init, mounts: BTreeSet::new() };
        host.mounts = host.all_mounts()?;
        Ok(host)
    }

    /// From now on what is written to the machine's folders `of` is for this host alone, and lies in
    /// `into`, below the folder's name. Before anything runs here.
    ///
    /// # Errors
    /// In the words of mount(8).
    pub async fn overlay(&mut self, of: &[&str], into: &Path) -> Result<()> {
        for folder in of {
            let upper = into.join(folder.trim_start_matches('/'));
            let work = into.join("work").join(folder.trim_start_matches('/'));
            for folder in [&upper, &work] {
                fs::create_dir_all(folder)
                    .with_context(|| format!("Failed to make {}", folder.display()))?;
            }
            let options = format!(
                "lowerdir={folder},upperdir={},workdir={}",
                upper.display(),
                work.display()
            );
            self.mount(&["-t", "overlay", "-o", &options, "overlay", folder]).await?;
        }
        Ok(())
    }

    /// Hides a folder of the machine's from this host: it is empty there.
    ///
    /// # Errors
    /// In the words of mount(8).
    pub async fn hide(&mut self, folder: &Path) -> Result<()> {
        self.mount(&["-t", "tmpfs", "nothing", &folder.to_string_lossy()]).await
    }

    async fn mount(&mut self, arguments: &[&str]) -> Result<()> {
        let output = self.command("mount").args(arguments).output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "mount {} failed: {said}", arguments.join(" "));
        // It is no pod's.
        self.mounts = self.all_mounts()?;
        Ok(())
    }

    /// What to run a program under so that it runs on this host and ends with its caller's child.
    pub fn wrapper(&self) -> Vec<String> {
        let init = self.init.to_string();
        let words = ["nsenter", "--target", &init, "--mount", "--net", "--pid", "--"];
        let dies_with_nsenter = ["setpriv", "--pdeathsig", "KILL", "--"];
        words.into_iter().chain(dies_with_nsenter).map(str::to_owned).collect()
    }

    /// A command that runs `program` on this host. It ends when its handle is dropped.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let wrapper = self.wrapper();
        let mut command = Command::new(&wrapper[0]);
        command.args(&wrapper[1..]).arg(program).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// A file as a process of this host sees it.
    pub fn path(&self, file: &Path) -> PathBuf {
        let file = file.strip_prefix("/").unwrap_or(file);
        Path::new("/proc").join(self.init.to_string()).join("root").join(file)
    }

    /// The processes of this host by their own numbers, process 1 left out.
    ///
    /// # Errors
    /// The host is gone.
    pub fn pids(&self) -> Result<BTreeSet<u32>> {
        let names = names_in(&self.path(Path::new("/proc")))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).filter(|pid| *pid != 1).collect())
    }

    /// What the process `pid` of this host was called with; nothing if it has ended.
    pub fn command_line(&self, pid: u32) -> String {
        let line = fs::read(self.path(Path::new(&format!("/proc/{pid}/cmdline"))));
        String::from_utf8_lossy(&line.unwrap_or_default()).replace('\0', " ")
    }

    /// Where something was mounted since the start.
    ///
    /// # Errors
    /// The host is gone.
    pub fn mounts(&self) -> Result<BTreeSet<PathBuf>> {
        Ok(self.all_mounts()?.difference(&self.mounts).cloned().collect())
    }

    /// The names of its network devices.
    ///
    /// # Errors
    /// The host is gone.
    pub async fn devices(&self) -> Result<BTreeSet<String>> {
        // The sysfs that is mounted shows the machine's, and that is all that mounting can tell.
        let output = self.command("cat").arg("/proc/net/dev").output().await?;
        let text = String::from_utf8_lossy(&output.stdout);
        let names = text.lines().skip(2).filter_map(|line| line.split_once(':'));
        Ok(names.map(|(name, _)| name.trim().to_owned()).collect())
    }

    /// The file that the process `pid` of this host runs; none if it has ended, or is the kernel's.
    pub fn program(&self, pid: u32) -> Option<PathBuf> {
        fs::read_link(self.path(Path::new(&format!("/proc/{pid}/exe")))).ok()
    }

    /// Named network namespaces.
    ///
    /// # Errors
    /// The host is gone.
    pub fn namespaces(&self) -> Result<BTreeSet<String>> {
        names_in(&self.path(Path::new("/run/netns")))
    }

    fn all_mounts(&self) -> Result<BTreeSet<PathBuf>> {
        let file = format!("/proc/{}/mountinfo", self.init);
        let text = fs::read_to_string(&file).with_context(|| format!("Failed to read {file}"))?;
        // proc_pid_mountinfo(5): the mount point is the fifth field.
        Ok(text.lines().filter_map(|line| line.split(' ').nth(4)).map(Into::into).collect())
    }
}

impl Drop for PrivateHost {
    fn drop(&mut self) {
        self.unshare.kill();
        // Process 1 ends after all others, and unshare does not wait for it.
        let init = PathBuf::from(format!("/proc/{}", self.init));
        for _ in 0..LIMIT.as_millis() / PAUSE.as_millis() {
            if !init.exists() {
                return;
            }
            thread::sleep(PAUSE);
        }
        eprintln!("The private host does not end; see {}", init.display());
    }
}

/// The child of a process that has one child.
///
/// # Errors
/// It has none, or several.
pub fn only_child(pid: u32) -> Result<u32> {
    let file = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(&file).with_context(|| format!("Failed to read {file}"))?;
    children
        .trim()
        .parse()
        .with_context(|| format!("Process {pid} has not one child: {children:?}"))
}

fn names_in(folder: &Path) -> Result<BTreeSet<String>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("Failed to list {}", folder.display()))?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::super::{Leftovers, NetworkSnapshot};
    use super::*;

    async fn host() -> PrivateHost {
        PrivateHost::start().await.unwrap_or_else(|error| panic!("{error:#}"))
    }

    #[tokio::test]
    async fn what_is_made_on_a_private_host_is_seen_there_and_nowhere_else() {
        let host = host().await;
        let script = "ip link add slipway-test type bridge; ip netns add slipway-test; \
                      mkdir /run/slipway-test; mount -t tmpfs a /run/slipway-test";
        let status = host.command("sh").args(["-ec", script]).status().await.unwrap();
        assert!(status.success(), "{status}");
        assert!(host.devices().await.unwrap().contains("slipway-test"));
        assert!(host.namespaces().unwrap().contains("slipway-test"));
        assert!(host.mounts().unwrap().contains(Path::new("/run/slipway-test")));
        assert!(host.path(Path::new("/run/slipway-test")).exists());
        for path in ["/sys/class/net", "/run/netns", "/run"] {
            assert!(!Path::new(path).join("slipway-test").exists(), "{path}");
        }
    }

    #[tokio::test]
    async fn what_is_written_to_an_overlay_or_hidden_is_so_on_its_host_only() {
        let (into, machine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(machine.path().join("file"), "").unwrap();
        let mut host = host().await;
        host.overlay(&["/opt"], into.path()).await.unwrap();
        host.hide(machine.path()).await.unwrap();
        assert_eq!(host.mounts().unwrap(), BTreeSet::new());
        fs::write(host.path(Path::new("/opt/slipway-test")), "").unwrap();
        assert!(into.path().join("opt/slipway-test").exists());
        assert!(!Path::new("/opt/slipway-test").exists());
        assert!(!host.path(&machine.path().join("file")).exists());
        assert!(machine.path().join("file").exists());
        let error = host.overlay(&["/slipway-none"], into.path()).await.unwrap_err().to_string();
        assert!(error.contains("/slipway-none"), "{error}");
    }

    #[tokio::test]
    async fn processes_that_detach_themselves_end_with_their_host() {
        let host = host().await;
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().display().to_string();
        let script =
            format!("setsid sh -c 'echo; exec tail -f /dev/null {mark}/x >/dev/null' & read line");
        let mut shell = host.command("sh");
        shell.args(["-ec", &script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = shell.spawn().unwrap();
        shell.stdout.take().unwrap().read_exact(&mut [0]).await.unwrap();
        drop(shell.stdin.take());
        shell.wait().await.unwrap();
        let is_there = || {
            let pids = host.pids().unwrap();
            pids.into_iter().any(|pid| host.command_line(pid).contains(&mark))
        };
        // While it becomes `tail` it has no command line.
        let seen = async {
            while !is_there() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LIMIT, seen).await.expect("it runs");
        drop(host);
        let left = Leftovers::of(folder.path(), &NetworkSnapshot::take());
        assert_eq!(left.processes, Vec::<String>::new());
    }
}
