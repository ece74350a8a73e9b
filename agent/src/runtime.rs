//! `slipway-agent runtime`: makes one container or one process in it, then ends.
//!
//! libcontainer forks, which a program with threads must not do. So the agent starts itself
//! again for each container and each exec; this is the child's side.
//!
//! ```text
//! agent                              runtime (fd 0: socket; fd 1, 2: the container's)
//! one line of JSON: Order       -->
//! one byte with the container's -->  (no terminal only)
//!   standard input
//!                               <--  one line of JSON: Outcome
//! closes the socket             -->  ends; the container's process is now the agent's child
//! ```
//!
//! The container's process is a child of the runtime until the latter ends, and the runtime does
//! not end before the agent knows the process's number: its exit status cannot be missed.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::{iter, panic};

use anyhow::{Context as _, Result};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use serde::{Deserialize, Serialize};
use vmm_sys_util::sock_ctrl_msg::ScmSocket as _;

/// The first argument that makes the agent a runtime.
pub const ARGUMENT: &str = "runtime";

/// What the agent wants.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// The container's name.
    pub container: String,
    /// Where libcontainer keeps its state.
    pub state: PathBuf,
    /// What to do.
    pub task: Task,
    /// Where to send the terminal's master, if the process has a terminal.
    pub console: Option<PathBuf>,
}

/// What there is to do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Task {
    /// Create the container of this bundle.
    Create(PathBuf),
    /// Run the process of this file in the container.
    Exec(PathBuf),
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// The process has this number.
    Pid(i32),
    /// It could not be done.
    Failed(String),
}

/// Does as the agent orders.
pub fn main() -> Result<()> {
    let socket = io::stdin().as_fd().try_clone_to_owned();
    let mut socket = UnixStream::from(socket.context("There is no socket to the agent")?);
    // Standard error is the container's.
    let replies = socket.try_clone().context("Failed to share the socket to the agent")?;
    panic::set_hook(Box::new(move |panic| {
        drop(reply(&replies, &Outcome::Failed(format!("The runtime panicked: {panic}"))));
    }));
    crate::kata::default_sigpipe().context("Failed to reset SIGPIPE")?;
    let outcome = match obey(&socket) {
        Ok(pid) => Outcome::Pid(pid),
        Err(error) => Outcome::Failed(format!("{error:#}")),
    };
    reply(&socket, &outcome)?;
    socket.read(&mut [0]).context("Failed to wait for the agent")?;
    Ok(())
}

fn reply(mut socket: &UnixStream, outcome: &Outcome) -> Result<()> {
    let mut line = serde_json::to_vec(outcome)?;
    line.push(b'\n');
    socket.write_all(&line).context("Failed to reply to the agent")
}

fn obey(socket: &UnixStream) -> Result<i32> {
    // Read byte by byte: what follows the line comes with a file descriptor.
    let mut line = String::new();
    BufReader::with_capacity(1, socket).read_line(&mut line).context("The agent is silent")?;
    let order: Order = serde_json::from_str(&line).context("The agent's order is no order")?;
    let mut builder = ContainerBuilder::new(order.container, SyscallType::Linux);
    builder = builder.with_root_path(order.state).map_err(|error| causes(&error))?;
    match order.console {
        Some(console) => builder = builder.with_console_socket(Some(console)),
        None => builder = builder.with_stdin(receive(socket)?),
    }
    let pid = match order.task {
        Task::Create(bundle) => {
            let container = builder.as_init(bundle).with_systemd(false).with_detach(true).build();
            container.map_err(|error| causes(&error))?.pid().context("The container has no pid")?
        }
        Task::Exec(process) => {
            let tenant = builder.as_tenant().with_process(Some(process)).with_detach(true);
            tenant.build().map_err(|error| causes(&error))?
        }
    };
    Ok(pid.as_raw())
}

fn receive(socket: &UnixStream) -> Result<OwnedFd> {
    let (_, file) = socket.recv_with_fd(&mut [0]).context("The agent sent no standard input")?;
    Ok(file.context("The agent sent no standard input")?.into())
}

/// The error with its causes, each once: libcontainer's errors tell some causes in their own text.
fn causes(error: &dyn std::error::Error) -> anyhow::Error {
    let mut text = String::new();
    for cause in iter::successors(Some(error), |error| error.source()) {
        // What comes from the other side of a fork is padded with zeros.
        let cause = cause.to_string().replace('\0', "");
        if !text.contains(&cause) {
            let separator = if text.is_empty() { "" } else { ": " };
            text = format!("{text}{separator}{cause}");
        }
    }
    anyhow::Error::msg(text)
}
