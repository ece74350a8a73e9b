//! Where the server's log goes: the FIFO `log` of its bundle, which containerd copies to its own log.
//!
//! A log must never hold up a pod: the FIFO is opened so that a missing reader is no error and a
//! full one loses lines.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Sends the log to the FIFO `log` in `bundle`. Without one there is no log: there is nowhere else.
pub fn to_fifo(bundle: &Path, is_debug: bool) {
    let mut options = OpenOptions::new();
    // Read and write: the FIFO has a reader even while containerd restarts.
    options.read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let Ok(fifo) = options.open(bundle.join("log")) else { return };
    let level = if is_debug { "debug" } else { "info" };
    let filter = EnvFilter::try_from_env("SLIPWAY_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(Fifo(Arc::new(fifo)))
        .finish();
    // Fails if one is set already: a test's, which wins.
    drop(tracing::subscriber::set_global_default(subscriber));
}

#[derive(Clone)]
struct Fifo(Arc<File>);

impl Write for Fifo {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match (&*self.0).write(bytes) {
            // Nobody reads: the line is lost.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(bytes.len()),
            other => other,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Fifo {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
