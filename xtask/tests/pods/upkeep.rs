//! What a kubelet and an operator rely on: numbers, limits, events, and that containerd may die.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::timeout;
use xtask::rig::cri::messages::{
    ContainerState, LinuxContainerResources, PodSandboxState, UInt64Value,
};
use xtask::rig::{ContainerSpec, Network, Node, oci_image};

const LIMIT: Duration = Duration::from_secs(60);
const MIB: i64 = 1 << 20;
/// Prints the memory limit that a container finds in its control group.
const MEMORY_LIMIT: &str = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || \
                            cat /sys/fs/cgroup/memory.max";
const SHARES: &str = "cat /sys/fs/cgroup/cpu/cpu.shares 2>/dev/null || \
                      cat /sys/fs/cgroup/cpu.weight";

fn value(counter: Option<UInt64Value>) -> u64 {
    counter.map(|counter| counter.value).unwrap_or_default()
}

pub async fn consumption_is_counted_by_container_and_by_pod(node: &Node) -> Result<()> {
    let pod = node.pod("stats").await?;
    let container = pod.idle("idle").await?;
    container.shell("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done").await?;
    container.shell(&format!("ping -c 3 -s 1000 {}", Network::GATEWAY)).await?;
    let stats = node.cri().container_stats(container.id()).await?;
    let cpu = value(stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds));
    let memory = value(stats.memory.and_then(|memory| memory.working_set_bytes));
    ensure!(cpu > 1_000_000 && memory > 0, "{cpu} ns, {memory} bytes");
    let all = node.cri().all_container_stats().await?;
    let ids: Vec<_> = all.into_iter().filter_map(|stats| stats.attributes).collect();
    ensure!(ids.len() == 1 && ids[0].id == container.id(), "{ids:?}");

    let stats = node.cri().pod_stats(pod.id()).await?;
    let (received, sent) = node.traffic(pod.id()).await?;
    ensure!(received > 3_000 && sent > 3_000, "{received} bytes received, {sent} sent");
    let pod_cpu = value(stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds));
    let pod_memory = value(stats.memory.and_then(|memory| memory.working_set_bytes));
    ensure!(pod_cpu > 0 && pod_memory > 0, "{pod_cpu} ns, {pod_memory} bytes");
    Ok(())
}

pub async fn limits_hold_from_the_start_and_can_be_changed(node: &Node) -> Result<()> {
    let pod = node.pod("limits").await?;
    let limits = |memory_limit_in_bytes, cpu_shares| LinuxContainerResources {
        memory_limit_in_bytes,
        cpu_shares,
        ..LinuxContainerResources::default()
    };
    let spec = ContainerSpec::new("limited", &["sleep", "1000000"]).limits(limits(64 * MIB, 512));
    let container = pod.run(spec).await?;
    assert_eq!(container.shell(MEMORY_LIMIT).await?, format!("{}\n", 64 * MIB));
    let shares = container.shell(SHARES).await?;
    node.cri().update_container(container.id(), limits(96 * MIB, 256)).await?;
    assert_eq!(container.shell(MEMORY_LIMIT).await?, format!("{}\n", 96 * MIB));
    ensure!(container.shell(SHARES).await? != shares, "still {shares}");
    Ok(())
}

pub async fn who_takes_too_much_memory_is_killed_and_the_reason_told(node: &Node) -> Result<()> {
    let pod = node.pod("oom").await?;
    let bystander = pod.idle("bystander").await?;
    let limits = LinuxContainerResources { memory_limit_in_bytes: 16 * MIB, ..Default::default() };
    // containerd asks runc's shim what the kernel did, and may hear of the end first: then there is no reason.
    let chances = if node.runtime().has_vm { 1 } else { 3 };
    for chance in 1..=chances {
        // It keeps all that it reads until a line ends.
        let spec = ContainerSpec::new(&format!("greedy-{chance}"), &["tail", "/dev/zero"]);
        let greedy = pod.run(spec.limits(limits.clone())).await?;
        assert_eq!(greedy.ended().await?, 137);
        let reason = async {
            while node.cri().container_status(greedy.id()).await?.reason != "OOMKilled" {}
            anyhow::Ok(())
        };
        let wait = if chance < chances { LIMIT / 10 } else { LIMIT };
        match timeout(wait, reason).await {
            Ok(told) => {
                told?;
                break;
            }
            Err(_) if chance < chances => {}
            Err(late) => return Err(late).context("The reason is not told"),
        }
    }
    assert_eq!(bystander.exec(&["true"]).await?.code, 0);
    Ok(())
}

/// One line of `ctr events`: what happened, and its JSON.
#[derive(Debug, PartialEq)]
struct Event {
    topic: String,
    id: String,
    body: serde_json::Value,
}

fn parse(line: &str) -> Option<Event> {
    let (head, body) = line.split_once(" {")?;
    let topic = head.split(' ').next_back()?.to_owned();
    let body: serde_json::Value = serde_json::from_str(&format!("{{{body}")).ok()?;
    let id = body["container_id"].as_str().unwrap_or_default().to_owned();
    Some(Event { topic, id, body })
}

