//! The agent in the guest: how it is reached, and its services as methods.
//!
//! ```text
//!  connect: dial -> Health.Check -> serving?  yes: Agent
//!             ^          |            | no, refused, closed, garbage
//!             `- pause --+------------'    1 ms, growing to 50 ms
//!                 ends early when the VM has ended, and at the deadline
//! ```
//!
//! A handshake may succeed before the agent serves, so the first call decides. On a serial port it is
//! the only wait: the port keeps the call until the agent opens it.
//!
//! # Bounds
//! Each call has a time limit, 60 s unless [`Agent::with_time_limit`] says another, but those that
//! wait for something to happen: `WaitProcess`, `ReadStdout`, `ReadStderr`, `GetOOMEvent`. They end
//! with the connection. A message has at most 4 MiB; a longer one is refused before it is sent.
//!
//! # Threads
//! An [`Agent`] is a handle: clones share one connection, on which any number of calls may be under
//! way. A dropped call is forgotten here; the agent still does it.

mod address;
mod dial;
mod error;
#[cfg(feature = "testing")]
pub mod fake;
mod rpc;

use std::fmt;
use std::time::Duration;

use kata_agent_protocol::agent_ttrpc::AgentServiceClient;
use kata_agent_protocol::health::{CheckRequest, health_check_response::ServingStatus};
use kata_agent_protocol::health_ttrpc::HealthClient;
pub use kata_agent_protocol::ttrpc::Code;
use kata_agent_protocol::ttrpc::r#async::Client;

pub use address::{AddressError, AgentAddress};
pub use error::AgentError;

/// Of a call, unless told otherwise; what Kata's runtimes take.
pub const TIME_LIMIT: Duration = Duration::from_secs(60);
/// Of `Health.Check` and `Health.Version`.
const HEALTH_LIMIT: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
const CONNECT: &str = "connect";

/// A connection to an agent that serves.
#[derive(Clone)]
pub struct Agent {
    service: AgentServiceClient,
    health: HealthClient,
    address: AgentAddress,
    limit: Duration,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").field("address", &self.address).field("limit", &self.limit).finish()
    }
}

impl Agent {
    /// Tries `address` until the agent answers a health check. `vm_ended` says in words how the VM
    /// ended, if it does meanwhile; give it [`std::future::pending`] where there is none. Cancel safe.
    ///
    /// # Errors
    /// `DEADLINE_EXCEEDED` with what the last try met, or `UNAVAILABLE` with the VM's end.
    pub async fn connect(
        address: &AgentAddress,
        deadline: Duration,
        vm_ended: impl Future<Output = String>,
    ) -> Result<Self, AgentError> {
        let mut last = "it was not tried".to_owned();
        let trying = async {
            let mut pause = FIRST_PAUSE;
            loop {
                last = match Self::attempt(address).await {
                    Ok(agent) => return agent,
                    Err(error) => error,
                };
                tokio::time::sleep(pause).await;
                pause = (pause * 3 / 2).min(LONGEST_PAUSE);
            }
        };
        let outcome = tokio::select! {
            biased;
            how = vm_ended => {
                let message = format!("its VM ended: {how}");
                return Err(AgentError::new(CONNECT, Code::UNAVAILABLE, &message));
            }
            outcome = tokio::time::timeout(deadline, trying) => outcome,
        };
        outcome.map_err(|_| {
            let message = format!("no agent at {address} within {deadline:?}; at last: {last}");
            AgentError::new(CONNECT, Code::DEADLINE_EXCEEDED, &message)
        })
    }

    /// One try, and in words why it failed.
    async fn attempt(address: &AgentAddress) -> Result<Self, String> {
        let stream = dial::dial(address).await.map_err(|error| error.to_string())?;
        let client = Client::new(stream);
        let agent = Self {
            service: AgentServiceClient::new(client.clone()),
            health: HealthClient::new(client),
            address: address.clone(),
            limit: TIME_LIMIT,
        };
        let health = agent.check(&CheckRequest::new()).await.map_err(|error| error.to_string())?;
        match health.status.enum_value() {
            Ok(ServingStatus::SERVING) => Ok(agent),
            other => Err(format!("the agent is there, but its health is {other:?}")),
        }
    }

    /// Where it was found.
    pub fn address(&self) -> &AgentAddress {
        &self.address
    }

    /// The same connection with another time limit for calls: `create_container_timeout` of Kata's
    /// configuration, for instance. Calls without a limit stay so.
    #[must_use]
    pub fn with_time_limit(&self, limit: Duration) -> Self {
        Self { limit, ..self.clone() }
    }
}
