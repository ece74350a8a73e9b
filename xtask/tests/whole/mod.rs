//! A command of `cargo xtask` run as a user runs it, as a whole.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::timeout;
use xtask::rig::{Leftovers, NetworkSnapshot};

/// For a whole command on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// How it ended.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `command` in a temporary folder of its own, and `signal`s it as soon as it prints a line with
/// the text. Whatever becomes of it, nothing may be left.
pub async fn run(command: &mut Command, signal: Option<(&str, Signal)>) -> Ended {
    let before = NetworkSnapshot::take();
    let folder = TempDir::new().unwrap();
    let mut child = command
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(child.id().unwrap().cast_signed());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut errors = child.stderr.take().unwrap();
    let (mut stdout, mut stderr, mut signal) = (String::new(), String::new(), signal);
    let read = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            stdout += &line;
            stdout.push('\n');
            if let Some((_, signal)) = signal.take_if(|(text, _)| line.contains(*text)) {
                kill(pid, signal).unwrap();
            }
        }
    };
    let all = async {
        let (_, errors) = tokio::join!(read, errors.read_to_string(&mut stderr));
        errors.unwrap();
        child.wait().await.unwrap()
    };
    let status = timeout(LIMIT, all).await.expect("the demo ends");
    assert!(signal.is_none(), "it never printed {signal:?}:\n{stdout}{stderr}");

    Leftovers::settle(folder.path()).await;
    let mut left = Leftovers::of(folder.path(), &before);
    left.files.retain(|file| Path::new(file) != folder.path());
    assert!(left.is_empty(), "{left}\n{stdout}{stderr}");
    Ended { status, stdout, stderr }
}
