//! Containers, their output, and commands in them.

use anyhow::{Result, ensure};
use xtask::rig::{ContainerSpec, Executed, LogLine, Node};

pub async fn a_container_runs_and_its_output_is_logged_by_stream(node: &mut Node) -> Result<()> {
    let pod = node.pod("logs").await?;
    let spec = ContainerSpec::shell("talker", "echo out; sleep 0.2; echo err >&2; exit 3");
    let container = pod.run(spec).await?;
    ensure!(container.ended().await? == 3);
    let line = |stream: &str, text: &str| LogLine { stream: stream.into(), text: text.into() };
    assert_eq!(container.log()?, [line("stdout", "out"), line("stderr", "err")]);
    Ok(())
}

pub async fn a_command_runs_in_a_container_and_tells_its_code(node: &mut Node) -> Result<()> {
    let pod = node.pod("exec").await?;
    let container = pod.idle("idle").await?;
    let executed = container.exec(&["sh", "-c", "echo out; echo err >&2; exit 7"]).await?;
    let expected = Executed { code: 7, stdout: "out\n".into(), stderr: "err\n".into() };
    assert_eq!(executed, expected);
    Ok(())
}
