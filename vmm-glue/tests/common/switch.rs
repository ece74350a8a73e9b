//! The least that QEMU takes for a switch: one vhost-user back end that answers what QEMU asks while
//! it builds a NIC, and moves no frame.
//!
//! Messages are a header of three little-endian words (request, flags, payload size) and the payload
//! (vhost-user specification, "Header"). File descriptors that come along are dropped by read(2).

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const GET_FEATURES: u32 = 1;
const GET_VRING_BASE: u32 = 11;
const GET_PROTOCOL_FEATURES: u32 = 15;
const GET_QUEUE_NUM: u32 = 17;
const REPLY_FLAGS: u32 = 0x5;
/// VIRTIO_F_VERSION_1, VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_NET_F_MRG_RXBUF.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 15;
/// VHOST_USER_PROTOCOL_F_MQ.
const PROTOCOL_FEATURES: u64 = 1;
const QUEUES: u64 = 128;

/// A back end that connects to (or listens on) one socket, again and again, until it is dropped.
pub struct Switch {
    shared: Arc<Mutex<Shared>>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
    connections: Receiver<()>,
}

#[derive(Default)]
struct Shared {
    is_ending: bool,
    connection: Option<UnixStream>,
}

impl Switch {
    /// Connects whenever somebody listens on `path`; it looks every few milliseconds, as the switch
    /// does.
    pub fn connecting(path: &Path) -> Self {
        let owned = path.to_owned();
        Self::start(path, move || match UnixStream::connect(&owned) {
            Ok(stream) => Ok(Some(stream)),
            Err(_) => {
                thread::sleep(Duration::from_millis(5));
                Ok(None)
            }
        })
    }

    /// Listens on `path`.
    pub fn listening(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        Self::start(path, move || listener.accept().map(|(stream, _)| Some(stream)))
    }

    fn start(
        path: &Path,
        mut next: impl FnMut() -> io::Result<Option<UnixStream>> + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (sender, connections) = mpsc::channel();
        let of_thread = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            while let Ok(stream) = next() {
                let mut shared = of_thread.lock().unwrap();
                if shared.is_ending {
                    return;
                }
                let Some(stream) = stream else { continue };
                shared.connection = Some(stream.try_clone().unwrap());
                drop(shared);
                // It ends with the connection, whoever closed it.
                let _ = serve(stream, &sender);
            }
        });
        Self { shared, path: path.to_owned(), thread: Some(thread), connections }
    }

    /// Returns when QEMU has asked the newest connection for its features.
    pub fn wait_for_connection(&self) {
        self.connections.recv_timeout(Duration::from_secs(60)).expect("QEMU comes");
    }

    /// Ends the present connection, as a switch that restarts does; the next one follows.
    pub fn hang_up(&self) {
        let shared = self.shared.lock().unwrap();
        shared.connection.as_ref().unwrap().shutdown(Shutdown::Both).unwrap();
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let mut shared = self.shared.lock().unwrap();
        shared.is_ending = true;
        if let Some(connection) = &shared.connection {
            let _ = connection.shutdown(Shutdown::Both);
        }
        drop(shared);
        // Wakes an accept; refused if nobody listens.
        let _ = UnixStream::connect(&self.path);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(mut stream: UnixStream, asked: &Sender<()>) -> io::Result<()> {
    let mut is_new = true;
    loop {
        let mut header = [0; 12];
        stream.read_exact(&mut header)?;
        let word = |i: usize| u32::from_le_bytes(header[4 * i..4 * i + 4].try_into().unwrap());
        let mut payload = vec![0; usize::try_from(word(2).min(4096)).unwrap()];
        stream.read_exact(&mut payload)?;
        let reply = match word(0) {
            GET_FEATURES => {
                if std::mem::take(&mut is_new) {
                    // Nobody may listen any more.
                    let _ = asked.send(());
                }
                FEATURES.to_le_bytes().to_vec()
            }
            GET_PROTOCOL_FEATURES => PROTOCOL_FEATURES.to_le_bytes().to_vec(),
            GET_QUEUE_NUM => QUEUES.to_le_bytes().to_vec(),
            GET_VRING_BASE => [&payload[..4], &[0; 4]].concat(),
            _ => continue,
        };
        let size = u32::try_from(reply.len()).unwrap();
        let words = [word(0), REPLY_FLAGS, size].map(u32::to_le_bytes);
        stream.write_all(&[words.concat(), reply].concat())?;
    }
}
