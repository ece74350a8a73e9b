//! What a pod may say about itself: annotations over the configuration.
//!
//! Annotations come from whoever may create a pod, files from the operator. So those that reach the
//! host (`io.katacontainers.config.hypervisor.*`) need the operator's leave: a pattern of
//! `enable_annotations` that matches the name, and for programs a glob that matches the path. Without
//! it the pod fails, as under Kata's Go runtime; its Rust runtime would start the pod without what it
//! asked for, and only the log would tell.
//!
//! Patterns match any part of a name, as both of Kata's runtimes have it: `default_` enables
//! `default_vcpus` and `default_memory`. Write `^path$` for `path` alone.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use crate::{
    Host, InternetworkingModel, KataConfig,
    error::{ConfigError, Place, Warning},
    host::settle,
    keys::{self, Deed, HYPERVISOR_PREFIX, Key, Set},
    value::Value,
};

/// What all of Kata's configuration annotations begin with.
const CONFIG_PREFIX: &str = "io.katacontainers.config.";
const SLIPWAY_PREFIX: &str = "io.slipway.";

/// Puts a pod's annotations over the configuration; other annotations are none of ours.
///
/// # Errors
/// [`ConfigError`], naming the annotation. Nothing was changed then.
pub fn apply_annotations(
    config: &mut KataConfig,
    annotations: &BTreeMap<String, String>,
) -> Result<Vec<Warning>, ConfigError> {
    apply_annotations_on(config, annotations, Host::read())
}

/// [`apply_annotations`] for a host of this size.
///
/// # Errors
/// See [`apply_annotations`].
pub fn apply_annotations_on(
    config: &mut KataConfig,
    annotations: &BTreeMap<String, String>,
    host: Host,
) -> Result<Vec<Warning>, ConfigError> {
    let mut changed = config.clone();
    let mut warnings = Vec::new();
    for (name, text) in annotations {
        let key = keys::all().find(|key| key.annotation_name().as_ref() == Some(name));
        if let Some(short) = name.strip_prefix(HYPERVISOR_PREFIX) {
            check_enabled(config, name, short)?;
        }
        match key {
            Some(key) => apply(&mut changed, key, name, text.trim())?,
            None if name.starts_with(CONFIG_PREFIX) || name.starts_with(SLIPWAY_PREFIX) => {
                warnings.push(unknown(name));
            }
            None => {}
        }
    }
    reconcile(config, &mut changed, annotations)?;
    warnings.extend(settle(&mut changed, host));
    *config = changed;
    Ok(warnings)
}

fn unknown(name: &str) -> Warning {
    let known: Vec<_> = keys::all().filter_map(Key::annotation_name).collect();
    let hint = keys::nearest(name, known.iter().map(String::as_str))
        .map(|near| format!("; did you mean {near}?"))
        .unwrap_or_default();
    let place = Some(Place::Annotation { annotation: name.to_owned() });
    Warning { place, message: format!("it is not known and has no effect{hint}") }
}

/// Whether the operator lets pods use this annotation. The list is that of the file, so no annotation
/// can widen it.
fn check_enabled(config: &KataConfig, name: &str, short: &str) -> Result<(), ConfigError> {
    let enabled = &config.hypervisor.enable_annotations;
    // Each pattern was compiled once when the file was read; what does not compile enables nothing.
    let matches = |pattern: &String| regex::Regex::new(pattern).is_ok_and(|re| re.is_match(short));
    if enabled.iter().any(matches) {
        return Ok(());
    }
    Err(ConfigError::NotEnabled {
        annotation: name.to_owned(),
        name: short.to_owned(),
        enabled: format!("{enabled:?}"),
        file: file_of(config),
    })
}

fn file_of(config: &KataConfig) -> String {
    let name = |file: &PathBuf| file.display().to_string();
    config.file.as_ref().map_or_else(|| "the defaults".to_owned(), name)
}

