//! Slipway on a node as its user gets it there: by the package, and by `cargo xtask install` below a
//! prefix of its own. Pods run from what was installed and from nothing else.
//!
//! The node is a private host with its own version of the machine's /usr, /etc and /var, so that dpkg
//! itself can install. The folders that the programs were built in are hidden from it. They need root.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::sys::utsname::uname;
use tempfile::TempDir;
use tokio::process::Command;
use xtask::rig::{Image, Network, Node, PrivateHost, Slipwayd, Unit, slipway_programs};

/// What is installed below the prefix, and its permissions.
const OF_PREFIX: [(&str, u32); 24] = [
    ("bin/containerd-shim-slipway-v2", 0o755),
    ("bin/slipwayctl", 0o755),
    ("bin/slipwayd", 0o755),
    ("lib/cni/slipway-cni", 0o755),
    ("lib/systemd/system/slipwayd.service", 0o644),
    ("share/bash-completion/completions/slipwayctl", 0o644),
    ("share/doc/slipway/CHANGELOG.md", 0o644),
    ("share/doc/slipway/LICENSE", 0o644),
    ("share/doc/slipway/README.md", 0o644),
    ("share/doc/slipway/copyright", 0o644),
    ("share/doc/slipway/docs/api.md", 0o644),
    ("share/doc/slipway/docs/kata-compat.md", 0o644),
    ("share/doc/slipway/docs/threat-model.md", 0o644),
    ("share/fish/vendor_completions.d/slipwayctl.fish", 0o644),
    ("share/slipway/examples/containerd-1.6.toml", 0o644),
    ("share/slipway/examples/containerd-1.7.toml", 0o644),
    ("share/slipway/examples/containerd-2.toml", 0o644),
    ("share/slipway/examples/pod.yaml", 0o644),
    ("share/slipway/examples/runtimeclass.yaml", 0o644),
    ("share/slipway/examples/slipwayd-gateway.conf", 0o644),
    ("share/slipway/examples/slipwayd-netns.conf", 0o644),
    ("share/slipway/guest.json", 0o644),
    ("share/slipway/initrd.img", 0o644),
    ("share/slipway/vmlinux", 0o644),
];
/// Below the folder of configurations.
const OF_ETC: [&str; 3] =
    ["slipway/cni/10-slipway.conflist", "slipway/configuration.toml", "slipway/slipwayd.toml"];
/// Folders of the machine's that the node has its own version of.
const OWN: [&str; 3] = ["/usr", "/etc", "/var"];
const CONTAINERD: &str = "/etc/containerd/config.toml";
/// What a shell of root's has.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where slipway was installed.
struct Installed {
    prefix: PathBuf,
    etc: PathBuf,
}

impl Installed {
    fn file(&self, below_prefix: &str) -> PathBuf {
        self.prefix.join(below_prefix)
    }

    /// Everything is there, for whom it is.
    fn check_files(&self, host: &PrivateHost) -> Result<()> {
        let of_prefix = OF_PREFIX.iter().map(|(file, mode)| (self.file(file), *mode));
        let of_etc = OF_ETC.iter().map(|file| (self.etc.join(file), 0o644));
        for (file, mode) in of_prefix.chain(of_etc) {
            let data = fs::symlink_metadata(host.path(&file));
            let data = data.with_context(|| format!("{} is not there", file.display()))?;
            ensure!(data.is_file() && data.len() > 0, "{} is empty", file.display());
            let (found, owner) = (data.permissions().mode() & 0o7777, (data.uid(), data.gid()));
            let is_right = found == mode && owner == (0, 0);
            ensure!(is_right, "{}: {found:o}, of {owner:?}", file.display());
        }
        let licence = read(host, &self.file("share/doc/slipway/LICENSE"))?;
        let copyright = read(host, &self.file("share/doc/slipway/copyright"))?;
        ensure!(copyright.contains(licence.trim_end()), "whose copyright is it?");
        Ok(())
    }

    /// README.md, steps 2 and 4: what an administrator changes.
    fn configure(&self, host: &PrivateHost) -> Result<()> {
        let file = self.etc.join("slipway/slipwayd.toml");
        let text = read(host, &file)?;
        let changed = text
            .replace("\nenabled = false\n", "\nenabled = true\n")
            .replace("\nmasquerade = \"off\"\n", "\nmasquerade = \"nftables\"\n");
        let count = text.lines().zip(changed.lines()).filter(|(a, b)| a != b).count();
        ensure!(count == 2, "{} has no gateway to enable", file.display());
        fs::write(host.path(&file), changed)?;

        let file = Path::new(CONTAINERD);
        let config = fs::read_to_string(host.path(file)).unwrap_or("version = 2\n".to_owned());
        fs::create_dir_all(host.path(file).parent().context("no folder")?)?;
        fs::write(host.path(file), config + &self.drop_in(host)?)?;
        Ok(())
    }

