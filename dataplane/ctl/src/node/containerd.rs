//! What containerd was told of slipway.
//!
//! # Bounds
//! `/etc/containerd/config.toml` and the files of `conf.d` are read as one; other imports are not
//! followed. `containerd config dump` has the last word. A `runtime_path` is believed, which containerd
//! before 1.7.1 ignores.

use std::{
    fs,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::{Node, RUNTIME, is_program};

/// Where containerd looks for CNI plugins and networks unless told otherwise.
const BIN_DIR: &str = "/opt/cni/bin";
const CONF_DIR: &str = "/etc/cni/net.d";
/// The plugin.
const PLUGIN: &str = "slipway-cni";

/// What of containerd's configuration concerns pods of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Containerd {
    /// The file that has the runtime.
    pub file: Option<PathBuf>,
    /// The shim, if it is not to be found by its name.
    pub runtime_path: Option<PathBuf>,
    /// Where networks of its pods are described.
    pub conf_dir: PathBuf,
    /// Where CNI plugins are looked for.
    pub bin_dirs: Vec<PathBuf>,
    /// Files that containerd will not read, and why.
    pub damaged: Vec<String>,
}

impl Node {
    /// Reads containerd's configuration.
    pub(super) fn containerd(&self) -> Containerd {
        let mut files = vec![self.at("/etc/containerd/config.toml")];
        let folder = fs::read_dir(self.at("/etc/containerd/conf.d")).into_iter().flatten();
        let mut drop_ins: Vec<_> = folder.filter_map(|entry| Some(entry.ok()?.path())).collect();
        drop_ins.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
        drop_ins.sort();
        files.append(&mut drop_ins);
        let mut told = Containerd {
            file: None,
            runtime_path: None,
            conf_dir: self.at(CONF_DIR),
            bin_dirs: vec![self.at(BIN_DIR)],
            damaged: Vec::new(),
        };
        for file in files {
            let Ok(text) = fs::read_to_string(&file) else { continue };
            match text.parse::<Table>() {
                Ok(table) => told.take(self, &file, &table),
                Err(error) => {
                    let line = error.message().lines().next().unwrap_or_default().to_owned();
                    told.damaged.push(format!("{}: {line}", file.display()));
                }
            }
        }
        told
    }
}

impl Containerd {
    /// Adds what a file says. The plugin that serves Kubernetes has another name in each version of the
    /// file, and no other has such tables.
    fn take(&mut self, node: &Node, file: &Path, table: &Table) {
        let plugins = table.get("plugins").and_then(Value::as_table).into_iter().flatten();
        for (_, plugin) in plugins {
            let Some(cni) = plugin.get("cni") else { continue };
            let of_key =
                |key: &str| -> Vec<_> { texts(cni.get(key)).map(|path| node.at(path)).collect() };
            let bin_dirs = [of_key("bin_dir"), of_key("bin_dirs")].concat();
            if !bin_dirs.is_empty() {
                self.bin_dirs = bin_dirs;
            }
            if let Some(path) = texts(cni.get("conf_dir")).next() {
                self.conf_dir = node.at(path);
            }
        }
        let plugins = table.get("plugins").and_then(Value::as_table).into_iter().flatten();
        for (_, plugin) in plugins {
            let runtimes = plugin.get("containerd").and_then(|table| table.get("runtimes"));
            for (_, runtime) in runtimes.and_then(Value::as_table).into_iter().flatten() {
                if runtime.get("runtime_type").and_then(Value::as_str) != Some(RUNTIME) {
                    continue;
                }
                self.file = Some(file.to_owned());
                let path = |key: &str| texts(runtime.get(key)).next().map(|path| node.at(path));
                self.runtime_path = path("runtime_path");
                if let Some(path) = path("cni_conf_dir") {
                    self.conf_dir = path;
                }
            }
        }
    }

    /// A plugin, where containerd looks for it.
    pub(super) fn plugin(&self, name: &str) -> Option<PathBuf> {
        self.bin_dirs.iter().map(|folder| folder.join(name)).find(|path| is_program(path))
    }

    /// Our plugin, where containerd looks for it.
    pub(super) fn slipway_cni(&self) -> Option<PathBuf> {
        self.plugin(PLUGIN)
    }

    /// The description of a network that our plugin is of.
    pub(super) fn network(&self) -> Option<PathBuf> {
        let entries = fs::read_dir(&self.conf_dir).into_iter().flatten();
        let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.sort();
        let is_read = |path: &Path| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("conflist" | "conf" | "json"))
        };
        // It is the first that containerd takes.
        let first = files.into_iter().find(|path| is_read(path))?;
        fs::read_to_string(&first).is_ok_and(|text| text.contains(PLUGIN)).then_some(first)
    }
}

/// A text, or those of a list, without empty ones.
fn texts(value: Option<&Value>) -> impl Iterator<Item = &str> {
    let list =
        value.map(|value| value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice));
    let texts = list.into_iter().flatten().filter_map(Value::as_str);
    texts.filter(|text| !text.is_empty())
}
