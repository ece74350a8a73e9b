use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::UnixListener;

use super::*;
use crate::protocol::{RefusalCode, parse_request};

const SOON: Duration = Duration::from_secs(60);

/// A VMM that passes the channel to the test, which plays the guest.
struct Vmm {
    directory: TempDir,
    listener: UnixListener,
}

impl Vmm {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let listener = UnixListener::bind(directory.path().join("ctl.sock")).unwrap();
        Self { directory, listener }
    }

    fn agent(&self) -> Agent {
        Agent::new(self.directory.path().join("ctl.sock"))
    }

    async fn guest(&self) -> Guest {
        Guest(BufReader::new(self.listener.accept().await.unwrap().0))
    }
}

struct Guest(BufReader<UnixStream>);

impl Guest {
    async fn request(&mut self) -> Request {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        parse_request(line.trim_end().as_bytes()).unwrap()
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).await.unwrap();
    }

    async fn reply(&mut self, id: u64, outcome: Outcome) {
        self.say(&to_line(&Line::Reply(Reply { id: Some(id), outcome }))).await;
    }

    async fn ready(&mut self, boot_id: &str) {
        let ready = Ready { boot_id: boot_id.to_owned(), ready_ms: 900 };
        self.say(&to_line(&Line::Ready(ready))).await;
    }
}

fn info(boot_id: &str) -> Outcome {
    Outcome::Ok(Answer::Info(Info {
        boot_id: boot_id.to_owned(),
        ready_ms: 900,
        kernel: "6.1".to_owned(),
        nic: None,
    }))
}

#[tokio::test]
async fn a_call_made_before_the_guest_has_booted_is_answered_after_it_has() {
    let vmm = Vmm::new();
    let agent = vmm.agent();
    let guest = async {
        let mut guest = vmm.guest().await;
        guest.ready("first").await;
        let request = guest.request().await;
        guest.reply(request.id, info("first")).await;
        guest
    };
    let (answer, _guest) = tokio::join!(agent.wait_ready(SOON), guest);
    assert_eq!(answer.unwrap().boot_id, "first");
}

#[tokio::test]
async fn replies_find_their_callers_in_whatever_order_they_come() {
    let vmm = Vmm::new();
    let agent = vmm.agent();
    let guest = async {
        let mut guest = vmm.guest().await;
        let (first, second) = (guest.request().await, guest.request().await);
        guest.reply(second.id, info("of the second")).await;
        guest.reply(first.id, info("of the first")).await;
        guest
    };
    let (first, second, _guest) = tokio::join!(agent.info(SOON), agent.info(SOON), guest);
    assert_eq!(first.unwrap().boot_id, "of the first");
    assert_eq!(second.unwrap().boot_id, "of the second");
}

#[tokio::test]
async fn lines_that_are_no_protocol_are_dropped() {
    let vmm = Vmm::new();
    let agent = vmm.agent();
    let guest = async {
        let mut guest = vmm.guest().await;
        let request = guest.request().await;
        guest
            .say(b"Kernel panic\n\xff\n{\"reply\":{\"id\":99,\"outcome\":{\"ok\":\"done\"}}}\n")
            .await;
        guest.say(&vec![b'x'; 2 * crate::protocol::MAX_LINE]).await;
        guest.say(b"\n").await;
        guest.reply(request.id, info("first")).await;
        guest
    };
    let (answer, _guest) = tokio::join!(agent.info(SOON), guest);
    assert_eq!(answer.unwrap().boot_id, "first");
}

#[tokio::test]
async fn a_reboot_fails_the_calls_in_flight_at_once() {
    let vmm = Vmm::new();
    let agent = vmm.agent();
    let guest = async {
        let mut guest = vmm.guest().await;
        guest.ready("first").await;
        guest.request().await;
        guest.ready("second").await;
        guest
    };
    let (answer, _guest) = tokio::join!(agent.info(SOON), guest);
    assert!(matches!(answer, Err(ClientError::Rebooted { call: "info" })), "{answer:?}");
}

#[tokio::test]
async fn reboot_returns_when_the_next_boot_is_ready() {
    let vmm = Vmm::new();
    let agent = vmm.agent();
    let guest = async {
        let mut guest = vmm.guest().await;
        let request = guest.request().await;
        guest.reply(request.id, info("first")).await;
        let request = guest.request().await;
        assert_eq!(request.call, Call::Reboot);
        guest.reply(request.id, Outcome::Ok(Answer::Done)).await;
        guest.ready("second").await;
        guest
    };
    let (ready, _guest) = tokio::join!(agent.reboot(SOON), guest);
    assert_eq!(ready.unwrap().boot_id, "second");
}

#[tokio::test]
async fn a_restarted_vmm_is_connected_to_again() {
    let vmm = Vmm::new();
    let agent = vmm.agent();
    let guest = async {
        let mut guest = vmm.guest().await;
        guest.request().await;
        drop(guest);
        let mut guest = vmm.guest().await;
        let request = guest.request().await;
        guest.reply(request.id, info("second")).await;
        guest
    };
    let (answer, _guest) = tokio::join!(agent.wait_ready(SOON), guest);
    assert_eq!(answer.unwrap().boot_id, "second");
}

#[tokio::test]
async fn a_refusal_reaches_the_caller_with_its_reason() {
    let vmm = Vmm::new();
    let agent = vmm.agent();
    let guest = async {
        let mut guest = vmm.guest().await;
        let request = guest.request().await;
        let refusal = Refusal::new(RefusalCode::UnknownTicket, "There is no ticket 7");
        guest.reply(request.id, Outcome::Error(refusal)).await;
        guest
    };
    let claim = Claim { ticket: 7, timeout_ms: 1 };
    let (answer, _guest) = tokio::join!(agent.tcp_result(claim), guest);
    let Err(ClientError::Refused { call: "result", source }) = answer else {
        panic!("not refused: {answer:?}");
    };
    assert_eq!(source.code, RefusalCode::UnknownTicket);
}

#[tokio::test]
async fn an_answer_to_another_question_is_an_error() {
    let vmm = Vmm::new();
    let agent = vmm.agent();
    let guest = async {
        let mut guest = vmm.guest().await;
        let request = guest.request().await;
        guest.reply(request.id, Outcome::Ok(Answer::Done)).await;
        guest
    };
    let (answer, _guest) = tokio::join!(agent.info(SOON), guest);
    assert!(matches!(answer, Err(ClientError::WrongAnswer { .. })), "{answer:?}");
}

#[tokio::test]
async fn a_guest_that_says_nothing_costs_the_caller_its_time_out_and_leaves_nothing() {
    let vmm = Vmm::new();
    let agent = vmm.agent();
    let (answer, _guest) = tokio::join!(agent.info(Duration::from_millis(1)), vmm.guest());
    assert!(matches!(answer, Err(ClientError::TimedOut { .. })), "{answer:?}");
    assert!(agent.shared.pending().waiters.is_empty());
}
