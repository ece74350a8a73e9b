//! How a VM, or another child, ended, and what it said last.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::sys::signal::Signal;

/// The end of a VM, told once and to everybody who waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitReport {
    /// Of the VM, or what else was run.
    pub name: String,
    /// Its process, gone by now.
    pub pid: u32,
    /// Why it ended.
    pub cause: ExitCause,
    /// The last lines of its standard output, a guest's serial console.
    pub console_tail: String,
    /// The last lines of its standard error.
    pub stderr_tail: String,
}

/// Why a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitCause {
    /// We asked for it, by `stop` or by dropping the handle.
    Requested,
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest panicked and its machine ends on a panic.
    GuestPanic,
    /// The VMM process returned this code without being asked.
    Code(i32),
    /// A signal that was not ours ended the VMM process.
    Signal(i32),
}

impl ExitCause {
    /// What the process status alone says.
    pub(crate) fn from_status(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, signal) => Self::Signal(signal.unwrap_or_default()),
        }
    }
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested => f.write_str("was stopped by us"),
            Self::GuestShutdown => f.write_str("ended as its guest powered off"),
            Self::GuestPanic => f.write_str("ended as its guest panicked"),
            Self::Code(code) => write!(f, "ended with exit code {code}"),
            Self::Signal(number) => match Signal::try_from(*number) {
                Ok(signal) => write!(f, "was ended by signal {number} ({signal})"),
                Err(_) => write!(f, "was ended by signal {number}"),
            },
        }
    }
}

impl fmt::Display for ExitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' (pid {}) {}", self.name, self.pid, self.cause)?;
        for (what, text) in [("standard error", &self.stderr_tail), ("console", &self.console_tail)]
        {
            if !text.is_empty() {
                write!(f, "\nlast lines of its {what}:\n{text}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_vm_pid_cause_and_last_lines() {
        let report = ExitReport {
            name: "a".into(),
            pid: 7,
            cause: ExitCause::from_status(ExitStatus::from_raw(9)),
            console_tail: "boot".into(),
            stderr_tail: String::new(),
        };
        assert_eq!(
            report.to_string(),
            "'a' (pid 7) was ended by signal 9 (SIGKILL)\nlast lines of its console:\nboot"
        );
    }

    #[test]
    fn a_status_with_a_code_is_no_signal() {
        assert_eq!(ExitCause::from_status(ExitStatus::from_raw(3 << 8)), ExitCause::Code(3));
    }
}