    /// For the containerd that the tests have.
    fn drop_in(&self, host: &PrivateHost) -> Result<String> {
        read(host, &self.file("share/slipway/examples/containerd-1.6.toml"))
    }

    /// What systemd does when slipwayd is started.
    async fn start_slipwayd(&self, host: &PrivateHost) -> Result<Slipwayd> {
        let unit = Unit::parse(&[
            read(host, &self.file("lib/systemd/system/slipwayd.service"))?,
            read(host, &self.file("share/slipway/examples/slipwayd-gateway.conf"))?,
        ])?;
        let run_dir = Path::new("/run").join(unit.value("RuntimeDirectory")?);
        let mode = u32::from_str_radix(unit.value("RuntimeDirectoryMode")?, 8)?;
        fs::create_dir_all(host.path(&run_dir))?;
        fs::set_permissions(host.path(&run_dir), fs::Permissions::from_mode(mode))?;
        let check: Vec<_> = unit.value("ExecStartPre")?.split(' ').collect();
        run(host, check[0], &check[1..]).await?;
        let (program, arguments) = unit.command()?;
        let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
        let wrapper = [host.wrapper(), unit.wrapper()?].concat();
        let socket = host.path(&run_dir.join("slipwayd.sock"));
        Slipwayd::launch(program, &arguments, &socket, &wrapper).await
    }

    /// README.md, step 5.
    async fn check_node(&self, host: &PrivateHost) -> Result<()> {
        let config = self.etc.join("slipway/configuration.toml").display().to_string();
        let ctl = self.file("bin/slipwayctl");
        let said = run(host, &ctl, &["check", "--config", &config]).await?;
        ensure!(said.contains("Pods can start here"), "{said}");
        let said = run(host, &ctl, &["env", "--config", &config]).await?;
        let kernel = self.file("share/slipway/vmlinux").display().to_string();
        for part in [kernel.as_str(), "/bin/containerd-shim-slipway-v2", "/slipway-cni"] {
            ensure!(said.contains(&format!("{part}\"\n")), "{part} is not in\n{said}");
        }
        Ok(())
    }

    /// A pod runs from here, and outlives a restart of the switch. Leaves the node without either.
    async fn a_pod_runs(&self, node: &Node) -> Result<()> {
        let host = node.host();
        let slipwayd = self.start_slipwayd(host).await?;
        self.check_node(host).await?;
        let pod = node.pod("hello").await.with_context(|| node.log_tail())?;
        let container = pod.idle("hello").await?;
        let release = container.shell("uname -r").await?;
        ensure!(release.trim() != uname()?.release().to_string_lossy(), "{release}");
        let ping = format!("ping -c 1 -W 10 {}", Network::GATEWAY);
        container.shell(&ping).await?;

        let pids = host.pids()?;
        let programs: BTreeSet<_> = pids.iter().filter_map(|pid| host.program(*pid)).collect();
        for name in ["bin/containerd-shim-slipway-v2", "bin/slipwayd"] {
            ensure!(programs.contains(&self.file(name)), "{name} is not among {programs:?}");
        }
        let kernel = self.file("share/slipway/vmlinux").display().to_string();
        let lines: Vec<_> = pids.iter().map(|pid| host.command_line(*pid)).collect();
        ensure!(lines.iter().any(|line| line.contains(&kernel)), "no guest of {kernel}: {lines:?}");

        // As on an upgrade.
        slipwayd.stop_on_host().await?;
        let slipwayd = self.start_slipwayd(host).await?;
        let attachments = run(host, self.file("bin/slipwayctl"), &["attachments"]).await?;
        ensure!(attachments.contains(&pod.address().to_string()), "{attachments}");
        container.shell(&ping).await.with_context(|| slipwayd.log_tail())?;

        pod.remove().await?;
        slipwayd.stop_on_host().await?;
        let remains = node.settle().await?;
        ensure!(remains.is_empty(), "Something is left: {remains}");
        Ok(())
    }
}

/// A file of the host.
fn read(host: &PrivateHost, file: &Path) -> Result<String> {
    fs::read_to_string(host.path(file)).with_context(|| format!("{}", file.display()))
}

/// Runs a program on the host as its administrator, and returns what it prints.
async fn run(host: &PrivateHost, program: impl AsRef<Path>, arguments: &[&str]) -> Result<String> {
    let mut command = host.command("env");
    said(command.args(["-i", PATH]).arg(program.as_ref()).args(arguments)).await
}

/// What a command prints if it succeeds.
async fn said(command: &mut Command) -> Result<String> {
    let output = command.output().await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{text}{errors}", output.status);
    Ok(text)
}

/// A machine on which slipway is to be installed, and the programs to install.
struct Machine {
    host: PrivateHost,
    folder: TempDir,
    programs: PathBuf,
}

impl Machine {
    async fn start() -> Result<Self> {
        let programs = tokio::task::spawn_blocking(slipway_programs).await??;
        let folder = Node::make_folder()?;
        let mut host = PrivateHost::start().await?;
        host.overlay(&OWN, &folder.path().join("own")).await?;
        Ok(Self { host, folder, programs })
    }

