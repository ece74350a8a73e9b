//! One process of a container: its state, its streams, and the task that waits for its end.
//!
//! ```text
//! Created --start--> Running --the agent's WaitProcess answers, output drained--> Stopped
//! ```
//! The end is told once: to every waiter, also late ones, with the same code and time, and as one
//! event after that of the start.

use std::sync::Mutex as StdMutex;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use containerd_shim_protos::events::task::{TaskExecStarted, TaskExit, TaskStart};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::topics;
use kata_agent_protocol::agent::{
    ExecProcessRequest, StartContainerRequest, TtyWinResizeRequest, WaitProcessRequest,
};
use kata_agent_protocol::oci;
use kata_agent_protocol::protobuf::well_known_types::timestamp::Timestamp;
use tokio::sync::watch;
use vmm_glue::agent::Agent;

use crate::error::{TaskError, TaskResult};
use crate::events::{self, Events};
use crate::stdio::{Opened, Paths, Stdio, Target};

/// What a process that ended with its VM returns: as if killed (128 + SIGKILL).
pub const LOST_STATUS: u32 = 137;
/// What a process whose end could not be learned returns.
const UNKNOWN_STATUS: u32 = 255;
/// How long a stopped VM's process is waited for after the agent is gone.
const GONE_PAUSE: Duration = Duration::from_millis(10);

/// Where a process is in its life.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Made, not started.
    Created,
    /// Started.
    Running,
    /// Over.
    Stopped(Exit),
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    /// The exit code, or 128 + signal.
    pub status: u32,
    /// When.
    pub at: Timestamp,
}

impl Exit {
    /// An end with this status, now.
    pub fn now(status: u32) -> Self {
        Self { status, at: events::now() }
    }
}

/// A process of a container, its first one or another.
#[derive(Debug)]
pub struct Process {
    /// The process as the agent knows it.
    pub target: Target,
    /// containerd's id of it; empty for the first of a container.
    pub exec_id: String,
    /// Its streams.
    pub paths: Paths,
    /// What an exec runs; nothing for the first process.
    exec: Option<oci::Process>,
    state: watch::Sender<State>,
    /// Opened streams until the start, copied ones after it.
    opened: StdMutex<Option<Opened>>,
    stdio: StdMutex<Option<Arc<Stdio>>>,
    /// The terminal's size (columns, rows), if it was told before the start.
    size: StdMutex<Option<(u32, u32)>>,
    /// One start at a time.
    starting: tokio::sync::Mutex<()>,
}

