//! The life of one container.

use containerd_shim_protos::api::Status;
use containerd_shim_protos::ttrpc::Code;

use crate::rig::{Rig, refused};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_created_started_ends_and_is_deleted() {
    let rig = Rig::start().await;
    rig.create("pod1").await;
    assert_eq!(rig.status("pod1").await, Status::CREATED);
    let pid = rig.launch("pod1", "").await;
    assert!(pid > 0);
    let state = rig.state("pod1", "").await.unwrap();
    assert_eq!((state.status.unwrap(), state.pid), (Status::RUNNING, pid));
    assert!(state.bundle.ends_with("bundles/pod1"));
    rig.guest.exit("pod1", "", 7);
    let exit = rig.wait("pod1", "").await;
    assert_eq!(exit.exit_status, 7);
    assert_eq!(rig.status("pod1").await, Status::STOPPED);
    // A waiter that comes late hears the same.
    assert_eq!(rig.wait("pod1", "").await, exit);
    assert!(!rig.shutdown().await, "a container is left");
    let deleted = rig.delete("pod1", "").await.unwrap();
    assert_eq!((deleted.exit_status, deleted.exited_at), (7, exit.exited_at));
    assert_eq!(refused(rig.state("pod1", "").await).0, Code::NOT_FOUND);
    let told = rig.all_told().await;
    assert_eq!(told, ["create pod1", "start pod1", "exit pod1", "delete pod1"]);
    rig.nothing_is_left();
    assert!(rig.shutdown().await);
}
