//! The image of the pods that demo and tests run: busybox, and nothing else.
//!
//! It is made here, so that no registry is asked: Debian's statically linked busybox, a link for each of
//! its applets, and the few files and folders that programs expect, as an archive in the OCI image
//! layout, which `ctr images import` takes. It serves as the pods' pause image too: what it
//! runs by default sleeps.
//!
//! The package is unpacked, not installed: it would displace the busybox of an initramfs.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
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

/// What there is of the image on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// What `ctr images import` takes.
    pub archive: PathBuf,
    /// The program that is in it, to be run outside.
    pub busybox: PathBuf,
}

/// The image, made if need be. Blocks meanwhile.
///
/// # Errors
/// The package cannot be had or is not what it was.
pub fn ensure() -> Result<Files> {
    static MADE: Mutex<Option<Files>> = Mutex::new(None);
    // One that panicked left no path.
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if made.is_none() {
        *made = Some(make(&workspace::target().join("pods"))?);
    }
    made.clone().context("There is no image")
}

fn make(folder: &Path) -> Result<Files> {
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
    let files = Files { archive: folder.join("image.tar"), busybox: folder.join("busybox") };
    store(&files.archive, &image, 0o644)?;
    store(&files.busybox, &busybox, 0o755)?;
    Ok(files)
}

/// Replaces the file as a whole: others may be using it.
fn store(path: &Path, bytes: &[u8], permissions: u32) -> Result<()> {
    let failed = || format!("Failed to write {}", path.display());
    let folder = path.parent().with_context(failed)?;
    let mut builder = tempfile::Builder::new();
    let fresh = builder.permissions(fs::Permissions::from_mode(permissions)).tempfile_in(folder);
    let fresh = fresh.with_context(failed)?.into_temp_path();
    fs::write(&fresh, bytes).with_context(failed)?;
    fresh.persist(path).with_context(failed)
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
