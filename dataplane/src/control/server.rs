//! Serves the API on its UNIX socket.
//!
//! ```text
//! accept -> peer credentials -> a task per connection: HTTP/1.1 -> router
//!              `- refused: every request of the connection is answered 403
//! ```
//!
//! # Bounds
//! At most [`MAX_CONNECTIONS`] at a time; more wait in the listen queue. Headers and bodies have time
//! limits and sizes; a connection, however busy, ends after [`CONNECTION_LIFETIME`], so a peer that
//! stops reading cannot keep its place.
//!
//! # Threads
//! One thread, `slipway-api`, with a current-thread tokio runtime: all waiting is asynchronous, the
//! calls to the switch are not.

use std::{future::Future, io, pin::pin, sync::Arc, thread, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use slipway_api::{ApiError, ErrorCode};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, oneshot, watch},
    task::JoinSet,
};

use super::{
    Control,
    peer::{Peer, PeerPolicy},
    refusal::Refusal,
    routes::{self, Api},
    socket::ApiSocket,
};

/// Connections served at a time.
const MAX_CONNECTIONS: usize = 64;
/// From the first byte of a request, or the end of the last one, to the end of its headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// The most bytes of a request's headers; also how much is buffered per connection.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// How long one connection may be used; clients connect again.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(300);
/// How long requests in hand may take once the connection or the daemon is to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait after a failed accept, e.g. when file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The API's thread. Dropping it stops serving, lets requests in hand end, and removes the socket.
#[derive(Debug)]
pub struct ApiServer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl ApiServer {
    /// Starts to serve `control` on `socket` to the peers that `policy` lets in.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be made.
    pub fn start(
        socket: ApiSocket,
        policy: PeerPolicy,
        control: Arc<dyn Control>,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _context = runtime.enter();
            UnixListener::from_std(socket.listener().try_clone()?)?
        };
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name("slipway-api".into()).spawn(move || {
            runtime.block_on(serve(listener, policy, control, async {
                // An error means that the sender is gone, which is the same request.
                let _ = stopped.await;
            }));
            drop(socket);
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// Serves until `shutdown` is done, then lets requests in hand end.
pub async fn serve(
    listener: UnixListener,
    policy: PeerPolicy,
    control: Arc<dyn Control>,
    shutdown: impl Future<Output = ()>,
) {
    serve_counted(listener, policy, Api { control, counters: Arc::default() }, shutdown).await;
}

pub(super) async fn serve_counted(
    listener: UnixListener,
    policy: PeerPolicy,
    api: Api,
    shutdown: impl Future<Output = ()>,
) {
    let closed = refusing_router();
    let counters = Arc::clone(&api.counters);
    let open = routes::router(api);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (end, _) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = accepted => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "Failed to accept a connection to the API");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let router = if is_allowed(&stream, &policy) {
            &open
        } else {
            counters.peer_refused();
            &closed
        };
        let (router, end) = (router.clone(), end.subscribe());
        connections.spawn(async move {
            let _place = place;
            serve_connection(stream, router, end).await;
        });
    }
    drop(end);
    let drained = async { while connections.join_next().await.is_some() {} };
    // What is left after the time-out is dropped with the set.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained).await;
}

fn is_allowed(stream: &UnixStream, policy: &PeerPolicy) -> bool {
    match stream.peer_cred() {
        Ok(cred) => policy.allows(Peer { uid: cred.uid(), gid: cred.gid() }),
        Err(_) => false,
    }
}

/// Answers everything with 403.
fn refusing_router() -> Router {
    Router::new().fallback(async || {
        Refusal(ApiError::new(
            ErrorCode::Forbidden,
            "Your user may not use this API",
            "Run as root or as slipwayd's own user, or join the `group` set under [api]",
        ))
    })
}

async fn serve_connection(stream: UnixStream, router: Router, mut end: watch::Receiver<()>) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    tokio::select! {
        // Errors are the peer's: it went away or did not speak HTTP. hyper has answered if it could.
        _ = connection.as_mut() => return,
        () = tokio::time::sleep(CONNECTION_LIFETIME) => {}
        // Only dropped, never sent: the server is to end.
        _ = end.changed() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, connection).await;
}
