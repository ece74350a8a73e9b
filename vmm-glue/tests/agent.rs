//! The agent's client against a fake agent over UNIX sockets: how it is found, what is sent, what
//! comes back, and how it is lost.

use std::future::pending;
use std::path::Path;
use std::time::Duration;

use kata_agent_protocol::agent::{
    CreateContainerRequest, CreateSandboxRequest, GuestDetailsRequest, GuestDetailsResponse,
    SetPolicyRequest, WaitProcessRequest, WaitProcessResponse, WriteStreamRequest,
    WriteStreamResponse,
};
use kata_agent_protocol::health::{HealthCheckResponse, health_check_response::ServingStatus};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use vmm_glue::agent::fake::FakeAgent;
use vmm_glue::agent::{Agent, AgentAddress, AgentError, Code};

const LIMIT: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

async fn connect(address: &AgentAddress, deadline: Duration) -> Result<Agent, AgentError> {
    Agent::connect(address, deadline, pending()).await
}

async fn pair(dir: &Path) -> (FakeAgent, Agent) {
    let path = dir.join("agent.sock");
    let fake = FakeAgent::serve(&path).unwrap();
    let agent = connect(&AgentAddress::Unix(path), LIMIT).await.unwrap();
    (fake, agent)
}

#[tokio::test]
async fn requests_and_answers_arrive_as_they_were_sent() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, agent) = pair(dir.path()).await;
    let details = GuestDetailsResponse { mem_block_size_bytes: 128 << 20, ..Default::default() };
    fake.answer("GetGuestDetails", &details);
    fake.on("WriteStdin", |request: WriteStreamRequest| async move {
        let len = u32::try_from(request.data.len()).unwrap();
        Ok(WriteStreamResponse { len, ..Default::default() })
    });
    let sandbox = CreateSandboxRequest { hostname: "pod".to_owned(), ..Default::default() };
    agent.create_sandbox(&sandbox).await.unwrap();
    assert_eq!(agent.get_guest_details(&GuestDetailsRequest::new()).await.unwrap(), details);
    // Close to the largest message there may be.
    let data = vec![7; (4 << 20) - 100];
    let write = WriteStreamRequest { data: data.clone(), ..Default::default() };
    assert_eq!(agent.write_stdin(&write).await.unwrap().len as usize, data.len());
    assert_eq!(fake.methods(), ["CreateSandbox", "GetGuestDetails", "WriteStdin"]);
    let call = fake.wait_for("CreateSandbox", 1).await;
    assert_eq!(call.request::<CreateSandboxRequest>(), sandbox);
    assert_eq!(call.timeout_nano, 60_000_000_000);
}

#[tokio::test]
async fn a_message_that_is_too_long_is_refused_and_the_connection_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, agent) = pair(dir.path()).await;
    let write = WriteStreamRequest { data: vec![0; 5 << 20], ..Default::default() };
    let error = agent.write_stdin(&write).await.unwrap_err();
    assert!(!error.is_gone() && error.message.contains("maximum"), "{error}");
    agent.create_sandbox(&CreateSandboxRequest::new()).await.unwrap();
    assert_eq!(fake.methods(), ["CreateSandbox"]);
}

#[tokio::test]
async fn calls_wait_for_themselves_only() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, agent) = pair(dir.path()).await;
    let (exit, exited) = tokio::sync::watch::channel(0);
    fake.on("WaitProcess", move |_: WaitProcessRequest| {
        let mut exited = exited.clone();
        async move {
            let status = *exited.wait_for(|status| *status != 0).await.unwrap();
            Ok(WaitProcessResponse { status, ..Default::default() })
        }
    });
    let waiting = agent.clone();
    let waiting = tokio::spawn(async move { waiting.wait_process(&Default::default()).await });
    fake.wait_for("WaitProcess", 1).await;
    agent.create_sandbox(&CreateSandboxRequest::new()).await.unwrap();
    assert_eq!(fake.wait_for("WaitProcess", 1).await.timeout_nano, 0, "no time limit");
    exit.send(7).unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().status, 7);
}

#[tokio::test]
async fn a_refusal_carries_method_code_and_the_first_words() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, agent) = pair(dir.path()).await;
    let words = "no such image\n\nStack backtrace:\n   0: rustjail::container";
    fake.fail("CreateContainer", Code::INTERNAL, words);
    let error = agent.create_container(&CreateContainerRequest::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "The agent refused CreateContainer (INTERNAL): no such image");
    fake.fail("SetPolicy", Code::NOT_FOUND, "/grpc.AgentService/SetPolicy is not supported");
    let error = agent.set_policy(&SetPolicyRequest::new()).await.unwrap_err();
    assert!(error.is_unsupported() && !error.is_gone(), "{error}");
}

