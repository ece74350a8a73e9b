//! The switches to compare with, from Debian's packages.
//!
//! Open vSwitch is installed, its services off. DPDK's testpmd is in a package that needs some two
//! hundred others, a newer systemd among them: it is unpacked instead, with the libraries that it is
//! linked with, and the system stays as it is.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::deps::{self, Purpose};
use crate::guest::deb;
use crate::workspace;

/// testpmd's package, and those of the libraries that it is linked with and `deps` does not install.
const TESTPMD: &[&str] = &[
    "dpdk-dev",
    "ibverbs-providers",
    "libpcap0.8",
    "librte-bitratestats23",
    "librte-bpf23",
    "librte-bus-auxiliary23",
    "librte-bus-dpaa23",
    "librte-cmdline23",
    "librte-common-dpaax23",
    "librte-common-iavf23",
    "librte-common-mlx5-23",
    "librte-crypto-scheduler23",
    "librte-eventdev23",
    "librte-gro23",
    "librte-gso23",
    "librte-ip-frag23",
    "librte-latencystats23",
    "librte-mempool-dpaa23",
    "librte-metrics23",
    "librte-net-bnxt23",
    "librte-net-bond23",
    "librte-net-dpaa23",
    "librte-net-i40e23",
    "librte-net-ice23",
    "librte-net-ixgbe23",
    "librte-net-mlx5-23",
    "librte-pcapng23",
    "librte-pdump23",
    "librte-reorder23",
    "librte-sched23",
    "librte-security23",
    "librte-timer23",
];

/// Sees to it that the peers are there, and returns the folder of testpmd.
///
/// # Errors
/// Packages are missing and cannot be had.
pub fn ensure() -> Result<PathBuf> {
    deps::ensure(&[Purpose::Bench])?;
    let folder = workspace::target().join("peers");
    let (cache, testpmd) = (folder.join("debs"), folder.join("testpmd"));
    if testpmd.exists() {
        return Ok(testpmd);
    }
    println!("Unpacking testpmd to {}", testpmd.display());
    fs::create_dir_all(&folder).with_context(|| format!("Failed to make {}", folder.display()))?;
    // Under its name only when it is whole.
    let half = tempfile::tempdir_in(&folder).context("Failed to make a folder")?;
    let root = half.path().join("testpmd");
    for name in TESTPMD {
        deb::unpack(&deb::fetch(&cache, name)?, &root)?;
    }
    fs::rename(&root, &testpmd).context("Failed to move testpmd to its place")?;
    Ok(testpmd)
}
