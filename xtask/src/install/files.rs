//! What goes where on a node: the one list that `cargo xtask install` and the Debian package are made
//! of.
//!
//! ```text
//!  bin          slipwayd, slipwayctl, the shim           lib/systemd/system   slipwayd.service
//!  lib/cni      slipway-cni                              share/bash-... etc.  completions
//!  share/slipway           the guest; examples of what belongs to others (containerd, Kubernetes)
//!  share/doc/slipway       documentation, licences
//!  /etc/slipway            the administrator's: never overwritten once changed
//! ```
//! The files in `configs/` name the places of the Debian package. For other places the names are
//! changed on the way.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::build::Built;
use crate::workspace;

/// What `configs/` says, and which part of a [`Layout`] holds instead.
const PLACES: [(&str, Place); 4] = [
    ("/usr/bin/slipway", |layout| layout.bin().join("slipway")),
    ("/usr/share/slipway/", |layout| layout.share().join("")),
    ("/usr/share/doc/slipway/", |layout| layout.doc().join("")),
    ("/etc/slipway/", |layout| layout.etc.join("slipway").join("")),
];
type Place = fn(&Layout) -> PathBuf;

/// Files of `configs/` that are the administrator's, and where below `etc`.
const CONFIGS: [(&str, &str); 3] = [
    ("slipwayd.toml", "slipway/slipwayd.toml"),
    ("configuration.toml", "slipway/configuration.toml"),
    ("10-slipway.conflist", "slipway/cni/10-slipway.conflist"),
];
/// Files of `configs/` that are for an administrator to put into place.
const EXAMPLES: [&str; 7] = [
    "containerd-1.6.toml",
    "containerd-1.7.toml",
    "containerd-2.toml",
    "runtimeclass.yaml",
    "pod.yaml",
    "slipwayd-gateway.conf",
    "slipwayd-netns.conf",
];
/// What there is to read; links between them hold.
const DOCS: [&str; 6] = [
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "docs/api.md",
    "docs/kata-compat.md",
    "docs/threat-model.md",
];
const UNIT: &str = "slipwayd.service";
const PROGRAMS: [&str; 3] = ["slipwayd", "slipwayctl", "containerd-shim-slipway-v2"];
const CNI_PLUGIN: &str = "slipway-cni";

/// The places of a node that files go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Where programs and what they need lie.
    pub prefix: PathBuf,
    /// Where configuration lies, in a folder of its own.
    pub etc: PathBuf,
    /// Where containerd looks for CNI plugins.
    pub cni: PathBuf,
}

impl Layout {
    /// The Debian package's.
    pub fn debian() -> Self {
        Self { prefix: "/usr".into(), etc: "/etc".into(), cni: "/usr/lib/cni".into() }
    }

    /// All files below `prefix`, but of a system prefix those that others look for: the configuration is
    /// in /etc, and with /usr/local the CNI plugin is where containerd looks unless told otherwise.
    ///
    /// # Errors
    /// A path is relative or cannot stand unquoted in a unit and in TOML.
    pub fn new(prefix: &Path, etc: Option<&Path>, cni: Option<&Path>) -> Result<Self> {
        // `/usr/` is `/usr`.
        let prefix: PathBuf = prefix.components().collect();
        let (default_etc, default_cni) = match prefix.to_str() {
            Some("/usr") => ("/etc".into(), "/usr/lib/cni".into()),
            Some("/usr/local") => ("/etc".into(), "/opt/cni/bin".into()),
            _ => (prefix.join("etc"), prefix.join("lib/cni")),
        };
        let layout = Self {
            prefix,
            etc: etc.map_or(default_etc, Path::to_owned),
            cni: cni.map_or(default_cni, Path::to_owned),
        };
        for (option, path) in
            [("--prefix", &layout.prefix), ("--etc-dir", &layout.etc), ("--cni-dir", &layout.cni)]
        {
            check(path).with_context(|| format!("{option} {} cannot be used", path.display()))?;
        }
        Ok(layout)
    }

    /// Where programs are.
    pub fn bin(&self) -> PathBuf {
        self.prefix.join("bin")
    }

    /// Whether services find the programs by name, and systemd the unit.
    pub fn is_of_system(&self) -> bool {
        ["/usr", "/usr/local"].iter().any(|prefix| self.prefix == Path::new(prefix))
    }

    /// Where the guest and the examples are.
    pub fn share(&self) -> PathBuf {
        self.prefix.join("share/slipway")
    }

    /// Where units are.
    pub fn units(&self) -> PathBuf {
        self.prefix.join("lib/systemd/system")
    }