    /// `cargo xtask`, with what was built before.
    async fn xtask(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.host.command(env!("CARGO_BIN_EXE_xtask"));
        command.env("SLIPWAY_PROGRAMS", &self.programs).env_remove("DESTDIR");
        said(command.args(arguments)).await
    }

    /// Hides what was built, so that only what is installed can run.
    async fn hide_builds(&mut self) -> Result<()> {
        let image = Image::find()?;
        self.host.hide(&self.programs).await?;
        self.host.hide(image.kernel.parent().context("the image has no folder")?).await
    }

    async fn into_node(self, installed: &Installed) -> Result<(Node, PathBuf)> {
        let own = self.folder.path().join("own");
        let drop_in = installed.drop_in(&self.host)?;
        Ok((Node::installed(self.host, self.folder, drop_in).await?, own))
    }
}

/// What is named after us below `folder`.
fn ours_below(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().contains("slipway") {
            into.push(entry.path());
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            ours_below(&entry.path(), into);
        }
    }
}

#[tokio::test]
async fn the_package_brings_all_that_a_pod_needs_and_goes_without_a_trace() -> Result<()> {
    let mut machine = Machine::start().await?;
    let output = machine.folder.path().display().to_string();
    machine.xtask(&["deb", "--no-build", "--output", &output]).await?;
    let packages = fs::read_dir(machine.folder.path())?.flatten().map(|entry| entry.path());
    let mut packages = packages.filter(|path| path.extension().is_some_and(|it| it == "deb"));
    let package = packages.next().context("There is no package")?.display().to_string();
    machine.hide_builds().await?;
    run(&machine.host, "dpkg", &["--install", &package]).await?;
    let installed = Installed { prefix: "/usr".into(), etc: "/etc".into() };
    installed.check_files(&machine.host)?;
    let zsh = machine.host.path(Path::new("/usr/share/zsh/vendor-completions/_slipwayctl"));
    ensure!(zsh.is_file(), "{}", zsh.display());
    let unit = "/usr/lib/systemd/system/slipwayd.service";
    ensure!(run(&machine.host, "systemd-analyze", &["verify", "--man=no", unit]).await?.is_empty());

    installed.configure(&machine.host)?;
    let (node, own) = machine.into_node(&installed).await?;
    installed.a_pod_runs(&node).await?;

    // What the administrator changed outlives an upgrade.
    let toml = installed.etc.join("slipway/slipwayd.toml");
    let before = read(node.host(), &toml)?;
    run(node.host(), "dpkg", &["--install", &package]).await?;
    ensure!(read(node.host(), &toml)? == before, "the configuration was changed");

    run(node.host(), "dpkg", &["--purge", "slipway"]).await?;
    let mut left = Vec::new();
    OWN.iter().for_each(|folder| ours_below(&own.join(&folder[1..]), &mut left));
    ensure!(left.is_empty(), "{left:?}");
    node.end().await
}

#[tokio::test]
async fn what_is_installed_below_a_prefix_of_its_own_needs_nothing_from_elsewhere() -> Result<()> {
    let mut machine = Machine::start().await?;
    let prefix = machine.folder.path().join("prefix");
    let installed = Installed { prefix: prefix.clone(), etc: prefix.join("etc") };
    let prefix = prefix.display().to_string();
    let told = machine.xtask(&["install", "--no-build", "--prefix", &prefix]).await?;
    installed.check_files(&machine.host)?;
    // What is left to do, as it is told.
    let plugin = installed.file("lib/cni/slipway-cni").display().to_string();
    ensure!(told.contains(&format!("ln -s {plugin} ")), "{told}");
    run(&machine.host, "ln", &["-s", &plugin, "/usr/lib/cni/"]).await?;
    let shim = installed.file("bin/containerd-shim-slipway-v2").display().to_string();
    ensure!(told.contains(&format!("ln -s {shim} /usr/local/bin/")), "{told}");
    run(&machine.host, "ln", &["-s", &shim, "/usr/local/bin/"]).await?;
    let check = format!("{prefix}/bin/slipwayctl check --config {prefix}/etc/slipway/");
    ensure!(told.contains(&check), "{told}");

    installed.configure(&machine.host)?;
    let builds = machine.programs.clone();
    machine.hide_builds().await?;
    let (node, _) = machine.into_node(&installed).await?;
    installed.a_pod_runs(&node).await?;

    let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
    xtask.env("SLIPWAY_PROGRAMS", builds).env_remove("DESTDIR");
    said(xtask.args(["install", "--uninstall", "--prefix", &prefix])).await?;
    // What the administrator changed is his.
    let mut left = Vec::new();
    ours_below(&node.folder().join("prefix"), &mut left);
    ensure!(left == [installed.etc.join("slipway")], "{left:?}");
    node.end().await
}
