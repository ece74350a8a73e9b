//! The guest image that `cargo xtask guest` built.

use std::path::PathBuf;

/// Kernel and initial RAM disk, from SLIPWAY_GUEST_DIR.
pub fn image() -> (PathBuf, PathBuf) {
    let dir = std::env::var_os("SLIPWAY_GUEST_DIR").map(PathBuf::from);
    let dir =
        dir.expect("SLIPWAY_GUEST_DIR is not set: run cargo xtask guest, and set it to its output");
    let kernel =
        ["vmlinux", "bzImage"].map(|name| dir.join(name)).into_iter().find(|k| k.is_file());
    let kernel = kernel.unwrap_or_else(|| {
        panic!("no vmlinux or bzImage in {}: run cargo xtask guest", dir.display())
    });
    (kernel, dir.join("initrd.img"))
}