pub async fn events_come_in_order_and_each_once(node: &Node) -> Result<()> {
    let mut events = node.ctr();
    let mut events = events.arg("events").stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(events.stdout.take().context("no output")?).lines();
    // It does not say when it listens, so something happens until it does.
    let heard = async {
        for number in 0.. {
            let mark = format!("mark={number}");
            let mut label = node.ctr();
            label.args(["images", "label", oci_image::NAME, &mark]).stdout(Stdio::null());
            ensure!(label.status().await?.success());
            if timeout(Duration::from_millis(300), lines.next_line()).await.is_ok() {
                break;
            }
        }
        Ok(())
    };
    timeout(LIMIT, heard).await.context("No event is heard")??;

    let pod = node.pod("events").await?;
    let script = "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done";
    let container = pod.run(ContainerSpec::shell("busy", script)).await?;
    container.printed("up").await?;
    assert_eq!(container.exec(&["true"]).await?.code, 0);
    container.stop(LIMIT).await?;
    assert_eq!(container.ended().await?, 3);
    let (pod_id, id) = (pod.id().to_owned(), container.id().to_owned());
    pod.remove().await?;

    let mut seen = Vec::new();
    let read = async {
        while let Some(line) = lines.next_line().await? {
            let Some(event) = parse(&line) else { continue };
            let is_last = event.topic == "/tasks/delete" && event.id == pod_id;
            seen.push(event);
            if is_last {
                break;
            }
        }
        anyhow::Ok(())
    };
    timeout(LIMIT, read).await.context("The pod's end is not told")??;
    let of = |id: &str, topic: fn(&str) -> bool| -> Vec<_> {
        let events = seen.iter().filter(|event| event.id == id && topic(&event.topic));
        // The end of a command may be told by a deletion too, which nobody relies on.
        let events = events.filter(|event| {
            event.topic != "/tasks/delete" || event.body["id"].as_str().is_none_or(|it| it == id)
        });
        events.map(|event| event.topic.as_str()).collect()
    };
    let is_task = |topic: &str| topic.starts_with("/tasks/");
    assert_eq!(
        of(&pod_id, is_task),
        ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    );
    // The command's end and the container's may overtake each other: one causes the other.
    assert_eq!(
        of(&id, is_task),
        [
            "/tasks/create",
            "/tasks/start",
            "/tasks/exec-added",
            "/tasks/exec-started",
            "/tasks/exit",
            "/tasks/exit",
            "/tasks/delete",
        ]
    );
    let exits = seen.iter().filter(|event| event.id == id && event.topic == "/tasks/exit");
    let mut exits: Vec<_> = exits
        .map(|event| (event.body["id"] == id.as_str(), event.body["exit_status"].as_u64()))
        .collect();
    exits.sort_unstable();
    // proto3 leaves out what is zero.
    assert_eq!(exits, [(false, None), (true, Some(3))]);
    Ok(())
}

pub async fn pods_outlive_a_killed_containerd_and_are_known_to_the_next(node: &Node) -> Result<()> {
    let pod = node.pod("survivor").await?;
    let wait = "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done";
    let lasting = pod.run(ContainerSpec::shell("lasting", wait)).await?;
    lasting.printed("up").await?;
    let script = "echo up; while [ ! -e /data/end ]; do sleep 0.05; done; exit 8";
    let volume = node.folder().join("volume");
    std::fs::create_dir_all(&volume)?;
    let spec = ContainerSpec::shell("ending", script).mount(&volume, "/data", false);
    let ending = pod.run(spec).await?;
    ending.printed("up").await?;

    node.containerd().kill().await?;
    // This one ends while nobody looks.
    std::fs::write(volume.join("end"), "")?;
    node.containerd().launch().await?;

    assert_eq!(node.cri().pod_status(pod.id()).await?.state(), PodSandboxState::Ready);
    let status = node.cri().container_status(lasting.id()).await?;
    assert_eq!(status.state(), ContainerState::Running);
    assert_eq!(ending.ended().await?, 8);
    assert_eq!(lasting.shell("echo still").await?, "still\n");
    lasting.stop(LIMIT).await?;
    assert_eq!(lasting.ended().await?, 9);
    let newcomer = pod.idle("newcomer").await?;
    assert_eq!(newcomer.exec(&["true"]).await?.code, 0);
    Ok(())
}

pub async fn a_paused_container_stands_still_until_it_is_resumed(node: &Node) -> Result<()> {
    let pod = node.pod("pause").await?;
    let volume = node.folder().join("volume");
    std::fs::create_dir_all(&volume)?;
    let script = "i=0; while :; do i=$((i+1)); echo $i > /data/new; mv /data/new /data/count; \
                  sleep 0.02; done";
    let spec = ContainerSpec::shell("counter", script).mount(&volume, "/data", false);
    let container = pod.run(spec).await?;
    let count = || std::fs::read_to_string(volume.join("count")).unwrap_or_default();
    let moves = async |from: String| {
        timeout(LIMIT, async {
            while count() == from {
                tokio::task::yield_now().await;
            }
        })
        .await
        .context("It does not count")
    };
    moves(String::new()).await?;
    let task = async |verb| {
        let output = node.ctr().args(["tasks", verb, container.id()]).output().await?;
        ensure!(output.status.success(), "{verb}: {output:?}");
        anyhow::Ok(())
    };
    task("pause").await?;
    let paused_at = count();
    // Ten times as long as it takes to count on.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(count(), paused_at);
    task("resume").await?;
    moves(paused_at).await
}
