//! Standard streams through FIFOs.

use std::path::PathBuf;

use containerd_shim_protos::api::{CloseIORequest, CreateTaskRequest};
use nix::sys::stat::Mode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use vmm_glue::agent::fake::FakeAgent;

use crate::rig::{PATIENCE, Rig, ctx, refused};

fn fifo(rig: &Rig, name: &str) -> PathBuf {
    let path = rig.path().join(name);
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
    path
}

fn request(rig: &Rig) -> CreateTaskRequest {
    let mut request = rig.request("pod1", rig.bundle("pod1", |_| ()));
    for (name, path) in [
        ("stdin", &mut request.stdin),
        ("stdout", &mut request.stdout),
        ("stderr", &mut request.stderr),
    ] {
        *path = fifo(rig, name).display().to_string();
    }
    request
}

async fn started(change: impl FnOnce(&mut CreateTaskRequest)) -> (Rig, CreateTaskRequest) {
    let rig = Rig::start().await;
    let mut request = request(&rig);
    change(&mut request);
    rig.shim.task.create(ctx(), &request).await.unwrap();
    (rig, request)
}

async fn read(mut from: pipe::Receiver, count: usize) -> Vec<u8> {
    let mut data = vec![0; count];
    let reading = from.read_exact(&mut data);
    tokio::time::timeout(PATIENCE, reading).await.expect("all of it comes").unwrap();
    data
}

fn reader(path: &str) -> pipe::Receiver {
    pipe::OpenOptions::new().open_receiver(path).unwrap()
}

fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|i| u8::try_from((i / 7 + i / 4096) % 251).unwrap()).collect()
}

async fn close_stdin(rig: &Rig) {
    let mut close = CloseIORequest::new();
    (close.id, close.stdin) = ("pod1".to_owned(), true);
    rig.shim.task.close_io(ctx(), &close).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_megabyte_reaches_a_reader_that_comes_late() {
    let (rig, request) = started(|_| ()).await;
    // What fits into the FIFO is gone with the shim's end of it, so this one comes early.
    let errors = reader(&request.stderr);
    rig.launch("pod1", "").await;
    let text = pattern(1 << 20);
    rig.guest.print("pod1", "", &text);
    rig.guest.print_error("pod1", "", b"errors apart");
    rig.guest.exit("pod1", "", 0);
    let got = tokio::spawn(read(reader(&request.stdout), text.len()));
    assert!(got.await.unwrap() == text, "not the bytes that were written");
    assert_eq!(read(errors, 12).await, b"errors apart");
    assert_eq!(rig.wait("pod1", "").await.exit_status, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_breaks_nothing_and_the_next_one_goes_on() {
    let (rig, request) = started(|_| ()).await;
    rig.launch("pod1", "").await;
    rig.guest.print("pod1", "", b"first");
    assert_eq!(read(reader(&request.stdout), 5).await, b"first");
    rig.guest.print("pod1", "", b"second");
    assert_eq!(read(reader(&request.stdout), 6).await, b"second");
    // Nobody reads any more, and there is more than the FIFO holds: the end is told all the same.
    rig.guest.print("pod1", "", &pattern(1 << 20));
    rig.guest.exit("pod1", "", 9);
    assert_eq!(rig.wait("pod1", "").await.exit_status, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_holds_the_output_open_does_not_hold_up_the_end() {
    let (rig, request) = started(|_| ()).await;
    rig.launch("pod1", "").await;
    let reader = reader(&request.stdout);
    rig.guest.print("pod1", "", b"all");
    rig.guest.exit_and_hold("pod1", "", 6);
    assert_eq!(rig.wait("pod1", "").await.exit_status, 6);
    assert_eq!(read(reader, 3).await, b"all");
}

#[tokio::test(flavor = "multi_thread")]
async fn input_ends_after_its_last_byte_and_not_with_a_writer() {
    let (rig, request) = started(|_| ()).await;
    rig.launch("pod1", "").await;
    let text = pattern(200_000);
    let (first, second) = text.split_at(77_777);
    for part in [first, second] {
        // Each comes and goes, as clients that attach.
        let mut writer = pipe::OpenOptions::new().open_sender(&request.stdin).unwrap();
        writer.write_all(part).await.unwrap();
        drop(writer);
    }
    close_stdin(&rig).await;
    let got = tokio::time::timeout(PATIENCE, rig.guest.input("pod1", "")).await.unwrap();
    assert!(got == text, "{} bytes of {}", got.len(), text.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn input_without_a_writer_stays_open() {
    let (rig, request) = started(|_| ()).await;
    rig.launch("pod1", "").await;
    let mut writer = pipe::OpenOptions::new().open_sender(&request.stdin).unwrap();
    writer.write_all(b"one").await.unwrap();
    drop(writer);
    rig.guest.input_so_far("pod1", "", 3).await;
    let mut writer = pipe::OpenOptions::new().open_sender(&request.stdin).unwrap();
    writer.write_all(b"two").await.unwrap();
    assert_eq!(rig.guest.input_so_far("pod1", "", 6).await, b"onetwo");
    let methods = rig.guest.with_agent(FakeAgent::methods);
    assert!(!methods.contains(&"CloseStdin".to_owned()), "{methods:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_is_closed_before_the_start_is_delivered_first() {
    let (rig, request) = started(|_| ()).await;
    let mut writer = pipe::OpenOptions::new().open_sender(&request.stdin).unwrap();
    writer.write_all(b"early").await.unwrap();
    drop(writer);
    close_stdin(&rig).await;
    rig.launch("pod1", "").await;
    let got = tokio::time::timeout(PATIENCE, rig.guest.input("pod1", "")).await.unwrap();
    assert_eq!(got, b"early");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_one_stream_whose_end_is_no_call() {
    let (rig, request) = started(|request| request.terminal = true).await;
    rig.launch("pod1", "").await;
    assert!(rig.state("pod1", "").await.unwrap().terminal);
    rig.guest.print("pod1", "", b"$ ");
    assert_eq!(read(reader(&request.stdout), 2).await, b"$ ");
    close_stdin(&rig).await;
    rig.guest.exit("pod1", "", 0);
    assert_eq!(rig.wait("pod1", "").await.exit_status, 0);
    let methods = rig.guest.with_agent(FakeAgent::methods);
    for none in ["ReadStderr", "CloseStdin"] {
        assert!(!methods.contains(&none.to_owned()), "{methods:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn output_to_a_file_is_appended_and_other_schemes_are_refused() {
    let rig = Rig::start().await;
    let log = rig.path().join("out.log");
    std::fs::write(&log, "before ").unwrap();
    let mut request = request(&rig);
    request.stderr = "binary:///bin/logger".to_owned();
    let (_, message) = refused(rig.shim.task.create(ctx(), &request).await);
    assert!(message.contains("binary://") && message.contains("file://"), "{message}");
    rig.nothing_is_left();
    let mut rig = rig;
    rig.next_shim("pod1").await;
    request.stderr.clear();
    request.stdout = format!("file://{}", log.display());
    rig.shim.task.create(ctx(), &request).await.unwrap();
    rig.launch("pod1", "").await;
    rig.guest.print("pod1", "", b"after");
    rig.guest.exit("pod1", "", 0);
    rig.wait("pod1", "").await;
    assert_eq!(std::fs::read(&log).unwrap(), b"before after");
}
