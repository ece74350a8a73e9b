//! The OCI specification in the agent's words.
//!
//! The agent takes the specification as protobuf whose fields have the names of the JSON, but for
//! upper and lower case. So the messages are filled by name: a field that a newer specification adds
//! and the agent does not know is left out, as an older agent would do.

use kata_agent_protocol::oci as proto;
use kata_agent_protocol::protobuf::reflect::{
    MessageDescriptor, ReflectValueBox, RuntimeFieldType, RuntimeType,
};
use kata_agent_protocol::protobuf::{MessageDyn, MessageFull};
use serde::Serialize;
use serde_json::Value;

/// A value of the specification that the agent's message cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} of the OCI specification is {value}, but must be {expected}")]
pub struct OciError {
    /// The field, as a path.
    field: String,
    /// Its value.
    value: String,
    /// What it must be.
    expected: String,
}

/// The specification as the agent takes it.
///
/// # Errors
/// A value that the message cannot hold, such as a negative number where it takes none.
pub fn spec(spec: &oci_spec::runtime::Spec) -> Result<proto::Spec, OciError> {
    convert(spec, "")
}

/// A process as the agent takes it.
///
/// # Errors
/// See [`spec`].
pub fn process(process: &oci_spec::runtime::Process) -> Result<proto::Process, OciError> {
    convert(process, "process")
}

/// Limits of resources as the agent takes them.
///
/// # Errors
/// See [`spec`].
pub fn resources(
    resources: &oci_spec::runtime::LinuxResources,
) -> Result<proto::LinuxResources, OciError> {
    convert(resources, "linux.resources")
}

fn convert<M: MessageFull>(value: &impl Serialize, path: &str) -> Result<M, OciError> {
    let json = serde_json::to_value(value).map_err(|error| OciError {
        field: path.to_owned(),
        value: error.to_string(),
        expected: "a value that JSON can hold".to_owned(),
    })?;
    let mut message = M::new();
    fill(&mut message, &json, path)?;
    Ok(message)
}

fn wrong(field: &str, value: &Value, expected: impl Into<String>) -> OciError {
    OciError { field: field.to_owned(), value: value.to_string(), expected: expected.into() }
}

/// The one name that differs by more than case.
fn name_in_proto(key: &str) -> &str {
    if key == "ociVersion" { "Version" } else { key }
}

fn fill(message: &mut dyn MessageDyn, json: &Value, path: &str) -> Result<(), OciError> {
    let Value::Object(object) = json else { return Err(wrong(path, json, "an object")) };
    let descriptor = message.descriptor_dyn();
    for (key, value) in object {
        if value.is_null() {
            continue;
        }
        let name = name_in_proto(key);
        let field = descriptor.fields().find(|field| field.name().eq_ignore_ascii_case(name));
        let Some(field) = field else { continue };
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match field.runtime_field_type() {
            RuntimeFieldType::Singular(kind) => {
                field.set_singular_field(message, scalar(&kind, value, &path)?);
            }
            RuntimeFieldType::Repeated(kind) => {
                let Value::Array(items) = value else { return Err(wrong(&path, value, "a list")) };
                let mut list = field.mut_repeated(message);
                for (index, item) in items.iter().enumerate() {
                    list.push(scalar(&kind, item, &format!("{path}[{index}]"))?);
                }
            }
            RuntimeFieldType::Map(key_kind, value_kind) => {
                let Value::Object(pairs) = value else {
                    return Err(wrong(&path, value, "an object"));
                };
                let mut map = field.mut_map(message);
                for (key, value) in pairs {
                    let path = format!("{path}.{key}");
                    let key = scalar(&key_kind, &Value::String(key.clone()), &path)?;
                    map.insert(key, scalar(&value_kind, value, &path)?);
                }
            }
        }
    }
    Ok(())
}

fn scalar(kind: &RuntimeType, value: &Value, path: &str) -> Result<ReflectValueBox, OciError> {
    let unsigned = || value.as_u64().ok_or_else(|| wrong(path, value, "a number from 0 on"));
    let signed = || value.as_i64().ok_or_else(|| wrong(path, value, "a whole number"));
    let too_large = |_| wrong(path, value, "a number of 32 bits");
    Ok(match kind {
        RuntimeType::U32 => ReflectValueBox::U32(unsigned()?.try_into().map_err(too_large)?),
        RuntimeType::U64 => ReflectValueBox::U64(unsigned()?),
        RuntimeType::I32 => ReflectValueBox::I32(signed()?.try_into().map_err(too_large)?),
        RuntimeType::I64 => ReflectValueBox::I64(signed()?),
        RuntimeType::Bool => ReflectValueBox::Bool(
            value.as_bool().ok_or_else(|| wrong(path, value, "true or false"))?,
        ),
        RuntimeType::String => match value {
            Value::String(text) => ReflectValueBox::String(text.clone()),
            _ => return Err(wrong(path, value, "a text")),
        },
        RuntimeType::Message(descriptor) => message(descriptor, value, path)?,
        other => return Err(wrong(path, value, format!("{other:?}"))),
    })
}

