//! The action `delete`: containerd calls it after a container whose shim does not answer any more.
//!
//! Whatever the sandbox left is undone, by its record and by its places. For a container of a pod
//! only its mounts are: the pod is cleaned with its sandbox. The answer is that of a killed process.

use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::{Message as _, MessageField};

use crate::args::Args;
use crate::bundle;
use crate::debts::Debts;
use crate::events;
use crate::host::Host;
use crate::kind::Kind;
use crate::mounts;
use crate::persist::{PodDir, Record};
use crate::process::LOST_STATUS;
use crate::share::Share;
use crate::undo;

/// Cleans up and returns what to print.
///
/// # Errors
/// What could not be undone. containerd logs it and forgets the container all the same.
pub fn delete(args: &Args) -> Result<Vec<u8>> {
    let folder = match &args.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().context("The working directory is gone")?,
    };
    slipway_api::confine::refuse_netlink().context("Failed to give up netlink sockets")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("Failed to start")?;
    let host = Host::of(args);
    runtime.block_on(clean(&host, &args.id, &folder))?;
    let mut answer = DeleteResponse::new();
    answer.exit_status = LOST_STATUS;
    answer.exited_at = MessageField::some(events::now());
    answer.write_to_bytes().context("Failed to encode the answer")
}

/// Undoes what container `id` with the bundle in `folder` left.
///
/// # Errors
/// The first step that failed; the others were done.
pub async fn clean(host: &Host, id: &str, folder: &Path) -> Result<()> {
    // Without a readable specification the record decides: only sandboxes have one.
    let part = bundle::read_spec(folder).ok().and_then(|spec| bundle::kind_of(&spec).ok());
    if let Some(Kind::InPod(sandbox)) = &part {
        // The pod's shim is gone too, or containerd would have asked it; but its sandbox has a
        // `delete` of its own.
        return Share::of(&host.shares, sandbox).remove_container(id);
    }
    let dir = PodDir::of(&host.pods, id);
    let share = Share::of(&host.shares, id);
    // What lies at places that follow from the id is undone without a record, too.
    let (record, damage) = match dir.read() {
        Ok(record) => (record, Ok(())),
        Err(error) => (None, Err(error)),
    };
    let record = record.unwrap_or_else(|| Record { id: id.to_owned(), ..Record::default() });
    drop(mounts::unmount(&folder.join("rootfs")));
    remove_socket(folder);
    if record.engine.is_some() && record.engine != host.engine && is_served(&record) {
        // It lives in another namespace of containerd, and ours was refused because of it.
        return Ok(());
    }
    if is_served(&record) {
        // It was killed or hangs: containerd has given it up, and its VM must not go on.
        if let Some(shim) = &record.shim {
            undo::kill(shim).await?;
        }
    }
    let debts = Debts::of(&host.debts);
    let outcome = undo::all(&record, &dir, &share, &debts).await;
    if let Err(error) = debts.pay().await {
        tracing::warn!(error = format!("{error:#}"), "pods that ended are still attached");
    }
    outcome.and(damage)
}

/// Whether the shim of the record runs, and is not us.
fn is_served(record: &Record) -> bool {
    record.shim.as_ref().is_some_and(|shim| shim.is_alive() && shim.pid != std::process::id())
}

/// Removes the socket that a killed shim left; the bundle says where it was.
fn remove_socket(folder: &Path) {
    let Ok(address) = std::fs::read_to_string(folder.join("address")) else { return };
    let Some(path) = address.strip_prefix("unix://") else { return };
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if is_socket {
        // Nothing depends on it: the next shim of this name replaces it.
        std::fs::remove_file(path).ok();
    }
}
