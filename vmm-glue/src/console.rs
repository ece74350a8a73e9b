//! What a child prints: a guest's serial console, or the VMM's standard error.
//!
//! The child writes into a pipe; a pump task reads it, writes the file if there is one, and keeps
//! the newest bytes in memory. Waiting for a line is thus an event, not a look at a file now and
//! then.
//!
//! # Bounds
//! A guest may print for ever. Memory holds the newest 64 KiB. The file holds at most 8 MiB: when
//! it is full it starts anew with a line that says so. What is shown to people has its control
//! characters replaced, so a guest cannot speak to the operator's terminal.
//!
//! # Threads
//! The pump runs on the reaper thread (see [`crate::process`]) and is the only writer.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::watch;

const KEPT_BYTES: usize = 64 << 10;
const FILE_LIMIT_BYTES: u64 = 8 << 20;
const FILE_RESTART_NOTE: &[u8] = b"[vmm-glue: the console file was full and starts anew here]\n";

/// The newest output of a child, shared by any number of readers.
#[derive(Clone, Debug)]
pub struct Console {
    kept: Arc<Mutex<Kept>>,
    /// Bytes seen so far, and whether the pipe is closed.
    progress: watch::Receiver<Progress>,
}

#[derive(Debug, Default)]
struct Kept {
    newest: VecDeque<u8>,
    /// Bytes that came before `newest`.
    dropped: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    bytes: u64,
    closed: bool,
}

/// The output ended before the awaited text came.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The console closed before it showed '{text}'; its last lines:\n{tail}")]
pub struct ConsoleClosed {
    /// What was waited for.
    pub text: String,
    /// The last lines.
    pub tail: String,
}

impl Console {
    /// A console and the end that feeds it.
    pub(crate) fn new() -> (Self, Feed) {
        let kept = Arc::new(Mutex::new(Kept::default()));
        let (sender, progress) = watch::channel(Progress::default());
        (Self { kept: Arc::clone(&kept), progress }, Feed { kept, progress: sender })
    }

    /// The last `lines` lines, fit for a terminal: invalid UTF-8 and control characters are
    /// replaced.
    pub fn tail(&self, lines: usize) -> String {
        let text = self.text_after(0);
        let text = text.trim_end();
        let start =
            text.rmatch_indices('\n').nth(lines.saturating_sub(1)).map_or(0, |(at, _)| at + 1);
        text[start..].chars().map(|c| if is_harmless(c) { c } else { '\u{fffd}' }).collect()
    }

    /// How many bytes were printed so far.
    pub fn bytes_seen(&self) -> u64 {
        self.progress.borrow().bytes
    }

    /// Returns once `text` is among the newest 64 KiB.
    ///
    /// # Errors
    /// The output ended without it. There is no time limit: wrap it in a timeout. Cancel safe.
    pub async fn wait_for(&self, text: &str) -> Result<(), ConsoleClosed> {
        self.wait_for_after(0, text).await
    }

    /// As [`Console::wait_for`], but looks only at what was printed after the first `seen` bytes: take
    /// [`Console::bytes_seen`] before a reset to wait for the guest to come up once more.
    ///
    /// # Errors
    /// As [`Console::wait_for`].
    pub async fn wait_for_after(&self, seen: u64, text: &str) -> Result<(), ConsoleClosed> {
        let closed = || ConsoleClosed { text: text.to_owned(), tail: self.tail(20) };
        let mut progress = self.progress.clone();
        loop {
            let is_closed = progress.borrow_and_update().closed;
            if self.text_after(seen).contains(text) {
                return Ok(());
            }
            if is_closed || progress.changed().await.is_err() {
                return Err(closed());
            }
        }
    }

    fn text_after(&self, seen: u64) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = kept.newest.iter().copied().collect();
        let skipped = usize::try_from(seen.saturating_sub(kept.dropped)).unwrap_or(usize::MAX);
        String::from_utf8_lossy(bytes.get(skipped..).unwrap_or_default()).replace('\r', "")
    }
}

fn is_harmless(c: char) -> bool {
    !c.is_control() || c == '\n' || c == '\t'
}

/// The writing end of a [`Console`]; dropping it closes the console.
#[derive(Debug)]
pub(crate) struct Feed {
    kept: Arc<Mutex<Kept>>,
    progress: watch::Sender<Progress>,
}