    /// Where `shell` looks for the completions of slipwayctl.
    fn completions(&self, shell: &str) -> PathBuf {
        let share = self.prefix.join("share");
        match shell {
            "bash" => share.join("bash-completion/completions/slipwayctl"),
            "fish" => share.join("fish/vendor_completions.d/slipwayctl.fish"),
            // Debian's zsh has a folder for packages, and looks into the usual one below /usr/local.
            _ if self.prefix == Path::new("/usr") => {
                share.join("zsh/vendor-completions/_slipwayctl")
            }
            _ => share.join("zsh/site-functions/_slipwayctl"),
        }
    }

    fn doc(&self) -> PathBuf {
        self.prefix.join("share/doc/slipway")
    }

    /// A file of `configs/` as it reads here.
    fn adapt(&self, text: &str) -> String {
        let mut text = text.to_owned();
        // By way of marks that stand in no file, so that what was changed is not changed again.
        for (index, (from, _)) in PLACES.iter().enumerate() {
            text = text.replace(from, &format!("\u{1}{index}\u{1}"));
        }
        for (index, (_, to)) in PLACES.iter().enumerate() {
            text = text.replace(&format!("\u{1}{index}\u{1}"), &to(self).to_string_lossy());
        }
        text
    }
}

fn check(path: &Path) -> Result<()> {
    ensure!(path.is_absolute(), "it has to be an absolute path");
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    let text = path.to_str().unwrap_or("\0");
    ensure!(text.chars().all(plain), "it may hold letters, digits and / . _ - + only");
    ensure!(!text.split('/').any(|part| part == ".."), "it may not hold ..");
    Ok(())
}

/// How a file is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ours, executable.
    Program,
    /// Ours.
    Data,
    /// The administrator's, once it is there.
    Config,
}

impl Kind {
    /// Permissions, whatever the umask.
    pub const fn mode(self) -> u32 {
        match self {
            Self::Program => 0o755,
            Self::Data | Self::Config => 0o644,
        }
    }
}

/// A file for a node.
#[derive(Debug, Clone)]
pub struct Item {
    /// Where, on the node.
    pub path: PathBuf,
    /// How it is treated.
    pub kind: Kind,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    File(PathBuf),
    Bytes(Vec<u8>),
}

impl Item {
    /// What is in it.
    ///
    /// # Errors
    /// It was not built, or cannot be read.
    pub fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        match &self.content {
            Content::Bytes(bytes) => Ok(bytes.into()),
            Content::File(file) => {
                let bytes = fs::read(file).with_context(|| {
                    format!("Failed to read {}; install without --no-build", file.display())
                })?;
                Ok(bytes.into())
            }
        }
    }
}

