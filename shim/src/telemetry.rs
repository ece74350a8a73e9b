//! Where the server's log goes: the FIFO `log` of its bundle, which containerd copies to its own log.
//!
//! A log must never hold up a pod: the FIFO is opened so that a missing reader is no error and a
//! full one loses lines.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use kata_config::{LogLevel, RuntimeConfig};
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
    let wanted = EnvFilter::try_from_env("SLIPWAY_LOG").ok();
    // containerd's --debug and the environment go before the configuration.
    let is_settled = is_debug || wanted.is_some();
    let builder = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(Fifo(Arc::new(fifo)))
        .with_env_filter(wanted.unwrap_or_else(|| EnvFilter::new(level)))
        .with_filter_reloading();
    let handle = builder.reload_handle();
    // Fails if one is set already: a test's, which wins.
    let is_set = tracing::subscriber::set_global_default(builder.finish()).is_ok();
    if is_set && !is_settled {
        let change: Change = Box::new(move |level| handle.reload(EnvFilter::new(level)).is_ok());
        LEVEL.set(change).ok();
    }
}

type Change = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// Changes the level of the log that [`to_fifo`] made.
static LEVEL: OnceLock<Change> = OnceLock::new();

/// Logs at the level of the pod's configuration, which is known only with the pod's first container.
pub fn set_level(config: &RuntimeConfig) {
    let level = level_of(config);
    if let Some(change) = LEVEL.get()
        && !change(level)
    {
        tracing::warn!(level, "the log keeps its level");
    }
}

/// The configured level, in this log's words.
fn level_of(config: &RuntimeConfig) -> &'static str {
    if config.enable_debug {
        return "debug";
    }
    match config.log_level {
        LogLevel::Trace => "trace",
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        // There is nothing above it here.
        LogLevel::Error | LogLevel::Critical => "error",
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debugging_goes_before_the_level() {
        let mut config = RuntimeConfig { log_level: LogLevel::Critical, ..Default::default() };
        assert_eq!(level_of(&config), "error");
        config.enable_debug = true;
        assert_eq!(level_of(&config), "debug");
    }
}
