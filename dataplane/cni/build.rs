//! Hands over what the program shares with the rest of slipway and cannot read there, as it has no standard
//! library: the seccomp filter, and the preset path of slipwayd's socket.

use std::{env, fs, path::Path};

use slipway_api::{DEFAULT_SOCKET, confine};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-env=SLIPWAY_SOCKET={DEFAULT_SOCKET}");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo names the machine");
    let filter = confine::filter(&arch).expect("a seccomp filter for this machine");
    let instructions = filter.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect::<Vec<_>>();
    let folder = env::var_os("OUT_DIR").expect("cargo names a folder");
    let file = Path::new(&folder).join("filter.rs");
    fs::write(file, format!("&{instructions:?}")).expect("the filter can be written");
    if env::var_os("CARGO_FEATURE_BARE").is_some() {
        // src/start.rs is where the kernel begins.
        println!("cargo:rustc-link-arg-bin=slipway-cni=-nostartfiles");
    }
}
