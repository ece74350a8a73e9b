//! Containers whose roots the snapshotter has on block devices.

use std::fs;

use containerd_shim_protos::api;
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::types::mount::Mount;
use kata_agent_protocol::agent as msg;
use serde_json::json;
use vmm_glue::fake::Verb;

use crate::around::Setup;
use crate::rig::{Rig, ctx, inside, refused};

impl Rig {
    /// The snapshot of container `id`: an image that its root would be mounted from.
    fn snapshot(&self, id: &str) -> Mount {
        let image = self.path().join(format!("{id}.image"));
        fs::write(&image, "not really").unwrap();
        let mut mount = Mount::new();
        mount.type_ = "ext4".to_owned();
        mount.source = image.display().to_string();
        mount.options = vec!["loop".to_owned(), "noatime".to_owned()];
        mount
    }

    async fn create_on_disk(
        &self,
        id: &str,
        annotations: serde_json::Value,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        let bundle = self.bundle(id, |spec| spec["annotations"] = annotations);
        let mut request = self.request(id, bundle);
        request.rootfs.push(self.snapshot(id));
        self.shim.task.create(ctx(), &request).await
    }

    async fn sandbox_on_disk(&self) {
        let sandbox = json!({"io.kubernetes.cri.container-type": "sandbox"});
        self.create_on_disk("pod1", sandbox).await.unwrap();
        self.launch("pod1", "").await;
    }

