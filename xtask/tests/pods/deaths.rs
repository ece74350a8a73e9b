//! Whatever part of a pod is killed or hangs: its containers end as killed ones do, nothing of it stays, and
//! the next pod starts.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{sleep, timeout};
use xtask::rig::cri::messages::PodSandboxState;
use xtask::rig::{Container, Network, Node, Pod};

const LIMIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(20);
/// 128 and SIGKILL, as the shim has it.
const KILLED: i32 = 137;
/// What containerd itself says of a container whose shim is gone.
const NO_SHIM: i32 = 255;
const SHIM: &str = "containerd-shim-slipway-v2";

/// Programs of a pod, and what the end of its container is told as when they are killed.
const DEATHS: [(&str, i32); 3] = [("qemu-system", KILLED), ("virtiofsd", KILLED), (SHIM, NO_SHIM)];

/// One after the other: each pod is the proof that nothing hinders the next.
pub async fn a_pod_with_a_part_that_is_killed_ends_and_leaves_nothing(node: &Node) -> Result<()> {
    for (program, code) in DEATHS {
        let (pod, container) = start(node).await?;
        let case = async {
            signal(node, program, "KILL").await?;
            let told = container.ended().await?;
            ensure!(told == code, "It ends with {told}");
            not_ready(node, &pod).await?;
            pod.remove().await?;
            nothing_is_left(node).await
        };
        let outcome = timeout(LIMIT, case).await.context("It takes too long").flatten();
        outcome.with_context(|| format!("{program} is killed"))?;
    }
    assert_works(node).await
}

/// Nobody sees that it hangs until the pod is to end, and then it ends all the same.
pub async fn a_pod_with_a_part_that_hangs_can_be_removed_and_leaves_nothing(
    node: &Node,
) -> Result<()> {
    for program in ["qemu-system", "virtiofsd", SHIM] {
        let (pod, _container) = start(node).await?;
        let case = async {
            signal(node, program, "STOP").await?;
            if program == SHIM {
                // A call waits for it until the caller has enough; a containerd that starts does not.
                node.containerd().kill().await?;
                node.containerd().launch().await?;
            }
            pod.remove().await?;
            nothing_is_left(node).await
        };
        let outcome = timeout(LIMIT, case).await.context("It takes too long").flatten();
        outcome.with_context(|| format!("{program} hangs"))?;
    }
    assert_works(node).await
}

/// The same in the midst of a start.
pub async fn a_start_that_loses_a_part_fails_and_leaves_nothing(node: &Node) -> Result<()> {
    for (program, says) in [("qemu-system", "signal 9"), ("virtiofsd", "virtiofsd of"), (SHIM, "")]
    {
        let killed = async {
            // The last that is started: the pod waits for its guest.
            appears(node, "qemu-system").await?;
            signal(node, program, "KILL").await
        };
        let started = async { anyhow::Ok(node.pod("victim").await.map(drop)) };
        let both = async { tokio::try_join!(started, killed) };
        let (outcome, ()) = timeout(LIMIT, both).await.context("It takes too long")??;
        let Err(error) = outcome else { anyhow::bail!("It starts without {program}") };
        ensure!(format!("{error:#}").contains(says), "{program}: {error:#}");
        nothing_is_left(node).await.with_context(|| program.to_owned())?;
    }
    assert_works(node).await
}

/// containerd is killed while it waits for a pod, and the next one is asked to remove what is there.
pub async fn half_a_pod_of_a_killed_containerd_can_be_removed(node: &Node) -> Result<()> {
    let killed = async {
        appears(node, "qemu-system").await?;
        node.containerd().kill().await
    };
    let (outcome, killed) = tokio::join!(node.pod("half"), killed);
    killed?;
    ensure!(outcome.is_err(), "{outcome:?}");
    node.containerd().launch().await?;
    remove_all(node).await?;
    nothing_is_left(node).await?;
    assert_works(node).await
}

