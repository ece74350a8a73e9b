//! `cargo xtask install`: slipway on this node, or below a folder for packagers, and off it again.
//!
//! ```text
//!  build  --->  files: the list  --->  place: files on a node, with a manifest    (install)
//!                     `------------->  deb: a folder, dpkg-deb                    (deb)
//! ```
//! Nothing is started or enabled, and no configuration of others is changed: what is left to do is
//! printed at the end.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;

use crate::interrupt::{self, Interrupted};
use files::Layout;
use place::{Node, Placed, Removed};

mod build;
pub mod deb;
mod files;
mod licences;
mod place;
#[cfg(test)]
mod tests;

/// Arguments of `cargo xtask install`
#[derive(Args)]
pub struct Arguments {
    /// The folder above bin, lib and share
    #[arg(long, value_name = "DIR", default_value = "/usr/local")]
    prefix: PathBuf,
    /// Where the folder slipway with the configuration goes [default: /etc with the prefix /usr or
    /// /usr/local, else PREFIX/etc]
    #[arg(long, value_name = "DIR")]
    etc_dir: Option<PathBuf>,
    /// Where containerd looks for CNI plugins, its bin_dir [default: /opt/cni/bin with the prefix
    /// /usr/local, else PREFIX/lib/cni, which with /usr is Debian's]
    #[arg(long, value_name = "DIR")]
    cni_dir: Option<PathBuf>,
    /// Put all of it below this folder instead of /, for packagers [default: DESTDIR, else /]
    #[arg(long, value_name = "DIR")]
    destdir: Option<PathBuf>,
    /// Install what was built before
    #[arg(long)]
    no_build: bool,
    /// Remove what was installed with the same options
    #[arg(long, conflicts_with = "no_build")]
    uninstall: bool,
}

/// Runs `cargo xtask install`.
pub fn main(arguments: &Arguments) -> Result<()> {
    let Arguments { prefix, etc_dir, cni_dir, destdir, .. } = arguments;
    let layout = Layout::new(prefix, etc_dir.as_deref(), cni_dir.as_deref())?;
    let variable = env::var_os("DESTDIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let destdir = match destdir.clone().or(variable) {
        Some(dir) => std::path::absolute(dir)?,
        None => "/".into(),
    };
    let node = Node::open(&destdir, &layout)?;
    if arguments.uninstall {
        return uninstall(node, &layout);
    }
    let built = build::build(arguments.no_build)?;
    install(node, &layout, &built)?;
    println!("\n{}", next_steps(&layout));
    Ok(())
}

fn install(mut node: Node, layout: &Layout, built: &build::Built) -> Result<()> {
    let items = files::list(layout, built)?;
    for item in &items {
        if interrupt::is_requested() {
            return Err(Interrupted.into());
        }
        let placed = node.put(item)?;
        let path = node.at(&item.path);
        match placed {
            Placed::Written => println!("  {}", path.display()),
            Placed::Same => println!("  {} (as it was)", path.display()),
            Placed::Kept => println!("  {} (yours)", path.display()),
            Placed::Beside(new) => {
                println!("  {} (yours stays; new: {})", path.display(), node.at(&new).display());
            }
        }
    }
    let stale = node.prune(&items)?;
    tell(&node, &stale);
    Ok(())
}

fn uninstall(node: Node, layout: &Layout) -> Result<()> {
    if node.is_empty() {
        let manifest = node.at(&layout.share().join("manifest.json"));
        bail!(
            "{} names no files: give the --prefix and DESTDIR that it was installed with",
            manifest.display()
        );
    }
    let root = node.at(Path::new("/"));
    for (path, outcome) in node.clear()? {
        tell_one(&root.join(path.strip_prefix("/").unwrap_or(&path)), &outcome);
    }
    Ok(())
}

fn tell(node: &Node, removed: &[(PathBuf, Removed)]) {
    for (path, outcome) in removed {
        tell_one(&node.at(path), outcome);
    }
}

fn tell_one(path: &Path, outcome: &Removed) {
    match outcome {
        Removed::Gone => println!("  removed {}", path.display()),
        Removed::Kept => println!("  kept {}, which was changed", path.display()),
    }
}

/// What is left to the administrator; README.md says more.
fn next_steps(layout: &Layout) -> String {
    let (etc, cni, units) = (layout.etc.display(), layout.cni.display(), layout.units());
    let (examples, bin) = (layout.share().join("examples"), layout.bin());
    let (examples, bin) = (examples.display(), bin.display());
    // containerd 1.6 knows shims by their name only.
    let (link, shim) = match layout.is_of_system() {
        true => (String::new(), String::new()),
        false => (
            format!("systemctl link {}/slipwayd.service && ", units.display()),
            format!("ln -s {bin}/containerd-shim-slipway-v2 /usr/local/bin/\n     and "),
        ),
    };
    // The shim looks there, too, if it is told nothing else.
    let config = match layout.etc == Path::new("/etc") {
        true => String::new(),
        false => format!(" --config {etc}/slipway/configuration.toml"),
    };
    format!(
        "Left to do, as root (README.md, \"Kubernetes nodes\"):\n  \
         1. Look at {etc}/slipway/slipwayd.toml: cores to poll on, addresses for pods, the gateway.\n  \
         2. {link}systemctl daemon-reload && systemctl enable --now slipwayd\n  \
         3. If containerd's bin_dir for CNI (containerd config dump | grep bin_dir) is another than\n     \
         {cni}: ln -s {cni}/slipway-cni BIN_DIR/\n  \
         4. {shim}tell containerd of the runtime: {examples}/containerd-*.toml say how.\n  \
         5. {bin}/slipwayctl check{config}\n  \
         6. kubectl label node NAME slipway=installed && kubectl apply -f {examples}/runtimeclass.yaml",
    )
}
