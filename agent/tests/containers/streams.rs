//! Standard streams and terminals.

use kata_agent_protocol::agent::*;
use kata_agent_protocol::oci;
use kata_agent_protocol::protobuf::MessageField;

use crate::rig::{Agent, call, program, refusal, shell};

const TEN_MB: usize = 10_000_000;

#[tokio::test]
#[ignore = "needs root"]
async fn ten_megabytes_arrive_byte_by_byte_though_the_process_has_long_ended() {
    let agent = Agent::start().await;
    agent.run("c1", &format!("yes 0123456789abcde | head -c {TEN_MB}")).await;
    let output = agent.end("c1", "").await;
    let expected: Vec<u8> = b"0123456789abcde\n".iter().copied().cycle().take(TEN_MB).collect();
    assert_eq!(output.stdout.len(), TEN_MB);
    assert!(output.stdout == expected, "the bytes differ");
}

#[tokio::test]
#[ignore = "needs root"]
async fn the_tail_of_the_output_is_read_after_the_end_was_told() {
    let agent = Agent::start().await;
    agent.run("c1", "echo a line; exit 5").await;
    assert_eq!(agent.wait("c1", "").await, 5);
    assert_eq!(agent.read_all("c1", "").await, b"a line\n");
    assert_eq!(agent.read_all("c1", "").await, b"", "the end is told as often as one asks");
}

#[tokio::test]
#[ignore = "needs root"]
async fn standard_input_reaches_the_process_until_it_is_closed() {
    let agent = Agent::start().await;
    agent.run("c1", "wc -c").await;
    let chunk = vec![b'x'; 300_000];
    for _ in 0..10 {
        agent.write("c1", "", &chunk).await;
    }
    let close = CloseStdinRequest { container_id: "c1".to_owned(), ..Default::default() };
    agent.client.close_stdin(call(), &close).await.unwrap();
    let output = agent.end("c1", "").await;
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "3000000");
}

#[tokio::test]
#[ignore = "needs root"]
async fn writing_nothing_closes_standard_input() {
    let agent = Agent::start().await;
    agent.run("c1", "cat; exit 9").await;
    agent.write("c1", "", b"").await;
    assert_eq!(agent.wait("c1", "").await, 9);
    let request = WriteStreamRequest {
        container_id: "c1".to_owned(),
        data: b"late".to_vec(),
        ..Default::default()
    };
    let (_, text) = refusal(agent.client.write_stdin(call(), &request).await);
    assert!(text.contains("closed"), "{text}");
}

#[tokio::test]
#[ignore = "needs root"]
async fn children_that_keep_the_stream_open_do_not_keep_it_from_ending() {
    let agent = Agent::start().await;
    agent.run("c1", "cat").await;
    agent.exec("c1", "e1", "sleep 1000 & echo started").await;
    let output = agent.end("c1", "e1").await;
    assert_eq!((output.status, output.stdout), (0, b"started\n".to_vec()));
}

fn with_terminal(mut process: oci::Process) -> oci::Process {
    process.Terminal = true;
    process.ConsoleSize =
        MessageField::some(oci::Box { Height: 33, Width: 111, ..Default::default() });
    process
}

async fn resize(agent: &Agent, exec: &str, row: u32, column: u32) -> ttrpc::Result<()> {
    let request = TtyWinResizeRequest {
        container_id: "c1".to_owned(),
        exec_id: exec.to_owned(),
        row,
        column,
        ..Default::default()
    };
    agent.client.tty_win_resize(call(), &request).await.map(drop)
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_terminal_has_a_size_that_can_be_changed() {
    let agent = Agent::start().await;
    let mut request = agent.container("c1", "");
    let script = "trap 'stty size; exit 4' WINCH; tty; stty size; while :; do sleep 0.05; done";
    request.OCI.mut_or_insert_default().Process = MessageField::some(with_terminal(shell(script)));
    agent.client.create_container(call(), &request).await.unwrap();
    agent.begin("c1").await;
    let begin = agent.read_until("c1", "", "33 111\r\n").await;
    assert!(begin.starts_with("/dev/"), "{begin}");
    resize(&agent, "", 40, 132).await.unwrap();
    agent.read_until("c1", "", "40 132\r\n").await;
    assert_eq!(agent.wait("c1", "").await, 4);
    assert_eq!(agent.read_all("c1", "").await, b"");
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_shell_on_a_terminal_of_its_own_is_talked_to() {
    let agent = Agent::start().await;
    agent.run("c1", "cat").await;
    agent.exec_process("c1", "e1", with_terminal(program(&["/bin/sh"]))).await.unwrap();
    agent.write("c1", "e1", b"echo $((6 * 7)); exit 8\n").await;
    agent.read_until("c1", "e1", "42\r\n").await;
    assert_eq!(agent.wait("c1", "e1").await, 8);
    let request = ReadStreamRequest {
        container_id: "c1".to_owned(),
        exec_id: "e1".to_owned(),
        len: 100,
        ..Default::default()
    };
    let (_, text) = refusal(agent.client.read_stderr(call(), &request).await);
    assert!(text.contains("terminal"), "{text}");
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_process_without_a_terminal_has_no_size() {
    let agent = Agent::start().await;
    agent.run("c1", "cat").await;
    let (_, text) = refusal(resize(&agent, "", 1, 1).await);
    assert!(text.contains("no terminal"), "{text}");
}
