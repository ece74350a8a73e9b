//! The OCI specification as it comes over the wire, turned into the JSON that a bundle holds.
//!
//! In protobuf a field that is not set is zero or empty; in JSON it is left out. Where zero would
//! mean something (a limit of nothing), it is taken as not set, as the runtimes send it.
//!
//! Left out on purpose: hooks but `startContainer` (their programs are on the host), AppArmor and
//! SELinux labels (the guest has neither: the machine is the boundary), `Windows`, `Solaris` and
//! `IntelRdt`. seccomp is refused: the agent tells that it has none, and leaving it out would
//! weaken what the user asked for.

use anyhow::Result;
use kata_agent_protocol::oci;
use serde_json::{Map, Value, json};

use super::error::Refusal;

/// What a process that names no `PATH` gets: its program must be found somehow.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An object without what is not set.
fn object<const N: usize>(members: [(&str, Value); N]) -> Value {
    let is_set = |value: &Value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    };
    let set = members.into_iter().filter(|(_, value)| is_set(value));
    Value::Object(set.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

/// A number that is set if it is above zero.
fn positive(number: impl Into<i128>) -> Value {
    match number.into() {
        number @ 1.. => u64::try_from(number).map_or(Value::Null, Value::from),
        _ => Value::Null,
    }
}

/// A number that is set if it is not zero.
fn nonzero(number: i64) -> Value {
    if number == 0 { Value::Null } else { number.into() }
}

/// `config.json` of a bundle.
///
/// # Errors
/// A specification without process, root or Linux part, or with seccomp.
pub fn config(spec: &oci::Spec) -> Result<Value> {
    let missing = |what| Refusal::invalid(format!("The OCI specification has no {what}"));
    let given = spec.Process.as_ref().ok_or_else(|| missing("process"))?;
    let root = spec.Root.as_ref().ok_or_else(|| missing("root"))?;
    let own = spec.Linux.as_ref().ok_or_else(|| missing("Linux part"))?;
    let version = if spec.Version.is_empty() { "1.0.2" } else { &spec.Version };
    Ok(object([
        ("ociVersion", version.into()),
        ("process", process(given)?),
        ("root", json!({ "path": root.Path, "readonly": root.Readonly })),
        ("mounts", spec.Mounts.iter().map(mount).collect()),
        ("hooks", object([("startContainer", start_hooks(&spec.Hooks))])),
        ("annotations", json!(spec.Annotations)),
        ("linux", linux(own)?),
    ]))
}

/// A process, of a bundle or to be executed in a container.
///
/// # Errors
/// One without arguments or capabilities.
pub fn process(process: &oci::Process) -> Result<Value> {
    if process.Args.is_empty() {
        return Err(Refusal::invalid("The OCI process has no arguments: there is nothing to run"));
    }
    let mut env = process.Env.clone();
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.push(DEFAULT_PATH.to_owned());
    }
    let user = process.User.get_or_default();
    let user = json!({ "uid": user.UID, "gid": user.GID, "additionalGids": user.AdditionalGids });
    let console = process.ConsoleSize.as_ref();
    let console = console.map(|size| json!({ "height": size.Height, "width": size.Width }));
    // Without them the program would keep all that the agent has.
    let capabilities = process.Capabilities.as_ref().map(capabilities);
    let capabilities =
        capabilities.ok_or_else(|| Refusal::invalid("The OCI process has no capabilities"))?;
    Ok(object([
        ("terminal", process.Terminal.into()),
        ("consoleSize", console.into()),
        ("user", user),
        ("args", json!(process.Args)),
        ("env", json!(env)),
        ("cwd", if process.Cwd.is_empty() { "/" } else { &process.Cwd }.into()),
        ("capabilities", capabilities),
        ("rlimits", process.Rlimits.iter().map(rlimit).collect()),
        ("noNewPrivileges", process.NoNewPrivileges.into()),
        ("oomScoreAdj", nonzero(process.OOMScoreAdj)),
    ]))
}

/// All sets are there, also the empty ones: an absent set would keep what the agent has.
fn capabilities(sets: &oci::LinuxCapabilities) -> Value {
    json!({
        "bounding": sets.Bounding,
        "effective": sets.Effective,
        "inheritable": sets.Inheritable,
        "permitted": sets.Permitted,
        "ambient": sets.Ambient,
    })
}

fn rlimit(rlimit: &oci::POSIXRlimit) -> Value {
    json!({ "type": rlimit.Type, "hard": rlimit.Hard, "soft": rlimit.Soft })
}

fn mount(mount: &oci::Mount) -> Value {
    object([
        ("destination", mount.destination.as_str().into()),
        ("source", mount.source.as_str().into()),
        ("type", mount.type_.as_str().into()),
        ("options", json!(mount.options)),
    ])
}

fn start_hooks(hooks: &oci::Hooks) -> Value {
    let hook = |hook: &oci::Hook| {
        object([
            ("path", hook.Path.as_str().into()),
            ("args", json!(hook.Args)),
            ("env", json!(hook.Env)),
            ("timeout", positive(hook.Timeout)),
        ])
    };
    hooks.StartContainer.iter().map(hook).collect()
}

