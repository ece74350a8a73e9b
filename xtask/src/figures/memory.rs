//! Memory that pods take of their host, by the kernel's account of each mapping (`smaps`).
//!
//! Every page counts once: one that several processes map is divided among them (PSS). Guest memory is
//! a memfd of the VMM's, which the switch and the file daemon map as well; all of it counts as
//! the guest's, whoever's mapping it is seen in. What is left is the processes' own.
//!
//! ```text
//!  shim         its own            QEMU     own | translated code (TCG) | guest ----.
//!  virtiofsd    own | guest ---.                                                     | one memfd
//!  slipwayd     own | guest ----+----------------------------------------------------'
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use super::spread::Spread;
use crate::rig::{Node, PrivateHost};

/// What the VMM's memory for its guest is called.
const GUEST: &str = "/memfd:memory-backend-memfd";
/// Where QEMU's translator keeps its code: it alone writes what it runs.
const TRANSLATED: &str = "rwx";
/// A suggestion is a multiple of this, in KiB.
const STEP_KIB: u64 = 32 << 10;

/// Memory of one pod, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PodMemory {
    /// The shim.
    pub shim: u64,
    /// QEMU, without what follows.
    pub vmm: u64,
    /// Files that QEMU maps, as they are on disk: its program and the guest's kernel. All pods share them, and
    /// the kernel takes them back when memory is short.
    pub vmm_files: u64,
    /// The translator's code: none with KVM.
    pub translated: u64,
    /// What the guest touched of its memory.
    pub guest: u64,
    /// All memory of the guest. It is no part of the sum.
    pub guest_size: u64,
    /// virtiofsd, both of its processes.
    pub files: u64,
    /// The process behind the agent's vsock, where the host's kernel has none.
    pub vsock: u64,
}

impl PodMemory {
    /// All of it.
    pub fn total(&self) -> u64 {
        let Self { shim, vmm, vmm_files, translated, guest, guest_size: _, files, vsock } = self;
        shim + vmm + vmm_files + translated + guest + files + vsock
    }

    /// All of it with KVM, which translates nothing.
    pub fn total_without_translation(&self) -> u64 {
        self.total() - self.translated
    }
}

/// Memory of a node's pods and of its switch, in KiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeMemory {
    /// Each pod's.
    pub pods: Vec<PodMemory>,
    /// slipwayd's own.
    pub switch: u64,
}

/// What was measured of memory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Memory {
    /// Of a node without pods, in KiB.
    pub switch_without_pods: u64,
    /// With one pod that is alone, in every run.
    pub alone: Vec<NodeMemory>,
    /// With all pods at once, in every run.
    pub among: Vec<NodeMemory>,
}

impl Memory {
    /// What slipwayd grew by for each pod, in KiB, in the middle of the runs.
    pub fn switch_per_pod(&self) -> Option<f64> {
        let growth = self.among.iter().map(|node| {
            let grown = node.switch.saturating_sub(self.switch_without_pods);
            grown as f64 / node.pods.len() as f64
        });
        Spread::of(growth).map(|spread| spread.p50)
    }

    /// What to write into a RuntimeClass as `overhead.podFixed`, in KiB, rounded up: for the pod that took
    /// most, without what the translator takes; and for the same, had its guest touched all its
    /// memory.
    pub fn suggestions(&self) -> Option<(u64, u64)> {
        let pods = || self.alone.iter().chain(&self.among).flat_map(|node| &node.pods);
        let idle = pods().map(PodMemory::total_without_translation).max()?;
        let full = |pod: &PodMemory| pod.total_without_translation() - pod.guest + pod.guest_size;
        let full = pods().map(full).max()?;
        Some((idle.next_multiple_of(STEP_KIB), full.next_multiple_of(STEP_KIB)))
    }
}

/// Looks at the memory of `pods`, and of the switch.
///
/// # Errors
/// There is no switch; a process of a pod is not known, or is missing.
pub fn look(node: &Node, pods: &[&str]) -> Result<NodeMemory> {
    let mut processes = Vec::new();
    for pid in node.host().pids()? {
        let line = node.host().command_line(pid);
        if let Some(role) = role(&line, pods)? {
            processes.push((role, mappings(node.host(), pid)?));
        }
    }
    let memory = add_up(pods.len(), &processes)?;
    for (id, pod) in pods.iter().zip(&memory.pods) {
        let all_there = [pod.shim, pod.vmm, pod.guest].iter().all(|kib| *kib > 0);
        ensure!(all_there, "Pod {id} is without shim, VMM or guest: {pod:?}");
    }
    ensure!(memory.switch > 0, "There is no slipwayd");
    Ok(memory)
}

