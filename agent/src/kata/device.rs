//! Block devices: waits until they are there and gives them to containers.
//!
//! A device is named by its node (`/dev/vdb`) or by its PCI path: the slots on the way from the
//! root bus, `02/03` for slot 3 behind the bridge in slot 2. Bus numbers are the kernel's own
//! choice, so the path is walked in sysfs.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kata_agent_protocol::agent::Device;
use nix::sys::stat::{major, minor};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::error::Refusal;
use crate::modules;

/// The device types served, as they are told to the host.
pub const TYPES: [&str; 2] = ["blk", "mmioblk"];

/// How long a device may take to appear (`agent.hotplug_timeout` of Kata).
const APPEARS_WITHIN: Duration = Duration::from_secs(3);
/// How often to look.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Where the kernel lists the devices of the first PCI host bridge.
const PCI_ROOT: &str = "/sys/devices/pci0000:00";
/// Has the kernel look for new PCI devices: without ACPI nothing tells it of them.
const PCI_RESCAN: &str = "/sys/bus/pci/rescan";

/// Waits for the block device named by its node or PCI path and returns the node.
pub async fn wait_for_block(name: &str) -> Result<PathBuf> {
    modules::load("virtio_blk")?;
    let node = Path::new(name);
    if node.starts_with("/dev") {
        return wait_for(name, || Ok(is_block(node).then(|| node.to_owned()))).await;
    }
    let slots = parse_pci_path(name)?;
    let find = || {
        let node = child_at(Path::new(PCI_ROOT), &slots, "block")?;
        Ok(node.map(|block| Path::new("/dev").join(block)).filter(|node| is_block(node)))
    };
    wait_for(name, find).await
}

/// Waits for the NIC at a PCI path and returns its name.
pub async fn wait_for_nic(path: &str) -> Result<String> {
    let slots = parse_pci_path(path)?;
    wait_for(path, || child_at(Path::new(PCI_ROOT), &slots, "net")).await
}

/// Looks until there is something.
async fn wait_for<T>(name: &str, find: impl Fn() -> Result<Option<T>>) -> Result<T> {
    let look = async {
        let mut has_rescanned = false;
        loop {
            if let Some(found) = find()? {
                return Ok(found);
            }
            if !has_rescanned {
                has_rescanned = true;
                // Best effort: without PCI there is no such file.
                drop(fs::write(PCI_RESCAN, "1"));
            }
            sleep(LOOK_EVERY).await;
        }
    };
    timeout(APPEARS_WITHIN, look).await.unwrap_or_else(|_| {
        let seconds = APPEARS_WITHIN.as_secs();
        Err(Refusal::late(format!("The device {name} did not appear within {seconds} s")))
    })
}

/// Waits for the devices and enters them into the container's configuration, which names them by
/// the host's numbers.
pub async fn add(devices: &[Device], config: &mut Value) -> Result<()> {
    for device in devices {
        if !TYPES.contains(&device.type_.as_str()) {
            let (kind, known) = (&device.type_, TYPES.join(", "));
            return Err(Refusal::invalid(format!(
                "The device type '{kind}' is unknown; there are {known}"
            )));
        }
        // Which node a device gets is the kernel's choice, so its place is the better name.
        let has_place = device.type_ == "blk" && parse_pci_path(&device.id).is_ok();
        let is_named = !has_place && !device.vm_path.is_empty();
        let name = if is_named { &device.vm_path } else { &device.id };
        let node = wait_for_block(name).await?;
        if device.container_path.is_empty() {
            continue;
        }
        let metadata =
            fs::metadata(&node).with_context(|| format!("Failed to look at {}", node.display()))?;
        let number = (major(metadata.rdev()), minor(metadata.rdev()));
        renumber(config, &device.container_path, number)?;
    }
    Ok(())
}

/// Gives a device of the configuration, and the rule that allows its use, the guest's numbers.
fn renumber(config: &mut Value, path: &str, (major, minor): (u64, u64)) -> Result<()> {
    let linux = &mut config["linux"];
    let devices = linux["devices"].as_array_mut().into_iter().flatten();
    let mut of_path = devices.filter(|device| device["path"] == path);
    let device = of_path.next().ok_or_else(|| {
        Refusal::invalid(format!("The OCI specification has no device {path}, which is to be set"))
    })?;
    let before = (device["major"].clone(), device["minor"].clone());
    (device["major"], device["minor"]) = (major.into(), minor.into());
    let rules = linux["resources"]["devices"].as_array_mut().into_iter().flatten();
    for rule in rules.filter(|rule| (&rule["major"], &rule["minor"]) == (&before.0, &before.1)) {
        (rule["major"], rule["minor"]) = (major.into(), minor.into());
    }
    Ok(())
}

