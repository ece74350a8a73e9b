//! The guest's end of the control channel: reads from the virtio-serial port.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use slipway_agent::lines::Lines;

use crate::serve::Server;

/// How often to look for a host while none is connected. The driver offers nothing to wait on
/// for that: without a host it reports hang-up at once, and a read returns nothing.
const LOOK_FOR_HOST: Duration = Duration::from_millis(20);

/// Reads the host's lines for ever.
///
/// # Errors
/// When the port is gone.
pub fn serve(mut port: File, server: &Arc<Server>) -> Result<()> {
    let (mut lines, mut buffer) = (Lines::default(), [0; 4096]);
    loop {
        match port.read(&mut buffer) {
            Ok(0) => {
                lines.clear();
                thread::sleep(LOOK_FOR_HOST);
            }
            Ok(length) => lines.push(&buffer[..length], |line| server.take(line)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("Failed to read the control channel"),
        }
    }
}
