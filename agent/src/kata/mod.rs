//! The agent of a pod: serves the Kata agent protocol.
//!
//! ```text
//! endpoint --> ttrpc server --> service --> sandbox --> container --> process --> stdio
//!                                             |  `--> storage, device, namespaces, oom
//!                                             `----> network, details, copyfile
//! ```
//!
//! # Not served
//! Policies, iptables, swap, the memory agent, memory hot-plug by probe, growing volumes, and
//! diagnostic data: the answer is `NOT_FOUND` ("... is not supported"), as with Kata's agents that
//! are built without, or `UNIMPLEMENTED` for a method nobody has heard of. There is no seccomp in containers, and no
//! device filter: the machine is the boundary.
//!
//! # Threads
//! One thread runs all calls; what may block (mounts, cgroups, the start of a container) runs on
//! tokio's threads for that. Containers are made by a process of their own, see [`crate::runtime`].

use std::fs::File;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::stream::unfold;
use kata_agent_protocol::agent_ttrpc::create_agent_service;
use kata_agent_protocol::health_ttrpc::create_health;
use tokio::net::UnixStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use sandbox::Sandbox;
use service::Service;
pub use sys::default_sigpipe;

use crate::port::pump;

mod cgroup;
mod container;
mod copyfile;
mod details;
mod device;
mod error;
mod mounting;
mod namespaces;
mod network;
mod oom;
mod paths;
mod process;
mod reaper;
mod sandbox;
mod service;
mod spec;
mod stats;
mod stdio;
mod storage;
mod sys;

/// How long the answer to DestroySandbox has to reach the host before the agent ends.
const PARTING: Duration = Duration::from_millis(200);

/// Where the host finds the agent.
#[derive(Debug)]
pub enum Endpoint {
    /// An address of ttrpc: `vsock://-1:1024`, `unix:///path`.
    Address(String),
    /// A virtio-serial port.
    Port(File),
}

impl Endpoint {
    fn listen(self) -> Result<Listener> {
        match self {
            Self::Address(address) => {
                Listener::bind(&address).with_context(|| format!("Failed to listen on {address}"))
            }
            Self::Port(port) => {
                let (sender, accepted) = unbounded_channel();
                thread::spawn(move || {
                    if let Err(error) = pump(&port, &sender) {
                        eprintln!("slipway: Failed to read the agent's port: {error}");
                    }
                });
                Ok(Listener::new(unfold(accepted, async |mut accepted| {
                    let connection = accepted.recv().await?;
                    Some((connection.and_then(UnixStream::from_std), accepted))
                })))
            }
        }
    }
}

/// Serves on every endpoint that comes, until the sandbox is destroyed.
pub fn serve(mut endpoints: UnboundedReceiver<Endpoint>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("Failed to start tokio")?.block_on(async {
        let sandbox = Arc::new(Sandbox::new()?);
        let service = Arc::new(Service::new(Arc::clone(&sandbox)));
        let mut servers = Vec::new();
        loop {
            let endpoint = tokio::select! {
                Some(endpoint) = endpoints.recv() => endpoint,
                () = sandbox.ended.notified() => break,
            };
            // A server has one listener.
            let mut server = Server::new()
                .add_listener(endpoint.listen()?)
                .register_service(create_agent_service(Arc::clone(&service) as _))
                .register_service(create_health(Arc::clone(&service) as _));
            server.start().await.context("Failed to serve the Kata agent protocol")?;
            servers.push(server);
        }
        tokio::time::sleep(PARTING).await;
        Ok(())
    })
}
