//! What a container finds in its file system and around it.

use std::fs;

use anyhow::{Result, ensure};
use xtask::rig::{ContainerSpec, Node, oci_image, write_volume};

pub async fn a_volume_is_read_and_written_from_both_sides(node: &Node) -> Result<()> {
    let volume = node.folder().join("volume");
    write_volume(&volume, "from-host", "hello\n")?;
    let pod = node.pod("volume").await?;
    let spec = ContainerSpec::new("one", &["sleep", "1000000"]);
    let one = pod.run(spec.mount(&volume, "/data", false)).await?;
    let spec = ContainerSpec::new("two", &["sleep", "1000000"]);
    let two = pod.run(spec.mount(&volume, "/elsewhere", false)).await?;
    assert_eq!(one.shell("cat /data/from-host").await?, "hello\n");
    one.shell(
        "mkdir /data/sub && echo answer > /data/sub/from-pod && chmod 640 /data/sub/from-pod",
    )
    .await?;
    assert_eq!(fs::read_to_string(volume.join("sub/from-pod"))?, "answer\n");
    assert_eq!(two.shell("cat /elsewhere/sub/from-pod").await?, "answer\n");
    assert_eq!(two.shell("stat -c %a /elsewhere/sub/from-pod").await?, "640\n");
    // What is written while the pod runs is seen, too.
    write_volume(&volume, "later", "news\n")?;
    assert_eq!(one.shell("cat /data/later").await?, "news\n");
    one.shell("rm -r /data/sub").await?;
    ensure!(!volume.join("sub").exists());
    // Nothing of it is the container's own.
    assert_eq!(
        one.shell("head -c 3000000 /dev/urandom > /data/big; wc -c < /data/big").await?,
        "3000000\n"
    );
    assert_eq!(fs::metadata(volume.join("big"))?.len(), 3_000_000);
    pod.remove().await?;
    assert_eq!(fs::read_to_string(volume.join("from-host"))?, "hello\n", "volumes stay");
    Ok(())
}

pub async fn a_read_only_mount_is_read_and_not_written(node: &Node) -> Result<()> {
    let folder = node.folder().join("configmap");
    let file = write_volume(&folder, "key", "value\n")?;
    let pod = node.pod("configmap").await?;
    let spec = ContainerSpec::new("reader", &["sleep", "1000000"]);
    let spec = spec.mount(&folder, "/etc/config", true).mount(&file, "/etc/one-file", true);
    let reader = pod.run(spec).await?;
    assert_eq!(reader.shell("cat /etc/config/key /etc/one-file").await?, "value\nvalue\n");
    for script in ["echo x > /etc/config/key", "touch /etc/config/new", "echo x > /etc/one-file"] {
        let executed = reader.exec(&["sh", "-c", script]).await?;
        ensure!(executed.code != 0, "{script} succeeded");
        ensure!(executed.stderr.contains("Read-only file system"), "{script}: {executed:?}");
    }
    assert_eq!(fs::read_to_string(&file)?, "value\n");
    Ok(())
}

pub async fn shared_memory_is_the_pods(node: &Node) -> Result<()> {
    let pod = node.pod("shm").await?;
    let (one, two) = (pod.idle("one").await?, pod.idle("two").await?);
    one.shell("echo shared > /dev/shm/note").await?;
    assert_eq!(two.shell("cat /dev/shm/note").await?, "shared\n");
    let mounted = one.shell("grep ' /dev/shm ' /proc/mounts").await?;
    ensure!(mounted.contains(" tmpfs "), "{mounted}");
    // Kubernetes gives 64 MiB.
    assert_eq!(one.shell("df -k /dev/shm | tail -n 1 | awk '{print $2}'").await?, "65536\n");
    let other = node.pod("other").await?;
    let other = other.idle("idle").await?;
    assert_eq!(other.shell("ls /dev/shm").await?, "");
    Ok(())
}

pub async fn name_and_name_servers_are_those_of_the_pod(node: &Node) -> Result<()> {
    let pod = node.pod("named").await?;
    let container = pod.idle("idle").await?;
    assert_eq!(container.shell("hostname; cat /etc/hostname").await?, "named\nnamed\n");
    let resolver = container.shell("cat /etc/resolv.conf").await?;
    let expected = "search default.svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n";
    assert_eq!(resolver, expected);
    assert_eq!(container.shell("cat /etc/hosts").await?, fs::read_to_string("/etc/hosts")?);
    Ok(())
}

pub async fn environment_and_working_folder_are_as_asked_for(node: &Node) -> Result<()> {
    let pod = node.pod("env").await?;
    let script = "pwd; echo $MARK; echo $FROM_IMAGE; id -u";
    let mut spec = ContainerSpec::shell("env", script).env("MARK", "a value = with ' quotes");
    spec.0.working_dir = "/tmp".to_owned();
    let container = pod.run(spec).await?;
    container.printed("0").await?;
    assert_eq!(container.ended().await?, 0);
    let lines: Vec<_> = container.log()?.into_iter().map(|line| line.text).collect();
    assert_eq!(lines, ["/tmp", "a value = with ' quotes", "yes", "0"]);
    Ok(())
}

pub async fn the_root_is_writable_and_each_containers_own(node: &Node) -> Result<()> {
    let pod = node.pod("root").await?;
    let (one, two) = (pod.idle("one").await?, pod.idle("two").await?);
    one.shell("echo mine > /root/file && rm /bin/wget && chown 1000:1000 /tmp").await?;
    assert_eq!(one.shell("cat /root/file; stat -c %u /tmp").await?, "mine\n1000\n");
    assert_eq!(two.shell("ls /root /bin/wget; stat -c %u /tmp").await?, "/bin/wget\n\n/root:\n0\n");
    Ok(())
}

/// containerd's `native` snapshotter copies files instead of laying them over each other.
pub async fn the_root_may_be_a_plain_copy(node: &Node) -> Result<()> {
    let mut run = node.ctr_run("copy");
    let script = "echo mine > /root/file && cat /root/file && ls /bin/wget";
    let flags = ["--snapshotter", "native", oci_image::NAME, "copy", "sh", "-c", script];
    let output = run.args(flags).output().await?;
    ensure!(output.status.success() && output.stdout == b"mine\n/bin/wget\n", "{output:?}");
    // It was made from a copy of the image.
    let copies = node.folder().join("root/io.containerd.snapshotter.v1.native/snapshots");
    let mut copies = fs::read_dir(&copies)?.flatten().map(|entry| entry.path());
    ensure!(copies.any(|copy| copy.join("bin/busybox").is_file()), "there is no copy");
    Ok(())
}
