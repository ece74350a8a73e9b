//! The agent of a pod: serves the Kata agent protocol.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kata_agent_protocol::agent_ttrpc::create_agent_service;
use kata_agent_protocol::health_ttrpc::create_health;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use sandbox::Sandbox;
use service::Service;

mod cgroup;
mod container;
mod device;
mod error;
mod mounting;
mod namespaces;
mod oom;
mod paths;
mod process;
mod reaper;
mod sandbox;
mod service;
mod spec;
mod stdio;
mod storage;
mod sys;

/// How long the answer to DestroySandbox has to reach the host before the agent ends.
const PARTING: Duration = Duration::from_millis(200);

/// Serves on all listeners until the sandbox is destroyed.
pub async fn serve(listeners: Vec<Listener>) -> Result<()> {
    let sandbox = Arc::new(Sandbox::new()?);
    let service = Arc::new(Service::new(Arc::clone(&sandbox)));
    let mut servers = Vec::new();
    // A server has one listener.
    for listener in listeners {
        let mut server = Server::new()
            .add_listener(listener)
            .register_service(create_agent_service(Arc::clone(&service) as _))
            .register_service(create_health(Arc::clone(&service) as _));
        server.start().await.context("Failed to serve the Kata agent protocol")?;
        servers.push(server);
    }
    sandbox.ended.notified().await;
    tokio::time::sleep(PARTING).await;
    Ok(())
}
