use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver as Messages, Sender, channel};

use slipway_agent::protocol::{Request, Transfer};

use super::*;

/// The two sides of a conversation: `take` plays the channel, replies come out of `replies`.
struct Host {
    server: Arc<Server>,
    replies: BufReader<UnixStream>,
}

fn host_with(power: fn(Power)) -> Host {
    let (agent, host) = UnixStream::pair().unwrap();
    let ready = Ready { boot_id: "boot".to_owned(), ready_ms: 1 };
    let server = Server::new(ready, None, Box::new(agent), power);
    Host { server, replies: BufReader::new(host) }
}

fn host() -> Host {
    host_with(|power| panic!("nobody asked for {power:?}"))
}

impl Host {
    fn ask(&self, id: u64, call: Call) {
        let line = to_line(&Request { id, call });
        self.server.take(Ok(&line[..line.len() - 1]));
    }

    fn hear(&mut self) -> Line {
        let mut line = String::new();
        self.replies.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn reply(&mut self, expected_id: u64) -> Outcome {
        match self.hear() {
            Line::Reply(Reply { id, outcome }) if id == Some(expected_id) => outcome,
            other => panic!("not the reply to {expected_id}: {other:?}"),
        }
    }

    fn ticket(&mut self, id: u64) -> Ticket {
        match self.reply(id) {
            Outcome::Ok(Answer::Ticket(ticket)) => ticket,
            other => panic!("no ticket: {other:?}"),
        }
    }

    fn refusal(&mut self, id: u64) -> RefusalCode {
        match self.reply(id) {
            Outcome::Error(refusal) => refusal.code,
            other => panic!("not refused: {other:?}"),
        }
    }
}

fn call(json: &str) -> Call {
    serde_json::from_str(json).unwrap()
}

#[test]
fn a_stream_sent_is_received_with_the_same_length_and_checksum() {
    let mut host = host();
    host.ask(1, call(r#"{"tcp_recv":{}}"#));
    let Ticket { ticket, port } = host.ticket(1);
    let send =
        format!(r#"{{"tcp_send":{{"dst":"127.0.0.1","port":{port},"bytes":1000001,"seed":7}}}}"#);
    host.ask(2, call(&send));
    let Outcome::Ok(Answer::Transfer(sent)) = host.reply(2) else { panic!("not sent") };
    host.ask(3, Call::Result(Claim { ticket, timeout_ms: 60_000 }));
    let Outcome::Ok(Answer::Transfer(received)) = host.reply(3) else { panic!("not received") };

    assert_eq!((sent.bytes, received.bytes), (1_000_001, 1_000_001));
    assert_eq!(sent.checksum, received.checksum);
    let Transfer { checksum, .. } = received;
    assert_eq!(checksum.len(), 16, "{checksum}");
}

#[test]
fn datagrams_larger_than_an_ethernet_frame_arrive_whole() {
    let mut host = host();
    host.ask(1, call(r#"{"udp_recv":{"datagrams":3}}"#));
    let Ticket { ticket, port } = host.ticket(1);
    let send = format!(
        r#"{{"udp_send":{{"dst":"127.0.0.1","port":{port},"datagrams":3,"size_bytes":65507,"seed":7}}}}"#
    );
    host.ask(2, call(&send));
    assert!(matches!(host.reply(2), Outcome::Ok(Answer::Datagrams(_))));
    host.ask(3, Call::Result(Claim { ticket, timeout_ms: 60_000 }));
    let Outcome::Ok(Answer::Datagrams(got)) = host.reply(3) else { panic!("not received") };
    assert_eq!((got.datagrams, got.repeated, got.corrupted), (3, 0, 0));
    assert_eq!(got.bytes, 3 * 65_507);
}

#[test]
fn datagrams_that_are_not_of_the_test_are_counted_as_corrupted() {
    let mut host = host();
    host.ask(1, call(r#"{"udp_recv":{"datagrams":1,"timeout_ms":50}}"#));
    let Ticket { ticket, port } = host.ticket(1);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(b"not one of yours", ("127.0.0.1", port)).unwrap();
    host.ask(2, Call::Result(Claim { ticket, timeout_ms: 60_000 }));
    let Outcome::Ok(Answer::Datagrams(got)) = host.reply(2) else { panic!("not received") };
    assert_eq!((got.datagrams, got.corrupted), (0, 1));
}

#[test]
fn a_receiver_nobody_connects_to_times_out_and_says_so() {
    let mut host = host();
    host.ask(1, call(r#"{"tcp_recv":{"timeout_ms":1}}"#));
    let Ticket { ticket, .. } = host.ticket(1);
    host.ask(2, Call::Result(Claim { ticket, timeout_ms: 60_000 }));
    assert_eq!(host.refusal(2), RefusalCode::TimedOut);
}

#[test]
fn a_result_not_there_yet_can_be_asked_for_again_and_is_told_once() {
    let mut host = host();
    host.ask(1, call(r#"{"tcp_recv":{}}"#));
    let Ticket { ticket, port } = host.ticket(1);
    host.ask(2, Call::Result(Claim { ticket, timeout_ms: 1 }));
    assert_eq!(host.refusal(2), RefusalCode::TimedOut);

    drop(std::net::TcpStream::connect(("127.0.0.1", port)).unwrap());
    host.ask(3, Call::Result(Claim { ticket, timeout_ms: 60_000 }));
    assert!(matches!(host.reply(3), Outcome::Ok(Answer::Transfer(_))));
    host.ask(4, Call::Result(Claim { ticket, timeout_ms: 60_000 }));
    assert_eq!(host.refusal(4), RefusalCode::UnknownTicket);
}

#[test]
fn one_receiver_too_many_is_refused_and_a_claimed_one_makes_room() {
    let mut host = host();
    let mut first = None;
    for id in 0..MAX_TICKETS as u64 {
        host.ask(id, call(r#"{"udp_recv":{"datagrams":1,"timeout_ms":1}}"#));
        first.get_or_insert(host.ticket(id).ticket);
    }
    host.ask(90, call(r#"{"udp_recv":{"datagrams":1}}"#));
    assert_eq!(host.refusal(90), RefusalCode::Busy);

    host.ask(91, Call::Result(Claim { ticket: first.unwrap(), timeout_ms: 60_000 }));
    assert!(matches!(host.reply(91), Outcome::Ok(_)));
    host.ask(92, call(r#"{"udp_recv":{"datagrams":1,"timeout_ms":1}}"#));
    assert!(host.ticket(92).ticket > MAX_TICKETS as u64);
}

#[test]
fn one_call_too_many_is_refused_while_the_others_wait() {
    let mut host = host();
    host.ask(100, call(r#"{"tcp_recv":{}}"#));
    let Ticket { ticket, port } = host.ticket(100);
    for id in 0..MAX_JOBS as u64 {
        host.ask(id, Call::Result(Claim { ticket, timeout_ms: 60_000 }));
    }
    host.ask(101, Call::Result(Claim { ticket, timeout_ms: 60_000 }));
    assert_eq!(host.refusal(101), RefusalCode::Busy);
    drop(std::net::TcpStream::connect(("127.0.0.1", port)).unwrap());
    for _ in 0..MAX_JOBS {
        assert!(matches!(host.hear(), Line::Reply(_)));
    }
}

#[test]
fn hostile_lines_are_answered_with_a_refusal_and_the_next_call_works() {
    let mut host = host();
    for line in [&b"{"[..], b"\xff\xfe", b"[]", b"{\"id\":-1}", b"null"] {
        host.server.take(Ok(line));
        let Line::Reply(Reply { id: None, outcome: Outcome::Error(refusal) }) = host.hear() else {
            panic!("not refused: {line:?}");
        };
        assert_eq!(refusal.code, RefusalCode::Malformed);
    }
    host.server.take(Err(Overlong));
    assert!(matches!(host.hear(), Line::Reply(Reply { id: None, outcome: Outcome::Error(_) })));
    host.ask(1, call(r#"{"tcp_recv":{"timeout_ms":1}}"#));
    host.ticket(1);
}

#[test]
fn the_guest_ends_after_the_answer_that_it_will() {
    type Channel = (Sender<Power>, Mutex<Messages<Power>>);
    static ENDED: LazyLock<Channel> = LazyLock::new(|| {
        let (sender, receiver) = channel();
        (sender, Mutex::new(receiver))
    });
    let mut host = host_with(|power| ENDED.0.send(power).unwrap());
    for (id, call, power) in [(1, Call::Reboot, Power::Reboot), (2, Call::Poweroff, Power::Off)] {
        host.ask(id, call);
        assert_eq!(host.reply(id), Outcome::Ok(Answer::Done));
        assert_eq!(ENDED.1.lock().unwrap().recv().unwrap(), power);
    }
}
