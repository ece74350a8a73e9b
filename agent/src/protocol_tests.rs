use proptest::prelude::*;

use super::*;

fn refusal_of(line: &[u8]) -> (Option<u64>, RefusalCode, String) {
    let Refused { id, refusal } = parse_request(line).expect_err("the line must be refused");
    (id, refusal.code, refusal.message)
}

#[test]
fn every_call_reads_back_as_it_was_written() {
    let dst = Ipv4Addr::new(192, 168, 1, 2);
    for call in [
        Call::Info,
        Call::Ping(Ping { dst, count: 3, interval_ms: 1, size_bytes: 9000, timeout_ms: 5 }),
        Call::TcpRecv(Receive { port: 5201, timeout_ms: 5 }),
        Call::TcpSend(TcpSend { dst, port: 5201, bytes: 1 << 30, seed: 7, timeout_ms: 5 }),
        Call::UdpRecv(UdpReceive { port: 5201, datagrams: 4, timeout_ms: 5 }),
        Call::UdpSend(UdpSend {
            dst,
            port: 5201,
            datagrams: 4,
            size_bytes: 65_507,
            seed: 7,
            interval_us: 0,
        }),
        Call::Result(Claim { ticket: 1, timeout_ms: 5 }),
        Call::Run(Run { words: vec!["/bin/true".to_owned()], timeout_ms: 5 }),
        Call::Reboot,
        Call::Poweroff,
    ] {
        let request = Request { id: 42, call };
        let line = to_line(&request);
        let (newline, text) = line.split_last().unwrap();
        assert_eq!(*newline, b'\n');
        assert!(!text.contains(&b'\n'), "a message is one line");
        assert_eq!(parse_request(text), Ok(request));
    }
}

#[test]
fn a_call_without_optional_fields_gets_their_defaults() {
    let request = parse_request(br#"{"id":1,"call":{"ping":{"dst":"10.0.0.1","count":1}}}"#);
    let ping = Ping {
        dst: Ipv4Addr::new(10, 0, 0, 1),
        count: 1,
        interval_ms: 0,
        size_bytes: 56,
        timeout_ms: 1000,
    };
    assert_eq!(request, Ok(Request { id: 1, call: Call::Ping(ping) }));
}

#[test]
fn an_overlong_line_is_refused_without_being_read() {
    let line = vec![b'{'; MAX_LINE + 1];
    let (id, code, message) = refusal_of(&line);
    assert_eq!((id, code), (None, RefusalCode::Malformed));
    assert!(message.contains("16384"), "{message}");
}

#[test]
fn a_deeply_nested_line_is_refused() {
    assert_eq!(refusal_of(&vec![b'['; MAX_LINE]).1, RefusalCode::Malformed);
}

#[test]
fn an_unknown_verb_is_refused_with_the_id_of_the_request() {
    let (id, code, message) = refusal_of(br#"{"id":9,"call":"format_disk"}"#);
    assert_eq!((id, code), (Some(9), RefusalCode::Malformed));
    assert!(message.contains("format_disk"), "{message}");
}

#[test]
fn an_unknown_field_is_refused() {
    let line = br#"{"id":9,"call":{"result":{"ticket":1,"tickets":2}}}"#;
    assert_eq!(refusal_of(line).1, RefusalCode::Malformed);
}

#[test]
fn numbers_out_of_range_are_refused_by_name_value_and_range() {
    for (call, expected) in [
        (r#"{"ping":{"dst":"10.0.0.1","count":0}}"#, "count is 0; give a number from 1 to 10000"),
        (r#"{"ping":{"dst":"10.0.0.1","count":1,"size_bytes":65508}}"#, "size_bytes is 65508"),
        (r#"{"ping":{"dst":"10.0.0.1","count":1,"interval_ms":600001}}"#, "interval_ms is 600001"),
        (r#"{"tcp_recv":{"timeout_ms":0}}"#, "timeout_ms is 0"),
        (r#"{"tcp_send":{"dst":"10.0.0.1","port":0,"bytes":1,"seed":1}}"#, "port is 0"),
        (
            r#"{"tcp_send":{"dst":"10.0.0.1","port":1,"bytes":68719476737,"seed":1}}"#,
            "bytes is 68719476737",
        ),
        (r#"{"udp_recv":{"datagrams":0}}"#, "datagrams is 0"),
        (
            r#"{"udp_send":{"dst":"10.0.0.1","port":1,"datagrams":1,"size_bytes":15,"seed":1}}"#,
            "size_bytes is 15",
        ),
        (r#"{"result":{"ticket":1,"timeout_ms":4000000}}"#, "timeout_ms is 4000000"),
    ] {
        let (id, code, message) = refusal_of(format!(r#"{{"id":5,"call":{call}}}"#).as_bytes());
        assert_eq!((id, code), (Some(5), RefusalCode::OutOfRange), "{call}");
        assert!(message.contains(expected), "{message} lacks {expected}");
    }
}

#[test]
fn a_reply_reads_back_as_it_was_written() {
    let refusal = Refusal::new(RefusalCode::Busy, "16 calls run");
    for reply in [
        Reply { id: Some(u64::MAX), outcome: Outcome::Ok(Answer::Done) },
        Reply { id: None, outcome: Outcome::Error(refusal) },
    ] {
        let line = Line::Reply(reply);
        assert_eq!(serde_json::from_slice::<Line>(&to_line(&line)).unwrap(), line);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_fail_other_than_by_refusal(
        line in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        if let Err(refused) = parse_request(&line) {
            prop_assert!(!refused.refusal.message.is_empty());
        }
    }

    #[test]
    fn a_request_with_one_byte_changed_is_a_request_or_refused(at in 0usize..60, byte: u8) {
        let mut line = br#"{"id":77,"call":{"tcp_recv":{"port":5201,"timeout_ms":1000}}}"#.to_vec();
        line[at] = byte;
        match parse_request(&line) {
            Ok(request) => prop_assert_eq!(request.call.check(), Ok(())),
            Err(refused) => prop_assert!(!refused.refusal.message.is_empty()),
        }
    }
}
