//! What is plugged into a running QEMU: disks and CPUs. Memory is in [`super::vm`].
//!
//! ```text
//!  add_disk     blockdev-add, device_add into a free root port; a failed device gives its node back
//!  remove_disk  device_del, the guest lets go: DEVICE_DELETED, blockdev-del
//!  set_vcpus    query-hotpluggable-cpus, device_add of each that is free, in their order
//! ```

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;

use super::devices::{block_node, device_id, node_name, port, port_path};
use super::vm::{COMMAND_LIMIT, QemuVm};
use crate::devices::{DiskSpec, PciPath};
use crate::error::VmmError;

/// Disks beside those of the specification.
#[derive(Debug)]
pub(super) struct PluggedDisks {
    /// By root port.
    ports: Vec<Option<Plugged>>,
    /// A number of its own for each try, so that a cancelled one is in nobody's way.
    next_node: usize,
    /// The ids of the cold-plugged ones.
    cold: Vec<String>,
}

#[derive(Clone, Debug)]
struct Plugged {
    disk: DiskSpec,
    node: usize,
}

impl PluggedDisks {
    pub fn new(slots: u16, cold: &[DiskSpec]) -> Self {
        Self {
            ports: vec![None; usize::from(slots)],
            next_node: cold.len(),
            cold: cold.iter().map(|disk| disk.id.clone()).collect(),
        }
    }

    fn place_of(&self, id: &str) -> Option<usize> {
        self.ports.iter().position(|port| port.as_ref().is_some_and(|p| p.disk.id == id))
    }
}

impl QemuVm {
    pub(super) async fn plug_disk(&self, disk: &DiskSpec) -> Result<PciPath, VmmError> {
        const VERB: &str = "add a disk";
        disk.check(&self.name)?;
        // A VM that has ended says so, whatever else is wrong.
        self.run::<Value>(VERB, "query-status", Value::Null).await?;
        let refuse = |why: &str| VmmError::Disk {
            name: self.name.clone(),
            disk: disk.id.clone(),
            path: disk.path.clone(),
            why: why.to_owned(),
        };
        let mut disks = self.disks.lock().await;
        if disks.cold.contains(&disk.id) || disks.place_of(&disk.id).is_some() {
            return Err(refuse("the VM has a disk of this id"));
        }
        let Some(free) = disks.ports.iter().position(Option::is_none) else {
            let slots = disks.ports.len();
            return Err(refuse(&format!("all {slots} slots are in use; raise `disk_slots`")));
        };
        let number = disks.next_node;
        disks.next_node += 1;
        let node = block_node(&self.name, number, disk)?;
        self.run::<Value>(VERB, "blockdev-add", node).await?;
        // Taken before the device is asked for: if we are cancelled meanwhile, the port counts as used,
        // and `remove_disk` clears it.
        disks.ports[free] = Some(Plugged { disk: disk.clone(), node: number });
        let device = json!({
            "driver": "virtio-blk-pci", "disable-legacy": "on", "vectors": self.disk_vectors,
            "bus": port(free).0, "drive": node_name(number), "id": device_id(&disk.id),
        });
        if let Err(error) = self.run::<Value>(VERB, "device_add", device).await {
            let node = json!({"node-name": node_name(number)});
            match self.run::<Value>(VERB, "blockdev-del", node).await {
                Ok(_) => disks.ports[free] = None,
                Err(error) => {
                    tracing::warn!(vm = self.name, %error, "An unused disk stays open in QEMU");
                }
            }
            return Err(error);
        }
        Ok(port_path(free))
    }

    pub(super) async fn unplug_disk(&self, id: &str) -> Result<(), VmmError> {
        const VERB: &str = "remove a disk";
        self.run::<Value>(VERB, "query-status", Value::Null).await?;
        let mut disks = self.disks.lock().await;
        let refuse = |disk: Option<&DiskSpec>, why: &str| VmmError::Disk {
            name: self.name.clone(),
            disk: id.to_owned(),
            path: disk.map(|disk| disk.path.clone()).unwrap_or_default(),
            why: why.to_owned(),
        };
        let place = disks.place_of(id);
        let Some((place, plugged)) = place.and_then(|at| Some((at, disks.ports[at].clone()?)))
        else {
            return Err(refuse(None, "it was not plugged by `add_disk`"));
        };
        let mut events = self.qmp().events();
        let device = device_id(id);
        let is_there = self.has_device(VERB, &device).await?;
        if is_there {
            self.run::<Value>(VERB, "device_del", json!({"id": device})).await?;
            let gone = async {
                loop {
                    match events.recv().await {
                        Ok(event) if event.name == "DEVICE_DELETED" => {
                            if event.data["device"] == device.as_str() {
                                return;
                            }
                        }
                        // What was lost may have been ours.
                        Err(RecvError::Lagged(_)) => {
                            if matches!(self.has_device(VERB, &device).await, Ok(false)) {
                                return;
                            }
                        }
                        Ok(_) => {}
                        // The next command says how the VM ended.
                        Err(RecvError::Closed) => return,
                    }
                }
            };
            if tokio::time::timeout(COMMAND_LIMIT, gone).await.is_err() {
                let why = format!(
                    "its guest did not let go of it within {COMMAND_LIMIT:?}; unmount it there, and \
                     try again"
                );
                return Err(refuse(Some(&plugged.disk), &why));
            }
        }
        let node = json!({"node-name": node_name(plugged.node)});
        self.run::<Value>(VERB, "blockdev-del", node).await?;
        disks.ports[place] = None;
        Ok(())
    }

    /// Whether there is a device of that id.
    async fn has_device(&self, verb: &'static str, id: &str) -> Result<bool, VmmError> {
        #[derive(Deserialize)]
        struct Child {
            name: String,
        }
        let path = json!({"path": "/machine/peripheral"});
        let children: Vec<Child> = self.run(verb, "qom-list", path).await?;
        Ok(children.iter().any(|child| child.name == id))
    }

    pub(super) async fn plug_vcpus(&self, count: u16) -> Result<(), VmmError> {
        const VERB: &str = "add vCPUs";
        #[derive(Deserialize)]
        struct Slot {
            #[serde(rename = "type")]
            driver: String,
            props: serde_json::Map<String, Value>,
            #[serde(rename = "qom-path")]
            taken_by: Option<String>,
        }
        let _one_at_a_time = self.plugging.lock().await;
        let mut slots: Vec<Slot> = self.run(VERB, "query-hotpluggable-cpus", Value::Null).await?;
        let now = slots.iter().filter(|slot| slot.taken_by.is_some()).count();
        let refuse = |allowed: String| {
            Err(VmmError::Vcpus { name: self.name.clone(), asked: count, allowed })
        };
        if usize::from(count) < now {
            return refuse(format!("it has {now}, and none can be taken away"));
        }
        if usize::from(count) > slots.len() {
            return refuse(format!("it was booted for at most {} (`vcpus_max`)", slots.len()));
        }
        // QEMU tells the last one first; guests number them by socket, core and thread.
        slots.retain(|slot| slot.taken_by.is_none());
        slots.reverse();
        for (index, slot) in (now..usize::from(count)).zip(slots) {
            let mut device = slot.props;
            device.insert("driver".to_owned(), slot.driver.into());
            device.insert("id".to_owned(), format!("cpu{index}").into());
            self.run::<Value>(VERB, "device_add", device.into()).await?;
        }
        Ok(())
    }
}
