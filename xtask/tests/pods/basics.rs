//! Containers, their output, their ends, and commands in them.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::task::JoinSet;
use xtask::rig::cri::messages::{
    ContainerMetadata, ContainerState, NamespaceMode, PodSandboxState,
};
use xtask::rig::{ContainerSpec, Executed, LogLine, Node, namespaces};

const LIMIT: Duration = Duration::from_secs(60);

pub async fn a_pod_is_ready_until_it_is_stopped_which_may_be_repeated(node: &Node) -> Result<()> {
    let pod = node.pod("web").await?;
    let container = pod.idle("idle").await?;
    let status = node.cri().pod_status(pod.id()).await?;
    assert_eq!(status.state(), PodSandboxState::Ready);
    assert_eq!(status.metadata.context("It has no name")?.name, "web");
    assert_eq!(node.cri().container_status(container.id()).await?.state(), ContainerState::Running);
    for _ in 0..2 {
        node.cri().stop_pod(pod.id()).await?;
        let status = node.cri().pod_status(pod.id()).await?;
        assert_eq!(status.state(), PodSandboxState::NotReady);
    }
    assert_eq!(container.ended().await?, 137);
    for _ in 0..2 {
        node.cri().remove_pod(pod.id()).await?;
    }
    ensure!(node.cri().pods().await?.is_empty() && node.cri().containers().await?.is_empty());
    Ok(())
}

pub async fn output_is_logged_by_stream_and_none_of_it_is_lost(node: &Node) -> Result<()> {
    let pod = node.pod("logs").await?;
    let talker = "echo out; sleep 0.2; echo err >&2; exit 3";
    let talker = pod.run(ContainerSpec::shell("talker", talker)).await?;
    assert_eq!(talker.ended().await?, 3);
    // containerd tells of the end first, and writes the rest then.
    talker.printed("err").await?;
    let line = |stream: &str, text: &str| LogLine { stream: stream.into(), text: text.into() };
    assert_eq!(talker.log()?, [line("stdout", "out"), line("stderr", "err")]);

    // It ends only when all is written: containerd 1.6 may close the pipe of a container that has ended
    // before it has read all of it (containerd issue 7289).
    let script = "trap 'exit 0' TERM; seq 1 100000; while :; do sleep 0.05; done";
    let long = pod.run(ContainerSpec::shell("long", script)).await?;
    long.printed("100000").await?;
    long.stop(LIMIT).await?;
    assert_eq!(long.ended().await?, 0);
    let lines = long.log()?;
    assert_eq!(lines.len(), 100_000);
    for (line, number) in lines.iter().zip(1..) {
        ensure!(line.text == format!("{number}"), "line {number} is {line:?}");
    }
    Ok(())
}

pub async fn a_command_runs_in_a_container_and_tells_its_code(node: &Node) -> Result<()> {
    let pod = node.pod("exec").await?;
    let container = pod.idle("idle").await?;
    let executed = container.exec(&["sh", "-c", "echo out; echo err >&2; exit 7"]).await?;
    let expected = Executed { code: 7, stdout: "out\n".into(), stderr: "err\n".into() };
    assert_eq!(executed, expected);
    for number in 0..50 {
        let executed = container.exec(&["echo", &number.to_string()]).await?;
        let expected = Executed { code: 0, stdout: format!("{number}\n"), stderr: String::new() };
        assert_eq!(executed, expected);
    }
    Ok(())
}