/// Who a process is. Pods are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Shim(usize),
    Vmm(usize),
    Files(usize),
    Vsock(usize),
    Switch,
}

/// Who the process with this command line is, if it is one of ours.
fn role(line: &str, pods: &[&str]) -> Result<Option<Role>> {
    let program = line.split(' ').next().unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default();
    if program == "slipwayd" {
        return Ok(Some(Role::Switch));
    }
    let Some(pod) = pods.iter().position(|id| line.contains(id)) else { return Ok(None) };
    Ok(Some(match program {
        "containerd-shim-slipway-v2" => Role::Shim(pod),
        "virtiofsd" => Role::Files(pod),
        "vhost-device-vsock" => Role::Vsock(pod),
        program if program.starts_with("qemu-system-") => Role::Vmm(pod),
        _ => bail!("It is not known what this process of a pod is: {line}"),
    }))
}

/// One mapping of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mapping {
    permissions: String,
    inode: u64,
    path: String,
    size_kib: u64,
    pss_kib: u64,
}

impl Mapping {
    fn is_guests(&self) -> bool {
        self.path.starts_with(GUEST)
    }

    fn is_file(&self) -> bool {
        // Memory that is shared without a file is named after a device or a memfd.
        let is_memory = ["/memfd:", "/dev/"].iter().any(|start| self.path.starts_with(start));
        self.path.starts_with('/') && !is_memory
    }

    fn is_translated(&self) -> bool {
        self.permissions.starts_with(TRANSLATED)
    }
}

fn mappings(host: &PrivateHost, pid: u32) -> Result<Vec<Mapping>> {
    let path = host.path(Path::new(&format!("/proc/{pid}/smaps")));
    let text = fs::read_to_string(&path);
    parse(&text.with_context(|| format!("Failed to read {}", path.display()))?)
}

/// Reads `smaps` (proc(5)): for each mapping a line with range, permissions, offset, device, inode and
/// path, and then lines with values.
fn parse(text: &str) -> Result<Vec<Mapping>> {
    let mut mappings = Vec::<Mapping>::new();
    for line in text.lines() {
        let last = || "smaps has a value before a mapping";
        if let Some(size) = line.strip_prefix("Size:") {
            mappings.last_mut().with_context(last)?.size_kib = kib(size)?;
        } else if let Some(pss) = line.strip_prefix("Pss:") {
            mappings.last_mut().with_context(last)?.pss_kib = kib(pss)?;
        } else if line.split(' ').next().is_some_and(|range| range.contains('-')) {
            let mut fields = line.split_ascii_whitespace();
            let permissions = fields.nth(1).with_context(|| format!("smaps: {line:?}"))?;
            let inode = fields.nth(2).and_then(|inode| inode.parse().ok());
            mappings.push(Mapping {
                permissions: permissions.to_owned(),
                inode: inode.with_context(|| format!("smaps: {line:?}"))?,
                path: fields.collect::<Vec<_>>().join(" "),
                size_kib: 0,
                pss_kib: 0,
            });
        }
    }
    Ok(mappings)
}

fn kib(value: &str) -> Result<u64> {
    let kib = value.trim().strip_suffix(" kB").and_then(|kib| kib.parse().ok());
    kib.with_context(|| format!("smaps has the value {value:?}"))
}

