//! From what containerd sends for a pod's first container to what the pod needs: which
//! configuration, which network, which names. No effects but reading files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedInputStream, MessageField};
use kata_config::{Host, InternetworkingModel, KataConfig, Limits};
use oci_spec::runtime::Spec;

use crate::bundle;
use crate::disks;
use crate::growth;
use crate::kind::Kind;
use crate::mounts::MountSpec;
use crate::network;
use crate::sandbox::Order;

/// Names under which `runtimeoptions` arrive: since 1.5, and before.
const OPTIONS: [&str; 2] = ["runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options"];
/// Field `config_path` of these options, as a tag: number 2, length-delimited.
const CONFIG_PATH_TAG: u32 = 2 << 3 | 2;

/// What the pod needs whose first container has this `spec` and `root`.
///
/// # Errors
/// A configuration, annotation or namespace that cannot be honoured, with its name.
pub fn of(id: &str, spec: &Spec, root: &[MountSpec], options: &MessageField<Any>) -> Result<Order> {
    let annotations: BTreeMap<String, String> =
        spec.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    let mut config = configuration(options.as_ref(), &annotations)?;
    let kind = bundle::kind_of(spec)?;
    let limits = match kind {
        Kind::Single => growth::limits_of_spec(spec),
        _ => Limits::from_annotations(&annotations)?,
    };
    size(&mut config, limits)?;
    let is_none = config.runtime.internetworking_model == InternetworkingModel::None;
    let network = network::wish(spec, is_none)?;
    let cgroup = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
    let hostname = spec.hostname().clone().unwrap_or_default();
    let resolv_conf = resolv_conf(spec);
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let disk_slots = disks::slots(&config, root, (kind == Kind::Single).then_some(mounts))?;
    Ok(Order { id: id.to_owned(), config, network, cgroup, hostname, resolv_conf, disk_slots })
}

/// The configuration that options and annotations ask for.
///
/// # Errors
/// See [`of`].
pub fn configuration(
    options: Option<&Any>,
    annotations: &BTreeMap<String, String>,
) -> Result<KataConfig> {
    let path = options.map(config_path).transpose()?.flatten();
    let loaded = kata_config::load(path.as_deref())?;
    let mut config = loaded.config;
    let mut warnings = loaded.warnings;
    warnings.extend(kata_config::apply_annotations(&mut config, annotations)?);
    for warning in warnings {
        tracing::warn!(%warning, "configuration");
    }
    Ok(config)
}

/// The configuration of a pod whose limits are in its annotations.
///
/// # Errors
/// See [`of`].
pub fn sized(options: Option<&Any>, annotations: &BTreeMap<String, String>) -> Result<KataConfig> {
    let mut config = configuration(options, annotations)?;
    size(&mut config, Limits::from_annotations(annotations)?)?;
    Ok(config)
}

/// The VM is as large as the pod may grow (see [`kata_config::pod_size`]). A VMM would start with more
/// memory than the host has, and be killed when it uses it.
fn size(config: &mut KataConfig, limits: Limits) -> Result<()> {
    let size = kata_config::pod_size(config, limits);
    config.hypervisor.default_vcpus = size.vcpus as f32;
    config.hypervisor.default_memory_mib = size.memory_mib;
    let host = Host::read();
    if u64::from(size.memory_mib) > host.memory_mib {
        bail!(
            "The pod is to have {} MiB of memory, and this host has {} MiB: lower `default_memory` \
             in configuration.toml, or in the pod's annotations",
            size.memory_mib,
            host.memory_mib
        );
    }
    Ok(())
}

/// `config_path` of the runtime options; options of another runtime name none.
fn config_path(any: &Any) -> Result<Option<PathBuf>> {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    if !OPTIONS.contains(&name) {
        return Ok(None);
    }
    let read = || -> protobuf::Result<Option<String>> {
        let mut stream = CodedInputStream::from_bytes(&any.value);
        let mut path = None;
        while let Some(tag) = stream.read_raw_tag_or_eof()? {
            if tag == CONFIG_PATH_TAG {
                path = Some(stream.read_string()?);
            } else {
                let wire = protobuf::rt::WireType::new(tag & 7);
                let unknown = || std::io::Error::from(std::io::ErrorKind::InvalidData);
                stream.skip_field(wire.ok_or_else(unknown)?)?;
            }
        }
        Ok(path)
    };
    let path = read().context("The runtime options of containerd's configuration are damaged")?;
    Ok(path.filter(|path| !path.is_empty()).map(Into::into))
}

/// The lines of the resolv.conf that the engine mounts into the container, if it does.
fn resolv_conf(spec: &Spec) -> Vec<String> {
    let mounts = spec.mounts().iter().flatten();
    let mut sources = mounts
        .filter(|mount| mount.destination().ends_with("etc/resolv.conf"))
        .filter_map(|mount| mount.source().as_ref());
    let text = sources.next().and_then(|source| std::fs::read_to_string(source).ok());
    text.unwrap_or_default().lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(type_url: &str, value: &[u8]) -> Any {
        let mut any = Any::new();
        any.type_url = type_url.to_owned();
        any.value = value.to_vec();
        any
    }

    #[test]
    fn the_path_of_the_configuration_is_field_2() {
        let value = b"\x0a\x01t\x12\x05/etc/\x1a\x01b";
        for name in ["runtimeoptions.v1.Options", "types.io/cri.runtimeoptions.v1.Options"] {
            let path = config_path(&options(name, value)).unwrap();
            assert_eq!(path, Some("/etc/".into()), "{name}");
        }
        assert_eq!(config_path(&options("containerd.runc.v1.Options", value)).unwrap(), None);
        assert_eq!(config_path(&options("runtimeoptions.v1.Options", b"")).unwrap(), None);
    }

    #[test]
    fn damaged_options_are_an_error() {
        let error = config_path(&options("runtimeoptions.v1.Options", b"\x12\x7f/")).unwrap_err();
        assert!(error.to_string().contains("damaged"), "{error}");
    }
}
