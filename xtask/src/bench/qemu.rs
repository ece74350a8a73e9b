//! What `bench-compare` boots QEMU guests with: our image with iperf3 in it, and who runs the instructions here.
//!
//! ```text
//!  vmlinux      a link to the image's
//!  initrd.img   the image's, and behind it an archive with iperf3, its libraries and what links them
//!  cmdline      what the image wants of the kernel
//!  accel        kvm or tcg
//! ```
//! The kernel unpacks archives one after the other (Documentation/driver-api/early-userspace/buffer-format.rst). The
//! folder of modules is what the agent takes along when it leaves the kernel's first root.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use slipway_agent::image::command_line;
use tokio::runtime::Builder;
use vmm_glue::accel::{Accel, AccelChoice};

use super::compare::{asks_for, value};
use crate::deps::{self, Purpose};
use crate::guest::cpio::Archive;
use crate::progress::Progress;
use crate::rig::Image;
use crate::{accel, command, guest};

/// For a step that takes moments on an idle machine.
const SHORT: Duration = Duration::from_secs(120);
/// `--figures` with QEMU guests.
const FIGURES: [&str; 2] = ["microvms", "vm-qemu"];
/// Arms that they are attached to.
const ARMS: [&str; 5] = ["slipway", "tap-bridge", "vhost-net", "macvtap", "ovs-dpdk"];
const IPERF3: &str = "/usr/bin/iperf3";
const TOOLS: &str = "modules/tools";
/// Archives begin at a multiple of four bytes.
const ALIGNMENT: usize = 4;

/// Whether the command line of `bench-compare` asks for QEMU guests.
pub fn is_asked(words: &[String]) -> bool {
    let arms = value(words, "--arms");
    asks_for(words, &FIGURES)
        && arms.is_none_or(|arms| arms.split(',').any(|arm| ARMS.contains(&arm)))
}

/// Makes it in `folder`.
///
/// # Errors
/// Packages are missing and cannot be had, or the image cannot be made.
pub fn prepare(folder: &Path) -> Result<()> {
    let progress = Progress::new("The comparison of QEMU guests");
    let purposes = [Purpose::Vm, Purpose::Compare];
    progress.blocking_step("Debian packages", || deps::ensure(&purposes))?;
    let paths = progress.blocking_step("Guest image", || guest::ensure(false))?;
    let image = Image { kernel: paths.vmlinux, initrd: paths.initrd };
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (_, chosen) = runtime.block_on(async {
        let choose = accel::choose(&image, AccelChoice::default(), &progress);
        progress.step("Acceleration", SHORT, choose).await
    })?;
    let read = fs::read(&image.initrd);
    let mut initrd = read.with_context(|| format!("Failed to read {}", image.initrd.display()))?;
    initrd.resize(initrd.len().next_multiple_of(ALIGNMENT), 0);
    initrd.extend(tools()?);
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, bytes).with_context(|| format!("Failed to write {}", path.display()))
    };
    symlink(&image.kernel, folder.join("vmlinux")).context("Failed to link the kernel")?;
    write("initrd.img", &initrd)?;
    write("cmdline", command_line(chosen.accel == Accel::Tcg).as_bytes())?;
    write("accel", chosen.accel.to_string().as_bytes())
}

/// The archive of iperf3.
fn tools() -> Result<Vec<u8>> {
    let output = command::output(Command::new("ldd").arg(IPERF3))?;
    ensure!(output.status.success(), "ldd {IPERF3} failed: {}", output.status);
    let mut files = libraries(&String::from_utf8_lossy(&output.stdout));
    files.push(("iperf3".to_owned(), IPERF3.to_owned()));
    ensure!(files.iter().any(|(name, _)| name == "ld.so"), "ldd names no linker of {IPERF3}");
    let mut archive = Archive::default();
    archive.directory(TOOLS);
    for (name, path) in files {
        let bytes = fs::read(&path).with_context(|| format!("Failed to read {path}"))?;
        archive.file(&format!("{TOOLS}/{name}"), 0o755, bytes);
    }
    Ok(archive.to_bytes())
}

/// What ldd(1) names: libraries by the names that they are looked for, and the linker as `ld.so`.
fn libraries(ldd: &str) -> Vec<(String, String)> {
    let of_line = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        match *words.as_slice() {
            [name, "=>", path, ..] if path.starts_with('/') => Some((name.into(), path.into())),
            [path, _] if path.starts_with('/') => Some(("ld.so".into(), path.into())),
            // The kernel's own.
            _ => None,
        }
    };
    ldd.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_libraries_are_those_that_ldd_names() {
        let ldd = "\tlinux-vdso.so.1 (0x00007f3d6ed38000)\n\
                   \tlibiperf.so.0 => /lib/x86_64-linux-gnu/libiperf.so.0 (0x00007f3d6ecf0000)\n\
                   \tlibgone.so.1 => not found\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f3d6ed3a000)\n";
        let expected = [
            ("libiperf.so.0", "/lib/x86_64-linux-gnu/libiperf.so.0"),
            ("ld.so", "/lib64/ld-linux-x86-64.so.2"),
        ];
        let expected = expected.map(|(name, path)| (name.to_owned(), path.to_owned()));
        assert_eq!(libraries(ldd), expected);
    }

    #[test]
    fn guests_are_booted_where_they_are_asked_for() {
        let is = |line: &str| is_asked(&line.split(' ').map(String::from).collect::<Vec<_>>());
        assert!(is("--quick") && is("--figures vm-qemu --arms tap-bridge,veth"));
        assert!(!is("--figures startup") && !is("--figures microvms --arms kata"));
    }
}
