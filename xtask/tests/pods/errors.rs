//! What a user sees of a pod that cannot be started: one line that names the thing, its value and what to do.
//! That nothing is left of it is what the end of the node looks at.
//!
//! Most of these fail before a guest boots, and all run side by side.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use slipway_api::AttachmentSpec;
use tokio::time::{sleep, timeout};
use xtask::rig::{Node, oci_image};

use crate::deaths::{assert_works, signal};

const LIMIT: Duration = Duration::from_secs(120);
/// Where shims keep records of their pods.
const PODS: &str = "/run/slipway/pods";
const PAUSE: Duration = Duration::from_millis(20);

/// A drop-in over the node's configuration, and what must be said about it.
struct Fault {
    name: &'static str,
    drop_in: String,
    says: Vec<&'static str>,
}

impl Fault {
    fn new(name: &'static str, drop_in: impl Into<String>, says: &[&'static str]) -> Self {
        Self { name, drop_in: drop_in.into(), says: says.to_vec() }
    }
}

/// The node's configuration with a drop-in, in a folder of its own.
fn changed(node: &Node, name: &str, drop_in: &str) -> Result<PathBuf> {
    let folder = node.folder().join("faults").join(name);
    fs::create_dir_all(folder.join("config.d"))?;
    let file = folder.join("configuration.toml");
    fs::copy(node.config().context("The runtime takes no configuration")?, &file)?;
    fs::write(folder.join("config.d/10-fault.toml"), drop_in)?;
    Ok(file)
}

/// The path of a file that is no kernel and no archive.
fn not_it(node: &Node) -> Result<String> {
    let file = node.folder().join("not-it");
    fs::write(&file, "This is neither a kernel nor an archive.\n")?;
    Ok(file.display().to_string())
}

/// Runs a container, which must fail, and returns the one line that says why.
async fn refusal(
    node: &Node,
    namespace: &str,
    drop_in: &str,
    flags: &[&str],
    id: &str,
) -> Result<String> {
    let config = changed(node, id, drop_in)?;
    let mut run = node.ctr_run_with(namespace, Some(&config), id);
    let run = run.args(flags).args([oci_image::NAME, id, "true"]).output();
    let output = timeout(LIMIT, run).await.with_context(|| format!("{id} does not fail"))??;
    ensure!(!output.status.success(), "{id} runs: {output:?}");
    let text = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    ensure!(text.starts_with("ctr: ") && text.lines().count() == 1, "{id}: {text}");
    Ok(text)
}

fn ensure_says(name: &str, text: &str, says: &[&str]) -> Result<()> {
    for part in says {
        ensure!(text.contains(part), "'{part}' is not in what is said of {name}: {text}");
    }
    Ok(())
}

pub async fn what_is_wrong_is_told_in_one_line_and_nothing_is_left(node: &Node) -> Result<()> {
    let not_it = not_it(node)?;
    let hypervisor = |line: String| format!("[hypervisor.qemu]\n{line}\n");
    let faults = [
        Fault::new(
            "no-kernel",
            hypervisor("kernel = \"/nowhere/vmlinux\"".into()),
            &["kernel", "/nowhere/vmlinux", "configuration.toml"],
        ),
        Fault::new(
            "no-initrd",
            hypervisor("initrd = \"/nowhere/initrd\"".into()),
            &["initrd", "/nowhere/initrd", "configuration.toml"],
        ),
        Fault::new(
            "no-hypervisor",
            hypervisor("path = \"/nowhere/qemu\"".into()),
            &["hypervisor", "/nowhere/qemu", "configuration.toml"],
        ),
        Fault::new(
            "no-memory",
            hypervisor("default_memory = 16000000".into()),
            &["16000000 MiB of memory", "this host has", "default_memory"],
        ),
        Fault::new("no-machine", hypervisor("machine_type = \"pc\"".into()), &["machine", "pc"]),
        Fault::new(
            "bad-kernel",
            hypervisor(format!("kernel = \"{not_it}\"")),
            &["bad-kernel", "exit code 1", "qemu: linux kernel"],
        ),
    ];
    let quick = async {
        for Fault { name, drop_in, says } in faults {
            let text = refusal(node, "default", &drop_in, &[], name).await?;
            ensure_says(name, &text, &says)?;
        }
        annotations(node).await
    };
    // It waits most of the time.
    tokio::try_join!(no_agent(node, &not_it), quick)?;
    no_addresses(node).await?;
    no_switch(node).await?;
    assert_works(node).await
}