    /// The files of the disks that the VM has.
    fn disks(&self) -> Vec<String> {
        let disks = self.vmm.disks("pod1").into_iter();
        disks.map(|disk| disk.path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    fn slots(&self) -> u16 {
        self.specs.lock().unwrap().last().expect("it was booted").disk_slots
    }

    /// Where something is mounted for container `id`.
    fn is_mounted(&self, id: &str) -> bool {
        let points = shim::mounts::below(self.path()).unwrap();
        points.iter().any(|point| point.ends_with(format!("{id}/rootfs")))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vm_has_it_as_a_disk_and_the_host_does_not_mount_it() {
    let rig = Rig::start().await;
    rig.create_on_disk("pod1", json!({})).await.unwrap();
    assert_eq!((rig.disks(), rig.slots()), (vec!["pod1.image".to_owned()], 1));
    let disk = rig.vmm.disks("pod1").remove(0);
    assert!(!disk.readonly && !disk.direct, "{disk:?}");
    assert!(!rig.is_mounted("pod1"));
    let asked: msg::CreateContainerRequest = rig.guest.last("CreateContainer");
    let root = "/run/kata-containers/shared/containers/pod1/rootfs";
    assert_eq!(asked.OCI.Root.Path, root);
    let [storage] = asked.storages.as_slice() else { panic!("{:?}", asked.storages) };
    assert_eq!((storage.driver.as_str(), storage.source.as_str()), ("blk", "1e/00"));
    assert_eq!((storage.fstype.as_str(), storage.mount_point.as_str()), ("ext4", root));
    assert_eq!(storage.options, ["noatime"]);
    // The guest's view of the share is read-only: the folder to mount on must be there.
    assert!(rig.host.shares.join("pod1/shared/pod1/rootfs").is_dir());
    rig.launch("pod1", "").await;
    rig.delete("pod1", "").await.unwrap();
    rig.nothing_is_left();
    // What was written is in the guest's memory until it unmounts.
    let verbs: Vec<_> = rig.vmm.calls().into_iter().map(|(_, verb)| verb).collect();
    assert!(verbs.ends_with(&[Verb::Stop]), "{verbs:?}");
    assert_eq!(
        rig.guest.last::<msg::RemoveContainerRequest>("RemoveContainer").container_id,
        "pod1"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_snapshot_is_a_read_only_disk() {
    let rig = Rig::start().await;
    let mut request = rig.request("pod1", rig.bundle("pod1", |_| ()));
    let mut mount = rig.snapshot("pod1");
    (mount.type_, mount.options) = ("xfs".to_owned(), vec!["ro".to_owned(), "loop".to_owned()]);
    request.rootfs.push(mount);
    rig.shim.task.create(ctx(), &request).await.unwrap();
    assert!(rig.vmm.disks("pod1")[0].readonly);
    let asked: msg::CreateContainerRequest = rig.guest.last("CreateContainer");
    assert_eq!(asked.storages[0].options, ["ro", "nouuid"]);
    rig.delete("pod1", "").await.unwrap();
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_container_of_a_pod_has_its_own_until_it_is_deleted() {
    let rig = Rig::start().await;
    rig.sandbox_on_disk().await;
    assert_eq!(rig.slots(), 8);
    for round in 0..2 {
        rig.create_on_disk("app", inside("pod1")).await.unwrap();
        assert_eq!(rig.disks(), ["pod1.image", "app.image"], "round {round}");
        rig.launch("app", "").await;
        rig.kill("app", "", 9).await.unwrap();
        rig.wait("app", "").await;
        rig.delete("app", "").await.unwrap();
        assert_eq!(rig.disks(), ["pod1.image"], "round {round}");
    }
    // Beside it one that is shared.
    rig.create_beside("plain").await;
    assert!(rig.is_mounted("plain"));
    rig.delete("pod1", "").await.unwrap();
    rig.delete("plain", "").await.unwrap();
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_free_slots_says_so_and_loses_nothing() {
    let rig = Rig::start().await;
    rig.sandbox_on_disk().await;
    for number in 1..8 {
        rig.create_on_disk(&format!("app{number}"), inside("pod1")).await.unwrap();
    }
    let before = (rig.left(), rig.disks());
    let (_, message) = refused(rig.create_on_disk("late", inside("pod1")).await);
    for part in ["late.image", "container late", "all slots are in use", "disk_slots"] {
        assert!(message.contains(part), "'{part}' is not in: {message}");
    }
    assert_eq!((rig.left(), rig.disks()), before);
    rig.delete("app3", "").await.unwrap();
    rig.create_on_disk("late", inside("pod1")).await.unwrap();
    rig.delete("pod1", "").await.unwrap();
    for id in ["app1", "app2", "app4", "app5", "app6", "app7", "late"] {
        rig.delete(id, "").await.unwrap();
    }
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_sandbox_is_shared_has_the_slots_that_it_is_configured_for() {
    let rig = Rig::start().await;
    rig.create_sandbox().await;
    rig.launch("pod1", "").await;
    assert_eq!(rig.slots(), 0);
    let (_, message) = refused(rig.create_on_disk("app", inside("pod1")).await);
    assert!(message.contains("disk_slots"), "{message}");
    rig.create_beside("app").await;
    rig.delete("pod1", "").await.unwrap();
    rig.delete("app", "").await.unwrap();
    drop(rig);
    let rig = Rig::with(Setup { slipway: "disk_slots = 1".to_owned(), ..Setup::default() }).await;
    rig.create_sandbox().await;
    rig.launch("pod1", "").await;
    rig.create_on_disk("app", inside("pod1")).await.unwrap();
    assert_eq!(rig.disks(), ["app.image"]);
    rig.delete("pod1", "").await.unwrap();
    rig.delete("app", "").await.unwrap();
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_after_the_disk_was_plugged_takes_it_out() {
    let rig = Rig::start().await;
    rig.sandbox_on_disk().await;
    let before = (rig.left(), rig.disks());
    rig.guest.fail("CreateContainer", "no such file system");
    let (_, message) = refused(rig.create_on_disk("app", inside("pod1")).await);
    assert!(message.contains("no such file system"), "{message}");
    assert_eq!((rig.left(), rig.disks()), before);
    rig.vmm.fail_at(Verb::AddDisk);
    let (_, message) = refused(rig.create_on_disk("app", inside("pod1")).await);
    assert!(message.contains("app.image") && message.contains("add a disk"), "{message}");
    assert_eq!((rig.left(), rig.disks()), before);
    rig.delete("pod1", "").await.unwrap();
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_the_guest_keeps_is_tried_again_with_the_next_delete() {
    let rig = Rig::start().await;
    rig.sandbox_on_disk().await;
    rig.create_on_disk("app", inside("pod1")).await.unwrap();
    rig.vmm.fail_at(Verb::RemoveDisk);
    let (_, message) = refused(rig.delete("app", "").await);
    assert!(message.contains("container app") && message.contains("remove a disk"), "{message}");
    rig.vmm.work_at(Verb::RemoveDisk);
    rig.delete("app", "").await.unwrap();
    assert_eq!(rig.disks(), ["pod1.image"]);
    rig.delete("pod1", "").await.unwrap();
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_vm_dies_leaves_nothing_of_its_disks() {
    let rig = Rig::start().await;
    rig.sandbox_on_disk().await;
    rig.create_on_disk("app", inside("pod1")).await.unwrap();
    rig.launch("app", "").await;
    rig.kill_vm();
    rig.wait("app", "").await;
    rig.delete("app", "").await.unwrap();
    rig.delete("pod1", "").await.unwrap();
    rig.nothing_is_left_soon().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn block_devices_can_be_switched_off() {
    let hypervisor = "disable_block_device_use = true".to_owned();
    let rig = Rig::with(Setup { hypervisor, ..Setup::default() }).await;
    // The host would mount it, if it were a file system; `loop` is for mount(8).
    let (_, message) = refused(rig.create_on_disk("pod1", json!({})).await);
    assert!(message.contains("loop") && message.contains("pod1.image"), "{message}");
    assert_eq!(rig.slots(), 0);
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_annotation_switches_it_off_too_and_a_microvm_has_to() {
    let annotation = "io.katacontainers.config.hypervisor.disable_block_device_use";
    let hypervisor = "machine_type = \"microvm\"".to_owned();
    let mut rig = Rig::with(Setup { hypervisor, ..Setup::default() }).await;
    let (_, message) = refused(rig.create_on_disk("pod1", json!({})).await);
    for part in ["microvm", "q35", "disable_block_device_use"] {
        assert!(message.contains(part), "'{part}' is not in: {message}");
    }
    rig.nothing_is_left();
    rig.next_shim("pod1").await;
    let annotations = json!({annotation: "true"});
    let bundle = rig.bundle("pod1", |spec| spec["annotations"] = annotations);
    let mut request = rig.request("pod1", bundle);
    let mut mount = Mount::new();
    (mount.type_, mount.source) = ("tmpfs".to_owned(), "tmpfs".to_owned());
    request.rootfs.push(mount);
    rig.shim.task.create(ctx(), &request).await.unwrap();
    assert!(rig.is_mounted("pod1") && rig.slots() == 0);
    rig.delete("pod1", "").await.unwrap();
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_that_a_container_mounts_from_a_device_is_a_disk_too() {
    let rig = Rig::start().await;
    let volume = rig.snapshot("volume");
    let bundle = rig.bundle("pod1", |spec| {
        spec["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/data", "type": "ext4", "source": volume.source, "options": ["loop", "ro"]
        }));
    });
    rig.shim.task.create(ctx(), &rig.request("pod1", bundle)).await.unwrap();
    assert_eq!((rig.disks(), rig.slots()), (vec!["volume.image".to_owned()], 1));
    assert!(rig.vmm.disks("pod1")[0].readonly);
    let asked: msg::CreateContainerRequest = rig.guest.last("CreateContainer");
    let [storage] = asked.storages.as_slice() else { panic!("{:?}", asked.storages) };
    assert_eq!((storage.driver.as_str(), storage.source.as_str()), ("blk", "1e/00"));
    let mount = asked.OCI.Mounts.iter().find(|mount| mount.destination == "/data").unwrap();
    assert_eq!((mount.type_.as_str(), &mount.source), ("bind", &storage.mount_point));
    assert_eq!(mount.options, ["rbind", "ro"]);
    // Its root is shared, as ever.
    assert!(rig.is_mounted("pod1"));
    rig.delete("pod1", "").await.unwrap();
    rig.nothing_is_left();
}