fn linux(linux: &oci::Linux) -> Result<Value> {
    if let Some(seccomp) = linux.Seccomp.as_ref()
        && !(seccomp.DefaultAction.is_empty() && seccomp.Syscalls.is_empty())
    {
        return Err(Refusal::unsupported(
            "This agent has no seccomp (see GetGuestDetails); set disable_guest_seccomp = true",
        ));
    }
    let mapping = |mapping: &oci::LinuxIDMapping| {
        let (host, container, size) = (mapping.HostID, mapping.ContainerID, mapping.Size);
        json!({ "hostID": host, "containerID": container, "size": size })
    };
    let namespace = |namespace: &oci::LinuxNamespace| {
        object([("type", namespace.Type.as_str().into()), ("path", namespace.Path.as_str().into())])
    };
    let resources = linux.Resources.as_ref().map(resources);
    Ok(object([
        ("uidMappings", linux.UIDMappings.iter().map(mapping).collect()),
        ("gidMappings", linux.GIDMappings.iter().map(mapping).collect()),
        ("sysctl", json!(linux.Sysctl)),
        ("resources", resources.unwrap_or_default()),
        ("cgroupsPath", linux.CgroupsPath.as_str().into()),
        ("namespaces", linux.Namespaces.iter().map(namespace).collect()),
        ("devices", linux.Devices.iter().map(device).collect()),
        ("rootfsPropagation", linux.RootfsPropagation.as_str().into()),
        ("maskedPaths", json!(linux.MaskedPaths)),
        ("readonlyPaths", json!(linux.ReadonlyPaths)),
    ]))
}

fn device(device: &oci::LinuxDevice) -> Value {
    json!({
        "path": device.Path,
        "type": device.Type,
        "major": device.Major,
        "minor": device.Minor,
        "fileMode": device.FileMode,
        "uid": device.UID,
        "gid": device.GID,
    })
}

/// The limits of a container, at its creation or to be changed.
pub fn resources(resources: &oci::LinuxResources) -> Value {
    let rule = |rule: &oci::LinuxDeviceCgroup| {
        object([
            ("allow", rule.Allow.into()),
            ("type", rule.Type.as_str().into()),
            ("major", nonzero(rule.Major)),
            ("minor", nonzero(rule.Minor)),
            ("access", rule.Access.as_str().into()),
        ])
    };
    let hugepages = |limit: &oci::LinuxHugepageLimit| json!({ "pageSize": limit.Pagesize, "limit": limit.Limit });
    let pids = resources.Pids.as_ref().map(|pids| object([("limit", nonzero(pids.Limit))]));
    object([
        ("devices", resources.Devices.iter().map(rule).collect()),
        ("memory", resources.Memory.as_ref().map(memory).unwrap_or_default()),
        ("cpu", resources.CPU.as_ref().map(cpu).unwrap_or_default()),
        ("pids", pids.unwrap_or_default()),
        ("blockIO", resources.BlockIO.as_ref().map(block_io).unwrap_or_default()),
        ("hugepageLimits", resources.HugepageLimits.iter().map(hugepages).collect()),
    ])
}

/// Kernel memory limits are left out: cgroup v2 has none.
fn memory(memory: &oci::LinuxMemory) -> Value {
    object([
        ("limit", positive(memory.Limit)),
        ("reservation", positive(memory.Reservation)),
        ("swap", positive(memory.Swap)),
        ("disableOOMKiller", if memory.DisableOOMKiller { true.into() } else { Value::Null }),
    ])
}

/// Real-time budgets are left out: cgroup v2 has none.
fn cpu(cpu: &oci::LinuxCPU) -> Value {
    object([
        ("shares", positive(cpu.Shares)),
        ("quota", nonzero(cpu.Quota)),
        ("period", positive(cpu.Period)),
        ("cpus", cpu.Cpus.as_str().into()),
        ("mems", cpu.Mems.as_str().into()),
    ])
}

fn block_io(io: &oci::LinuxBlockIO) -> Value {
    let weight = |device: &oci::LinuxWeightDevice| {
        object([
            ("major", device.Major.into()),
            ("minor", device.Minor.into()),
            ("weight", positive(device.Weight)),
            ("leafWeight", positive(device.LeafWeight)),
        ])
    };
    let throttle = |devices: &[oci::LinuxThrottleDevice]| -> Value {
        let one = |device: &oci::LinuxThrottleDevice| json!({ "major": device.Major, "minor": device.Minor, "rate": device.Rate });
        devices.iter().map(one).collect()
    };
    object([
        ("weight", positive(io.Weight)),
        ("leafWeight", positive(io.LeafWeight)),
        ("weightDevice", io.WeightDevice.iter().map(weight).collect()),
        ("throttleReadBpsDevice", throttle(&io.ThrottleReadBpsDevice)),
        ("throttleWriteBpsDevice", throttle(&io.ThrottleWriteBpsDevice)),
        ("throttleReadIOPSDevice", throttle(&io.ThrottleReadIOPSDevice)),
        ("throttleWriteIOPSDevice", throttle(&io.ThrottleWriteIOPSDevice)),
    ])
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
