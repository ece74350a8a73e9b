//! VMs that grow with their containers.

use containerd_shim_protos::api::UpdateTaskRequest;
use kata_agent_protocol::agent as msg;
use serde_json::json;
use vmm_glue::Mib;
use vmm_glue::fake::Verb;

use crate::around::Setup;
use crate::rig::{Rig, ctx, inside};

/// As many as a test may count on: hosts with one processor have no more to give.
fn most_vcpus() -> u16 {
    u16::try_from(std::thread::available_parallelism().unwrap().get().min(2)).unwrap()
}

async fn growing(hypervisor: &str) -> Rig {
    let hypervisor = format!(
        "default_maxvcpus = {}\ndefault_memory = 256\ndefault_maxmemory = 1000\n{hypervisor}",
        most_vcpus()
    );
    let runtime = "static_sandbox_resource_mgmt = false".to_owned();
    let rig = Rig::with(Setup { hypervisor, runtime, ..Setup::default() }).await;
    rig.create_sandbox().await;
    rig.launch("pod1", "").await;
    rig
}

impl Rig {
    async fn create_limited(&self, id: &str) {
        let bundle = self.bundle(id, |spec| {
            spec["annotations"] = inside("pod1");
            spec["linux"]["resources"] = json!({
                "cpu": {"quota": 50_000, "period": 100_000}, "memory": {"limit": 100 << 20}
            });
        });
        self.shim.task.create(ctx(), &self.request(id, bundle)).await.unwrap();
    }

    async fn limit_memory(&self, id: &str, mib: u32) {
        let mut ask = UpdateTaskRequest::new();
        ask.id = id.to_owned();
        let text = json!({"memory": {"limit": u64::from(mib) << 20}}).to_string();
        ask.resources.mut_or_insert_default().value = text.into_bytes();
        self.shim.task.update(ctx(), &ask).await.unwrap();
    }

    fn size(&self) -> (u16, Mib) {
        self.vmm.size("pod1").expect("it runs")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_with_limits_is_made_room_for_and_an_update_too() {
    let rig = growing("").await;
    let spec = rig.specs.lock().unwrap()[0].clone();
    assert_eq!(spec.vcpus_max, (most_vcpus() > 1).then_some(2));
    // A whole number of DIMMs.
    assert_eq!(spec.memory_max, Some(Mib::new(896)));
    assert!(spec.cmdline.contains("memhp_default_state=online"), "{}", spec.cmdline);
    assert_eq!(rig.size(), (1, Mib::new(256)));
    rig.create_beside("free").await;
    assert_eq!(rig.size(), (1, Mib::new(256)), "no limit asks for nothing");

    // 0.5 and the guest's own 1; 100 MiB and the guest's own 256, in steps of 128.
    rig.create_limited("app").await;
    assert_eq!(rig.size(), (most_vcpus(), Mib::new(384)));
    let online: msg::OnlineCPUMemRequest = rig.guest.last("OnlineCPUMem");
    assert_eq!(online.nb_cpus, u32::from(most_vcpus() - 1));
    assert!(online.wait && !online.cpu_only, "{online:?}");

    rig.limit_memory("app", 400).await;
    assert_eq!(rig.size(), (most_vcpus(), Mib::new(768)));
    assert_eq!(rig.guest.last::<msg::OnlineCPUMemRequest>("OnlineCPUMem").nb_cpus, 0);
    let update: msg::UpdateContainerRequest = rig.guest.last("UpdateContainer");
    assert_eq!(update.resources.Memory.Limit, 400 << 20);
    // It does not shrink.
    rig.limit_memory("app", 50).await;
    assert_eq!(rig.size(), (most_vcpus(), Mib::new(768)));
    // It grows as far as the configuration allows.
    rig.limit_memory("app", 4000).await;
    assert_eq!(rig.size().1, Mib::new(896));
    rig.limit_memory("app", 5000).await;
    assert_eq!(rig.size().1, Mib::new(896));

    rig.delete("pod1", "").await.unwrap();
    for id in ["free", "app"] {
        rig.delete(id, "").await.unwrap();
    }
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_vm_cannot_grow_the_limits_hold_all_the_same() {
    let rig = growing("").await;
    rig.vmm.fail_at(Verb::AddMemory);
    rig.vmm.fail_at(Verb::SetVcpus);
    rig.create_limited("app").await;
    rig.limit_memory("app", 400).await;
    assert_eq!(rig.size(), (1, Mib::new(256)));
    let update: msg::UpdateContainerRequest = rig.guest.last("UpdateContainer");
    assert_eq!(update.resources.Memory.Limit, 400 << 20);
    let asked = rig.guest.with_agent(vmm_glue::agent::fake::FakeAgent::methods);
    assert!(!asked.iter().any(|method| method == "OnlineCPUMem"), "{asked:?}");
    drop(rig);
    // A machine that can neither is booted as it can.
    let rig = growing("machine_type = \"microvm\"").await;
    let spec = rig.specs.lock().unwrap()[0].clone();
    assert_eq!((spec.vcpus_max, spec.memory_max), (None, None));
    rig.create_limited("app").await;
    rig.delete("pod1", "").await.unwrap();
    rig.delete("app", "").await.unwrap();
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_of_its_final_size_is_not_touched() {
    let rig = Rig::start().await;
    rig.create_sandbox().await;
    rig.launch("pod1", "").await;
    let before = rig.size();
    rig.create_limited("app").await;
    rig.limit_memory("app", 4000).await;
    assert_eq!(rig.size(), before);
    let spec = rig.specs.lock().unwrap()[0].clone();
    assert_eq!((spec.vcpus_max, spec.memory_max), (None, None));
}