fn apply(config: &mut KataConfig, key: &Key, name: &str, text: &str) -> Result<(), ConfigError> {
    let place = || Place::Annotation { annotation: name.to_owned() };
    let bad = |remedy| ConfigError::BadValue {
        place: place(),
        key: key.annotation.map_or(name, |annotation| annotation.name).to_owned(),
        value: format!("{text:?}"),
        remedy,
    };
    match key.deed {
        Deed::Ignored => Ok(()),
        Deed::Refused(_) | Deed::Only(_) => {
            let value = match text {
                "0" | "false" | "[]" => Value::Bool(false),
                "true" => Value::Bool(true),
                text => Value::Text(text.to_owned()),
            };
            if !key.deed.refuses(&value) {
                return Ok(());
            }
            Err(ConfigError::Refused {
                place: place(),
                key: key.annotation.map_or(name, |annotation| annotation.name).to_owned(),
                value: format!("{text:?}"),
                reason: key.note.to_owned(),
            })
        }
        Deed::Honoured(set) => {
            check_guard(config, key, name, text)?;
            let value = set.read(text).map_err(bad)?;
            let Set::Words(at) = set else { return set.put(config, &value).map_err(bad) };
            let before = at(config).clone();
            set.put(config, &value).map_err(bad)?;
            let words = format!("{before} {}", at(config));
            words.trim().clone_into(at(config));
            Ok(())
        }
    }
}

/// Whether the operator allows this value, where that has to be asked.
fn check_guard(config: &KataConfig, key: &Key, name: &str, text: &str) -> Result<(), ConfigError> {
    let Some(guard) = key.annotation.and_then(|annotation| annotation.guard) else {
        return Ok(());
    };
    // A `*` stays within its folder, and so does what it matched.
    let options = glob::MatchOptions {
        require_literal_separator: true,
        require_literal_leading_dot: true,
        ..glob::MatchOptions::default()
    };
    let climbs = Path::new(text).components().any(|part| part == Component::ParentDir);
    let matches =
        |glob: &String| glob::Pattern::new(glob).is_ok_and(|glob| glob.matches_with(text, options));
    let allowed = (guard.globs)(config);
    if !climbs && allowed.iter().any(matches) {
        return Ok(());
    }
    Err(ConfigError::NotAllowed {
        annotation: name.to_owned(),
        value: text.to_owned(),
        list: guard.list,
        allowed: format!("{allowed:?}"),
        file: file_of(config),
    })
}

/// What annotations say together, and with the file.
fn reconcile(
    before: &KataConfig,
    config: &mut KataConfig,
    annotations: &BTreeMap<String, String>,
) -> Result<(), ConfigError> {
    let said = |short: &str| {
        let name = format!("{HYPERVISOR_PREFIX}{short}");
        annotations.get(&name).map(|text| (name, text.trim().to_owned()))
    };
    let bad = |(annotation, value): (String, String), remedy: String| {
        let key = annotation.trim_start_matches(HYPERVISOR_PREFIX).to_owned();
        let place = Place::Annotation { annotation };
        Err(ConfigError::BadValue { place, key, value: format!("{value:?}"), remedy })
    };
    // A guest has one of them, so the pod's takes the place of the file's.
    match (said("image"), said("initrd")) {
        (Some((_, image)), Some(initrd)) if !image.is_empty() && !initrd.1.is_empty() => {
            return bad(initrd, "the annotation `image` is there too: a guest has one".into());
        }
        (Some((_, image)), None) if !image.is_empty() => config.hypervisor.initrd = None,
        (None, Some((_, initrd))) if !initrd.is_empty() => config.hypervisor.image = None,
        _ => {}
    }
    let most = before.hypervisor.default_maxmemory_mib;
    if let Some(memory) = said("default_memory")
        && u64::from(config.hypervisor.default_memory_mib) > most
    {
        return bad(memory, format!("default_maxmemory allows {most} MiB"));
    }
    if config.runtime.disable_new_netns
        && config.runtime.internetworking_model != InternetworkingModel::None
    {
        let name = "io.katacontainers.config.runtime.disable_new_netns".to_owned();
        return bad((name, "true".into()), "it needs internetworking_model \"none\"".into());
    }
    Ok(())
}