fn add_up(pods: usize, processes: &[(Role, Vec<Mapping>)]) -> Result<NodeMemory> {
    let mut memory = NodeMemory { pods: vec![PodMemory::default(); pods], switch: 0 };
    // Only the VMM says whose memory it is.
    let mut owners = BTreeMap::new();
    for (role, mappings) in processes {
        if let Role::Vmm(pod) = role {
            let guests = mappings.iter().filter(|mapping| mapping.is_guests());
            for mapping in guests {
                owners.insert(mapping.inode, *pod);
                memory.pods[*pod].guest_size += mapping.size_kib;
            }
        }
    }
    for (role, mappings) in processes {
        for mapping in mappings {
            let place = if mapping.is_guests() {
                let owner = owners.get(&mapping.inode);
                let owner = owner.with_context(|| format!("{role:?} maps a strange guest"))?;
                &mut memory.pods[*owner].guest
            } else {
                match *role {
                    Role::Switch => &mut memory.switch,
                    Role::Shim(pod) => &mut memory.pods[pod].shim,
                    Role::Vmm(pod) if mapping.is_translated() => &mut memory.pods[pod].translated,
                    Role::Vmm(pod) if mapping.is_file() => &mut memory.pods[pod].vmm_files,
                    Role::Vmm(pod) => &mut memory.pods[pod].vmm,
                    Role::Files(pod) => &mut memory.pods[pod].files,
                    Role::Vsock(pod) => &mut memory.pods[pod].vsock,
                }
            };
            *place += mapping.pss_kib;
        }
    }
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0010000000 rw-s 00000000 00:01 4711    /memfd:memory-backend-memfd (deleted)
Size:             262144 kB
Rss:               60000 kB
Pss:               30000 kB
Pss_Dirty:         30000 kB
VmFlags: rd wr sh mr mw me ms sd
7f0020000000-7f0030000000 rwxp 00000000 00:00 0
Pss:                 500 kB
55d000000000-55d000100000 r-xp 00001000 fe:00 99      /usr/bin/qemu-system-x86_64
Pss:                 700 kB
55d000200000-55d000300000 rw-p 00000000 00:00 0       [heap]
Pss:                  80 kB
55d000400000-55d000500000 rw-s 00000000 00:01 12      /dev/zero (deleted)
Pss:                   9 kB
";

    fn processes(second: Role) -> Vec<(Role, Vec<Mapping>)> {
        let guests = parse(SMAPS).unwrap()[..1].to_vec();
        vec![(second, guests), (Role::Vmm(1), parse(SMAPS).unwrap())]
    }

    #[test]
    fn mappings_are_read_with_their_share_of_memory() {
        let mappings = parse(SMAPS).unwrap();
        let seen: Vec<_> =
            mappings.iter().map(|mapping| (mapping.inode, mapping.pss_kib)).collect();
        assert_eq!(seen, [(4711, 30000), (0, 500), (99, 700), (0, 80), (12, 9)]);
        assert_eq!(mappings[0].path, "/memfd:memory-backend-memfd (deleted)");
        assert!(parse("Pss: 7 kB\n").is_err());
        assert!(parse("7f00-7f01 rw-s 0 00:01\n").is_err());
    }

    #[test]
    fn guest_memory_is_its_guests_whoever_maps_it() {
        for other in [Role::Switch, Role::Files(1)] {
            let memory = add_up(2, &processes(other)).unwrap();
            let expected = PodMemory {
                guest: 60_000,
                guest_size: 262_144,
                translated: 500,
                vmm: 89,
                vmm_files: 700,
                ..PodMemory::default()
            };
            assert_eq!(memory.pods, [PodMemory::default(), expected]);
            assert_eq!(memory.switch, 0);
        }
    }

    #[test]
    fn guest_memory_without_a_guest_is_not_passed_over() {
        let mut processes = processes(Role::Switch);
        processes.pop();
        assert!(add_up(2, &processes).is_err());
    }

    #[test]
    fn processes_are_known_by_program_and_pod() {
        let pods = ["aaa", "bbb"];
        let role = |line: &str| role(line, &pods);
        assert_eq!(role("/x/slipwayd --run-dir /aaa").unwrap(), Some(Role::Switch));
        assert_eq!(role("/x/qemu-system-x86_64 -name bbb").unwrap(), Some(Role::Vmm(1)));
        assert_eq!(role("/x/containerd-shim-slipway-v2 -id aaa").unwrap(), Some(Role::Shim(0)));
        assert_eq!(role("containerd --config x").unwrap(), None);
        assert!(role("sleep bbb").is_err());
    }

    #[test]
    fn the_suggestions_hold_for_the_largest_pod_without_its_translated_code() {
        let pod = |vmm, translated| PodMemory {
            vmm,
            translated,
            guest: 1,
            guest_size: STEP_KIB,
            ..PodMemory::default()
        };
        let node = |pods| NodeMemory { pods, switch: 100 };
        let memory = Memory {
            switch_without_pods: 80,
            alone: vec![node(vec![pod(STEP_KIB, 1 << 20)])],
            among: vec![node(vec![pod(7, 0), pod(8, 0)])],
        };
        assert_eq!(memory.suggestions(), Some((2 * STEP_KIB, 2 * STEP_KIB)));
        assert_eq!(memory.switch_per_pod(), Some(10.0));
        let memory = Memory { alone: vec![node(vec![pod(7, 9)])], ..memory };
        assert_eq!(memory.suggestions(), Some((STEP_KIB, 2 * STEP_KIB)));
    }
}
