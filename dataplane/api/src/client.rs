//! A typed client of the API over slipwayd's UNIX socket.
//!
//! Each call opens a connection of its own: a call is rare, a connection to a UNIX socket costs
//! microseconds, and a restarted daemon needs no reconnecting.
//!
//! # Bounds
//! A call takes at most [`Client::with_timeout`]'s time; a reply has at most [`MAX_REPLY_BYTES`].

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use crate::{
    Attachment, AttachmentList, AttachmentSpec, Created, DEFAULT_SOCKET, ExplainReply,
    ExplainRequest, FdbEntry, FdbFilter, FdbList, Health, Mac, NetworkList, PmdList, Policy, Port,
    PortList, PortSpec, Rebalanced, StaticEntry, StaticEntrySpec, Stats, Version, Vni, VniList,
    VniSpec,
};

use crate::call::{DEFAULT_TIMEOUT, attachment_path, escape};

pub use crate::call::{ClientError, MAX_REPLY_BYTES};

type Result<T> = std::result::Result<T, ClientError>;

/// Talks to one slipwayd.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
}

impl Default for Client {
    /// The daemon at [`DEFAULT_SOCKET`].
    fn default() -> Self {
        Self::new(DEFAULT_SOCKET)
    }
}

impl Client {
    /// The daemon that listens on `socket`; nothing is opened yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), timeout: DEFAULT_TIMEOUT }
    }

    /// Lets one call take as long as `timeout`; 10 s otherwise.
    #[must_use]
    pub const fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The socket this client opens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Creates the port that `spec` names, or finds it with the same settings.
    ///
    /// # Errors
    /// As every call: [`ClientError::Refused`] with the switch's own words, or why it could not be
    /// asked.
    pub async fn create_port(&self, spec: &PortSpec) -> Result<(Port, Created)> {
        self.put(&format!("/v1/ports/{}", escape(&spec.name)), spec).await
    }

    /// All ports, by name.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn list_ports(&self) -> Result<PortList> {
        self.get("/v1/ports").await
    }

    /// One port.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn get_port(&self, name: &str) -> Result<Port> {
        self.get(&format!("/v1/ports/{}", escape(name))).await
    }

    /// Removes a port.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn delete_port(&self, name: &str) -> Result<()> {
        self.delete(&format!("/v1/ports/{}", escape(name))).await
    }

    /// Sets the policy of a port, which goes on meanwhile.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn put_policy(&self, port: &str, policy: &Policy) -> Result<(Port, Created)> {
        self.put(&format!("/v1/ports/{}/policy", escape(port)), policy).await
    }

    /// Takes the policy off a port: its guest may send and receive everything.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn delete_policy(&self, port: &str) -> Result<()> {
        self.delete(&format!("/v1/ports/{}/policy", escape(port))).await
    }

    /// Attaches interface `interface` of sandbox `owner`, or finds it attached with the same settings.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn attach(
        &self,
        owner: &str,
        interface: &str,
        spec: &AttachmentSpec,
    ) -> Result<(Attachment, Created)> {
        self.put(&attachment_path(owner, interface), spec).await
    }

    /// One attachment.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn get_attachment(&self, owner: &str, interface: &str) -> Result<Attachment> {
        self.get(&attachment_path(owner, interface)).await
    }

    /// All attachments, or those of one owner, in the order in which they were made.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn list_attachments(&self, owner: Option<&str>) -> Result<AttachmentList> {
        match owner {
            None => self.get("/v1/attachments").await,
            Some(owner) => self.get(&format!("/v1/attachments?owner={}", escape(owner))).await,
        }
    }

    /// Gives back address and port of an attachment. One that is not there is no error.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn detach(&self, owner: &str, interface: &str) -> Result<()> {
        self.delete(&attachment_path(owner, interface)).await
    }

    /// The networks that attachments may join.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn list_networks(&self) -> Result<NetworkList> {
        self.get("/v1/networks").await
    }

    /// Every segment that has settings or ports.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn list_vnis(&self) -> Result<VniList> {
        self.get("/v1/vnis").await
    }

    /// Sets all settings of segment `vni`.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn put_vni(&self, vni: u32, spec: &VniSpec) -> Result<(Vni, Created)> {
        self.put(&format!("/v1/vnis/{vni}"), spec).await
    }

    /// Forgets the settings of segment `vni`.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn delete_vni(&self, vni: u32) -> Result<()> {
        self.delete(&format!("/v1/vnis/{vni}")).await
    }

    /// Forwarding entries that match.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn list_fdb(&self, filter: &FdbFilter) -> Result<FdbList> {
        let pairs = [
            ("vni", filter.vni.map(|vni| vni.to_string())),
            ("mac", filter.mac.map(|mac| mac.to_string())),
            ("port", filter.port.clone()),
            ("kind", filter.kind.map(|kind| kind.to_string())),
            ("limit", filter.limit.map(|limit| limit.to_string())),
        ];
        let query: Vec<String> = pairs
            .into_iter()
            .filter_map(|(key, value)| Some(format!("{key}={}", escape(&value?))))
            .collect();
        self.get(&format!("/v1/fdb?{}", query.join("&"))).await
    }

    /// Adds a static entry, or finds it.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn add_fdb(&self, entry: &StaticEntry) -> Result<(FdbEntry, Created)> {
        let path = format!("/v1/fdb/{}/{}", entry.vni, entry.mac);
        self.put(&path, &StaticEntrySpec { port: entry.port.clone() }).await
    }

    /// Removes an entry.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn delete_fdb(&self, vni: u32, mac: Mac) -> Result<()> {
        self.delete(&format!("/v1/fdb/{vni}/{mac}")).await
    }

    /// The counters of every port.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn stats(&self) -> Result<Stats> {
        self.get("/v1/stats").await
    }

    /// The polling threads.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn pmds(&self) -> Result<PmdList> {
        self.get("/v1/pmds").await
    }

    /// Has vrings moved between the polling threads where that pays.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn rebalance(&self) -> Result<Rebalanced> {
        let (_, reply) = self.call(Method::POST, "/v1/pmds/rebalance", None::<&()>, &[]).await?;
        Ok(reply)
    }

    /// Asks each stage of the pipeline what it would do with a frame.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn explain(&self, request: &ExplainRequest) -> Result<ExplainReply> {
        let (_, reply) = self.call(Method::POST, "/v1/explain", Some(request), &[]).await?;
        Ok(reply)
    }

    /// Whether the switch does its work; a degraded one is an answer, not an error.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn health(&self) -> Result<Health> {
        let also = [StatusCode::SERVICE_UNAVAILABLE];
        let (_, health) = self.call(Method::GET, "/v1/health", None::<&()>, &also).await?;
        Ok(health)
    }

    /// Which daemon answers.
    ///
    /// # Errors
    /// See [`Client::create_port`].
    pub async fn version(&self) -> Result<Version> {
        self.get("/v1/version").await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let (_, reply) = self.call(Method::GET, path, None::<&()>, &[]).await?;
        Ok(reply)
    }

    async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(T, Created)> {
        let (status, reply) = self.call(Method::PUT, path, Some(body), &[]).await?;
        let is_new = status == StatusCode::CREATED;
        Ok((reply, if is_new { Created::New } else { Created::Existing }))
    }

    async fn delete(&self, path: &str) -> Result<()> {
        let (status, body) = self.exchange(Method::DELETE, path, None).await?;
        if status.is_success() {
            return Ok(());
        }
        Err(ClientError::refused(path, status.as_u16(), &body))
    }

    /// One request and its reply; a status in `also` carries a reply, not a refusal.
    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        also: &[StatusCode],
    ) -> Result<(StatusCode, T)> {
        let body = body.map(serde_json::to_vec).transpose();
        let body = body.map_err(|source| ClientError::no_json(&source))?;
        let (status, reply) = self.exchange(method, path, body).await?;
        // Another reply under one of the statuses of `also` is a refusal after all.
        match serde_json::from_slice(&reply) {
            Ok(value) if status.is_success() || also.contains(&status) => Ok((status, value)),
            Err(source) if status.is_success() => {
                Err(ClientError::not_understood(path, status.as_u16(), Some(source)))
            }
            _ => Err(ClientError::refused(path, status.as_u16(), &reply)),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<(StatusCode, Bytes)> {
        match tokio::time::timeout(self.timeout, self.exchange_untimed(method, path, body)).await {
            Ok(result) => result,
            Err(_) => Err(ClientError::Timeout { path: path.to_owned(), after: self.timeout }),
        }
    }

    async fn exchange_untimed(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<(StatusCode, Bytes)> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|error| ClientError::unreachable(&self.socket, error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| ClientError::broken(path, e))?;
        let mut request = Request::builder().method(method).uri(path).header(HOST, "localhost");
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|e| ClientError::broken(path, e))?;
        let exchange = async {
            let reply =
                sender.send_request(request).await.map_err(|e| ClientError::broken(path, e))?;
            let status = reply.status();
            let body = Limited::new(reply.into_body(), MAX_REPLY_BYTES);
            let body = body.collect().await.map_err(|source| ClientError::broken(path, source))?;
            Ok((status, body.to_bytes()))
        };
        // The connection moves the bytes; driven here, it needs no task that could outlive the call.
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            result = &mut exchange => result,
            // It ends first when the server closes after its reply, or breaks off before it; the
            // exchange knows which.
            _ = connection => exchange.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_missing_socket_and_a_dead_one_are_told_apart_and_ask_for_slipwayd() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("api.sock");
        let missing = Client::new(&path).version().await.expect_err("missing");
        assert!(matches!(missing, ClientError::NoSocket(_)), "{missing:?}");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
        let dead = Client::new(&path).version().await.expect_err("dead");
        assert!(matches!(dead, ClientError::NoListener(_)), "{dead:?}");
        for error in [missing, dead] {
            assert!(error.to_string().contains("is slipwayd running"), "{error}");
        }
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn a_daemon_that_never_answers_ends_in_a_time_out() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("api.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).expect("binds");
        let client = Client::new(&path).with_timeout(Duration::from_millis(30));
        let error = client.version().await.expect_err("silence");
        assert!(matches!(error, ClientError::Timeout { .. }), "{error:?}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_answer_that_is_not_http_is_a_broken_connection() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("api.sock");
        let listener = tokio::net::UnixListener::bind(&path).expect("binds");
        let server = async {
            let (stream, _) = listener.accept().await.expect("accepts");
            stream.writable().await.expect("writable");
            stream.try_write(b"220 smtp ready\r\n").expect("writes");
            drop(stream);
        };
        let client = Client::new(&path);
        let (answer, ()) = tokio::join!(client.version(), server);
        assert!(matches!(answer, Err(ClientError::Broken { .. })), "{answer:?}");
    }
}
