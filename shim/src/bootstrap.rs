//! The action `start`: a server for the pod, and its address for containerd.
//!
//! ```text
//! containerd                 start                              server
//!  exec ------------------>  reads the bundle: whose pod?
//!                            binds the pod's socket
//!                            runs itself, socket as stdin -----> serves
//!  <- address on stdout ---  writes `address`, `shim.pid`, ends
//! ```
//! A container of a pod gets the address of its pod's server; nothing is started for it. The socket
//! is bound before the server runs, so containerd can connect as soon as it knows the address.
//!
//! # What containerd reads
//! Standard output and error together, so nothing but the answer may be written on success. Versions
//! before 2.3 are given the plain address, which means task API version 2 to all of them; 1.6 knows
//! nothing else, and 1.7 refuses version 3. From 2.3 on containerd sends `BootstrapParams` and is
//! answered with `BootstrapResult`, version 3.

use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message as _;
use sha2::{Digest as _, Sha256};

use crate::args::Args;
use crate::bundle;
use crate::kind::Kind;

/// Where sockets go unless containerd says otherwise.
const SOCKET_DIR: &str = "/run/containerd/s";
/// The longest standard input that is read, in bytes.
const MAX_STDIN_BYTES: u64 = 16 << 20;
/// Where containerd takes events, in the environment of shims and here.
pub const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";

/// Starts or finds the pod's server. Returns what to print.
///
/// # Errors
/// For people: containerd shows it as the reason why the container did not start.
pub fn start(args: &Args) -> Result<Vec<u8>> {
    let folder = match &args.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().context("The working directory is gone")?,
    };
    let params = bootstrap_params(&read_stdin()?, args);
    let kind = kind(&folder)?;
    let sandbox = kind.sandbox_id(&args.id);
    let dir = params.as_ref().and_then(|params| params.socket_dir.clone());
    let dir = PathBuf::from(dir.filter(|dir| !dir.is_empty()).unwrap_or_else(|| SOCKET_DIR.into()));
    let socket = socket_path(&dir, &args.address, &args.namespace, sandbox);
    let address = format!("unix://{}", socket.display());

    if UnixStream::connect(&socket).is_err() {
        if !kind.is_first() {
            bail!(
                "The shim of sandbox {sandbox} does not answer on {}: its pod is gone, create it \
                 anew",
                socket.display()
            );
        }
        let listener = bind(&dir, &socket)?;
        let ttrpc = params.as_ref().map(|params| params.containerd_ttrpc_address.clone());
        let pid = spawn_server(args, &folder, listener, ttrpc).inspect_err(|_| {
            // Nobody will ever answer there.
            drop(fs::remove_file(&socket));
        })?;
        let path = folder.join("shim.pid");
        bundle::write_whole(&path, pid.to_string().as_bytes())
            .with_context(|| format!("Failed to write {}", path.display()))?;
    }
    let path = folder.join("address");
    bundle::write_whole(&path, address.as_bytes())
        .with_context(|| format!("Failed to write {}", path.display()))?;
    answer(address, params.is_some())
}

fn answer(address: String, is_bootstrap: bool) -> Result<Vec<u8>> {
    if !is_bootstrap {
        return Ok(address.into_bytes());
    }
    let mut result = BootstrapResult::new();
    result.version = 3;
    result.address = address;
    result.protocol = "ttrpc".to_owned();
    result.write_to_bytes().context("Failed to encode the answer")
}

fn read_stdin() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::stdin()
        .take(MAX_STDIN_BYTES)
        .read_to_end(&mut bytes)
        .context("Failed to read the start parameters on standard input")?;
    Ok(bytes)
}

/// The parameters of containerd 2.3 and newer. The runtime options that older ones send, an `Any`,
/// parse as the same message; only one that names this container and namespace is what it seems.
fn bootstrap_params(stdin: &[u8], args: &Args) -> Option<BootstrapParams> {
    let params = BootstrapParams::parse_from_bytes(stdin).ok()?;
    (params.instance_id == args.id && params.namespace == args.namespace).then_some(params)
}

