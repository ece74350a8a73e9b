//! Peers that send nonsense, too much, too slowly, or should not be here.

use std::{
    io::{Read, Write},
    sync::Arc,
};

use slipway_api::{ErrorCode, MAX_REQUEST_BYTES};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

use super::{Answer, Rig, fake_switch};
use crate::control::{
    peer::PeerPolicy,
    routes::Api,
    server::{serve, serve_counted},
};

#[test]
fn an_unknown_route_and_a_wrong_method_are_refused_in_json() {
    let rig = Rig::start();
    for path in ["/", "/v1", "/v2/ports", "/v1/ports/a/b", "/v1/ports/", "/%00", "/v1//ports"] {
        assert_eq!(rig.ask("GET", path, None).refusal().code, ErrorCode::NoSuchRoute, "{path}");
    }
    for (method, path) in [
        ("POST", "/v1/ports/a"),
        ("DELETE", "/v1/stats"),
        ("BREW", "/v1/ports"),
        ("PATCH", "/metrics"),
    ] {
        let answer = rig.ask(method, path, None);
        assert_eq!(answer.refusal().code, ErrorCode::MethodNotAllowed, "{method} {path}");
        assert!(answer.headers.contains("allow: "), "{answer:?}");
    }
}

#[test]
fn a_body_that_is_too_long_is_refused_announced_or_not() {
    let rig = Rig::start();
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(MAX_REQUEST_BYTES));
    assert_eq!(rig.ask("PUT", "/v1/ports/a", Some(&long)).refusal().code, ErrorCode::BodyTooLarge);
    let chunked = format!(
        "PUT /v1/ports/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n\
         {:x}\r\n{long}\r\n0\r\n\r\n",
        long.len()
    );
    assert_eq!(rig.send(&chunked).refusal().code, ErrorCode::BodyTooLarge);
}

#[test]
fn a_body_that_is_not_announced_as_json_is_refused() {
    let rig = Rig::start();
    for header in ["", "content-type: text/plain\r\n", "content-type: \u{fc}\r\n"] {
        let request = format!(
            "PUT /v1/ports/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}content-length: 2\r\n\r\n{{}}"
        );
        let error = rig.send(&request).refusal();
        assert_eq!(error.code, ErrorCode::UnsupportedMediaType, "{header}");
        assert!(error.remedy.contains("application/json"));
    }
    let with_charset = "PUT /v1/ports/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
        content-type: Application/JSON; charset=utf-8\r\ncontent-length: 2\r\n\r\n{}";
    assert_eq!(rig.send(with_charset).status, 201);
}

