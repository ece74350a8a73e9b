//! The image of the pods that demo and tests run: busybox, and nothing else.
//!
//! It is made here, so that no registry is asked: Debian's statically linked busybox, a link for each of
//! its applets, and the few files and folders that programs expect, as an archive in the OCI image
//! layout, which `ctr images import` takes. It serves as the pods' pause image too: what it
//! runs by default sleeps.
//!
//! The package is unpacked, not installed: it would displace the busybox of an initramfs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::{env, fs};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::tar::Archive;
use crate::command;
use crate::guest::deb;
use crate::workspace;

/// What the image is called.
pub const NAME: &str = "slipway.test/busybox:1";
const PACKAGE: &str = "busybox-static";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The image's archive, made if need be. Blocks meanwhile.
///
/// # Errors
/// The package cannot be had or is not what it was.
pub fn ensure() -> Result<PathBuf> {
    static MADE: Mutex<Option<PathBuf>> = Mutex::new(None);
    // One that panicked left no path.
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if made.is_none() {
        *made = Some(make(&workspace::target().join("pods"))?);
    }
    made.clone().context("There is no image")
}

fn make(folder: &Path) -> Result<PathBuf> {
    let package = deb::fetch(&folder.join("cache"), PACKAGE)?;
    let unpacked = tempfile::tempdir_in(folder).context("Failed to make a folder to unpack to")?;
    deb::unpack(&package, unpacked.path())?;
    let program = unpacked.path().join("bin/busybox");
    let output = command::output(Command::new(&program).arg("--list"))?;
    ensure!(output.status.success(), "busybox --list failed: {}", output.status);
    let applets = String::from_utf8(output.stdout).context("busybox --list printed no text")?;
    let busybox =
        fs::read(&program).with_context(|| format!("Failed to read {}", program.display()))?;
    let image = image(layer(&busybox, applets.lines()));
    let path = folder.join("image.tar");
    // Replaced as a whole: others may be reading it.
    let fresh = tempfile::NamedTempFile::new_in(folder).context("Failed to make a file")?;
    fs::write(fresh.path(), image)?;
    fresh.persist(&path).with_context(|| format!("Failed to write {}", path.display()))?;
    Ok(path)
}

fn layer<'a>(busybox: &[u8], applets: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "etc", "proc", "root", "run", "sys", "var"] {
        archive.directory(folder, 0o755);
    }
    archive.directory("tmp", 0o1777);
    archive.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n",
    );
    archive.file("etc/group", 0o644, b"root:x:0:\nuser:x:1000:\n");
    archive.file("bin/busybox", 0o755, busybox);
    let applets: BTreeSet<_> = applets.filter(|applet| *applet != "busybox").collect();
    for applet in applets {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
    archive.into_bytes()
}

/// An archive in the OCI image layout (OCI image specification 1.0, image-layout.md).
fn image(layer: Vec<u8>) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.directory("blobs", 0o755);
    archive.directory("blobs/sha256", 0o755);
    let mut blob = |media_type: &str, bytes: &[u8]| {
        let digest = sha256(bytes);
        archive.file(&format!("blobs/sha256/{digest}"), 0o644, bytes);
        let size = bytes.len();
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size})
    };
    let layer = blob(LAYER, &layer);
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Cmd": ["/bin/sleep", "2147483647"],
            "Env": ["PATH=/bin", "FROM_IMAGE=yes"],
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = blob(CONFIG, &text(&config));
    let manifest =
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
    let mut manifest = blob(MANIFEST, &text(&manifest));
    manifest["annotations"] = json!({"io.containerd.image.name": NAME});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    archive.file("index.json", 0o644, &text(&index));
    archive.file("oci-layout", 0o644, &text(&json!({"imageLayoutVersion": "1.0.0"})));
    archive.into_bytes()
}

fn text(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// The names of the OCI are Go's.
fn architecture() -> &'static str {
    match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