#[tokio::test]
async fn a_call_that_is_not_answered_ends_at_its_limit_and_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, agent) = pair(dir.path()).await;
    fake.hang("CreateContainer");
    let hasty = agent.with_time_limit(SHORT);
    let error = hasty.create_container(&CreateContainerRequest::new()).await.unwrap_err();
    assert!(error.is_timeout() && !error.is_gone(), "{error}");
    hasty.create_sandbox(&CreateSandboxRequest::new()).await.unwrap();
}

#[tokio::test]
async fn a_lost_connection_ends_every_call_and_the_next_ones() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, agent) = pair(dir.path()).await;
    let waiting = agent.clone();
    let waiting = tokio::spawn(async move { waiting.wait_process(&Default::default()).await });
    fake.wait_for("WaitProcess", 1).await;
    fake.hang_up();
    let error = waiting.await.unwrap().unwrap_err();
    assert!(error.is_gone(), "{error:?}");
    let error = agent.create_sandbox(&CreateSandboxRequest::new()).await.unwrap_err();
    assert!(error.is_gone(), "{error:?}");
    // A new connection is served.
    connect(agent.address(), LIMIT).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_comes_late_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let address = AgentAddress::Unix(path.clone());
    let connecting = tokio::spawn(async move { connect(&address, LIMIT).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!connecting.is_finished());
    let _fake = FakeAgent::serve(&path).unwrap();
    connecting.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_agent_that_is_not_healthy_yet_is_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let fake = FakeAgent::serve(&path).unwrap();
    let health =
        |status: ServingStatus| HealthCheckResponse { status: status.into(), ..Default::default() };
    fake.answer("Check", &health(ServingStatus::NOT_SERVING));
    let address = AgentAddress::Unix(path);
    let connecting = tokio::spawn(async move { connect(&address, LIMIT).await });
    fake.wait_for("Check", 2).await;
    fake.answer("Check", &health(ServingStatus::SERVING));
    connecting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_hybrid_vsock_is_asked_for_the_port_until_the_guest_listens() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vsock.sock");
    let _fake = FakeAgent::serve_hybrid(&socket, 1024).unwrap();
    let address = |port| AgentAddress::Hybrid { socket: socket.clone(), port };
    let agent = connect(&address(1024), LIMIT).await.unwrap();
    agent.create_sandbox(&CreateSandboxRequest::new()).await.unwrap();
    let error = connect(&address(1025), SHORT).await.unwrap_err();
    assert!(error.is_timeout() && error.message.contains("nobody listens on port 1025"), "{error}");
}

/// Serves `answer` to each connection at `path` and closes it.
fn babble(path: &Path, answer: Vec<u8>) -> tokio::task::JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            // The client may be gone.
            let _ = stream.write_all(&answer).await;
        }
    })
}

#[tokio::test]
async fn what_is_no_agent_is_told_by_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&str, &[u8], &str); 4] = [
        ("refuses", b"NO\n", "'NO' is no answer to CONNECT"),
        ("babbles", &[b'x'; 4096], "is no answer to CONNECT"),
        // It says OK, and then nothing, or something that is no ttrpc.
        ("leaves", b"OK 1\n", "agent was lost at Check"),
        ("garbles", b"OK 1\n\0\0\0\x02\0\0\0\x01\x02\0\xff\xff", "Check"),
    ];
    for (name, answer, expected) in cases {
        let socket = dir.path().join(name);
        let server = babble(&socket, answer.to_vec());
        let error = connect(&AgentAddress::Hybrid { socket, port: 1024 }, SHORT).await.unwrap_err();
        assert!(error.is_timeout() && error.message.contains(expected), "{name}: {error}");
        server.abort();
    }
}

#[tokio::test]
async fn waiting_for_an_agent_ends_with_its_vm() {
    let dir = tempfile::tempdir().unwrap();
    let address = AgentAddress::Unix(dir.path().join("agent.sock"));
    let ended = async {
        tokio::task::yield_now().await;
        "'a' (pid 7) ended with exit code 1\nlast lines of its standard error:\nbad kernel"
            .to_owned()
    };
    let error = Agent::connect(&address, LIMIT, ended).await.unwrap_err();
    assert!(error.is_gone(), "{error:?}");
    assert!(error.to_string().contains("its VM ended: 'a' (pid 7)"), "{error}");
    assert!(error.to_string().contains("bad kernel"), "{error}");
}
