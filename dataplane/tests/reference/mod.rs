//! A small vhost-user switch made of other people's parts: the message handler of `vhost` and the
//! queues of `virtio-queue`. Slow, simple, and independent of both the guest and the switch.
//!
//! One thread serves all ports. [`Wiring`] says where a frame that came in on a port goes out; it
//! stays on its queue pair, and waits when the receiver has no buffers. Nothing is ever lost but
//! frames too long for a receiver without mergeable buffers.

mod device;
mod handler;

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vhost::vhost_user::BackendReqHandler;

use handler::Device;

/// Where frames go.
#[derive(Debug, Clone, Copy)]
pub enum Wiring {
    /// Back to the port they came from.
    Echo,
    /// To the other port of the pair: 0 and 1, 2 and 3, ...
    Cross,
}

impl Wiring {
    fn to(self, from: usize) -> usize {
        match self {
            Self::Echo => from,
            Self::Cross => from ^ 1,
        }
    }
}

/// A running reference switch; stops when dropped.
pub struct Reference {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    sockets: Vec<PathBuf>,
}

impl Reference {
    /// Listens on one socket per port in `dir`, and offers `features` there.
    pub fn start(dir: &Path, ports: usize, wiring: Wiring, features: u64) -> Self {
        let sockets: Vec<_> = (0..ports).map(|port| dir.join(format!("port{port}"))).collect();
        let bind = |path: &PathBuf| Port::new(Some(UnixListener::bind(path).unwrap()), features);
        Self::spawn(sockets.iter().map(bind).collect(), wiring, sockets)
    }

    fn spawn(ports: Vec<Port>, wiring: Wiring, sockets: Vec<PathBuf>) -> Self {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let stop = Arc::new(EventFd::from_value_and_flags(0, flags).unwrap());
        let mut switch = Switch { ports, wiring };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || switch.run(&stopped));
        Self { stop, thread: Some(thread), sockets }
    }

    /// One port that echoes, with the VMM as the server at `path`.
    pub fn dial(path: &Path, features: u64) -> Self {
        let mut port = Port::new(None, features);
        port.attach(UnixStream::connect(path).unwrap());
        Self::spawn(vec![port], Wiring::Echo, Vec::new())
    }

    /// The socket of `port`.
    pub fn socket(&self, port: usize) -> &Path {
        &self.sockets[port]
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        self.stop.write(1).unwrap();
        let outcome = self.thread.take().unwrap().join();
        // A panic of the switch is the test's failure, unless the test already failed.
        if !std::thread::panicking() {
            outcome.unwrap();
        }
    }
}

struct Connection {
    handler: BackendReqHandler<Mutex<Device>>,
    stream: UnixStream,
}

struct Port {
    listener: Option<UnixListener>,
    device: Arc<Mutex<Device>>,
    connection: Option<Connection>,
    features: u64,
}

impl Port {
    fn new(listener: Option<UnixListener>, features: u64) -> Self {
        let device = Arc::new(Mutex::new(Device::new(features)));
        Self { listener, device, connection: None, features }
    }

    fn accept(&mut self) {
        let (stream, _) = self.listener.as_ref().unwrap().accept().unwrap();
        self.attach(stream);
    }

    fn attach(&mut self, stream: UnixStream) {
        self.device = Arc::new(Mutex::new(Device::new(self.features)));
        let handler =
            BackendReqHandler::from_stream(stream.try_clone().unwrap(), Arc::clone(&self.device));
        self.connection = Some(Connection { handler, stream });
    }
}

struct Switch {
    ports: Vec<Port>,
    wiring: Wiring,
}

impl Switch {
    fn run(&mut self, stop: &EventFd) {
        loop {
            let events = self.wait(stop);
            if events.contains(&Event::Stop) {
                return;
            }
            for event in events {
                match event {
                    Event::Socket(port) => self.serve(port),
                    Event::Kick(port, ring) => {
                        self.ports[port].device.lock().unwrap().rings[ring].start();
                    }
                    Event::Stop => {}
                }
            }
            self.forward();
        }
    }

    fn wait(&self, stop: &EventFd) -> Vec<Event> {
        let devices: Vec<_> = self.ports.iter().map(|port| port.device.lock().unwrap()).collect();
        let mut sources = vec![Event::Stop];
        let mut fds = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        for (index, (port, device)) in self.ports.iter().zip(&devices).enumerate() {
            let connected = port.connection.as_ref().map(|connection| connection.stream.as_fd());
            let listening = port.listener.as_ref().map(AsFd::as_fd);
            if let Some(socket) = connected.or(listening) {
                sources.push(Event::Socket(index));
                fds.push(PollFd::new(socket, PollFlags::POLLIN));
            }
            for (ring_index, ring) in device.rings.iter().enumerate() {
                if let Some(kick) = &ring.kick {
                    sources.push(Event::Kick(index, ring_index));
                    fds.push(PollFd::new(kick.as_fd(), PollFlags::POLLIN));
                }
            }
        }
        poll(&mut fds, PollTimeout::NONE).unwrap();
        let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        sources.into_iter().zip(&fds).filter(|(_, fd)| ready(fd)).map(|(event, _)| event).collect()
    }

    fn serve(&mut self, index: usize) {
        let port = &mut self.ports[index];
        match &mut port.connection {
            None => port.accept(),
            Some(connection) => {
                if connection.handler.handle_request().is_err() {
                    port.connection = None;
                    port.device = Arc::new(Mutex::new(Device::new(port.features)));
                }
            }
        }
    }

    /// Moves frames until no ring has anything to do.
    fn forward(&mut self) {
        loop {
            let mut moved = false;
            for from in 0..self.ports.len() {
                let frames = self.ports[from].device.lock().unwrap().take_frames();
                moved |= !frames.is_empty();
                let mut to = self.ports[self.wiring.to(from)].device.lock().unwrap();
                for (pair, frame) in frames {
                    to.queue(pair, frame);
                }
            }
            for port in &self.ports {
                moved |= port.device.lock().unwrap().deliver();
            }
            if !moved {
                return;
            }
        }
    }
}

#[derive(PartialEq)]
enum Event {
    Stop,
    Socket(usize),
    Kick(usize, usize),
}
