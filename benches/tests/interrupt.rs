//! Ctrl-C in the midst of a comparison: it ends by it, in order, and leaves nothing.
//!
//! It needs root for hugepages, and slipwayd alone: `cargo xtask test` sees to both.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;
use std::{fs, thread};

use dataplane::testing::Deadline;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use whole::{assert_nothing_is_left, hugepages, processes_of, slipwayd};

mod whole;

/// For a start or an end on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);
/// Between two looks at what has no event to wait for.
const LOOK: Duration = Duration::from_millis(5);

/// A comparison that would take an hour. Killed if the test fails before its end.
struct Running {
    child: Child,
    /// What it says of its progress, line by line.
    stderr: Receiver<String>,
    said: String,
}

impl Running {
    /// Starts it in a process group of its own, as a shell does.
    fn start(temporary: &Path, out: &Path) -> Self {
        let bench = Path::new(env!("CARGO_BIN_EXE_bench-switch"));
        let mut child = Command::new(bench)
            .args(["--peers", "slipwayd", "--only", "64,rtt", "--rounds", "1000"])
            .arg("--slipwayd")
            .arg(slipwayd(bench))
            .arg("--out")
            .arg(out)
            .env("TMPDIR", temporary)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (say, stderr) = mpsc::channel();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| say.send(line)));
        Self { child, stderr, said: String::new() }
    }

    /// The next line of its progress; `None`: there are no more.
    fn next_line(&mut self) -> Option<String> {
        let line = match self.stderr.recv_timeout(LIMIT) {
            Ok(line) => line,
            Err(mpsc::RecvTimeoutError::Disconnected) => return None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("it says no more:\n{}", self.said),
        };
        self.said += &format!("{line}\n");
        Some(line)
    }

    /// Waits for a line that has `text`.
    fn await_line(&mut self, text: &str) {
        while let Some(line) = self.next_line() {
            if line.contains(text) {
                return;
            }
        }
        panic!("it never said {text:?}:\n{}", self.said);
    }

    /// Ctrl-C: to its whole group, as a terminal does. Returns how it ended.
    fn interrupt(&mut self) -> ExitStatus {
        killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT).unwrap();
        while self.next_line().is_some() {}
        self.child.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Neither does anything once it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether the socket of the second port is anywhere below `folder`: then the switch has its guests, or
/// gets them.
fn has_sockets(folder: &Path) -> bool {
    let inside = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    inside(folder).flat_map(|run| inside(&run.path())).any(|peer| peer.path().join("g1").exists())
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Deadline::after(LIMIT);
    while !holds() {
        assert!(!deadline.passed(), "never came about: {what}");
        thread::sleep(LOOK);
    }
}

/// Interrupts a comparison once it is where `await_midst` waits for.
fn interrupted(await_midst: impl FnOnce(&mut Running, &Path)) {
    let (temporary, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let before = hugepages();
    let mut running = Running::start(temporary.path(), out.path());
    await_midst(&mut running, temporary.path());

    let status = running.interrupt();
    assert_eq!(status.code(), Some(130), "{status}\n{}", running.said);
    assert!(running.said.ends_with("Interrupted\n"), "{}", running.said);
    assert_nothing_is_left(temporary.path(), &before);
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0, "half a comparison is stored");
}

// One test, as each takes hugepages and both cores.
#[test]
fn ctrl_c_in_the_midst_of_a_comparison_ends_all_and_leaves_nothing() {
    // A switch that starts, whatever it has so far.
    interrupted(|running, _| running.await_line("[  1/1000]"));
    // One with guests, after another that has come and gone.
    interrupted(|running, temporary| {
        running.await_line("[  2/1000]");
        eventually("a switch with its ports", || has_sockets(temporary));
        assert!(!processes_of(temporary).is_empty());
    });
}
