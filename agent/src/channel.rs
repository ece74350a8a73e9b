//! The guest's end of the control channel: finds the virtio-serial port and reads from it.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use slipway_agent::lines::Lines;
use slipway_agent::protocol::PORT_NAME;

use crate::serve::Server;

/// Where the kernel lists the ports and their names.
const PORTS: &str = "/sys/class/virtio-ports";
/// How long a port may take to appear after its driver was loaded, in milliseconds.
const APPEARS_WITHIN_MS: u16 = 10_000;
/// How often to look for a host while none is connected. The driver offers nothing to wait on
/// for that: without a host it reports hang-up at once, and a read returns nothing.
const LOOK_FOR_HOST: Duration = Duration::from_millis(20);

/// Opens the port. The device names its ports some time after its driver is loaded, each with a
/// kernel event, so this waits for events until the name is there.
pub fn open() -> Result<File> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let protocol = SockProtocol::NetlinkKObjectUEvent;
    let events = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol)
        .context("Failed to open a socket for kernel events")?;
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, 1))
        .context("Failed to subscribe to kernel events")?;
    // Subscribed first, looked after: a port named in between is found.
    loop {
        if let Some(path) = find()? {
            return OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .with_context(|| format!("Failed to open {}", path.display()));
        }
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(APPEARS_WITHIN_MS))? == 0 {
            bail!("There is no virtio-serial port named {PORT_NAME}; add one to the VM");
        }
        recv(events.as_raw_fd(), &mut [0; 4096], MsgFlags::empty())?;
    }
}

fn find() -> Result<Option<PathBuf>> {
    let ports = match fs::read_dir(PORTS) {
        Ok(ports) => ports,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("Failed to list {PORTS}")),
    };
    for port in ports {
        let port = port?;
        // A port that has no name yet has no such file.
        let name = fs::read_to_string(port.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT_NAME {
            return Ok(Some(PathBuf::from("/dev").join(port.file_name())));
        }
    }
    Ok(None)
}

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
