//! HTTP/1.1 over Cloud Hypervisor's UNIX socket: one connection per request.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

const MAX_ANSWER_BYTES: usize = 1 << 20;
const REPORTED_CHARS: usize = 500;

/// Why a request got no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Nobody listens.
    #[error("Failed to connect to the API socket {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// No answer in time. The request may still take effect.
    #[error("'{endpoint}' was not answered within {limit:?}")]
    Timeout {
        /// The end point, without the prefix.
        endpoint: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// It refused.
    #[error("'{endpoint}' was refused with status {status}: {message}")]
    Refused {
        /// The end point.
        endpoint: &'static str,
        /// HTTP status code.
        status: u16,
        /// The body, cut to 500 characters.
        message: String,
    },
    /// The peer does not speak HTTP, broke off, or sent too much.
    #[error("'{endpoint}' was answered by something that is no HTTP/1.1, or too much of it")]
    Protocol {
        /// The end point.
        endpoint: &'static str,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The body is not what the API description says.
    #[error("The answer to '{endpoint}' makes no sense")]
    Answer {
        /// The end point.
        endpoint: &'static str,
        /// The cause.
        source: serde_json::Error,
    },
}

/// The API behind one socket.
#[derive(Clone, Debug)]
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// GET, for an answer with a body.
    pub async fn get<T: DeserializeOwned>(
        &self,
        endpoint: &'static str,
        limit: Duration,
    ) -> Result<T, ApiError> {
        let body = self.request(Method::GET, endpoint, Bytes::new(), limit).await?;
        serde_json::from_slice(&body).map_err(|source| ApiError::Answer { endpoint, source })
    }

    /// PUT without a body.
    pub async fn put(&self, endpoint: &'static str, limit: Duration) -> Result<(), ApiError> {
        self.request(Method::PUT, endpoint, Bytes::new(), limit).await.map(drop)
    }

    /// PUT of a JSON body.
    pub async fn put_json(
        &self,
        endpoint: &'static str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<(), ApiError> {
        let body =
            serde_json::to_vec(body).map_err(|source| ApiError::Answer { endpoint, source })?;
        self.request(Method::PUT, endpoint, body.into(), limit).await.map(drop)
    }

    /// PUT of a JSON body, for an answer with a body.
    pub async fn put_for<T: DeserializeOwned>(
        &self,
        endpoint: &'static str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<T, ApiError> {
        let answer = |source| ApiError::Answer { endpoint, source };
        let body = serde_json::to_vec(body).map_err(answer)?;
        let body = self.request(Method::PUT, endpoint, body.into(), limit).await?;
        serde_json::from_slice(&body).map_err(answer)
    }

    async fn request(
        &self,
        method: Method,
        endpoint: &'static str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Bytes, ApiError> {
        let exchange = self.exchange(method, endpoint, body);
        let outcome = tokio::time::timeout(limit, exchange).await;
        outcome.unwrap_or(Err(ApiError::Timeout { endpoint, limit }))
    }

    async fn exchange(
        &self,
        method: Method,
        endpoint: &'static str,
        body: Bytes,
    ) -> Result<Bytes, ApiError> {
        let protocol = |source| ApiError::Protocol { endpoint, source };
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ApiError::Connect { path: self.socket.clone(), source })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| protocol(error.into()))?;
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v1/{endpoint}"))
            .header("Host", "localhost")
            .header("Content-Type", "application/json")
            .body(Full::new(body))
            .map_err(|error| protocol(error.into()))?;
        let answer = async {
            let response =
                sender.send_request(request).await.map_err(|error| protocol(error.into()))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
            Ok((status, body.map_err(protocol)?.to_bytes()))
        };
        // The connection must be driven while we wait, and is dropped with this future.
        let mut connection = std::pin::pin!(connection);
        let mut answer = std::pin::pin!(answer);
        let (status, body) = tokio::select! {
            answer = &mut answer => answer?,
            // The peer closed, after its answer or instead of it; `answer` knows.
            _ = &mut connection => answer.await?,
        };
        if matches!(status, StatusCode::OK | StatusCode::NO_CONTENT) {
            return Ok(body);
        }
        let message = String::from_utf8_lossy(&body).chars().take(REPORTED_CHARS).collect();
        Err(ApiError::Refused { endpoint, status: status.as_u16(), message })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Asks a server that answers whatever it is asked with `answer`, in raw bytes.
    async fn ask(answer: Vec<u8>, limit: Duration) -> Result<serde_json::Value, ApiError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let n = stream.read(&mut request).await.unwrap();
            // The client may be fed up before the end.
            let _ = stream.write_all(&answer).await;
            if answer.is_empty() {
                let _ = stream.read(&mut request).await;
            }
            String::from_utf8_lossy(&request[..n]).into_owned()
        });
        let outcome = Client::new(&path).get("vm.info", limit).await;
        assert!(server.await.unwrap().starts_with("GET /api/v1/vm.info HTTP/1.1\r\n"));
        outcome
    }

    #[tokio::test]
    async fn a_refusal_carries_status_and_words() {
        let answer = b"HTTP/1.1 500 Oops\r\nContent-Length: 11\r\n\r\nno such VM!".to_vec();
        let error = ask(answer, LIMIT).await.unwrap_err();
        assert_eq!(error.to_string(), "'vm.info' was refused with status 500: no such VM!");
    }

    #[tokio::test]
    async fn a_silent_server_costs_a_time_limit() {
        let error = ask(Vec::new(), Duration::from_millis(20)).await.unwrap_err();
        assert!(matches!(error, ApiError::Timeout { .. }), "{error}");
    }

    #[tokio::test]
    async fn endless_or_broken_answers_are_refused() {
        let mut endless = b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n".to_vec();
        endless.resize(endless.len() + 2 * MAX_ANSWER_BYTES, b' ');
        let broken = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}".to_vec();
        for answer in [endless, broken, b"SSH-2.0\r\n".to_vec()] {
            let error = ask(answer, LIMIT).await.unwrap_err();
            assert!(matches!(error, ApiError::Protocol { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn a_body_that_is_no_json_is_refused() {
        let error = ask(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{".to_vec(), LIMIT)
            .await
            .unwrap_err();
        assert!(matches!(error, ApiError::Answer { .. }), "{error}");
    }
}
