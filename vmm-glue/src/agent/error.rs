//! Why the agent did not do what it was asked.

use std::fmt;

use kata_agent_protocol::ttrpc;
use ttrpc::Code;

/// How much of an agent's message is kept, in characters.
const MAX_CHARS: usize = 2000;
/// ttrpc's own words for a client's time limit; it has no variant for it.
const DEADLINE: &str = "Request deadline elapsed";
/// Its words for what it cannot encode, decode or send, which is no fault of the connection: how they
/// start. Everything else without a status is.
const NO_LOSS: [&str; 4] = ["Encoding ", "Unpack ", "Receiver got malformed ", "message length "];

/// A call of the agent that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentError {
    /// What was called, `CreateContainer` for instance, or `connect`.
    pub method: &'static str,
    /// The agent's code. `UNAVAILABLE`: there is no connection any more. `DEADLINE_EXCEEDED`: no
    /// answer in time; the agent may still do it.
    pub code: Code,
    /// The agent's words, without backtrace and control characters.
    pub message: String,
}

impl AgentError {
    /// An error of `method`; `message` is cut to what people can read.
    pub fn new(method: &'static str, code: Code, message: &str) -> Self {
        Self { method, code, message: readable(message) }
    }

    pub(super) fn from_ttrpc(method: &'static str, error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => Self::new(method, status.code(), &status.message),
            ttrpc::Error::Others(text) if text == DEADLINE => {
                Self::new(method, Code::DEADLINE_EXCEEDED, "")
            }
            ttrpc::Error::Others(text) if NO_LOSS.iter().any(|start| text.starts_with(start)) => {
                Self::new(method, Code::INTERNAL, &text)
            }
            lost => Self::new(method, Code::UNAVAILABLE, &lost.to_string()),
        }
    }

    /// The agent is too old for this method, or was built without it.
    pub fn is_unsupported(&self) -> bool {
        self.code == Code::UNIMPLEMENTED
            || self.code == Code::NOT_FOUND && self.message.contains("is not supported")
    }

    /// The connection, and mostly the VM with it, is gone.
    pub fn is_gone(&self) -> bool {
        self.code == Code::UNAVAILABLE
    }

    /// No answer in time.
    pub fn is_timeout(&self) -> bool {
        self.code == Code::DEADLINE_EXCEEDED
    }
}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, code, message } = self;
        match *code {
            Code::UNAVAILABLE => write!(f, "The agent was lost at {method}")?,
            Code::DEADLINE_EXCEEDED => write!(f, "The agent did not answer {method} in time")?,
            _ => write!(f, "The agent refused {method} ({code:?})")?,
        }
        if message.is_empty() { Ok(()) } else { write!(f, ": {message}") }
    }
}

impl std::error::Error for AgentError {}

/// An agent in Rust sends its error, an empty line, its causes, an empty line, and kilobytes of
/// backtrace. The first paragraph and the causes are what people need, in one line.
fn readable(message: &str) -> String {
    let mut paragraphs = message.trim().split("\n\n");
    let first = paragraphs.next().unwrap_or_default();
    let causes = paragraphs.next().and_then(|text| text.trim().strip_prefix("Caused by:"));
    let causes = causes.into_iter().flat_map(str::lines).map(|line| {
        // Several causes are numbered.
        let line = line.trim();
        let number = line.split_once(": ").filter(|(n, _)| n.parse::<u8>().is_ok());
        number.map_or(line, |(_, text)| text)
    });
    let first = first.split("Stack backtrace:").next().unwrap_or_default();
    let lines = first.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.collect::<Vec<_>>().join(" ");
    let parts = std::iter::once(first.as_str()).chain(causes).filter(|part| !part.is_empty());
    let text = parts.collect::<Vec<_>>().join(": ");
    text.chars().take(MAX_CHARS).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backtrace_is_dropped_and_the_causes_are_kept() {
        let message = "create failed\n\nCaused by:\n    0: mount /a\n    1: No such file\n\n\
                       Stack backtrace:\n   0: anyhow::error\n";
        let error = AgentError::new("CreateContainer", Code::INTERNAL, message);
        let expected = "The agent refused CreateContainer (INTERNAL): create failed: mount /a: No \
                        such file";
        assert_eq!(error.to_string(), expected);
        assert_eq!(readable("ENOENT\n\nStack backtrace:\n   0: x"), "ENOENT");
        assert_eq!(readable("one\n\nCaused by:\n    the other: cause"), "one: the other: cause");
        assert_eq!(readable("\x1b[2Jbad"), "\u{fffd}[2Jbad");
        assert_eq!(readable(&"x".repeat(9999)).len(), MAX_CHARS);
    }

    #[test]
    fn an_old_agent_a_lost_one_and_a_late_one_are_told_apart() {
        let status = |code, text: &str| ttrpc::Error::RpcStatus(ttrpc::get_status(code, text));
        let error = |error| AgentError::from_ttrpc("SetPolicy", error);
        assert!(error(status(Code::UNIMPLEMENTED, "")).is_unsupported());
        let unknown = "/grpc.AgentService/SetPolicy is not supported";
        assert!(error(status(Code::NOT_FOUND, unknown)).is_unsupported());
        assert!(!error(status(Code::NOT_FOUND, "no such container")).is_unsupported());
        assert!(error(ttrpc::Error::Socket("disconnected".into())).is_gone());
        assert!(error(ttrpc::Error::RemoteClosed).is_gone());
        assert!(error(ttrpc::Error::Others(DEADLINE.into())).is_timeout());
        let garbage = error(ttrpc::Error::Others("Unpack response error".into()));
        assert_eq!((garbage.code, garbage.is_gone()), (Code::INTERNAL, false));
    }
}
