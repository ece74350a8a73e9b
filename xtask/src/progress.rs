//! The steps of a long command: each has a name, a limit and a line with the seconds that went by.

use std::fs;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::time::timeout;

use crate::interrupt;

/// The time since the command was typed.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    command: &'static str,
    observed: Instant,
    age: Duration,
}

impl Progress {
    /// Counts from the start of this process. That was cargo, which compiled us and then became us
    /// by `exec`, so the compilation counts. `command` is what failures name: "The demo".
    pub fn new(command: &'static str) -> Self {
        // Without /proc the compilation does not count.
        Self { command, observed: now(), age: age_of_this_process().unwrap_or_default() }
    }

    /// How long ago the command was typed.
    pub fn elapsed(&self) -> Duration {
        self.age + now().duration_since(self.observed)
    }

    /// Prints a line.
    pub fn say(&self, line: &str) {
        println!("[{:6.1} s] {line}", self.elapsed().as_secs_f64());
    }

    /// Runs the step `name`, for `limit` at most and until we are interrupted.
    ///
    /// # Errors
    /// The step's own, with its name; that it took too long; [`interrupt::Interrupted`].
    pub async fn step<T>(
        &self,
        name: &str,
        limit: Duration,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.say(name);
        let outcome = tokio::select! {
            biased;
            interrupted = interrupt::requested() => Err(interrupted.into()),
            outcome = timeout(limit, work) => match outcome {
                Ok(outcome) => outcome,
                Err(_) => Err(anyhow::anyhow!("It was not done within {limit:?}")),
            },
        };
        outcome.with_context(|| self.failed(name))
    }

    /// Runs a step that blocks. What it waits for are programs, which have limits and end when we are
    /// interrupted (see [`crate::command`]).
    ///
    /// # Errors
    /// The step's own, with its name; [`interrupt::Interrupted`].
    pub fn blocking_step<T>(&self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.say(name);
        let outcome = work().with_context(|| self.failed(name))?;
        if interrupt::is_requested() {
            bail!(interrupt::Interrupted);
        }
        Ok(outcome)
    }

    fn failed(&self, step: &str) -> String {
        format!("{} failed at this step: {step}", self.command)
    }
}

#[expect(clippy::disallowed_methods, reason = "demo and figures measure")]
fn now() -> Instant {
    Instant::now()
}

fn age_of_this_process() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    age(&stat, &fs::read_to_string("/proc/uptime").ok()?)
}

/// The age of the process of `stat`, at `uptime` (proc(5)).
fn age(stat: &str, uptime: &str) -> Option<Duration> {
    /// Ticks per second in `stat`, the same on every x86 kernel.
    const USER_HZ: f64 = 100.0;
    // The name, field 2, may hold blanks and brackets; what follows its end does not.
    let (_, fields) = stat.rsplit_once(") ")?;
    let started: f64 = fields.split(' ').nth(22 - 3)?.parse().ok()?;
    let uptime: f64 = uptime.split(' ').next()?.parse().ok()?;
    Duration::try_from_secs_f64(uptime - started / USER_HZ).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "7 (a) b) S 1 7 7 0 -1 0 0 0 0 0 1 2 3 4 20 0 1 0 12345 0 0\n";

    #[test]
    fn the_age_is_counted_from_the_start_time_behind_the_name() {
        assert_eq!(age(STAT, "200.45 99.0\n"), Some(Duration::from_secs(77)));
    }

    #[test]
    fn a_start_in_the_future_or_no_start_is_no_age() {
        assert_eq!(age(STAT, "1.00 1.0\n"), None);
        assert_eq!(age("7 (a) S 1", "200.45 99.0\n"), None);
    }

    #[test]
    fn this_process_is_younger_than_the_machine() {
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        assert!(age_of_this_process().unwrap().as_secs_f64() < uptime);
    }

    #[tokio::test]
    async fn a_step_that_fails_or_takes_too_long_is_named() {
        let progress = Progress::new("The demo");
        let limit = Duration::from_millis(1);
        let slow = progress.step("Slow", limit, std::future::pending::<Result<()>>()).await;
        let text = format!("{:#}", slow.unwrap_err());
        assert!(text.contains("Slow") && text.contains("within 1ms"), "{text}");
        let bad = progress.blocking_step("Bad", || -> Result<()> { bail!("broken") });
        let text = format!("{:#}", bad.unwrap_err());
        assert!(text.contains("Bad") && text.contains("broken"), "{text}");
    }
}
