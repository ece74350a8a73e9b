//! Whether the agent still answers.
//!
//! It is asked every [`EVERY`]. An agent that is silent for longer than
//! `health_check_request_timeout_ms` is told of in the log, once, and so is its return. Nothing more is
//! done: a guest that is paused or starved of processors is silent too, and whether a pod is to be
//! killed is for the engine's probes to say. A VM that ends is seen without this.

use std::time::Duration;

use kata_agent_protocol::health::CheckRequest;
use tokio::time::Instant;
use vmm_glue::agent::Agent;

/// Between two questions.
pub const EVERY: Duration = Duration::from_secs(30);

/// How long an agent may take to say that it is there, when it has not answered before.
const LAST_WORD: Duration = Duration::from_secs(5);

/// Whether the agent, silent so far, answers at all.
pub async fn answers(agent: &Agent) -> bool {
    let check = CheckRequest::new();
    matches!(tokio::time::timeout(LAST_WORD, agent.check(&check)).await, Ok(Ok(_)))
}

/// What is worth telling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// No answer for longer than allowed, and what the last try met.
    Silent(String),
    /// It answers again.
    Back,
}

/// Tells the log.
pub fn log(news: News) {
    match news {
        News::Silent(error) => {
            tracing::error!(
                error,
                "the guest's agent does not answer; the guest hangs or is starved"
            );
        }
        News::Back => tracing::info!("the guest's agent answers again"),
    }
}

/// Asks `agent` until its connection is gone.
pub async fn watch(agent: Agent, every: Duration, limit: Duration, tell: impl Fn(News)) {
    let mut heard = Instant::now();
    let mut is_silent = false;
    loop {
        tokio::time::sleep(every).await;
        let answer = tokio::time::timeout(limit, agent.check(&CheckRequest::new())).await;
        let failure = match answer {
            Ok(Ok(_)) => None,
            Ok(Err(error)) if error.is_gone() => return,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("No answer to Check within {limit:?}")),
        };
        match failure {
            None => {
                heard = Instant::now();
                if std::mem::take(&mut is_silent) {
                    tell(News::Back);
                }
            }
            Some(error) if !is_silent && heard.elapsed() >= limit => {
                is_silent = true;
                tell(News::Silent(error));
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_agent_protocol::health::HealthCheckResponse;
    use kata_agent_protocol::health::health_check_response::ServingStatus;
    use tokio::sync::mpsc;
    use vmm_glue::agent::AgentAddress;
    use vmm_glue::agent::fake::FakeAgent;

    #[tokio::test]
    async fn silence_and_return_are_told_once_each() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let fake = FakeAgent::serve(&path).unwrap();
        let address = AgentAddress::Unix(path);
        let limit = Duration::from_secs(10);
        let agent = Agent::connect(&address, limit, std::future::pending()).await.unwrap();
        fake.hang("Check");
        let (sender, mut news) = mpsc::unbounded_channel();
        let short = Duration::from_millis(2);
        let watching = tokio::spawn(watch(agent, short, short, move |n| sender.send(n).unwrap()));
        assert!(matches!(news.recv().await, Some(News::Silent(_))));
        let asked = fake.calls().len();
        fake.wait_for("Check", asked + 3).await;
        let mut answer = HealthCheckResponse::new();
        answer.status = ServingStatus::SERVING.into();
        fake.answer("Check", &answer);
        assert_eq!(news.recv().await, Some(News::Back));
        drop(fake);
        watching.await.unwrap();
        assert_eq!(news.recv().await, None);
    }
}
