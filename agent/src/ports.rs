//! Finds the machine's virtio-serial ports by their names.
//!
//! The device names its ports some time after its driver is loaded, each with a kernel event. So
//! this looks, and looks again at every event.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// Where the kernel lists the ports and their names.
const PORTS: &str = "/sys/class/virtio-ports";

/// The ports of certain names, each reported once.
#[derive(Debug)]
pub struct Ports {
    events: OwnedFd,
    wanted: BTreeSet<&'static str>,
}

impl Ports {
    /// Begins to look for the ports of these names.
    pub fn watch(wanted: impl IntoIterator<Item = &'static str>) -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let events = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol)
            .context("Failed to open a socket for kernel events")?;
        bind(events.as_raw_fd(), &NetlinkAddr::new(0, 1))
            .context("Failed to subscribe to kernel events")?;
        Ok(Self { events, wanted: wanted.into_iter().collect() })
    }

    /// Opens the next port that has one of the names; `None` when the time is over.
    pub fn next(&mut self, within: PollTimeout) -> Result<Option<(&'static str, File)>> {
        // Subscribed first, looked after: a port named in between is found.
        loop {
            if let Some((name, device)) = self.find()? {
                self.wanted.remove(name);
                let path = Path::new("/dev").join(device);
                let port = OpenOptions::new().read(true).write(true).open(&path);
                let port = port.with_context(|| format!("Failed to open {}", path.display()))?;
                return Ok(Some((name, port)));
            }
            let mut fds = [PollFd::new(self.events.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, within) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error).context("Failed to wait for kernel events"),
            }
            match recv(self.events.as_raw_fd(), &mut [0; 4096], MsgFlags::empty()) {
                // Too many came at once and some were lost; a look shows what they told.
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(error) => return Err(error).context("Failed to read kernel events"),
            }
        }
    }

    fn find(&self) -> Result<Option<(&'static str, String)>> {
        let ports = match fs::read_dir(PORTS) {
            Ok(ports) => ports,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("Failed to list {PORTS}")),
        };
        for port in ports {
            let port = port?;
            // A port that has no name yet has no such file.
            let name = fs::read_to_string(port.path().join("name")).unwrap_or_default();
            if let Some(&name) = self.wanted.get(name.trim_end()) {
                return Ok(Some((name, port.file_name().to_string_lossy().into_owned())));
            }
        }
        Ok(None)
    }
}