/// Every file of slipway.
///
/// # Errors
/// A file of the workspace cannot be read.
pub fn list(layout: &Layout, built: &Built) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    let mut add = |path: PathBuf, kind, content| items.push(Item { path, kind, content });
    let config = |name: &str| -> Result<Content> {
        let file = workspace::root().join("configs").join(name);
        let text = fs::read_to_string(&file)
            .with_context(|| format!("Failed to read {}", file.display()))?;
        Ok(Content::Bytes(layout.adapt(&text).into_bytes()))
    };

    for name in PROGRAMS {
        let file = Content::File(built.programs.join(name));
        add(layout.bin().join(name), Kind::Program, file);
    }
    let plugin = Content::File(built.programs.join(CNI_PLUGIN));
    add(layout.cni.join(CNI_PLUGIN), Kind::Program, plugin);
    for (name, file) in [
        ("vmlinux", &built.guest.vmlinux),
        ("initrd.img", &built.guest.initrd),
        ("guest.json", &built.guest.manifest),
    ] {
        add(layout.share().join(name), Kind::Data, Content::File(file.clone()));
    }
    for (name, below) in CONFIGS {
        add(layout.etc.join(below), Kind::Config, config(name)?);
    }
    add(layout.units().join(UNIT), Kind::Data, config(UNIT)?);
    for name in EXAMPLES {
        add(layout.share().join("examples").join(name), Kind::Data, config(name)?);
    }
    for (shell, script) in &built.completions {
        add(layout.completions(shell), Kind::Data, Content::Bytes(script.clone()));
    }
    for below in DOCS {
        let file = Content::File(workspace::root().join(below));
        add(layout.doc().join(below), Kind::Data, file);
    }
    let licences = Content::Bytes(built.licences.clone());
    add(layout.doc().join("copyright"), Kind::Data, licences);
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::super::build::tests::built;
    use super::*;

    fn text(items: &[Item], name: &str) -> String {
        let item = items.iter().find(|item| item.path.ends_with(name)).unwrap();
        String::from_utf8(item.bytes().unwrap().into_owned()).unwrap()
    }

    #[test]
    fn every_file_of_configs_is_installed_once() {
        let folder = tempfile::tempdir().unwrap();
        let items = list(&Layout::debian(), &built(folder.path())).unwrap();
        let mut paths: Vec<_> = items.iter().map(|item| &item.path).collect();
        for entry in fs::read_dir(workspace::root().join("configs")).unwrap() {
            let name = entry.unwrap().file_name();
            let found = paths.iter().filter(|path| path.file_name() == Some(&name)).count();
            assert_eq!(found, 1, "{name:?}");
        }
        let all = paths.len();
        paths.sort();
        paths.dedup();
        assert_eq!(paths.len(), all, "two files have one place");
    }

    #[test]
    fn debian_s_layout_is_the_one_that_configs_speak_of() {
        let folder = tempfile::tempdir().unwrap();
        let items = list(&Layout::debian(), &built(folder.path())).unwrap();
        for name in [UNIT, "configuration.toml", "containerd-1.6.toml", "containerd-2.toml"] {
            let original = fs::read_to_string(workspace::root().join("configs").join(name));
            assert_eq!(text(&items, name), original.unwrap(), "{name}");
        }
    }

    #[test]
    fn what_the_files_name_is_where_it_is_installed() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(Path::new("/opt/usr/share/slipway"), None, None).unwrap();
        let items = list(&layout, &built(folder.path())).unwrap();
        let is_installed = |path: &str| {
            let is_it = |item: &Item| item.path == Path::new(path);
            items.iter().any(is_it)
        };
        let unit = text(&items, UNIT);
        let commands: Vec<_> = unit.lines().filter(|line| line.starts_with("ExecStart")).collect();
        assert_eq!(commands.len(), 2);
        for command in commands {
            let (_, command) = command.split_once('=').unwrap();
            for path in command.split(' ').filter(|word| word.starts_with('/')) {
                assert!(is_installed(path), "{path} of {UNIT}");
            }
        }
        let machine: toml::Table = text(&items, "configuration.toml").parse().unwrap();
        let machine = &machine["hypervisor"]["qemu"];
        assert!(is_installed(machine["kernel"].as_str().unwrap()), "{machine}");
        assert!(is_installed(machine["initrd"].as_str().unwrap()), "{machine}");
        // Another's program stays where it is.
        assert_eq!(machine["path"].as_str(), Some("/usr/bin/qemu-system-x86_64"));
        for name in ["containerd-1.6.toml", "containerd-1.7.toml", "containerd-2.toml"] {
            let drop_in: toml::Table = text(&items, name).parse().unwrap();
            let plugins = drop_in["plugins"].as_table().unwrap();
            let (_, cri) = plugins.iter().next().unwrap();
            let runtime = &cri["containerd"]["runtimes"]["slipway"];
            assert!(is_installed(runtime["options"]["ConfigPath"].as_str().unwrap()), "{name}");
            let networks = runtime["cni_conf_dir"].as_str().unwrap();
            assert!(is_installed(&format!("{networks}/10-slipway.conflist")), "{name}");
        }
    }

    #[test]
    fn a_system_prefix_has_its_configuration_where_the_programs_look() {
        let layout = |prefix: &str| Layout::new(Path::new(prefix), None, None).unwrap();
        assert_eq!(layout("/usr"), Layout::debian());
        assert_eq!(layout("/usr/"), Layout::debian());
        assert_eq!(layout("/usr/local").etc, Path::new("/etc"));
        assert_eq!(layout("/usr/local").cni, Path::new("/opt/cni/bin"));
        assert_eq!(layout("/srv/slipway").etc, Path::new("/srv/slipway/etc"));
        assert_eq!(layout("/srv/slipway").cni, Path::new("/srv/slipway/lib/cni"));
    }

    #[test]
    fn places_that_could_not_be_written_into_a_unit_are_refused() {
        for bad in ["usr", "/a b", "/a\"b", "/a/../b", "/%n"] {
            let error = Layout::new(Path::new(bad), None, None).unwrap_err();
            assert!(error.to_string().contains("--prefix"), "{error}");
            let error = Layout::new(Path::new("/usr"), None, Some(Path::new(bad))).unwrap_err();
            assert!(error.to_string().contains("--cni-dir"), "{error}");
        }
    }
}
