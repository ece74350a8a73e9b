//! What serves a VM's devices while its pod starts. A VMM whose helper dies says no more than that a
//! socket was closed, or nothing at all while its guest hangs; whoever reads that is told of the helper.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::time::timeout;
use vmm_glue::ExitReport;
use vmm_glue::sharefs::Virtiofsd;
use vmm_glue::vsock::VsockDevice;

/// Of two processes that fall together: how long after the first the second may be noticed.
const TOGETHER: Duration = Duration::from_millis(200);

/// Returns when the first of them has ended; never without any.
pub async fn first_end(
    virtiofsd: Option<Arc<Virtiofsd>>,
    vsock: Option<Arc<VsockDevice>>,
) -> ExitReport {
    let share = async {
        match virtiofsd {
            Some(virtiofsd) => virtiofsd.wait().await,
            None => std::future::pending().await,
        }
    };
    let channel = async {
        match vsock {
            Some(vsock) => vsock.wait().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        report = share => report,
        report = channel => report,
    }
}

/// Does `work` unless a helper ends meanwhile, as `ended` says. A helper ends with its VM as well, so
/// what `work` says of a failure is kept, whoever was first.
///
/// # Errors
/// Those of `work`, with the helper's end where there is one.
pub async fn while_they_serve<T>(
    work: impl Future<Output = Result<T>>,
    ended: impl Future<Output = ExitReport>,
) -> Result<T> {
    tokio::pin!(work, ended);
    let (error, report) = tokio::select! {
        outcome = &mut work => match outcome {
            Ok(made) => return Ok(made),
            Err(error) => (error, timeout(TOGETHER, ended).await.ok()),
        },
        report = &mut ended => match timeout(TOGETHER, work).await {
            Ok(Err(error)) => (error, Some(report)),
            _ => (anyhow!("No pod can be started without it"), Some(report)),
        },
    };
    Err(match report {
        Some(report) => error.context(format!("What serves the VM's devices ended: {report}")),
        None => error,
    })
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::task::yield_now;
    use vmm_glue::ExitCause;

    use super::*;

    fn killed() -> ExitReport {
        ExitReport {
            name: "virtiofsd of a".into(),
            pid: 7,
            cause: ExitCause::Signal(9),
            console_tail: String::new(),
            stderr_tail: String::new(),
        }
    }

    fn failed() -> Result<()> {
        Err(anyhow!("a socket was closed"))
    }

    /// What was told, however the two came about.
    async fn told(
        work: impl Future<Output = Result<()>>,
        ended: impl Future<Output = ExitReport>,
    ) -> String {
        format!("{:#}", while_they_serve(work, ended).await.expect_err("somebody ended"))
    }

    #[tokio::test]
    async fn who_ended_first_does_not_change_what_is_told() {
        let later = async {
            yield_now().await;
            killed()
        };
        let one = told(ready(failed()), later).await;
        let later = async {
            yield_now().await;
            failed()
        };
        let other = told(later, ready(killed())).await;
        assert_eq!(one, other);
        assert!(one.contains("virtiofsd of a") && one.contains("a socket was closed"), "{one}");
    }

    #[tokio::test]
    async fn a_work_that_hangs_ends_with_its_helper() {
        let text = told(pending(), ready(killed())).await;
        assert!(text.contains("virtiofsd of a"), "{text}");
    }

    #[tokio::test]
    async fn helpers_that_live_change_nothing() {
        assert_eq!(told(ready(failed()), pending()).await, "a socket was closed");
        assert_eq!(while_they_serve(ready(Ok(5)), pending()).await.unwrap(), 5);
        assert_eq!(while_they_serve(ready(Ok(5)), first_end(None, None)).await.unwrap(), 5);
    }
}