impl Feed {
    pub(crate) fn push(&self, bytes: &[u8]) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.newest.extend(bytes);
        let excess = kept.newest.len().saturating_sub(KEPT_BYTES);
        kept.newest.drain(..excess);
        kept.dropped += excess as u64;
        drop(kept);
        self.progress.send_modify(|progress| progress.bytes += bytes.len() as u64);
    }

    /// Reads `pipe` to its end. A file that cannot be written is given up with a warning; the
    /// console in memory goes on.
    pub(crate) async fn pump(self, mut pipe: pipe::Receiver, file: Option<std::fs::File>) {
        let mut file = file.map(|file| ConsoleFile { file: File::from_std(file), written: 0 });
        let mut buffer = vec![0; 8 << 10];
        loop {
            let bytes = match pipe.read(&mut buffer).await {
                Ok(0) => return,
                Ok(n) => &buffer[..n],
                Err(error) => {
                    tracing::warn!(%error, "Reading a child's output failed; its console ends here");
                    return;
                }
            };
            // The file first: who was woken by a line will find it there.
            if let Some(sink) = &mut file
                && let Err(error) = sink.write(bytes).await
            {
                tracing::warn!(%error, "Writing a console file failed; it ends here");
                file = None;
            }
            self.push(bytes);
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.progress.send_modify(|progress| progress.closed = true);
    }
}

struct ConsoleFile {
    file: File,
    written: u64,
}

impl ConsoleFile {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written + bytes.len() as u64 > FILE_LIMIT_BYTES {
            self.file.set_len(0).await?;
            self.file.rewind().await?;
            self.file.write_all(FILE_RESTART_NOTE).await?;
            self.written = FILE_RESTART_NOTE.len() as u64;
        }
        self.file.write_all(bytes).await?;
        self.written += bytes.len() as u64;
        self.file.flush().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_lines_without_control_characters() {
        let (console, feed) = Console::new();
        feed.push(b"one\r\ntwo\r\n\x1b[2Jthree\xff\r\n");
        assert_eq!(console.tail(2), "two\n\u{fffd}[2Jthree\u{fffd}");
        assert_eq!(console.tail(99), "one\ntwo\n\u{fffd}[2Jthree\u{fffd}");
    }

    #[test]
    fn memory_keeps_the_newest_bytes_only() {
        let (console, feed) = Console::new();
        feed.push(b"first");
        for _ in 0..3 {
            feed.push(&[b'x'; KEPT_BYTES]);
        }
        feed.push(b"last");
        assert_eq!(console.text_after(0).len(), KEPT_BYTES);
        assert!(console.text_after(0).ends_with("xlast"));
        assert_eq!(console.bytes_seen(), 9 + 3 * KEPT_BYTES as u64);
    }

    #[tokio::test]
    async fn a_waiter_wakes_at_the_text_even_if_it_comes_in_two_halves() {
        let (console, feed) = Console::new();
        feed.push(b"REA");
        let waiter = tokio::spawn(async move { console.wait_for("READY").await });
        feed.push(b"DY\n");
        assert_eq!(waiter.await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn what_was_seen_before_is_no_sign_of_the_next_boot() {
        let (console, feed) = Console::new();
        feed.push(b"READY\n");
        let seen = console.bytes_seen();
        let again = console.clone();
        let waiter = tokio::spawn(async move { again.wait_for_after(seen, "READY").await });
        feed.push(b"rebooting\n");
        drop(feed);
        assert!(waiter.await.unwrap().is_err());
        assert_eq!(console.wait_for_after(seen, "rebooting").await, Ok(()));
    }

    #[tokio::test]
    async fn a_waiter_learns_that_the_console_closed() {
        let (console, feed) = Console::new();
        feed.push(b"Kernel panic\n");
        drop(feed);
        let error = console.wait_for("READY").await.unwrap_err();
        assert_eq!(error.tail, "Kernel panic");
    }

    #[tokio::test]
    async fn a_guest_that_prints_for_ever_fills_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let file = std::fs::File::create(&path).unwrap();
        let mut sink = ConsoleFile { file: File::from_std(file), written: 0 };
        for _ in 0..5 {
            sink.write(&vec![b'x'; 3 << 20]).await.unwrap();
        }
        let text = std::fs::read(&path).unwrap();
        assert!(text.len() as u64 <= FILE_LIMIT_BYTES, "{} bytes", text.len());
        assert!(text.starts_with(FILE_RESTART_NOTE) && text.ends_with(b"x"));
    }
}
