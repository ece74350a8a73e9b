//! Ctrl-C, SIGTERM and SIGHUP: noticed at any time, acted on in order.
//!
//! A thread of its own takes the signals. It raises a flag, on which everything asynchronous
//! stops, and ends the programs that run for us (see [`crate::command`]), on which everything
//! that waits for one of them fails. Either way the stack unwinds, and what was started or made
//! is ended and removed by its owner. A further signal changes nothing: the cleaning up is under
//! way and takes seconds.

use std::sync::LazyLock;
use std::thread;

use anyhow::{Context as _, Result};
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::command;

/// What a shell reports of a command that ended by Ctrl-C.
pub const EXIT_CODE: u8 = 130;

static REQUESTED: LazyLock<watch::Sender<bool>> = LazyLock::new(|| watch::Sender::new(false));

/// Someone wants us to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Takes the signals from now on.
///
/// # Errors
/// There is no thread or no signal handler to be had.
pub fn install() -> Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("Failed to prepare for signals")?;
    let context = runtime.enter();
    let take = |kind| signal(kind).context("Failed to take a signal");
    let mut interrupt = take(SignalKind::interrupt())?;
    let mut terminate = take(SignalKind::terminate())?;
    let mut hang_up = take(SignalKind::hangup())?;
    drop(context);
    let serve = async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
            }
            if REQUESTED.send_replace(true) {
                eprintln!("Already ending: it takes a few seconds");
                continue;
            }
            eprintln!("Ending");
            command::end_all();
        }
    };
    let thread = thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || runtime.block_on(serve)).context("Failed to start a thread")?;
    Ok(())
}

/// Whether we are to end.
pub fn is_requested() -> bool {
    *REQUESTED.borrow()
}

/// Returns once we are to end.
pub async fn requested() -> Interrupted {
    // The sender is never dropped.
    drop(REQUESTED.subscribe().wait_for(|requested| *requested).await);
    Interrupted
}
