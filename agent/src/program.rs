//! Runs a program that the host put into the image, beside the agent.
//!
//! The agent as process 1 collects the ends of all children once it serves the Kata protocol. Guests of the
//! control channel have no such task, so that a program's end is here to be had; where there is one, the call is
//! refused with the kernel's word.

use std::io::Read;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use slipway_agent::protocol::{Answer, MAX_OUTPUT, Ran, Refusal, RefusalCode, Run};

use crate::clock;

/// Between two looks whether it has ended.
const LOOK: Duration = Duration::from_millis(10);

/// Runs it to its end.
pub fn run(run: &Run) -> Result<Answer, Refusal> {
    let Some((program, arguments)) = run.words.split_first() else {
        return Err(Refusal::new(RefusalCode::OutOfRange, "words is empty; name a program"));
    };
    let failed = |error| {
        let message = format!("Failed to run {program}: {error}");
        Refusal::new(RefusalCode::Failed, message)
    };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let output = child.stdout.take();
    // It must not wait for us to read, so another thread reads.
    let reader = thread::spawn(move || output.map(read).unwrap_or_default());
    let timeout = Duration::from_millis(run.timeout_ms.into());
    let ended = wait(&mut child, timeout).map_err(failed)?;
    let Some(status) = ended else {
        let message = format!("{program} did not end within {} ms", run.timeout_ms);
        return Err(Refusal::new(RefusalCode::TimedOut, message));
    };
    let status = status.code().unwrap_or(128 + status.signal().unwrap_or_default());
    // It read what there is, or panicked and ended the guest.
    let output = reader.join().unwrap_or_default();
    Ok(Answer::Ran(Ran { status, output: text(&output) }))
}

/// Waits for the end; one that takes longer than `timeout` is killed.
fn wait(child: &mut Child, timeout: Duration) -> std::io::Result<Option<ExitStatus>> {
    let begin = clock::now();
    while begin.elapsed() < timeout {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(LOOK);
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

/// All of it, of which the begin is kept: whoever prints is not to be held up.
fn read(mut from: impl Read) -> Vec<u8> {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let room = MAX_OUTPUT - kept.len();
        kept.extend_from_slice(&buffer[..n.min(room)]);
    }
    kept
}

fn text(output: &[u8]) -> String {
    let plain = |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { '?' } else { c };
    String::from_utf8_lossy(output).chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, timeout_ms: u32) -> Result<Ran, Refusal> {
        let words = ["/bin/sh", "-c", script].map(String::from).into();
        match run(&Run { words, timeout_ms })? {
            Answer::Ran(ran) => Ok(ran),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_program_tells_what_it_printed_and_how_it_ended() {
        let ran = sh("printf 'two\\n\\001lines'; exit 3", 60_000).unwrap();
        assert_eq!(ran, Ran { status: 3, output: "two\n?lines".to_owned() });
        assert_eq!(sh("kill -9 $$", 60_000).unwrap().status, 128 + 9);
        let long = sh("head -c 100000 /dev/zero", 60_000).unwrap();
        assert_eq!((long.status, long.output.len()), (0, MAX_OUTPUT));
    }

    #[test]
    fn a_program_that_is_not_there_or_does_not_end_is_refused() {
        let refusal = sh("exec sleep 600", 50).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::TimedOut, "{refusal}");
        let words = vec!["/nowhere/program".to_owned()];
        let refusal = run(&Run { words, timeout_ms: 1000 }).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Failed, "{refusal}");
        assert!(refusal.message.contains("/nowhere/program"), "{refusal}");
    }
}
