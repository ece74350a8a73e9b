//! Puts the image together from the kernel package and the agent.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::cpio::Archive;
use super::deb::{self, Package};
use super::{kernel, module};
use crate::workspace;

/// The drivers of every guest's devices, loaded at boot. What they need comes with them.
const DRIVERS: [&str; 4] = ["virtio_pci", "virtio_mmio", "virtio_console", "virtio_net"];
/// What only some guests need, loaded when the agent is asked for it: under emulation each module
/// costs boot time. ext4 is built into the cloud kernel.
const LAZY: [&str; 5] =
    ["overlay", "virtio_blk", "virtio_rng", "virtiofs", "vmw_vsock_virtio_transport"];

/// The image's parts.
pub struct Image {
    /// The kernel as an ELF file.
    pub vmlinux: Vec<u8>,
    /// The root file system, a cpio archive.
    pub initrd: Vec<u8>,
    /// The kernel's release.
    pub release: String,
    /// The modules in the order of loading.
    pub modules: Vec<String>,
}

/// Compiles the agent as a static program, with `target` as cargo's target directory.
pub fn build_agent(target: &Path) -> Result<PathBuf> {
    let (package, profile) = ("slipway-agent", "small");
    workspace::Static { package, program: package, profile, features: "" }.build(target)
}

/// Makes the image, with `scratch` as an empty folder to unpack to.
pub fn make(package: &Package, agent: Vec<u8>, scratch: &Path) -> Result<Image> {
    deb::unpack(package, scratch)?;
    let release = release(scratch)?;
    let image = scratch.join("boot").join(format!("vmlinuz-{release}"));
    let image = fs::read(&image).with_context(|| format!("Failed to read {}", image.display()))?;
    let vmlinux = kernel::vmlinux(&image)?;

    let files = module_files(&scratch.join("lib/modules").join(&release))?;
    let mut slim = BTreeMap::new();
    let mut needs = BTreeMap::new();
    // Reading all of the kernel's modules would be slow; those needed are found step by step.
    let mut wanted: Vec<String> = DRIVERS.iter().chain(&LAZY).map(ToString::to_string).collect();
    while let Some(name) = wanted.pop() {
        let Some(path) = files.get(&name).filter(|_| !needs.contains_key(&name)) else { continue };
        let read = || -> Result<_> {
            let file = fs::read(path)?;
            Ok((module::needs(&file)?, module::slim(&file)?))
        };
        let (needed, file) =
            read().with_context(|| format!("Failed to read the module {}", path.display()))?;
        wanted.extend(needed.iter().cloned());
        needs.insert(name.clone(), needed);
        slim.insert(name, file);
    }
    let modules = module::load_order(&DRIVERS, &needs)?;
    let mut lazy = BTreeMap::new();
    for name in LAZY {
        lazy.insert(name, module::load_order(&[name], &needs)?);
    }
    let initrd = initrd(agent, &modules, &lazy, slim);
    Ok(Image { vmlinux, initrd, release, modules })
}

/// The only kernel of the package.
fn release(unpacked: &Path) -> Result<String> {
    let folder = unpacked.join("lib/modules");
    let mut names = Vec::new();
    for entry in folder.read_dir().context("The kernel package holds no modules")? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    ensure!(names.len() == 1, "The kernel package holds the kernels {names:?}, not one");
    Ok(names.remove(0))
}

/// The module files below `folder`, by the modules' names.
fn module_files(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = folder.read_dir();
        for entry in entries.with_context(|| format!("Failed to list {}", folder.display()))? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "ko") {
                let name = path.file_stem().unwrap_or_default().to_string_lossy();
                files.insert(module::normal(&name), path.clone());
            }
        }
    }
    ensure!(
        !files.is_empty(),
        "No .ko files below {}: is the kernel's module compression new?",
        folder.display()
    );
    Ok(files)
}

/// The archive the agent finds as its root: itself, mount points, and the modules, those of every
/// guest numbered in the order of loading, the others each with a list of what to load.
fn initrd(
    agent: Vec<u8>,
    order: &[String],
    lazy: &BTreeMap<&str, Vec<String>>,
    mut slim: BTreeMap<String, Vec<u8>>,
) -> Vec<u8> {
    let mut archive = Archive::default();
    for folder in ["dev", "modules", "modules/lazy", "proc", "sys"] {
        archive.directory(folder);
    }
    archive.file("init", 0o755, agent);
    for (number, name) in order.iter().enumerate() {
        let file = slim.remove(name).unwrap_or_default();
        archive.file(&format!("modules/{number:02}-{name}.ko"), 0o644, file);
    }
    for (driver, needed) in lazy {
        // Without those that every guest has loaded.
        let needed = needed.iter().filter(|name| !order.contains(name));
        let list = needed.clone().map(|name| format!("{name}.ko\n")).collect::<String>();
        archive.file(&format!("modules/lazy/{driver}.list"), 0o644, list.into_bytes());
        for name in needed {
            // Another driver's list may have brought it.
            if let Some(file) = slim.remove(name) {
                archive.file(&format!("modules/lazy/{name}.ko"), 0o644, file);
            }
        }
    }
    archive.to_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_numbered_in_the_order_of_loading() {
        let order = ["virtio_ring".to_owned(), "virtio".to_owned()];
        let slim = BTreeMap::from([
            ("virtio".to_owned(), b"second".to_vec()),
            ("virtio_ring".to_owned(), b"first".to_vec()),
        ]);
        let archive = initrd(b"agent".to_vec(), &order, &BTreeMap::new(), slim);
        let text = String::from_utf8(archive).unwrap();
        assert!(text.contains("modules/00-virtio_ring.ko\0first"), "{text}");
        assert!(text.contains("modules/01-virtio.ko\0\0second"), "{text}");
        assert!(text.contains("init\0\0agent"), "{text}");
    }

    #[test]
    fn a_lazy_driver_lists_what_to_load_before_it_but_for_what_is_loaded_at_boot() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let slim = names(&["virtio", "fuse", "virtiofs"]).into_iter().map(|name| (name, vec![]));
        let lazy = BTreeMap::from([("virtiofs", names(&["virtio", "fuse", "virtiofs"]))]);
        let archive = initrd(Vec::new(), &names(&["virtio"]), &lazy, slim.collect());
        let text = String::from_utf8(archive).unwrap();
        // Names are filled up to a multiple of four.
        let (_, list) = text.split_once("modules/lazy/virtiofs.list\0").unwrap();
        assert!(list.trim_start_matches('\0').starts_with("fuse.ko\nvirtiofs.ko\n"), "{text}");
        assert!(text.contains("modules/lazy/fuse.ko\0"), "{text}");
        assert!(!text.contains("modules/lazy/virtio.ko\0"), "{text}");
    }

    #[test]
    fn module_files_are_found_in_all_folders_under_their_kernel_names() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("kernel/drivers")).unwrap();
        fs::write(folder.path().join("kernel/drivers/virtio-rng.ko"), "").unwrap();
        fs::write(folder.path().join("modules.order"), "").unwrap();
        let names: Vec<_> = module_files(folder.path()).unwrap().into_keys().collect();
        assert_eq!(names, ["virtio_rng"]);
    }
}