fn message(
    descriptor: &MessageDescriptor,
    value: &Value,
    path: &str,
) -> Result<ReflectValueBox, OciError> {
    let mut inner = descriptor.new_instance();
    fill(&mut *inner, value, path)?;
    Ok(ReflectValueBox::Message(inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_json(text: &str) -> oci_spec::runtime::Spec {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn every_part_of_a_specification_arrives_under_its_name() {
        let spec = spec(&from_json(
            r#"{"ociVersion":"1.0.2","hostname":"h","root":{"path":"rootfs","readonly":true},
            "process":{"terminal":true,"user":{"uid":1,"gid":2,"additionalGids":[3]},"args":["a","b"],
              "env":["X=1"],"cwd":"/","noNewPrivileges":true,"oomScoreAdj":-998,
              "capabilities":{"bounding":["CAP_KILL"]},
              "rlimits":[{"type":"RLIMIT_NOFILE","hard":1024,"soft":512}]},
            "mounts":[{"destination":"/proc","type":"proc","source":"proc","options":["nosuid"]}],
            "annotations":{"k":"v"},
            "linux":{"cgroupsPath":"/c","sysctl":{"net.x":"1"},"maskedPaths":["/proc/kcore"],
              "namespaces":[{"type":"mount"},{"type":"pid","path":"/p"}],
              "resources":{"memory":{"limit":1048576,"disableOOMKiller":true},
                "cpu":{"shares":2,"quota":-1,"period":100000,"cpus":"0-1"},
                "pids":{"limit":7},
                "devices":[{"allow":false,"access":"rwm"}]},
              "devices":[{"path":"/dev/x","type":"c","major":1,"minor":3,"fileMode":438,"uid":0}],
              "seccomp":{"defaultAction":"SCMP_ACT_ERRNO",
                "syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","errnoRet":5}]}}}"#,
        ))
        .unwrap();
        assert_eq!((spec.Version.as_str(), spec.Hostname.as_str()), ("1.0.2", "h"));
        assert!(spec.Root.Readonly && spec.Process.Terminal && spec.Process.NoNewPrivileges);
        assert_eq!(spec.Process.Args, ["a", "b"]);
        assert_eq!((spec.Process.User.UID, spec.Process.User.GID), (1, 2));
        assert_eq!(spec.Process.User.AdditionalGids, [3]);
        assert_eq!(spec.Process.OOMScoreAdj, -998);
        assert_eq!(spec.Process.Capabilities.Bounding, ["CAP_KILL"]);
        assert_eq!((spec.Process.Rlimits[0].Hard, spec.Process.Rlimits[0].Soft), (1024, 512));
        assert_eq!(spec.Process.Rlimits[0].Type, "RLIMIT_NOFILE");
        assert_eq!(spec.Mounts[0].options, ["nosuid"]);
        assert_eq!(spec.Mounts[0].type_, "proc");
        assert_eq!(spec.Annotations["k"], "v");
        assert_eq!(spec.Linux.Sysctl["net.x"], "1");
        assert_eq!(spec.Linux.Namespaces[1].Path, "/p");
        assert_eq!(spec.Linux.Namespaces[0].Type, "mount");
        let resources = &spec.Linux.Resources;
        assert_eq!(resources.Memory.Limit, 1 << 20);
        assert!(resources.Memory.DisableOOMKiller);
        assert_eq!((resources.CPU.Shares, resources.CPU.Quota), (2, -1));
        assert_eq!((resources.CPU.Cpus.as_str(), resources.Pids.Limit), ("0-1", 7));
        assert_eq!(spec.Linux.Devices[0].FileMode, 438);
        assert_eq!(spec.Linux.Seccomp.DefaultAction, "SCMP_ACT_ERRNO");
        assert_eq!(spec.Linux.Seccomp.Syscalls[0].errnoret(), 5);
    }

    #[test]
    fn what_a_message_cannot_hold_is_named() {
        let mut message = proto::Root::new();
        let error = fill(&mut message, &serde_json::json!({"path": 7}), "root").unwrap_err();
        assert_eq!(
            error.to_string(),
            "root.path of the OCI specification is 7, but must be a text"
        );
    }

    #[test]
    fn unknown_fields_are_left_out() {
        let mut message = proto::Root::new();
        fill(&mut message, &serde_json::json!({"path": "/", "colour": 1}), "").unwrap();
        assert_eq!(message.Path, "/");
    }
}