/// Without a specification there is a sandbox without a container: containerd's sandbox API.
fn kind(folder: &Path) -> Result<Kind> {
    match bundle::read_spec(folder) {
        Ok(spec) => Ok(bundle::kind_of(&spec)?),
        Err(bundle::BundleError::Read { source, .. })
            if source.kind() == io::ErrorKind::NotFound =>
        {
            Ok(Kind::Sandbox)
        }
        Err(error) => Err(error.into()),
    }
}

/// The socket of a sandbox, as all shims of containerd name it.
pub fn socket_path(dir: &Path, address: &str, namespace: &str, sandbox: &str) -> PathBuf {
    let key = Path::new(address).join(namespace).join(sandbox);
    let digest = Sha256::digest(key.to_string_lossy().as_bytes());
    let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    dir.join(name)
}

fn bind(dir: &Path, socket: &Path) -> Result<UnixListener> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(dir)
        .with_context(|| format!("Failed to make the folder {}", dir.display()))?;
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let what = format!("Failed to remove the dead socket {}", socket.display());
            return Err(anyhow::Error::new(error).context(what));
        }
        _ => {}
    }
    UnixListener::bind(socket).with_context(|| format!("Failed to listen on {}", socket.display()))
}

/// Runs this program as the pod's server. It leaves containerd's session itself.
fn spawn_server(
    args: &Args,
    folder: &Path,
    listener: UnixListener,
    ttrpc: Option<String>,
) -> Result<u32> {
    // By its path it goes by its name in lists of processes. A path that was replaced meanwhile, by
    // an upgrade, would be another program.
    let program = std::env::current_exe().ok().filter(|path| path.exists());
    let mut command = Command::new(program.unwrap_or_else(|| "/proc/self/exe".into()));
    command
        .args(["-namespace", &args.namespace, "-address", &args.address, "-id", &args.id])
        .args(["-publish-binary", &args.publish_binary])
        .current_dir(folder)
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if args.debug {
        command.arg("-debug");
    }
    if let Some(ttrpc) = ttrpc.filter(|address| !address.is_empty()) {
        command.env(TTRPC_ADDRESS, ttrpc);
    }
    Ok(command.spawn().context("Failed to start the shim's server")?.id())
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::protobuf::well_known_types::any::Any;

    fn args() -> Args {
        Args { id: "abc".into(), namespace: "k8s.io".into(), ..Args::default() }
    }

    #[test]
    fn the_socket_is_named_by_the_hash_of_engine_namespace_and_sandbox() {
        let path = socket_path(Path::new("/s"), "/run/containerd/containerd.sock", "default", "a");
        // printf %s /run/containerd/containerd.sock/default/a | sha256sum
        let expected = "82795ca4b9b166c1139546afbf9dfd59d74776e0b49c8edfbb195f9d8b9e94a6";
        assert_eq!(path, Path::new("/s").join(expected));
        assert_ne!(
            path,
            socket_path(Path::new("/s"), "/run/containerd/containerd.sock", "default", "b")
        );
    }

    #[test]
    fn options_of_an_older_containerd_are_no_bootstrap_parameters() {
        let mut options = Any::new();
        options.type_url = "runtimeoptions.v1.Options".to_owned();
        options.value = b"k8s.io".to_vec();
        assert!(bootstrap_params(&options.write_to_bytes().unwrap(), &args()).is_none());
        assert!(bootstrap_params(b"", &args()).is_none());
        assert!(bootstrap_params(&[0xff; 9], &args()).is_none());
    }

    #[test]
    fn parameters_that_name_this_container_are_taken() {
        let mut params = BootstrapParams::new();
        params.instance_id = "abc".into();
        params.namespace = "k8s.io".into();
        params.containerd_ttrpc_address = "/run/t".into();
        let read = bootstrap_params(&params.write_to_bytes().unwrap(), &args()).unwrap();
        assert_eq!(read.containerd_ttrpc_address, "/run/t");
    }

    #[test]
    fn the_answer_is_a_plain_address_unless_parameters_were_sent() {
        assert_eq!(answer("unix:///s/1".into(), false).unwrap(), b"unix:///s/1");
        let result =
            BootstrapResult::parse_from_bytes(&answer("unix:///s/1".into(), true).unwrap());
        let result = result.unwrap();
        assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
        assert_eq!(result.address, "unix:///s/1");
    }
}