/// Pods go on without their switch, and have their network again once the next one is there.
pub async fn pods_outlive_a_killed_switch(node: &Node) -> Result<()> {
    let (_one, in_one) = start(node).await?;
    let two = node.pod("two").await?;
    let before = pids(node, "qemu-system")?;
    let slipwayd = node.slipwayd().context("There is no switch")?;
    signal(node, "slipwayd", "KILL").await?;
    slipwayd.relaunch().await?;
    ping(&in_one, &two.address().to_string()).await?;
    ping(&in_one, &Network::GATEWAY.to_string()).await?;
    ensure!(pids(node, "qemu-system")? == before, "A VM is another one");
    Ok(())
}

/// A switch that hangs is given up within a limit, and does not do later what nobody waits for.
pub async fn a_start_gives_up_a_switch_that_hangs(node: &Node) -> Result<()> {
    signal(node, "slipwayd", "STOP").await?;
    let outcome = timeout(LIMIT, node.pod("waiting")).await.context("It takes too long")?;
    // It runs under nsenter, which stops with it, and continues it when it is continued itself.
    let slipwayd = node.slipwayd().context("There is no switch")?;
    kill(Pid::from_raw(slipwayd.pid().cast_signed()), Signal::SIGCONT)?;
    let Err(error) = outcome else { anyhow::bail!("It starts without a switch") };
    ensure!(format!("{error:#}").contains("slipwayd did not answer"), "{error:#}");
    // containerd keeps what it could not clean up, for another try.
    remove_all(node).await?;
    nothing_is_left(node).await?;
    assert_works(node).await
}

async fn start(node: &Node) -> Result<(Pod<'_>, Container<'_>)> {
    let pod = node.pod("victim").await?;
    let container = pod.idle("idle").await?;
    ping(&container, &Network::GATEWAY.to_string()).await?;
    Ok((pod, container))
}

/// A pod starts, has its network, and goes.
pub async fn assert_works(node: &Node) -> Result<()> {
    let (pod, _container) = start(node).await?;
    pod.remove().await
}

async fn ping(from: &Container<'_>, to: &str) -> Result<()> {
    let printed = from.shell(&format!("ping -c 1 -W 10 {to}")).await?;
    ensure!(printed.contains("1 packets received"), "{printed}");
    Ok(())
}

/// As a kubelet does with pods that did not start.
async fn remove_all(node: &Node) -> Result<()> {
    for pod in node.cri().pods().await? {
        node.cri().stop_pod(&pod.id).await?;
        node.cri().remove_pod(&pod.id).await?;
    }
    Ok(())
}

async fn not_ready(node: &Node, pod: &Pod<'_>) -> Result<()> {
    while node.cri().pod_status(pod.id()).await?.state() == PodSandboxState::Ready {
        sleep(PAUSE).await;
    }
    Ok(())
}

async fn nothing_is_left(node: &Node) -> Result<()> {
    let remains = node.settle().await?;
    ensure!(remains.is_empty(), "Something is left: {remains}");
    Ok(())
}

/// Processes of the node that run `program`.
fn pids(node: &Node, program: &str) -> Result<Vec<u32>> {
    let runs = |pid: &u32| {
        let line = node.host().command_line(*pid);
        // Shims ask programs for their version before they run them.
        let is_question = line.contains("--version");
        !is_question && line.split(' ').next().is_some_and(|first| first.contains(program))
    };
    Ok(node.host().pids()?.into_iter().filter(runs).collect())
}

/// Returns once the node runs `program`.
async fn appears(node: &Node, program: &str) -> Result<()> {
    let there = async {
        while pids(node, program)?.is_empty() {
            sleep(PAUSE).await;
        }
        Ok(())
    };
    timeout(LIMIT, there).await.with_context(|| format!("No {program} runs"))?
}

/// Sends a signal to every process of the node that runs `program`.
pub async fn signal(node: &Node, program: &str, name: &str) -> Result<()> {
    let pids = pids(node, program)?;
    ensure!(!pids.is_empty(), "No {program} runs");
    for pid in pids {
        let mut command = node.host().command("kill");
        let command = command.args(["-s", name, &pid.to_string()]).stderr(Stdio::null());
        let status = command.status().await?;
        // It may have ended with one that was killed before it.
        let is_gone = node.host().command_line(pid).is_empty();
        ensure!(status.success() || is_gone, "{program} {pid} does not get SIG{name}");
    }
    Ok(())
}
