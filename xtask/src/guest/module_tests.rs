use proptest::prelude::*;

use super::*;

/// An ELF file with the sections `.modinfo`, `.BTF` and the table of names.
fn module_with(modinfo: &[u8]) -> Vec<u8> {
    let names = b"\0.modinfo\0.BTF\0.shstrtab\0";
    let btf = b"type information";
    let mut file = vec![0; 64];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let mut headers = vec![[0u8; 64]];
    for (name, contents) in [(1u32, modinfo), (10, btf), (15, names)] {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[0x18..0x20].copy_from_slice(&(file.len() as u64).to_le_bytes());
        header[0x20..0x28].copy_from_slice(&(contents.len() as u64).to_le_bytes());
        file.extend(contents);
        headers.push(header);
    }
    let table = file.len() as u64;
    file[0x28..0x30].copy_from_slice(&table.to_le_bytes());
    file[0x3c..0x3e].copy_from_slice(&4u16.to_le_bytes());
    file[0x3e..0x40].copy_from_slice(&3u16.to_le_bytes());
    file.extend(headers.concat());
    file
}

fn needs_of(graph: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
    graph
        .iter()
        .map(|(name, needs)| {
            ((*name).to_owned(), needs.iter().map(|name| (*name).to_owned()).collect())
        })
        .collect()
}

#[test]
fn needed_modules_are_read_from_modinfo() {
    let module =
        module_with(b"license=GPL\0depends=virtio-ring,virtio,net_failover\0name=virtio_net\0");
    assert_eq!(needs(&module).unwrap(), ["virtio_ring", "virtio", "net_failover"]);
}

#[test]
fn a_module_that_needs_none_has_an_empty_list() {
    assert_eq!(needs(&module_with(b"depends=\0")).unwrap(), Vec::<String>::new());
}

#[test]
fn a_module_loads_after_all_it_needs_and_once() {
    let graph = needs_of(&[
        ("virtio_net", &["virtio_ring", "virtio", "net_failover"]),
        ("virtio_console", &["virtio", "virtio_ring"]),
        ("net_failover", &["failover"]),
        ("virtio", &["virtio_ring"]),
        ("virtio_ring", &[]),
        ("failover", &[]),
        ("unrelated", &[]),
    ]);
    let order = load_order(&["virtio_console", "virtio_net"], &graph).unwrap();
    assert_eq!(
        order,
        ["virtio_ring", "virtio", "virtio_console", "failover", "net_failover", "virtio_net"]
    );
}

#[test]
fn modules_that_need_each_other_are_refused_with_the_circle() {
    let graph = needs_of(&[("a", &["b"]), ("b", &["c"]), ("c", &["a"])]);
    let error = load_order(&["a"], &graph).unwrap_err();
    assert!(error.to_string().contains("a -> b -> c -> a"), "{error}");
}

#[test]
fn a_module_the_kernel_lacks_is_named_with_who_needs_it() {
    let error = load_order(&["a"], &needs_of(&[("a", &["b"])])).unwrap_err();
    assert!(error.to_string().contains("no module b") && error.to_string().contains("[a]"));
}

#[test]
fn a_slim_module_has_no_signature_and_no_section_of_type_information() {
    let plain = module_with(b"depends=virtio\0");
    let mut signed = plain.clone();
    signed.extend(b"the signature");
    signed.extend([0; 8]);
    signed.extend(13u32.to_be_bytes());
    signed.extend(SIGNED);

    let slim = slim(&signed).unwrap();
    assert_eq!(slim.len(), plain.len());
    let names: Vec<_> = sections(&slim).unwrap().into_iter().map(|section| section.name).collect();
    assert_eq!(names, ["", ".modinfo", "", ".shstrtab"]);
    assert_eq!(needs(&slim).unwrap(), ["virtio"]);
}

#[test]
fn a_signature_longer_than_its_module_is_refused() {
    let mut signed = vec![0; 8];
    signed.extend(u32::MAX.to_be_bytes());
    signed.extend(SIGNED);
    assert!(slim(&signed).is_err());
}

#[test]
fn a_module_cut_short_anywhere_is_refused() {
    let module = module_with(b"depends=virtio\0");
    for length in 0..module.len() {
        assert!(needs(&module[..length]).is_err(), "{length} bytes");
    }
}

proptest! {
    #[test]
    fn no_header_makes_the_reader_panic(at in 6usize..64, byte: u8) {
        let mut module = module_with(b"depends=virtio\0");
        module[at] = byte;
        if let Ok(names) = needs(&module) {
            prop_assert!(names.len() <= 1);
        }
    }
}
