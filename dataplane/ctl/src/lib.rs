//! slipwayctl: what an operator types to see and change the switch.
//!
//! ```text
//! words --cli--> Command --run--> one or two calls of slipway_api::client
//!                                    `--> tables (people) or JSON (programs)
//! ```
//! It knows nothing of the switch that the API does not say: every command is a few calls of the
//! typed client, and `--json` prints the API's own types. `check` and `env` look at the node besides,
//! see [`node`]. Results go to standard output, refusals with their remedy to standard error, and the
//! exit code tells the kinds of failure apart ([`Failure`]).
//!
//! # Threads
//! One; calls are made one after the other.

pub mod cli;
pub mod node;
mod pmd_rates;
mod run;
mod tables;
mod watch;

use std::io;

use kata_config::ConfigError;
use slipway_api::{ErrorCode, client::ClientError};

pub use run::run;

/// Why a command did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// The switch refused, or could not be asked.
    Client(ClientError),
    /// The switch, or the node, is not well; the answer was printed.
    Unwell,
    /// The configuration of pods cannot be used.
    Config(ConfigError),
    /// The output could not be written.
    Output(io::Error),
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl Failure {
    /// The exit code of the process, as the help text promises; 2 is the command line's.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            // `slipwayctl ... | head` is not a failure: the reader has seen enough.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::Unwell | Self::Config(_) | Self::Output(_) => 1,
            Self::Client(error) => match error.refusal() {
                Some(refusal) if refusal.code == ErrorCode::NotFound => 4,
                Some(_) => 1,
                None => 3,
            },
        }
    }

    /// What is said on standard error; nothing when there is nothing to add.
    #[must_use]
    pub fn message(&self, as_json: bool) -> Option<String> {
        match self {
            Self::Unwell => None,
            Self::Config(error) => Some(format!("slipwayctl: {error}")),
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => None,
            Self::Output(error) => Some(format!("slipwayctl: Failed to write the output: {error}")),
            Self::Client(ClientError::Refused(refusal)) if as_json => {
                Some(serde_json::json!({ "error": refusal }).to_string())
            }
            Self::Client(ClientError::Refused(refusal)) => {
                Some(format!("slipwayctl: {refusal}\n  {}", refusal.remedy))
            }
            Self::Client(error) => {
                let mut text = format!("slipwayctl: {error}");
                let mut cause = std::error::Error::source(error);
                while let Some(deeper) = cause {
                    text.push_str(&format!(": {deeper}"));
                    cause = deeper.source();
                }
                Some(text)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// A reader that has seen enough.
    struct Closed;

    impl io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_broken_pipe_is_quiet_and_no_failure() {
        let cli = cli::Cli::try_parse_from(["slipwayctl", "completions", "bash"]).expect("parses");
        let failure = run(cli, &mut Closed, false).await.expect_err("cannot write");
        assert_eq!((failure.exit_code(), failure.message(false)), (0, None));
    }

    #[test]
    fn another_failure_to_write_is_told() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(failure.exit_code(), 1);
        assert!(failure.message(false).is_some_and(|text| text.contains("write the output")));
    }
}
