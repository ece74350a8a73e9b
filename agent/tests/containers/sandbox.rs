//! Storages, name servers, copied files, and the end of it all.

use std::fs;

use kata_agent_protocol::agent::*;

use crate::rig::{Agent, call, mount, refusal};

fn storage(driver: &str, source: &str, kind: &str, target: &str, options: &[&str]) -> Storage {
    Storage {
        driver: driver.to_owned(),
        source: source.to_owned(),
        fstype: kind.to_owned(),
        mount_point: target.to_owned(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
        ..Default::default()
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn containers_share_memory_of_the_size_asked_for() {
    let agent = Agent::bare().await;
    let shm = "/run/kata-containers/sandbox/shm";
    let options = ["noexec", "nosuid", "nodev", "mode=1777", "size=1048576"];
    let request = CreateSandboxRequest {
        storages: vec![storage("ephemeral", "shm", "tmpfs", shm, &options)],
        ..Default::default()
    };
    agent.client.create_sandbox(call(), &request).await.unwrap();
    for (id, script) in [
        ("c1", "df --output=size -k /dev/shm | tail -1; echo hello > /dev/shm/file"),
        ("c2", "cat /dev/shm/file"),
    ] {
        let mut request = agent.container(id, script);
        let spec = request.OCI.mut_or_insert_default();
        spec.Mounts.push(mount("bind", shm, "/dev/shm", &["rbind"]));
        agent.client.create_container(call(), &request).await.unwrap();
        agent.begin(id).await;
        let output = String::from_utf8(agent.end(id, "").await.stdout).unwrap();
        let expected = if id == "c1" { "1024" } else { "hello" };
        assert_eq!(output.trim(), expected);
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_volume_in_memory_outlives_its_container() {
    let agent = Agent::start().await;
    let path = "/run/kata-containers/sandbox/ephemeral/cache";
    for (script, expected) in [("echo kept > /cache/file", ""), ("cat /cache/file", "kept\n")] {
        let mut request = agent.container("c1", script);
        request.storages = vec![storage("ephemeral", "tmpfs", "tmpfs", path, &["fsgid=77"])];
        let spec = request.OCI.mut_or_insert_default();
        spec.Mounts.push(mount("bind", path, "/cache", &["rbind"]));
        agent.client.create_container(call(), &request).await.unwrap();
        agent.begin("c1").await;
        let output = agent.end("c1", "").await;
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
        agent.remove("c1").await;
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn name_servers_become_the_guests() {
    let agent = Agent::bare().await;
    let request = CreateSandboxRequest {
        dns: vec!["nameserver 10.0.0.10".to_owned(), "search pod.local".to_owned()],
        ..Default::default()
    };
    agent.client.create_sandbox(call(), &request).await.unwrap();
    let text = fs::read_to_string(agent.path("/etc/resolv.conf")).unwrap();
    assert_eq!(text, "nameserver 10.0.0.10\nsearch pod.local\n");
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_copied_file_is_seen_by_a_container() {
    let agent = Agent::start().await;
    let path = "/run/kata-containers/shared/containers/c1-0123-hosts";
    let request = CopyFileRequest {
        path: path.to_owned(),
        file_size: 12,
        file_mode: 0o100_644,
        dir_mode: 0o755,
        data: b"copied text\n".to_vec(),
        ..Default::default()
    };
    agent.client.copy_file(call(), &request).await.unwrap();
    let mut request = agent.container("c1", "cat /tmp/hosts");
    let spec = request.OCI.mut_or_insert_default();
    spec.Mounts.push(mount("bind", path, "/tmp/hosts", &["rbind", "ro"]));
    agent.client.create_container(call(), &request).await.unwrap();
    agent.begin("c1").await;
    assert_eq!(agent.end("c1", "").await.stdout, b"copied text\n");
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_storage_that_cannot_be_mounted_fails_the_container_and_frees_its_name() {
    let agent = Agent::start().await;
    let mut request = agent.container("c1", "true");
    let path = "/run/kata-containers/shared/containers/disk";
    request.storages = vec![storage("blk", "1f/1f", "ext4", path, &[])];
    let (_, text) = refusal(agent.client.create_container(call(), &request).await);
    assert!(text.contains("1f/1f") && text.contains("did not appear"), "{text}");
    agent.run("c1", "exit 3").await;
    assert_eq!(agent.wait("c1", "").await, 3);
}

#[tokio::test]
#[ignore = "needs root"]
async fn the_agent_ends_with_its_sandbox_and_takes_the_containers_along() {
    let mut agent = Agent::start().await;
    agent.run("c1", "sleep 1000").await;
    agent.client.destroy_sandbox(call(), &DestroySandboxRequest::new()).await.unwrap();
    assert!(agent.cgroups("c1").is_empty());
    assert!(agent.ended().await.success());
}