/// The guest has no agent, and hangs for the want of it. While it is waited for, another pod of that
/// name is refused.
async fn no_agent(node: &Node, not_it: &str) -> Result<()> {
    let id = "no-agent";
    let drop_in = format!(
        "[hypervisor.qemu]\ninitrd = \"{not_it}\"\nkernel_params = \"panic=0\"\n\
         [agent.kata]\nreconnect_timeout_ms = 8000\n"
    );
    let record = node.host().path(&Path::new(PODS).join(id).join("sandbox.json"));
    let twin = async {
        let there = async {
            while !record.exists() {
                sleep(PAUSE).await;
            }
        };
        timeout(LIMIT, there).await.context("The pod makes no record of itself")?;
        refusal(node, "k8s.io", "", &[], id).await
    };
    let (text, of_twin) = tokio::try_join!(refusal(node, "default", &drop_in, &[], id), twin)?;
    ensure_says(id, &text, &["agent does not answer", "Kernel panic"])?;
    ensure_says("its twin", &of_twin, &["no-agent", "its shim is process", "delete it first"])
}

async fn annotations(node: &Node) -> Result<()> {
    let prefix = "io.katacontainers.config.hypervisor.";
    for (name, value, says) in [
        ("default_memory", "many", &["default_memory", "many"][..]),
        ("path", "/bin/sh", &["path", "enable_annotations"][..]),
    ] {
        let mut config = node.pod_config("annotated");
        config.annotations.insert(format!("{prefix}{name}"), value.to_owned());
        let error = node.pod_with(config).await.map(drop).expect_err(name);
        ensure_says(name, &format!("{error:#}"), says)?;
    }
    Ok(())
}

/// All addresses of a network are taken.
async fn no_addresses(node: &Node) -> Result<()> {
    let slipwayd = node.slipwayd().context("There is no switch")?;
    let config = "[gateway]\nenabled = true\n\
                  [[networks]]\nranges = [\"10.88.0.0/16\"]\nhost_gateway = true\n\
                  [[networks]]\nname = \"tiny\"\nvni = 9\nranges = [\"10.99.0.0/30\"]\n";
    fs::write(node.folder().join("slipwayd.toml"), config)?;
    signal(node, "slipwayd", "KILL").await?;
    slipwayd.relaunch().await?;
    let spec = AttachmentSpec { network: Some("tiny".to_owned()), ..AttachmentSpec::default() };
    let client = slipwayd.client();
    let mut taken = 0;
    while client.attach(&format!("taken{taken}"), "eth0", &spec).await.is_ok() {
        taken += 1;
    }
    let text = refusal(node, "default", "[slipway]\nnetwork = \"tiny\"\n", &[], "late").await?;
    ensure_says("a network without addresses", &text, &["tiny", "10.99.0.0/30"])?;
    for number in 0..taken {
        client.detach(&format!("taken{number}"), "eth0").await?;
    }
    Ok(())
}

/// The switch is down: the shim tells it, and so does the plugin.
async fn no_switch(node: &Node) -> Result<()> {
    let slipwayd = node.slipwayd().context("There is no switch")?;
    signal(node, "slipwayd", "KILL").await?;
    slipwayd.ended().await;
    let text = refusal(node, "default", "", &[], "no-switch").await?;
    ensure_says("no-switch", &text, &["slipwayd.sock", "systemctl status slipwayd"])?;
    let error = node.pod("no-switch").await.map(drop).expect_err("no switch");
    ensure_says("no-switch", &format!("{error:#}"), &["slipwayd.sock", "is slipwayd running?"])?;
    slipwayd.relaunch().await
}