pub async fn every_exit_code_arrives(node: &Node) -> Result<()> {
    let pod = node.pod("codes").await?;
    let container = pod.idle("idle").await?;
    let mut running = JoinSet::new();
    for code in 0..=255 {
        // A few at a time.
        if running.len() == 8 {
            running.join_next().await.context("None runs")???;
        }
        let (cri, id) = (node.cri().clone(), container.id().to_owned());
        running.spawn(async move {
            let script = format!("exit {code}");
            let ended = cri.exec(&id, &["sh", "-c", &script], LIMIT).await?;
            ensure!(ended.exit_code == code, "{} instead of {code}", ended.exit_code);
            Ok(())
        });
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(())
}

pub async fn an_end_by_signal_is_told_as_128_and_its_number(node: &Node) -> Result<()> {
    let pod = node.pod("signals").await?;
    let container = pod.idle("idle").await?;
    // Not 3, as this shell ignores it.
    for signal in [1, 2, 4, 6, 8, 9, 10, 11, 12, 13, 14, 15, 31] {
        let executed = container.exec(&["sh", "-c", &format!("kill -{signal} $$")]).await?;
        assert_eq!(executed.code, 128 + signal, "{executed:?}");
    }
    // Process 1 of a container ignores what it has no handler for, but not SIGKILL.
    container.stop(Duration::from_secs(1)).await?;
    assert_eq!(container.ended().await?, 137);
    Ok(())
}

pub async fn a_container_gets_the_signals_that_are_meant_for_it(node: &Node) -> Result<()> {
    let pod = node.pod("signals").await?;
    let script = "trap 'echo usr1' USR1; trap 'echo term; exit 5' TERM; echo ready; \
                  while :; do sleep 0.05; done";
    let container = pod.run(ContainerSpec::shell("listener", script)).await?;
    container.printed("ready").await?;
    let mut kill = node.ctr();
    let output =
        kill.args(["tasks", "kill", "--signal", "SIGUSR1", container.id()]).output().await?;
    ensure!(output.status.success(), "{output:?}");
    container.printed("usr1").await?;
    container.stop(LIMIT).await?;
    assert_eq!(container.ended().await?, 5);
    let said = container.log()?;
    assert_eq!(said.iter().filter(|line| line.text == "term").count(), 1, "{said:?}");
    Ok(())
}

pub async fn a_container_is_run_again_in_its_pod(node: &Node) -> Result<()> {
    let pod = node.pod("again").await?;
    let neighbour = pod.idle("neighbour").await?;
    for attempt in 0..3 {
        let mut spec = ContainerSpec::shell("again", "hostname -i; exit 4");
        spec.0.metadata = Some(ContainerMetadata { name: "again".to_owned(), attempt });
        spec.0.log_path = format!("again-{attempt}.log");
        spec = spec.env("ATTEMPT", &attempt.to_string());
        let container = pod.run(spec).await?;
        assert_eq!(container.ended().await?, 4);
        container.remove().await?;
    }
    assert_eq!(neighbour.exec(&["true"]).await?.code, 0);
    Ok(())
}

pub async fn a_program_that_does_not_exist_is_named_and_harms_nobody(node: &Node) -> Result<()> {
    let pod = node.pod("missing").await?;
    let container = pod.idle("idle").await?;
    let Err(error) = pod.run(ContainerSpec::new("missing", &["/no/such/program"])).await else {
        bail!("It started");
    };
    ensure!(format!("{error:#}").contains("/no/such/program"), "{error:#}");
    let Err(error) = container.exec(&["/no/such/command"]).await else { bail!("It ran") };
    ensure!(format!("{error:#}").contains("/no/such/command"), "{error:#}");
    assert_eq!(container.exec(&["true"]).await?.code, 0);
    Ok(())
}

pub async fn processes_are_each_containers_own_unless_the_pod_shares_them(
    node: &Node,
) -> Result<()> {
    // The pattern does not match itself.
    let script = "grep -q 1010101[0] /proc/[0-9]*/cmdline";
    let sleeper = |name| ContainerSpec::new(name, &["sleep", "10101010"]);
    let listen = |name| ContainerSpec::new(name, &["sleep", "1000000"]);
    let pod = node.pod("apart").await?;
    pod.run(sleeper("one")).await?;
    let two = pod.run(listen("two")).await?;
    let seen = two.exec(&["sh", "-c", script]).await?;
    assert_eq!(seen.code, 1, "{seen:?}");
    assert_eq!(two.shell("tr '\\0' ' ' < /proc/1/cmdline").await?, "sleep 1000000 ");

    let mut config = node.pod_config("shared");
    let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    context.namespace_options = namespaces(NamespaceMode::Pod);
    let pod = node.pod_with(config).await?;
    pod.run(sleeper("one").sharing_processes()).await?;
    let two = pod.run(listen("two").sharing_processes()).await?;
    two.shell(script).await?;
    Ok(())
}
