//! Pipes and terminals, through `ctr`.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::{sleep, timeout};
use xtask::rig::{Node, oci_image};

const LIMIT: Duration = Duration::from_secs(60);

/// As many bytes of the numbers from 1 on as asked for, as `seq` prints them.
fn numbers(bytes: usize) -> Vec<u8> {
    let mut text = Vec::new();
    for number in 1.. {
        text.extend(format!("{number}\n").into_bytes());
        if text.len() >= bytes {
            break;
        }
    }
    text.truncate(bytes);
    text
}

/// Fails at the first difference: megabytes are no fit message.
fn ensure_same(got: &[u8], expected: &[u8]) -> Result<()> {
    ensure!(got.len() == expected.len(), "{} bytes of {}", got.len(), expected.len());
    let difference = got.iter().zip(expected).position(|(got, expected)| got != expected);
    ensure!(difference.is_none(), "other bytes from {difference:?} on");
    Ok(())
}

pub async fn ten_megabytes_of_output_arrive_byte_by_byte(node: &Node) -> Result<()> {
    let bytes = 10_000_000;
    let mut run = node.ctr_run("output");
    let script = format!("seq 1 10000000 | head -c {bytes}; echo end >&2; exit 6");
    let output = run.args([oci_image::NAME, "output", "sh", "-c", &script]).output();
    let output = timeout(LIMIT, output).await.context("It does not end")??;
    assert_eq!(output.status.code(), Some(6));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "end\n");
    ensure_same(&output.stdout, &numbers(bytes))
}

pub async fn what_is_piped_in_comes_out_and_its_end_is_seen(node: &Node) -> Result<()> {
    let bytes = numbers(3_000_000);
    let mut run = node.ctr_run("input");
    run.args([oci_image::NAME, "input", "sh", "-c", "cat; echo end >&2"]);
    run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = run.spawn().context("ctr cannot be run")?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let write = async {
        let written = stdin.write_all(&bytes).await;
        drop(stdin);
        written
    };
    let both = async { tokio::join!(write, child.wait_with_output()) };
    let (written, output) = timeout(LIMIT, both).await.context("It does not end")?;
    written?;
    let output = output?;
    ensure!(output.status.success(), "{}", output.status);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "end\n");
    ensure_same(&output.stdout, &bytes)
}

/// Somebody who types at a terminal of ours, in which `ctr` runs.
struct Typist {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    seen: String,
}

impl Typist {
    /// Opens a terminal of 33 rows and 77 columns, prints its name and runs `command` in it.
    fn start(node: &Node, command: &tokio::process::Command) -> Result<Self> {
        // The command enters the host anew from there: what it was made of stays as it is.
        let command = command.as_std();
        let words = [command.get_program()].into_iter().chain(command.get_args());
        let words: Vec<_> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
        let script = format!("tty; stty rows 33 cols 77; exec {}", words.join(" "));
        let mut terminal = tokio::process::Command::new("script");
        terminal.args(["--quiet", "--return", "--flush", "--command", &script, "/dev/null"]);
        terminal.current_dir(node.folder()).env("SHELL", "/bin/sh").kill_on_drop(true);
        terminal.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = terminal.spawn().context("script, of bsdutils, cannot be run")?;
        let stdin = child.stdin.take().context("no stdin")?;
        let stdout = child.stdout.take().context("no stdout")?;
        Ok(Self { child, stdin, stdout, seen: String::new() })
    }

    /// Returns once `text` stands on the terminal; what comes next is what follows it.
    async fn sees(&mut self, text: &str) -> Result<()> {
        let read = async {
            let mut buffer = [0; 4096];
            loop {
                if let Some(at) = self.seen.find(text) {
                    self.seen.drain(..at + text.len());
                    return Ok(());
                }
                let count = self.stdout.read(&mut buffer).await?;
                ensure!(count > 0, "the terminal is closed");
                self.seen += &String::from_utf8_lossy(&buffer[..count]);
            }
        };
        match timeout(LIMIT, read).await {
            Ok(outcome) => outcome,
            Err(_) => bail!("'{text}' is not on the terminal: {:?}", self.seen),
        }
    }

    /// The rest of the line.
    async fn line(&mut self) -> Result<String> {
        let mut before = std::mem::take(&mut self.seen);
        while !before.contains('\n') {
            self.seen = before;
            let mut buffer = [0; 256];
            let count = self.stdout.read(&mut buffer).await?;
            ensure!(count > 0, "the terminal is closed");
            self.seen += &String::from_utf8_lossy(&buffer[..count]);
            before = std::mem::take(&mut self.seen);
        }
        let (line, rest) = before.split_once('\n').context("no line")?;
        self.seen = rest.to_owned();
        Ok(line.trim_end().to_owned())
    }

    async fn types(&mut self, text: &str) -> Result<()> {
        Ok(self.stdin.write_all(text.as_bytes()).await?)
    }

    async fn ended(mut self) -> Result<Option<i32>> {
        // Whoever does not read what is printed keeps it from being printed.
        let drain = async { self.stdout.read_to_string(&mut self.seen).await };
        let both = async { tokio::join!(drain, self.child.wait()) };
        let (drained, status) = timeout(LIMIT, both).await.context("It does not end")?;
        drained?;
        Ok(status?.code())
    }
}

/// A shell at a terminal: it knows the size, also when that changes, and its end is ours.
async fn use_terminal(mut typist: Typist) -> Result<()> {
    let terminal = typist.line().await?;
    ensure!(terminal.starts_with("/dev/pts/"), "{terminal}");
    // What is typed is shown, too, so the answer must look different.
    typist
        .types("echo is$((1 + 1))up; test -t 0 && test -t 1 && test -t 2 && echo t$((1))y\n")
        .await?;
    typist.sees("is2up").await?;
    typist.sees("t1y").await?;
    typist
        .types("while [ \"$(stty size)\" != '33 77' ]; do sleep 0.05; done; echo si$((0))ze\n")
        .await?;
    typist.sees("si0ze").await?;
    let stty = ["--file", &terminal, "rows", "40", "cols", "100"];
    let resized = tokio::process::Command::new("stty").args(stty).status().await?;
    ensure!(resized.success(), "stty: {resized}");
    typist
        .types("while [ \"$(stty size)\" != '40 100' ]; do sleep 0.05; done; echo re$((0))sized\n")
        .await?;
    typist.sees("re0sized").await?;
    // Ctrl-C ends what runs in the foreground, and not the shell.
    typist.types("echo sl$((0))eeps; sleep 1000000\n").await?;
    typist.sees("sl0eeps").await?;
    sleep(Duration::from_millis(200)).await;
    typist.types("\x03").await?;
    typist.types("echo aw$((0))ake; exit 5\n").await?;
    typist.sees("aw0ake").await?;
    assert_eq!(typist.ended().await?, Some(5));
    Ok(())
}

pub async fn a_terminal_has_a_size_that_changes_and_passes_keys(node: &Node) -> Result<()> {
    let mut run = node.ctr_run("terminal");
    run.args(["--tty", oci_image::NAME, "terminal", "sh"]);
    use_terminal(Typist::start(node, &run)?).await
}

pub async fn a_command_in_a_container_has_a_terminal_if_it_wants_one(node: &Node) -> Result<()> {
    let pod = node.pod("terminal").await?;
    let container = pod.idle("idle").await?;
    let mut exec = node.ctr();
    exec.args(["tasks", "exec", "--tty", "--exec-id", "one", container.id(), "sh"]);
    use_terminal(Typist::start(node, &exec)?).await?;
    assert_eq!(container.exec(&["true"]).await?.code, 0);
    Ok(())
}
