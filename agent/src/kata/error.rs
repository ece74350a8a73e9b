//! Refusals: what a caller did wrong, with the status code it is told.
//!
//! Everything inside the agent fails with [`anyhow::Error`]. One that began as a [`Refusal`]
//! keeps its code through every context put around it; any other is the agent's own trouble and
//! becomes `INTERNAL`, as with Kata's agent.

use ttrpc::{Code, get_status};

/// A request that cannot be served as it is.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    code: Code,
    message: String,
}

impl Refusal {
    /// The request names something that does not exist, or a value that makes no sense.
    pub fn invalid(message: impl Into<String>) -> anyhow::Error {
        Self::with(Code::INVALID_ARGUMENT, message)
    }

    /// The request comes at a time at which it cannot be served.
    pub fn untimely(message: impl Into<String>) -> anyhow::Error {
        Self::with(Code::FAILED_PRECONDITION, message)
    }

    /// What the request would make is there already.
    pub fn exists(message: impl Into<String>) -> anyhow::Error {
        Self::with(Code::ALREADY_EXISTS, message)
    }

    /// The request names something this agent does not do.
    pub fn unsupported(message: impl Into<String>) -> anyhow::Error {
        Self::with(Code::UNIMPLEMENTED, message)
    }

    /// What the request waits for did not come.
    pub fn late(message: impl Into<String>) -> anyhow::Error {
        Self::with(Code::DEADLINE_EXCEEDED, message)
    }

    fn with(code: Code, message: impl Into<String>) -> anyhow::Error {
        Self { code, message: message.into() }.into()
    }
}

/// What the caller is told.
pub fn to_status(error: &anyhow::Error) -> ttrpc::Error {
    let code = error.downcast_ref::<Refusal>().map_or(Code::INTERNAL, |refusal| refusal.code);
    ttrpc::Error::RpcStatus(get_status(code, format!("{error:#}")))
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;

    fn status_of(error: &anyhow::Error) -> (Code, String) {
        match to_status(error) {
            ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_refusal_keeps_its_code_through_a_context() {
        let error = Err::<(), _>(Refusal::invalid("no container c1"));
        let error = error.context("Failed to start").unwrap_err();
        let expected = "Failed to start: no container c1".to_owned();
        assert_eq!(status_of(&error), (Code::INVALID_ARGUMENT, expected));
    }

    #[test]
    fn any_other_error_is_internal() {
        assert_eq!(status_of(&anyhow!("disk")), (Code::INTERNAL, "disk".to_owned()));
    }
}
