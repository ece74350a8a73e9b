//! The action `delete`: containerd calls it after a container whose shim does not answer any more.
//!
//! Whatever the sandbox left is undone, by its record and by its places. For a container of a pod
//! only its mounts are: the pod is cleaned with its sandbox. The answer is that of a killed process.

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
    let host = Host::default();
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
    if record.shim.as_ref().is_some_and(|shim| shim.is_alive() && shim.pid != std::process::id()) {
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
    drop(mounts::unmount(&folder.join("rootfs")));
    outcome.and(damage)
}