fn lock<T>(mutex: &StdMutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Process {
    /// A process that is not started; its streams are opened.
    ///
    /// # Errors
    /// A stream that cannot be opened.
    pub fn new(
        target: Target,
        exec_id: String,
        paths: Paths,
        exec: Option<oci::Process>,
    ) -> Result<Self> {
        let opened = paths.open()?;
        Ok(Self {
            target,
            exec_id,
            paths,
            exec,
            state: watch::Sender::new(State::Created),
            opened: StdMutex::new(Some(opened)),
            stdio: StdMutex::new(None),
            size: StdMutex::new(None),
            starting: tokio::sync::Mutex::new(()),
        })
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        match &*self.state.borrow() {
            State::Stopped(exit) => Some(exit.clone()),
            State::Created | State::Running => None,
        }
    }

    /// Waits for its end; any number of callers, also after it.
    pub async fn wait(&self) -> Exit {
        let mut states = self.state.subscribe();
        let stopped = states.wait_for(|state| matches!(state, State::Stopped(_))).await;
        match stopped.as_deref() {
            Ok(State::Stopped(exit)) => exit.clone(),
            // The sender is ours, and lives as long as `self`.
            _ => Exit::now(UNKNOWN_STATUS),
        }
    }

    /// Starts it. Its start is published before its end can be.
    ///
    /// # Errors
    /// Started before, or the agent's refusal.
    pub async fn start(
        self: &Arc<Self>,
        agent: &Agent,
        events: &Events,
        pid: u32,
    ) -> TaskResult<()> {
        let _one = self.starting.lock().await;
        if self.state() != State::Created {
            return Err(TaskError::precondition(format!(
                "Process {} of container {} was started before",
                self.name(),
                self.target.container
            )));
        }
        self.ask_to_start(agent).await?;
        self.copy_streams(agent);
        let is_running = self.state.send_if_modified(|state| {
            // The VM may have ended meanwhile, and the end been told.
            let is_news = *state == State::Created;
            if is_news {
                *state = State::Running;
                self.publish_start(events, pid);
            }
            is_news
        });
        if !is_running {
            return Err(TaskError::precondition(format!(
                "Process {} of container {} ended while it was started",
                self.name(),
                self.target.container
            )));
        }
        tokio::spawn(Arc::clone(self).watch(agent.clone(), events.clone(), pid));
        let size = *lock(&self.size);
        if let Some((columns, rows)) = size
            && let Err(error) = self.resize(agent, columns, rows).await
        {
            // It runs all the same, or has ended already.
            tracing::warn!(target = ?self.target, %error, "the terminal keeps its size");
        }
        Ok(())
    }

    /// Ends it if it was not started; waits for a start that is under way. Returns whether it did.
    pub async fn stop_unstarted(&self, exit: Exit, events: &Events, pid: u32) -> bool {
        let _one = self.starting.lock().await;
        let is_unstarted = self.state() == State::Created;
        if is_unstarted {
            self.stop(exit, events, pid);
        }
        is_unstarted
    }

    fn copy_streams(&self, agent: &Agent) {
        // Held until the copies are in place: CloseIO must find the one or the other.
        let mut opened = lock(&self.opened);
        let stdio = opened.take().map(|o| o.start(agent, &self.target, self.paths.terminal));
        *lock(&self.stdio) = stdio.map(Arc::new);
    }

    fn name(&self) -> &str {
        if self.exec_id.is_empty() { "init" } else { &self.exec_id }
    }

    async fn ask_to_start(&self, agent: &Agent) -> Result<()> {
        let what = || {
            format!(
                "Failed to start process {} of container {}",
                self.name(),
                self.target.container
            )
        };
        match &self.exec {
            None => {
                let mut request = StartContainerRequest::new();
                request.container_id.clone_from(&self.target.container);
                agent.start_container(&request).await.with_context(what)?;
            }
            Some(process) => {
                let mut request = ExecProcessRequest::new();
                request.container_id.clone_from(&self.target.container);
                request.exec_id.clone_from(&self.target.exec);
                request.process = MessageField::some(process.clone());
                agent.exec_process(&request).await.with_context(what)?;
            }
        }
        Ok(())
    }

    fn publish_start(&self, events: &Events, pid: u32) {
        if self.exec_id.is_empty() {
            let mut event = TaskStart::new();
            event.container_id.clone_from(&self.target.container);
            event.pid = pid;
            events.publish(topics::TASK_START_EVENT_TOPIC, &event);
        } else {
            let mut event = TaskExecStarted::new();
            event.container_id.clone_from(&self.target.container);
            event.exec_id.clone_from(&self.exec_id);
            event.pid = pid;
            events.publish(topics::TASK_EXEC_STARTED_EVENT_TOPIC, &event);
        }
    }

    /// Learns the end from the agent, lets the last output through, and tells everybody.
    async fn watch(self: Arc<Self>, agent: Agent, events: Events, pid: u32) {
        let mut request = WaitProcessRequest::new();
        request.container_id.clone_from(&self.target.container);
        request.exec_id.clone_from(&self.target.exec);
        let status = match agent.wait_process(&request).await {
            Ok(answer) => u32::try_from(answer.status).unwrap_or(UNKNOWN_STATUS),
            Err(error) if error.is_gone() => {
                // The VM ends, by our hand or not; whoever knows ends its processes.
                tokio::time::sleep(GONE_PAUSE).await;
                LOST_STATUS
            }
            Err(error) => {
                tracing::error!(target = ?self.target, %error, "the end of a process is not known");
                UNKNOWN_STATUS
            }
        };
        let at = events::now();
        let stdio = lock(&self.stdio).clone();
        if let Some(stdio) = stdio {
            stdio.drain().await;
        }
        self.stop(Exit { status, at }, &events, pid);
    }

    /// Marks the end and publishes it, unless that was done.
    pub fn stop(&self, exit: Exit, events: &Events, pid: u32) {
        let mut event = TaskExit::new();
        event.container_id.clone_from(&self.target.container);
        event.id = match self.exec_id.is_empty() {
            true => self.target.container.clone(),
            false => self.exec_id.clone(),
        };
        event.pid = pid;
        event.exit_status = exit.status;
        event.exited_at = MessageField::some(exit.at.clone());
        self.state.send_if_modified(|state| {
            let was_running = *state == State::Running;
            let is_news = !matches!(state, State::Stopped(_));
            if is_news {
                *state = State::Stopped(exit);
                if was_running {
                    events.publish(topics::TASK_EXIT_EVENT_TOPIC, &event);
                }
            }
            is_news
        });
    }

    /// Sets the terminal's size; before the start it is remembered.
    ///
    /// # Errors
    /// The agent's refusal.
    pub async fn resize(&self, agent: &Agent, columns: u32, rows: u32) -> TaskResult<()> {
        *lock(&self.size) = Some((columns, rows));
        if self.state() != State::Running {
            return Ok(());
        }
        let mut request = TtyWinResizeRequest::new();
        request.container_id.clone_from(&self.target.container);
        request.exec_id.clone_from(&self.target.exec);
        request.column = columns;
        request.row = rows;
        agent.tty_win_resize(&request).await.context("Failed to resize the terminal")?;
        Ok(())
    }

    /// Lets input end once what was written is delivered.
    pub fn close_stdin(&self) {
        match &mut *lock(&self.opened) {
            Some(opened) => opened.close_stdin(),
            None => lock(&self.stdio).iter().for_each(|stdio| stdio.close_stdin()),
        }
    }
}
