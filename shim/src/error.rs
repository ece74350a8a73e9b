//! Errors of the task API: what containerd does next depends on their code.

use containerd_shim_protos::ttrpc::{self, Code};

/// A refusal or failure, with the code containerd acts on and the words its user sees.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TaskError {
    /// The gRPC code.
    pub code: Kind,
    /// For people.
    pub message: String,
}

/// The codes that containerd tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// There is no such container or process.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// Not in this state.
    FailedPrecondition,
    /// Never with these arguments.
    InvalidArgument,
    /// This runtime cannot.
    Unimplemented,
    /// Something outside is away.
    Unavailable,
    /// It took too long.
    DeadlineExceeded,
    /// Anything else.
    Internal,
}

/// A result of the task API.
pub type TaskResult<T> = Result<T, TaskError>;

impl TaskError {
    /// An error of that kind.
    pub fn new(code: Kind, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// There is no such container or process.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// Not in this state.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(Kind::FailedPrecondition, message)
    }

    /// Anything else, with all its causes.
    pub fn internal(error: &anyhow::Error) -> Self {
        Self::new(Kind::Internal, chain(error))
    }
}

/// An error with its causes in one line, each said once.
pub fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        // Some libraries repeat the cause in their own words.
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    // The last words of a program or a console have several.
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" | ")
}

impl From<anyhow::Error> for TaskError {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(own) => own,
            Err(error) => Self::internal(&error),
        }
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        let code = match error.code {
            Kind::NotFound => Code::NOT_FOUND,
            Kind::AlreadyExists => Code::ALREADY_EXISTS,
            Kind::FailedPrecondition => Code::FAILED_PRECONDITION,
            Kind::InvalidArgument => Code::INVALID_ARGUMENT,
            Kind::Unimplemented => Code::UNIMPLEMENTED,
            Kind::Unavailable => Code::UNAVAILABLE,
            Kind::DeadlineExceeded => Code::DEADLINE_EXCEEDED,
            Kind::Internal => Code::INTERNAL,
        };
        ttrpc::Error::RpcStatus(ttrpc::get_status(code, error.message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn causes_are_told_in_one_line_and_once() {
        let error = anyhow::anyhow!("no such file").context("Failed to read x: no such file");
        assert_eq!(chain(&error), "Failed to read x: no such file");
        let error = anyhow::anyhow!("b").context("a");
        assert_eq!(chain(&error), "a: b");
        let error = anyhow::anyhow!("its last words:\n one\n\n two\n");
        assert_eq!(chain(&error), "its last words: | one | two");
    }

    #[test]
    fn a_task_error_inside_keeps_its_code() {
        let inner: anyhow::Error = TaskError::not_found("gone").into();
        assert_eq!(TaskError::from(inner).code, Kind::NotFound);
        let other: TaskResult<()> = Err(anyhow::anyhow!("x")).context("y").map_err(Into::into);
        assert_eq!(other.unwrap_err(), TaskError::new(Kind::Internal, "y: x"));
    }
}
