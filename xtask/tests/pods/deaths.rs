//! Whatever part of a pod is killed: its containers end as killed ones do, nothing of it stays, and
//! the next pod starts. That nothing stays is what the end of every node looks at.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::time::{sleep, timeout};
use xtask::rig::cri::messages::PodSandboxState;
use xtask::rig::{Network, Node};

const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
/// 128 and SIGKILL.
const KILLED: i32 = 137;

pub async fn a_pod_whose_vmm_is_killed_ends_and_leaves_nothing(node: &Node) -> Result<()> {
    dies_with(node, "qemu-system").await
}

async fn dies_with(node: &Node, program: &str) -> Result<()> {
    let pod = node.pod("victim").await?;
    let container = pod.idle("idle").await?;
    kill(node, program).await?;
    assert_eq!(container.ended().await?, KILLED, "{program}");
    let not_ready = async {
        while node.cri().pod_status(pod.id()).await?.state() == PodSandboxState::Ready {
            sleep(PAUSE).await;
        }
        anyhow::Ok(())
    };
    timeout(LIMIT, not_ready).await.context("The pod stays ready")??;
    pod.remove().await?;
    let next = node.pod("next").await?;
    let container = next.idle("idle").await?;
    let printed = container.shell(&format!("ping -c 1 -W 10 {}", Network::GATEWAY)).await?;
    ensure!(printed.contains("1 packets received"), "{printed}");
    Ok(())
}

/// Kills every process of the node that runs `program`.
async fn kill(node: &Node, program: &str) -> Result<()> {
    let runs = |pid: &u32| {
        let line = node.host().command_line(*pid);
        line.split(' ').next().is_some_and(|first| first.contains(program))
    };
    let pids: Vec<_> = node.host().pids()?.into_iter().filter(runs).collect();
    ensure!(!pids.is_empty(), "No {program} runs");
    for pid in pids {
        let status = node.host().command("kill").args(["-KILL", &pid.to_string()]).status().await?;
        // It may have ended with one that was killed before it.
        let is_gone = node.host().command_line(pid).is_empty();
        ensure!(status.success() || is_gone, "{program} {pid} cannot be killed");
    }
    Ok(())
}