fn is_block(node: &Path) -> bool {
    fs::metadata(node).is_ok_and(|metadata| metadata.file_type().is_block_device())
}

/// Slot and function of each device on the way: `02/03.1`.
fn parse_pci_path(path: &str) -> Result<Vec<(u8, u8)>> {
    let slot = |text: &str| {
        let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
        let slot = u8::from_str_radix(slot, 16).ok().filter(|slot| *slot < 32)?;
        let function = u8::from_str_radix(function, 16).ok().filter(|function| *function < 8)?;
        Some((slot, function))
    };
    let slots: Option<Vec<_>> = path.split('/').map(slot).collect();
    slots.ok_or_else(|| {
        let path = path.escape_debug();
        Refusal::invalid(format!("'{path}' is neither a node in /dev nor a PCI path like 02/03"))
    })
}

/// The name of what a virtio device at a PCI path is to the kernel (`block` or `net`), if it is
/// there.
fn child_at(root: &Path, slots: &[(u8, u8)], class: &str) -> Result<Option<String>> {
    let (mut folder, mut bus) = (root.to_owned(), "0000:00".to_owned());
    for (index, (slot, function)) in slots.iter().enumerate() {
        folder.push(format!("{bus}:{slot:02x}.{function}"));
        if index + 1 < slots.len() {
            let Some(next) = only_entry(&folder.join("pci_bus"))? else { return Ok(None) };
            bus = next;
        }
    }
    for device in entries(&folder)?.iter().filter(|name| name.starts_with("virtio")) {
        if let Some(child) = only_entry(&folder.join(device).join(class))? {
            return Ok(Some(child));
        }
    }
    Ok(None)
}

fn only_entry(folder: &Path) -> Result<Option<String>> {
    Ok(entries(folder)?.into_iter().next())
}

fn entries(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("Failed to list {}", folder.display()));
        }
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pci_path_is_slots_in_hexadecimal() {
        assert_eq!(parse_pci_path("05").unwrap(), [(5, 0)]);
        assert_eq!(parse_pci_path("02/1f.3").unwrap(), [(2, 0), (31, 3)]);
        for path in ["", "20", "02/", "02.8", "/dev", "../../x"] {
            assert!(parse_pci_path(path).is_err(), "{path}");
        }
    }

    #[test]
    fn a_pci_path_is_walked_over_the_kernels_own_bus_numbers() {
        let root = tempfile::tempdir().unwrap();
        let bridge = root.path().join("0000:00:02.0");
        fs::create_dir_all(bridge.join("pci_bus/0000:01")).unwrap();
        let find = || child_at(root.path(), &[(2, 0), (3, 0)], "block").unwrap();
        assert_eq!(find(), None);
        fs::create_dir_all(bridge.join("0000:01:03.0/virtio4/block/vdb")).unwrap();
        assert_eq!(find().as_deref(), Some("vdb"));
    }

    #[test]
    fn device_and_rule_get_the_guests_numbers_and_others_stay() {
        let mut config = json!({ "linux": {
            "devices": [
                { "path": "/dev/a", "major": 8, "minor": 0 },
                { "path": "/dev/b", "major": 8, "minor": 1 },
            ],
            "resources": { "devices": [
                { "allow": false },
                { "allow": true, "major": 8, "minor": 1 },
            ] },
        } });
        renumber(&mut config, "/dev/b", (253, 16)).unwrap();
        let linux = &config["linux"];
        assert_eq!(linux["devices"][0]["major"], 8);
        assert_eq!(linux["devices"][1], json!({ "path": "/dev/b", "major": 253, "minor": 16 }));
        let rules = &linux["resources"]["devices"];
        assert_eq!(rules[0], json!({ "allow": false }));
        assert_eq!(rules[1], json!({ "allow": true, "major": 253, "minor": 16 }));
        assert!(renumber(&mut config, "/dev/c", (1, 1)).is_err());
    }
}
