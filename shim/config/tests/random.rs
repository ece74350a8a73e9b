//! Whatever is written, the answer is a configuration or an error.

use std::{collections::BTreeMap, path::Path};

use kata_config::{Host, Limits, apply_annotations_on, dan, parse, pod_size, table};
use proptest::prelude::*;

const HOST: Host = Host { cpus: 8, memory_mib: 16_384 };

/// A TOML value of any type, large and odd ones too.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("true".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        (-10i64..5000).prop_map(|number| number.to_string()),
        any::<f32>().prop_map(|number| format!("{number:?}").replace("NaN", "nan")),
        "[a-z/.*()\\[\\]]{0,12}".prop_map(|text| format!("'{text}'")),
        Just("99999999999999999999".to_owned()),
        Just("1979-05-27T07:32:00Z".to_owned()),
        Just("[]".to_owned()),
        Just("['a', 1, {b = 2}]".to_owned()),
        Just("{}".to_owned()),
        Just("{x = 1}".to_owned()),
    ]
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(?s).{0,200}") {
        let _ = parse(&text, Path::new("x.toml"), HOST);
        let _ = dan::parse(&text, Path::new("x.json"));
    }

    #[test]
    fn known_keys_with_any_values_give_a_usable_configuration_or_an_error(
        picks in prop::collection::vec((any::<prop::sample::Index>(), value()), 1..12),
        hypervisor in prop::sample::select(vec!["qemu", "clh", "cloud-hypervisor", "fc"]),
    ) {
        let entries = table();
        let keys: Vec<_> = entries.iter().filter(|entry| entry.table.is_some()).collect();
        let mut tables: BTreeMap<String, BTreeMap<&str, String>> = BTreeMap::new();
        for (pick, value) in picks {
            let entry = pick.get(&keys);
            let title = entry.table.unwrap_or_default().replace('*', hypervisor);
            tables.entry(title).or_default().insert(&entry.name, value);
        }
        let mut text = String::new();
        for (title, keys) in &tables {
            text.push_str(&format!("[{title}]\n"));
            for (key, value) in keys {
                text.push_str(&format!("{key} = {value}\n"));
            }
        }
        if let Ok(loaded) = parse(&text, Path::new("x.toml"), HOST) {
            let machine = &loaded.config.hypervisor;
            prop_assert!((1..=8).contains(&machine.default_maxvcpus), "{text}");
            prop_assert!(machine.default_vcpus > 0.0 && machine.default_vcpus <= 8.0, "{text}");
            prop_assert!(machine.default_memory_mib > 0, "{text}");
            prop_assert!(
                machine.default_maxmemory_mib >= u64::from(machine.default_memory_mib),
                "{text}"
            );
            let size = pod_size(&loaded.config, Limits::new(150_000, 100_000, 1 << 30));
            prop_assert!((1..=machine.default_maxvcpus).contains(&size.vcpus), "{text}");
            prop_assert!(u64::from(size.memory_mib) <= machine.default_maxmemory_mib, "{text}");
        }
    }

    #[test]
    fn annotations_are_applied_as_a_whole_or_not_at_all(
        picks in prop::collection::vec((any::<prop::sample::Index>(), value()), 1..6),
        enabled in prop::sample::select(vec!["[]", "['default_']", "['.*']"]),
    ) {
        let entries = table();
        let names: Vec<_> = entries.iter().filter(|entry| entry.table.is_none()).collect();
        let annotations: BTreeMap<_, _> = picks
            .iter()
            .map(|(pick, value)| (pick.get(&names).name.clone(), value.trim_matches('\'').to_owned()))
            .collect();
        let text = format!("[hypervisor.qemu]\nenable_annotations = {enabled}");
        let before = parse(&text, Path::new("x.toml"), HOST).expect("reads").config;
        let mut config = before.clone();
        if apply_annotations_on(&mut config, &annotations, HOST).is_err() {
            prop_assert_eq!(config, before);
        } else {
            prop_assert!(config.hypervisor.default_vcpus > 0.0);
            prop_assert_eq!(config.hypervisor.enable_annotations, before.hypervisor.enable_annotations);
        }
    }

    #[test]
    fn a_vm_grows_with_its_pods_limits(
        quota in 0i64..2_000_000, more in 0i64..2_000_000, memory in 0i64..(1 << 36),
        overhead in prop::option::of(0u32..4096),
    ) {
        let mut config = parse("", Path::new("x.toml"), HOST).expect("reads").config;
        config.hypervisor.overhead_memory_mib = overhead;
        let small = pod_size(&config, Limits::new(quota.max(1), 100_000, memory.max(1)));
        let large = pod_size(&config, Limits::new(quota.max(1) + more, 100_000, memory.max(1) + more));
        prop_assert!(large.vcpus >= small.vcpus && large.memory_mib >= small.memory_mib);
    }
}
