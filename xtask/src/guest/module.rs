//! Kernel modules: which others each needs, in which order they load, and a form of them that
//! loads fast.
//!
//! Under emulation, loading costs more than the file's size lets one expect: the kernel hashes
//! each module to check its signature, and on the first one with type information (section
//! `.BTF`) parses that of the whole kernel. The guest's modules therefore carry neither.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};

/// Follows the signature at the end of a signed module (the kernel's
/// Documentation/admin-guide/module-signing.rst).
const SIGNED: &[u8] = b"~Module signature appended~\n";
/// Length of `struct module_signature` before that, in bytes; its last four are the length of
/// the signature before it, big-endian.
const SIGNATURE_INFO: usize = 12;

/// A section of an ELF file: where its header and its contents are.
#[derive(Debug)]
struct Section {
    header: usize,
    name: String,
    start: usize,
    length: usize,
}

/// The names of the modules that `module` needs, from its `.modinfo` section.
pub fn needs(module: &[u8]) -> Result<Vec<String>> {
    let sections = sections(module)?;
    let modinfo = sections.iter().find(|section| section.name == ".modinfo");
    let modinfo = modinfo.context("There is no section .modinfo")?;
    let strings = contents(module, modinfo).context("The section .modinfo is cut short")?;
    for string in strings.split(|&byte| byte == 0) {
        if let Some(names) = string.strip_prefix(b"depends=") {
            let names = std::str::from_utf8(names).context("The names of modules are no text")?;
            return Ok(names.split(',').filter(|name| !name.is_empty()).map(normal).collect());
        }
    }
    Ok(Vec::new())
}

/// A module's name as the kernel knows it: files may be named with dashes.
pub fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// `wanted` and all they need, each after what it needs itself.
///
/// # Errors
/// A module that is not in `needs`, or modules that need each other.
pub fn load_order(wanted: &[&str], needs: &BTreeMap<String, Vec<String>>) -> Result<Vec<String>> {
    let (mut order, mut path) = (Vec::new(), Vec::new());
    let mut done = BTreeSet::new();
    for name in wanted {
        visit(name, needs, &mut order, &mut path, &mut done)?;
    }
    Ok(order)
}

fn visit(
    name: &str,
    needs: &BTreeMap<String, Vec<String>>,
    order: &mut Vec<String>,
    path: &mut Vec<String>,
    done: &mut BTreeSet<String>,
) -> Result<()> {
    if done.contains(name) {
        return Ok(());
    }
    if path.iter().any(|above| above == name) {
        bail!("Modules need each other: {} -> {name}", path.join(" -> "));
    }
    let needed = needs.get(name).with_context(|| {
        format!("The kernel has no module {name}, needed by way of [{}]", path.join(" -> "))
    })?;
    path.push(name.to_owned());
    for name in needed {
        visit(name, needs, order, path, done)?;
    }
    path.pop();
    done.insert(name.to_owned());
    order.push(name.to_owned());
    Ok(())
}

/// The module without its signature and with its type information hidden: the section keeps its
/// place and loses its name, which is the empty one at the start of the table of names.
pub fn slim(module: &[u8]) -> Result<Vec<u8>> {
    let mut module = unsigned(module)?.to_vec();
    for section in sections(&module)? {
        if section.name == ".BTF" {
            module[section.header..section.header + 4].fill(0);
        }
    }
    Ok(module)
}

fn unsigned(module: &[u8]) -> Result<&[u8]> {
    let Some(rest) = module.strip_suffix(SIGNED) else { return Ok(module) };
    let length = rest.last_chunk().map(|bytes| u32::from_be_bytes(*bytes) as usize);
    let end = length.and_then(|length| rest.len().checked_sub(SIGNATURE_INFO + length));
    Ok(&rest[..end.context("The module's signature is longer than the module")?])
}

/// Reads the section headers of a little-endian 64-bit ELF file (the System V ABI's chapter
/// "Sections").
fn sections(file: &[u8]) -> Result<Vec<Section>> {
    const HEADER: usize = 64;
    ensure!(file.starts_with(b"\x7fELF\x02\x01"), "The module is no little-endian 64-bit ELF file");
    let cut = "The module is cut short";
    let number = |at: usize, size: usize| -> Option<usize> {
        let bytes = file.get(at..at.checked_add(size)?)?;
        let value = bytes.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
        usize::try_from(value).ok()
    };
    let table = number(0x28, 8).context(cut)?;
    let count = number(0x3c, 2).context(cut)?;
    let names = number(0x3e, 2).context(cut)?;
    // Once the end of the table is known to lie within the file, no header can lie outside.
    let end = count.checked_mul(HEADER).and_then(|length| length.checked_add(table));
    ensure!(end.is_some_and(|end| end <= file.len()) && names < count, cut);
    let field = |index: usize, at: usize| number(table + index * HEADER + at, 8).context(cut);

    let names = field(names, 0x18)?;
    (0..count)
        .map(|index| {
            let header = table + index * HEADER;
            let name = number(header, 4).and_then(|offset| names.checked_add(offset));
            let name = name.and_then(|at| file.get(at..)).context(cut)?;
            let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
            let name = String::from_utf8_lossy(name).into_owned();
            Ok(Section { header, name, start: field(index, 0x18)?, length: field(index, 0x20)? })
        })
        .collect()
}

fn contents<'a>(file: &'a [u8], section: &Section) -> Option<&'a [u8]> {
    file.get(section.start..section.start.checked_add(section.length)?)
}

#[cfg(test)]
#[path = "module_tests.rs"]
mod tests;
