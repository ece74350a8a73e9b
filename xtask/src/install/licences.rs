//! The licences of what is linked into the programs, as the crates themselves bring them.
//!
//! cargo says which crates the programs are made of; the texts lie beside their sources. Many are the
//! same, and stand once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::{command, workspace};

/// What is installed runs there.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";
/// How files with licences begin, in capitals.
const NAMES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"];

/// What `cargo metadata` says, as far as we ask.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    /// None for those of the workspace.
    source: Option<String>,
    manifest_path: PathBuf,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    /// `dev` or `build`, if not for the program itself.
    kind: Option<String>,
}

/// The text that is installed as `copyright`, for programs of these packages and of the guest's agent.
///
/// # Errors
/// cargo does not know the crates, or a text cannot be read.
pub fn collect(packages: &[&str]) -> Result<Vec<u8>> {
    let mut command = Command::new(workspace::cargo());
    command
        .args(["metadata", "--locked", "--format-version", "1", "--filter-platform", PLATFORM])
        .current_dir(workspace::root());
    let output = command::output(&mut command)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo metadata failed: {said}");
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("cargo metadata cannot be understood")?;
    let roots: Vec<_> = packages.iter().copied().chain(["slipway-agent"]).collect();
    let own = workspace::root().join("LICENSE");
    let own =
        fs::read_to_string(&own).with_context(|| format!("Failed to read {}", own.display()))?;
    Ok(text(&metadata, &roots, own)?.into_bytes())
}

/// `own` is our own licence.
fn text(metadata: &Metadata, roots: &[&str], own: String) -> Result<String> {
    let used = used(metadata, roots);
    let mut crates: Vec<_> = metadata
        .packages
        .iter()
        .filter(|package| package.source.is_some() && used.contains(package.id.as_str()))
        .collect();
    crates.sort_by_key(|package| (&package.name, &package.version));

    let mut text = String::from(
        "slipway is under the Apache License, version 2.0, whose text is below.\n\n\
         The guest's kernel and modules (vmlinux, initrd.img) are Linux, under the GNU General Public\n\
         License, version 2, as Debian builds it; guest.json beside them names the package and its\n\
         version, whose source Debian has.\n\n\
         The programs contain these libraries:\n\n",
    );
    let mut texts = BTreeMap::from([(own, vec!["slipway (LICENSE)".to_owned()])]);
    for package in crates {
        let Package { name, version, license, .. } = package;
        let _ = writeln!(text, "  {name} {version}: {}", license.as_deref().unwrap_or("see below"));
        let folder = package.manifest_path.parent().unwrap_or(Path::new("/"));
        for (file, licence) in licences_in(folder)? {
            texts.entry(licence).or_default().push(format!("{name} {version} ({file})"));
        }
    }
    for (licence, users) in texts {
        let line = "=".repeat(80);
        let _ = write!(text, "\n{line}\n{}\n\n{}\n", users.join("\n"), licence.trim_end());
    }
    Ok(text)
}

/// The packages that programs of `roots` are made of. A crate that only builds or tests them is not
/// in them.
fn used<'a>(metadata: &'a Metadata, roots: &[&str]) -> BTreeSet<&'a str> {
    let nodes: BTreeMap<_, _> =
        metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let is_root =
        |package: &&Package| package.source.is_none() && roots.contains(&package.name.as_str());
    let mut waiting: Vec<&str> =
        metadata.packages.iter().filter(is_root).map(|package| package.id.as_str()).collect();
    let mut used = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if !used.insert(id) {
            continue;
        }
        let Some(node) = nodes.get(id) else { continue };
        let is_in =
            |dependency: &&Dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none());
        waiting.extend(node.deps.iter().filter(is_in).map(|dependency| dependency.pkg.as_str()));
    }
    used
}

/// File names and texts.
fn licences_in(folder: &Path) -> Result<BTreeMap<String, String>> {
    let failed = || format!("Failed to read the licences in {}", folder.display());
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).with_context(failed)? {
        let path = entry.with_context(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let upper = name.to_uppercase();
        if NAMES.iter().any(|start| upper.starts_with(start)) && path.is_file() {
            let bytes = fs::read(&path).with_context(failed)?;
            found.insert(name, String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn crates_of_the_programs_stand_with_their_texts_once_and_others_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let package = |name: &str, source: Option<&str>| {
            let place = folder.path().join(name);
            fs::create_dir(&place).unwrap();
            if source.is_some() {
                fs::write(place.join("LICENSE-MIT"), "Do what you like").unwrap();
            }
            json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT",
                   "source": source, "manifest_path": place.join("Cargo.toml")})
        };
        let on =
            |name: &str, kind: Option<&str>| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let registry = Some("registry");
        let metadata = json!({
            "packages": [package("shim", None), package("a", registry), package("b", registry),
                         package("tests-only", registry), package("elsewhere", registry)],
            "resolve": {"nodes": [
                {"id": "shim", "deps": [on("a", None), on("tests-only", Some("dev"))]},
                {"id": "a", "deps": [on("b", None)]},
                {"id": "b", "deps": [on("a", None)]},
            ]},
        });
        let metadata = serde_json::from_value(metadata).unwrap();
        let text = text(&metadata, &["shim"], "Keep this notice".to_owned()).unwrap();
        assert!(text.contains("\n  a 1.0.0: MIT\n  b 1.0.0: MIT\n"), "{text}");
        assert!(!text.contains("tests-only") && !text.contains("elsewhere"), "{text}");
        assert_eq!(text.matches("Do what you like").count(), 1, "{text}");
        assert!(text.contains("a 1.0.0 (LICENSE-MIT)\nb 1.0.0 (LICENSE-MIT)\n"), "{text}");
        assert!(text.contains("slipway (LICENSE)\n\nKeep this notice\n"), "{text}");
    }
}
