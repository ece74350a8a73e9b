//! The server process of a pod: started by `start` with its socket as standard input, ends when its
//! last container is gone and containerd says so.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use containerd_shim_protos::ttrpc::r#async::Server;
use containerd_shim_protos::ttrpc::r#async::transport::Listener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::args::Args;
use crate::bootstrap::TTRPC_ADDRESS;
use crate::events::Events;
use crate::host::Host;
use crate::pod::Pod;
use crate::{sandbox_api, task, telemetry};

/// How long the last events may take.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);
/// How long the answer to the last call may take to be sent.
const ANSWER_PAUSE: Duration = Duration::from_millis(50);
/// How long a shim may have nothing to do: between two calls for one pod a containerd that starts hundreds
/// of pods takes less.
const IDLE_LIMIT: Duration = Duration::from_secs(30);
/// Calls wait for the VM and the agent, not for processors.
const WORKERS: usize = 2;

/// Serves the pod `args.id` until it is over.
///
/// # Errors
/// Standard input is no socket, or the process cannot be set up.
pub fn serve(args: &Args) -> Result<()> {
    // Fails for the leader of a process group, which is as far from containerd's session.
    nix::unistd::setsid().ok();
    slipway_api::confine::refuse_netlink().context("Failed to give up netlink sockets")?;
    let bundle = std::env::current_dir().context("The working directory is gone")?;
    telemetry::to_fifo(&bundle, args.debug);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .context("Failed to start threads")?;
    let outcome = runtime.block_on(run(args));
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// Returns when the pod has been without anything for `limit`. A containerd that was killed forgets
/// the shim of a pod that it had only begun to make, or had all but removed.
pub async fn forsaken(pod: &Pod, limit: Duration) {
    const LOOKS: u32 = 10;
    let mut idle = 0;
    while idle < LOOKS {
        tokio::time::sleep(limit / LOOKS).await;
        idle = if pod.is_idle().await { idle + 1 } else { 0 };
    }
}

async fn run(args: &Args) -> Result<()> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned();
    let socket = UnixListener::from(socket.context("There is no socket as standard input")?);
    let address = socket.local_addr().context("Standard input is no socket")?;
    let path = address.as_pathname().map(PathBuf::from);
    socket.set_nonblocking(true).context("Failed to set up the socket")?;
    let listener = Listener::from(
        tokio::net::UnixListener::from_std(socket).context("Failed to listen on standard input")?,
    );

    let ttrpc = std::env::var(TTRPC_ADDRESS).unwrap_or_default();
    let ttrpc = if ttrpc.is_empty() { format!("{}.ttrpc", args.address) } else { ttrpc };
    let (events, _sender) = Events::start(ttrpc, args.namespace.clone());
    let pod = Pod::new(args.id.clone(), Host::of(args), events.clone());
    let exit = watch::Sender::new(false);
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(task::services(&pod, &exit))
        .register_service(sandbox_api::service(&pod, &exit));
    server.start().await.context("Failed to serve")?;
    tracing::info!(pod = %args.id, version = env!("CARGO_PKG_VERSION"), "the shim serves");

    let mut exits = exit.subscribe();
    let mut terminate = signal(SignalKind::terminate()).context("Failed to watch for SIGTERM")?;
    tokio::select! {
        _ = exits.wait_for(|exit| *exit) => {}
        _ = terminate.recv() => tracing::warn!("SIGTERM: the pod is taken down"),
        () = forsaken(&pod, IDLE_LIMIT) => tracing::warn!("nobody wants anything; the shim ends"),
    }
    tokio::time::sleep(ANSWER_PAUSE).await;
    if let Err(error) = pod.close().await {
        tracing::error!(error = format!("{error:#}"), "the pod left something behind");
    }
    events.flush(FLUSH_LIMIT).await;
    if let Some(path) = path {
        drop(std::fs::remove_file(path));
    }
    drop(server.shutdown().await);
    Ok(())
}
