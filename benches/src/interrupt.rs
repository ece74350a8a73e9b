//! Ctrl-C and SIGTERM: noticed at any time, acted on between two windows.
//!
//! The stack unwinds then, and everything that was started or made is ended and removed by its
//! owner. A window is a second at most, so this takes seconds at most.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

/// What a shell reports of a command that ended by Ctrl-C.
const EXIT_CODE: u8 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Runs a program's work with the signals taken, and says how it ended.
pub fn guard(run: impl FnOnce() -> Result<()>) -> ExitCode {
    match install().and_then(|()| run()) {
        _ if is_requested() => {
            eprintln!("Interrupted");
            ExitCode::from(EXIT_CODE)
        }
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Takes the signals from now on.
fn install() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let context = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).context("Failed to take SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("Failed to take SIGTERM")?;
    let mut hang_up = signal(SignalKind::hangup()).context("Failed to take SIGHUP")?;
    drop(context);
    let serve = async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
            }
            REQUESTED.store(true, Ordering::Relaxed);
        }
    };
    let thread = thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || runtime.block_on(serve)).context("Failed to start a thread")?;
    Ok(())
}

/// Whether we are to end.
pub fn is_requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// # Errors
/// We are to end.
pub fn check() -> Result<()> {
    if is_requested() {
        bail!("Interrupted");
    }
    Ok(())
}
