//! What is left of a run: nothing, as it should be.
//!
//! A run's processes, sockets and files are recognised by its folder, whose name is unique: it
//! stands on every command line, in the name of every socket, and holds every file. Network devices and
//! named network namespaces carry no such mark; those that were not there before count.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use std::{fmt, fs};

use tokio::time::{sleep, timeout};

/// How long things may take to end after those they belong to.
const LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);
/// How often in a row nothing must be found.
const LOOKS: u32 = 10;

/// Names of the network devices that we see and of the machine's named network namespaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkSnapshot {
    devices: BTreeSet<String>,
    namespaces: BTreeSet<String>,
}

impl NetworkSnapshot {
    /// What there is now.
    pub fn take() -> Self {
        Self {
            devices: names_in(Path::new("/sys/class/net")),
            // The folder of ip-netns(8) and of CNI.
            namespaces: names_in(Path::new("/run/netns")),
        }
    }
}

/// What of a run is still there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Command lines of processes, zombies excepted: these are gone and wait for their parent.
    pub processes: Vec<String>,
    /// Bound UNIX sockets.
    pub sockets: Vec<String>,
    /// Files and folders.
    pub files: Vec<String>,
    /// Network devices, taps among them.
    pub devices: Vec<String>,
    /// Network namespaces.
    pub namespaces: Vec<String>,
}

impl Leftovers {
    /// Looks for what is left of the run in `folder`.
    pub fn of(folder: &Path, before: &NetworkSnapshot) -> Self {
        let now = NetworkSnapshot::take();
        let new = |now: &BTreeSet<String>, before| now.difference(before).cloned().collect();
        Self {
            processes: processes(folder),
            sockets: sockets(folder),
            files: files(folder),
            devices: new(&now.devices, &before.devices),
            namespaces: new(&now.namespaces, &before.namespaces),
        }
    }

    /// Returns when no process and no socket of the run in `folder` is left, or after a few seconds:
    /// what is there then is found by [`Leftovers::of`]. It looks now and then: a tracer is no child
    /// of ours that we could wait for, and the runtime closes a connection after its owner is gone.
    pub async fn settle(folder: &Path) {
        let settled = async {
            // A process that was forked when its parent ended shows the folder only in the arguments of
            // what it executes, and no arguments at all while it does: one look may miss it.
            let mut quiet = 0;
            while quiet < LOOKS {
                let is_quiet = processes(folder).is_empty() && sockets(folder).is_empty();
                quiet = if is_quiet { quiet + 1 } else { 0 };
                sleep(PAUSE).await;
            }
        };
        // Whether it was in time is for the caller to see.
        let _ = timeout(LIMIT, settled).await;
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processes, sockets, files, devices, namespaces } = self;
        let kinds = [
            ("processes", processes),
            ("sockets", sockets),
            ("files", files),
            ("taps or other network devices", devices),
            ("network namespaces", namespaces),
        ];
        let (some, none): (Vec<_>, Vec<_>) = kinds.iter().partition(|(_, names)| !names.is_empty());
        for (kind, names) in some {
            writeln!(f, "{kind}: {}", names.join(", "))?;
        }
        let none: Vec<_> = none.iter().map(|(kind, _)| *kind).collect();
        write!(f, "no {}", none.join(", "))
    }
}

fn names_in(folder: &Path) -> BTreeSet<String> {
    // A folder that does not exist has no entries.
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Processes that name the folder on their command line, but for ourselves.
fn processes(folder: &Path) -> Vec<String> {
    let folder = folder.to_string_lossy();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = entries.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        // A process that ends meanwhile has none; neither has a zombie.
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let is_left = pid != std::process::id() && line.contains(&*folder);
        is_left.then(|| format!("{pid}: {line}"))
    });
    lines.collect()
}

/// Sockets bound below the folder. The kernel lists them by the path they were bound at, be it removed
/// or not.
fn sockets(folder: &Path) -> Vec<String> {
    let list = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    sockets_in(&list, &folder.to_string_lossy())
}

fn sockets_in(list: &str, folder: &str) -> Vec<String> {
    let paths = list.lines().filter_map(|line| line.split_ascii_whitespace().nth(7));
    paths.filter(|path| path.starts_with(folder)).map(str::to_owned).collect()
}

fn files(folder: &Path) -> Vec<String> {
    if !folder.exists() {
        return Vec::new();
    }
    let mut found = vec![folder.display().to_string()];
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            found.push(entry.path().display().to_string());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixListener;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_is_there_is_found_and_what_is_gone_is_not() {
        let before = NetworkSnapshot::take();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let socket = UnixListener::bind(path.join("a.sock")).unwrap();
        let mut child = Command::new("sh")
            .args(["-c", "echo up; read line", &path.display().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Its command line is in place once it has a word to say.
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
        let found = Leftovers::of(&path, &before);
        assert_eq!((found.processes.len(), found.sockets.len(), found.files.len()), (1, 1, 2));

        child.kill().unwrap();
        child.wait().unwrap();
        drop(socket);
        drop(folder);
        let found = Leftovers::of(&path, &before);
        assert_eq!((&found.processes, &found.sockets, &found.files), (&vec![], &vec![], &vec![]));
    }

    #[test]
    fn a_device_that_was_there_before_is_not_ours() {
        let now = NetworkSnapshot::take();
        let nowhere = Path::new("/nowhere");
        assert!(Leftovers::of(nowhere, &now).devices.is_empty());
        let before = NetworkSnapshot::default();
        let devices = Leftovers::of(nowhere, &before).devices;
        assert!(devices.iter().any(|device| device == "lo"), "{devices:?}");
    }

    #[test]
    fn sockets_are_listed_by_path() {
        let list = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000: 00000002 00000000 00010000 0001 01 17 /tmp/x/a.sock\n\
            0000: 00000003 00000000 00000000 0001 03 18\n\
            0000: 00000002 00000000 00010000 0001 01 19 /tmp/y/b.sock\n";
        assert_eq!(sockets_in(list, "/tmp/x"), ["/tmp/x/a.sock"]);
    }
}
