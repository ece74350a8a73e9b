//! Who reaches whom.

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::time::{sleep, timeout};
use xtask::rig::{Container, ContainerSpec, Network, Node, Pod};

const LIMIT: Duration = Duration::from_secs(60);
/// Serves `/www` of its root by HTTP.
const SERVER: &str =
    "mkdir /www && cat > /www/index.html && echo ready && exec httpd -f -p 80 -h /www";

/// Starts a server in a pod of its own, whose page is the pod's name.
async fn server<'a>(node: &'a Node, name: &str) -> Result<(Pod<'a>, Container<'a>)> {
    let pod = node.pod(name).await?;
    let script = format!("echo {name} | {{ {SERVER}; }}");
    let container = pod.run(ContainerSpec::shell("server", &script)).await?;
    container.printed("ready").await?;
    Ok((pod, container))
}

/// A shell's script that prints the page of the server at `address`.
fn fetch(address: Ipv4Addr) -> String {
    // Debian's static busybox has a wget that crashes. The server says that it is ready just before
    // it is.
    format!(
        "for i in $(seq 50); do \
             printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 20 {address} 80 > /tmp/answer && break; \
             sleep 0.1; \
         done; grep -q '200 OK' /tmp/answer && tail -n 1 /tmp/answer"
    )
}

async fn assert_pings(from: &Container<'_>, to: Ipv4Addr) -> Result<()> {
    let printed = from.shell(&format!("ping -c 3 -W 10 {to}")).await?;
    ensure!(printed.contains("3 packets received"), "{printed}");
    Ok(())
}

pub async fn pods_reach_each_other(node: &Node) -> Result<()> {
    let (one, in_one) = server(node, "one").await?;
    let (two, in_two) = server(node, "two").await?;
    ensure!(one.address() != two.address());
    assert_pings(&in_one, two.address()).await?;
    assert_pings(&in_two, one.address()).await?;
    assert_eq!(in_one.shell(&fetch(two.address())).await?, "two\n");
    assert_eq!(in_two.shell(&fetch(one.address())).await?, "one\n");
    Ok(())
}

pub async fn the_host_reaches_a_pod_and_a_pod_the_host(node: &Node) -> Result<()> {
    let (pod, container) = server(node, "web").await?;
    // The host's /tmp is the machine's.
    let answer = node.folder().join("answer").display().to_string();
    let on_host = fetch(pod.address()).replace("/tmp/answer", &answer);
    let output = node.host_busybox().args(["sh", "-c", &on_host]).output().await?;
    ensure!(output.stdout == b"web\n", "{output:?}");

    let mut server = node.host_busybox();
    server.args(["httpd", "-f", "-p", "80", "-h"]).arg(node.folder());
    std::fs::write(node.folder().join("index.html"), "host\n")?;
    let _server = server.stdout(Stdio::null()).spawn().context("No server on the host")?;
    assert_eq!(container.shell(&fetch(Network::GATEWAY)).await?, "host\n");
    assert_pings(&container, Network::GATEWAY).await
}

pub async fn containers_of_a_pod_share_its_network(node: &Node) -> Result<()> {
    let (pod, _server) = server(node, "shared").await?;
    let client = pod.idle("client").await?;
    assert_eq!(client.shell(&fetch(Ipv4Addr::LOCALHOST)).await?, "shared\n");
    assert_eq!(client.shell(&fetch(pod.address())).await?, "shared\n");
    let addresses = client.shell("ip -4 -o address").await?;
    ensure!(addresses.contains(&format!("inet {}/", pod.address())), "{addresses}");
    Ok(())
}

pub async fn a_pod_is_removed_in_the_midst_of_its_traffic(node: &Node) -> Result<()> {
    let stayer = node.pod("stayer").await?;
    let sink = "echo ready; while :; do nc -l -p 9000 > /dev/null; done";
    let sink_of_stayer = stayer.run(ContainerSpec::shell("sink", sink)).await?;
    sink_of_stayer.printed("ready").await?;
    let leaver = node.pod("leaver").await?;
    let send =
        format!("echo ready; while :; do cat /dev/zero | nc {} 9000; done", stayer.address());
    let sender = leaver.run(ContainerSpec::shell("sender", &send)).await?;
    sender.printed("ready").await?;
    let pinger = format!("ping -i 0.01 {}", leaver.address());
    let pinger = stayer.run(ContainerSpec::shell("pinger", &pinger)).await?;
    pinger.printed("bytes from").await?;
    let flows = async {
        while node.traffic(stayer.id()).await?.0 < 1_000_000 {
            sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    };
    timeout(LIMIT, flows).await.context("There is no traffic")??;

    let gone = leaver.address();
    leaver.remove().await?;
    let printed = sink_of_stayer.exec(&["ping", "-c", "1", "-W", "1", &gone.to_string()]).await?;
    ensure!(printed.code != 0, "it still answers: {printed:?}");
    let (newcomer, _server) = server(node, "newcomer").await?;
    assert_eq!(sink_of_stayer.shell(&fetch(newcomer.address())).await?, "newcomer\n");
    Ok(())
}

pub async fn ten_pods_start_at_once_and_reach_each_other(node: &Node) -> Result<()> {
    let pods = node.pods(10).await?;
    let mut containers = Vec::new();
    for pod in &pods {
        containers.push(pod.idle("idle").await?);
    }
    for (container, pod) in containers.iter().zip(pods.iter().cycle().skip(1)) {
        assert_pings(container, pod.address()).await?;
    }
    Ok(())
}
