//! containerd's events: each once, in the order in which things happened.
//!
//! One task sends them over one connection, so the order is that of [`Events::publish`]. While
//! containerd is away they wait, up to a number, and are sent when it is back.

use std::collections::HashMap;
use std::time::Duration;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{MessageDyn, MessageField};
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::ttrpc::context;
use kata_agent_protocol::protobuf::well_known_types::timestamp::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Events that wait while containerd is away; then the oldest ones are still sent, newer ones lost.
const MAX_WAITING: usize = 4096;
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// Between two attempts to reach containerd; it restarts in seconds.
const RETRY: [u64; 6] = [10, 50, 200, 500, 1000, 2000];
/// For how long one event is tried.
const MAX_ATTEMPTS: usize = 300;

/// Sends events. Clones share one queue.
#[derive(Clone, Debug)]
pub struct Events {
    queue: mpsc::Sender<Queued>,
    namespace: String,
}

#[derive(Debug)]
enum Queued {
    Event(Box<containerd_shim_protos::shim::event::Envelope>),
    /// Answered once all events before it are sent or given up.
    Flush(tokio::sync::oneshot::Sender<()>),
}

impl Events {
    /// Starts the task that sends to containerd's ttrpc socket at `address`.
    pub fn start(address: String, namespace: String) -> (Self, JoinHandle<()>) {
        let (queue, receiver) = mpsc::channel(MAX_WAITING);
        let sender = Sender { address, client: None };
        (Self { queue, namespace }, tokio::spawn(sender.run(receiver)))
    }

    /// Queues an event. It is stamped with the time of this call.
    pub fn publish(&self, topic: &str, event: &dyn MessageDyn) {
        let value = match event.write_to_bytes_dyn() {
            Ok(value) => value,
            Err(error) => {
                tracing::error!(topic, %error, "an event cannot be encoded");
                return;
            }
        };
        let mut any = Any::new();
        any.type_url = event.descriptor_dyn().full_name().to_owned();
        any.value = value;
        let mut envelope = containerd_shim_protos::shim::event::Envelope::new();
        envelope.timestamp = MessageField::some(now());
        envelope.namespace = self.namespace.clone();
        envelope.topic = topic.to_owned();
        envelope.event = MessageField::some(any);
        if self.queue.try_send(Queued::Event(Box::new(envelope))).is_err() {
            tracing::error!(topic, "an event is lost: containerd has been away for too long");
        }
    }

    /// Waits until everything published so far is sent, or `limit` has passed.
    pub async fn flush(&self, limit: Duration) {
        let (done, waiter) = tokio::sync::oneshot::channel();
        if self.queue.send(Queued::Flush(done)).await.is_ok() {
            drop(tokio::time::timeout(limit, waiter).await);
        }
    }
}

/// The time, as protobuf has it.
pub fn now() -> Timestamp {
    crate::clock::timestamp()
}

struct Sender {
    address: String,
    client: Option<EventsClient>,
}

impl Sender {
    async fn run(mut self, mut queue: mpsc::Receiver<Queued>) {
        while let Some(queued) = queue.recv().await {
            match queued {
                Queued::Event(envelope) => self.send(*envelope).await,
                Queued::Flush(done) => drop(done.send(())),
            }
        }
    }

    async fn send(&mut self, envelope: containerd_shim_protos::shim::event::Envelope) {
        let mut request = containerd_shim_protos::shim::events::ForwardRequest::new();
        let (topic, namespace) = (envelope.topic.clone(), envelope.namespace.clone());
        request.envelope = MessageField::some(envelope);
        for attempt in 0..MAX_ATTEMPTS {
            match self.try_send(&namespace, &request).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::debug!(%topic, %error, "containerd takes no events");
                    self.client = None;
                }
            }
            let pause = RETRY[attempt.min(RETRY.len() - 1)];
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        tracing::error!(%topic, "an event is given up: containerd does not come back");
    }

    async fn try_send(
        &mut self,
        namespace: &str,
        request: &containerd_shim_protos::shim::events::ForwardRequest,
    ) -> anyhow::Result<()> {
        if self.client.is_none() {
            let client = Client::connect(&format!("unix://{}", self.address)).await?;
            self.client = Some(EventsClient::new(client));
        }
        let Some(client) = &self.client else { return Ok(()) };
        let mut context = context::with_duration(SEND_LIMIT);
        context.metadata =
            HashMap::from([("containerd-namespace-ttrpc".to_owned(), vec![namespace.to_owned()])]);
        client.forward(context, request).await?;
        Ok(())
    }
}