#[test]
fn bodies_that_are_no_request_are_refused_and_change_nothing() {
    let rig = Rig::start();
    let deep = format!(r#"{{"mac":{}{}}}"#, "[".repeat(20_000), "]".repeat(20_000));
    let bodies = [
        "",
        "null",
        "[]",
        "7",
        "\"a\"",
        "{",
        "{}}",
        "{\"vni\":null}",
        "{\"name\":\"b\"}",
        "\0",
        &deep,
    ];
    for body in bodies {
        let error = rig.ask("PUT", "/v1/ports/a", Some(body)).refusal();
        let expected = [ErrorCode::MalformedJson, ErrorCode::InvalidValue];
        assert!(expected.contains(&error.code), "{body}: {error:?}");
    }
    assert_eq!(rig.ask("GET", "/v1/ports", None).body, r#"{"ports":[]}"#);
}

#[test]
fn paths_and_queries_that_make_no_sense_are_refused() {
    let rig = Rig::start();
    let cases = [
        ("PUT", "/v1/vnis/16777216", Some("{}"), "vni"),
        ("PUT", "/v1/vnis/-1", Some("{}"), "vni"),
        ("DELETE", "/v1/vnis/0x7", None, "vni"),
        ("DELETE", "/v1/fdb/7/02:00", None, "mac"),
        ("PUT", "/v1/ports/a%2Fb", Some("{}"), "name"),
        ("PUT", "/v1/ports/%ff", Some("{}"), "path"),
        ("GET", "/v1/fdb?vni=x", None, "query"),
        ("GET", "/v1/fdb?mac=x", None, "query"),
        ("GET", "/v1/fdb?limit=0", None, "limit"),
        ("GET", "/v1/fdb?vni=16777216", None, "vni"),
        ("GET", "/v1/attachments?owner=a%2Fb", None, "owner"),
        ("PUT", "/v1/attachments/a%2Fb/eth0", Some("{}"), "owner"),
        ("PUT", "/v1/attachments/a/eth%2F0", Some("{}"), "interface"),
        ("PUT", "/v1/attachments/%2E%2E/eth0", Some("{}"), "owner"),
        ("PUT", "/v1/attachments/a/eth0", Some(r#"{"mac":"ff:ff:ff:ff:ff:ff"}"#), "mac"),
        ("PUT", "/v1/attachments/a/eth0", Some(r#"{"labels":{"":"x"}}"#), "labels"),
    ];
    for (method, path, body, field) in cases {
        let error = rig.ask(method, path, body).refusal();
        assert_eq!(error.code, ErrorCode::InvalidValue, "{path}");
        assert_eq!(error.field.as_deref(), Some(field), "{path}");
    }
    let unknown = rig.ask("GET", "/v1/fdb?vlan=7", None).refusal();
    assert_eq!(unknown.code, ErrorCode::UnknownField);
}

#[test]
fn a_name_in_the_body_that_differs_from_the_path_is_refused() {
    let rig = Rig::start();
    let error = rig.ask("PUT", "/v1/ports/a", Some(r#"{"name":"b"}"#)).refusal();
    assert_eq!((error.field.as_deref(), error.value.as_deref()), (Some("name"), Some("b")));
    let error = rig.ask("PUT", "/v1/vnis/7", Some(r#"{"vni":8}"#)).refusal();
    assert_eq!((error.field.as_deref(), error.value.as_deref()), (Some("vni"), Some("8")));
}

#[test]
fn peers_that_stall_in_the_middle_of_a_request_delay_nobody() {
    let rig = Rig::start();
    let stalled: Vec<_> = ["", "GET", "GET /v1/ports HTTP/1.1\r\nhost:", PUT_WITHOUT_BODY]
        .into_iter()
        .map(|part| {
            let mut stream = rig.connect();
            stream.write_all(part.as_bytes()).expect("sends");
            stream
        })
        .collect();
    assert_eq!(rig.ask("GET", "/v1/version", None).status, 200);
    drop(stalled);
}

#[test]
fn headers_without_end_are_refused() {
    let rig = Rig::start();
    let mut stream = rig.connect();
    let request = format!("GET /v1/ports HTTP/1.1\r\nx: {}", "y".repeat(20_000));
    stream.write_all(request.as_bytes()).expect("sends");
    // One read: what the server did not read of the request resets the connection behind its answer.
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("answers");
    assert_eq!(&answer, b"HTTP/1.1 431");
}

#[test]
fn what_is_not_http_is_refused_and_the_server_lives() {
    let rig = Rig::start();
    assert_eq!(rig.send("\x16\x03\x01 hello\r\n\r\n").status, 400);
    assert_eq!(rig.ask("GET", "/v1/version", None).status, 200);
}

#[test]
fn stopping_the_server_removes_its_socket() {
    let mut rig = Rig::start();
    let idle = rig.connect();
    drop(rig.server.take());
    assert_eq!(std::fs::read_dir(rig.folder.path()).expect("lists").count(), 0);
    drop(idle);
}

const PUT_WITHOUT_BODY: &str = "PUT /v1/ports/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
    content-type: application/json\r\ncontent-length: 5\r\n\r\n{";

/// Sends `request` to a server whose clock runs ahead whenever both sides wait, and reads until the
/// server closes.
async fn send_and_wait(request: &str) -> String {
    let folder = tempfile::tempdir().expect("tempdir");
    let socket = folder.path().join("api.sock");
    let listener = UnixListener::bind(&socket).expect("binds");
    let peer = async {
        let mut stream = UnixStream::connect(&socket).await.expect("connects");
        stream.write_all(request.as_bytes()).await.expect("sends");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("the server closes");
        answer
    };
    let server =
        serve(listener, PeerPolicy::new(None), Arc::new(fake_switch()), std::future::pending());
    tokio::select! {
        answer = peer => answer,
        () = server => panic!("the server ended"),
    }
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_request_whose_headers_never_end_is_ended_by_the_clock() {
    for part in ["", "GET /v1/ports HT", "GET /v1/ports HTTP/1.1\r\nhost: x\r\n"] {
        let answer = send_and_wait(part).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408 "), "{part}: {answer}");
    }
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_body_that_never_comes_is_refused_by_the_clock() {
    let error = Answer::parse(&send_and_wait(PUT_WITHOUT_BODY).await).refusal();
    assert_eq!(error.code, ErrorCode::RequestTimeout);
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_connection_that_is_kept_but_not_used_is_ended_by_the_clock() {
    let answer = send_and_wait("GET /v1/version HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(Answer::parse(&answer).status, 200);
}

#[tokio::test(flavor = "current_thread")]
async fn a_peer_that_may_not_use_the_api_gets_a_403_whatever_it_asks_and_is_counted() {
    let folder = tempfile::tempdir().expect("tempdir");
    let socket = folder.path().join("api.sock");
    let listener = UnixListener::bind(&socket).expect("binds");
    let api = Api { control: Arc::new(fake_switch()), counters: Arc::default() };
    let counters = Arc::clone(&api.counters);
    let peers = async {
        for request in
            ["GET /v1/ports HTTP/1.1", "GET /nowhere HTTP/1.1", "PUT /v1/ports/a HTTP/1.1"]
        {
            let mut stream = UnixStream::connect(&socket).await.expect("connects");
            let request = format!("{request}\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.expect("sends");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("answers");
            assert_eq!(Answer::parse(&answer).refusal().code, ErrorCode::Forbidden);
        }
    };
    serve_counted(listener, PeerPolicy::nobody(), api, peers).await;
    assert_eq!(counters.peers_refused(), 3);
}

#[test]
fn metrics_tell_what_the_switch_and_the_server_counted() {
    let rig = Rig::start();
    rig.ask("PUT", "/v1/ports/a", Some("{}"));
    rig.ask("PUT", "/v1/ports/b", Some(r#"{"queue_pairs": 2}"#));
    rig.switch.connect("a");
    rig.switch.connect("b");
    rig.ask("GET", "/nowhere", None);
    rig.ask("PUT", "/v1/attachments/sandbox/eth0", Some("{}"));
    let text = rig.ask("GET", "/metrics", None).body;
    for line in [
        r#"slipway_vport_received_frames_total{vport="a"} 1000"#,
        r#"slipway_vport_drops_total{vport="a",direction="ingress",reason="no_route"} 7"#,
        r#"slipway_vport_drops_total{vport="a",direction="egress",reason="ring_full"} 5"#,
        r#"slipway_vport_in_hand_frames{vport="a"} 1"#,
        r#"slipway_vport_up{vport="a"} 1"#,
        r#"slipway_pmd_frames_total{pmd="0"} 20000"#,
        r#"slipway_vring_load_ratio{pmd="0",vport="a",queue="0",direction="tx"} 0.75"#,
        r#"slipway_vring_load_ratio{pmd="0",vport="b",queue="0",direction="tx"} 0.75"#,
        r#"slipway_vring_load_ratio{pmd="0",vport="b",queue="1",direction="tx"} 0.75"#,
        "# TYPE slipway_vring_load_ratio gauge",
        r#"slipway_api_requests_total{status="404"} 1"#,
        r#"slipway_api_peers_refused_total 0"#,
        r#"slipway_healthy 1"#,
        r#"slipway_network_addresses{network="default",state="used"} 1"#,
        r#"slipway_network_addresses{network="default",state="free"} 65532"#,
        "# TYPE slipway_network_addresses gauge",
        "# TYPE slipway_vport_drops counter",
        "# EOF",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
    let again = rig.ask("GET", "/metrics", None).body;
    assert!(again.contains(r#"received_frames_total{vport="a"} 2000"#), "read at scrape time");
}
