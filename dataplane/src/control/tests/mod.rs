//! Tests of the API over a real UNIX socket, with a fake switch behind it.

mod client;
mod document;
mod hostile;
mod schema;

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::Arc,
};

use serde_json::Value;
use slipway_api::{ErrorReply, PortDefaults};

use super::{fake::FakeSwitch, peer::PeerPolicy, server::ApiServer, socket::ApiSocket};

/// A served fake switch; all of it ends with the value.
struct Rig {
    switch: Arc<FakeSwitch>,
    socket: PathBuf,
    server: Option<ApiServer>,
    folder: tempfile::TempDir,
}

impl Rig {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("tempdir");
        let socket = folder.path().join("api.sock");
        let switch = Arc::new(fake_switch());
        let listening = ApiSocket::bind(&socket, None).expect("binds");
        let control = Arc::clone(&switch) as Arc<dyn super::Control>;
        let server = ApiServer::start(listening, PeerPolicy::new(None), control).expect("starts");
        Self { switch, socket, server: Some(server), folder }
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).expect("connects")
    }

    /// Sends one request with a JSON body, or none.
    fn ask(&self, method: &str, path: &str, body: Option<&str>) -> Answer {
        let body = body.map_or_else(String::new, |body| {
            format!(
                "content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
        });
        let end = if body.is_empty() { "\r\n" } else { "" };
        self.send(&format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{body}{end}"
        ))
    }

    /// Sends bytes and reads until the server closes.
    fn send(&self, request: &str) -> Answer {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).expect("sends");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("answers");
        Answer::parse(&text)
    }
}

fn fake_switch() -> FakeSwitch {
    FakeSwitch::new(PortDefaults {
        socket_dir: "/run/slipway/ports".into(),
        mac_quota: 64,
        max_queue_pairs: 16,
    })
}

/// A reply as it came.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: String,
    body: String,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").expect("has headers");
        let (first, headers) = head.split_once("\r\n").expect("has a status line");
        let status = first.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("has a status");
        Self { status, headers: headers.to_lowercase(), body: body.to_owned() }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The refusal, which must be whole: status as the code says, JSON, a remedy.
    fn refusal(&self) -> slipway_api::ApiError {
        let ErrorReply { error } =
            serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        assert_eq!(error.code.http_status(), self.status, "{error:?}");
        assert!(self.headers.contains("content-type: application/json"), "{self:?}");
        assert!(!error.message.is_empty() && !error.remedy.is_empty(), "{error:?}");
        error
    }
}
