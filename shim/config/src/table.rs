//! What is known, as a document: `docs/kata-compat.md`.

use std::fmt::Write;

use serde::Serialize;

use crate::keys::{self, Dialect, Key, Scope, Standing};

/// A key or an annotation, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The table, as in `hypervisor.*`; `None`: it is an annotation.
    pub table: Option<&'static str>,
    /// The key, or the annotation's whole name.
    pub name: String,
    /// Whose it is.
    pub dialect: Dialect,
    /// What becomes of it.
    pub standing: Standing,
    /// What it means here, what holds instead, or why it is refused and what to do.
    pub note: String,
    /// For a key that is refused: values that are not, besides "off".
    pub fine: Vec<String>,
}

/// Every key, then every annotation.
#[must_use]
pub fn table() -> Vec<Entry> {
    let entry = |key: &Key, table, name: String, note: String| Entry {
        table,
        name,
        dialect: key.dialect,
        standing: key.standing(),
        note,
        fine: match key.deed {
            keys::Deed::Refused(fine) => fine.iter().map(ToString::to_string).collect(),
            keys::Deed::Only(fine) => vec![fine.to_owned()],
            keys::Deed::Honoured(_) | keys::Deed::Ignored => Vec::new(),
        },
    };
    let keys_ = keys::all().filter_map(|key| {
        Some(entry(key, Some(key.scope.table()), key.name?.to_owned(), key.note.to_owned()))
    });
    let annotations = keys::all().filter_map(|key| {
        let mut note = key.note.to_owned();
        if key.scope == Scope::Hypervisor {
            note = format!("enable_annotations; {note}");
        }
        if let Some(guard) = key.annotation?.guard {
            note = format!("{}; {note}", guard.list);
        }
        Some(entry(key, None, key.annotation_name()?, note))
    });
    keys_.chain(annotations).collect()
}

/// The document.
#[must_use]
pub fn markdown() -> String {
    let entries = table();
    let mut text = INTRODUCTION.to_owned();
    for scope in Scope::TABLES {
        let _ = write!(text, "\n## `[{}]`\n\n", scope.table());
        if scope == Scope::Factory {
            text.push_str("Or `[hypervisor.*.factory]`, as the Rust runtime has it.\n\n");
        }
        rows(&mut text, entries.iter().filter(|entry| entry.table == Some(scope.table())));
    }
    text.push_str("\n## Annotations\n\n");
    text.push_str(ANNOTATIONS);
    rows(&mut text, entries.iter().filter(|entry| entry.table.is_none()));
    text.push_str(DAN);
    text
}

fn rows<'a>(text: &mut String, entries: impl Iterator<Item = &'a Entry>) {
    text.push_str("| name | dialect | here | |\n|---|---|---|---|\n");
    for entry in entries {
        let dialect = match entry.dialect {
            Dialect::Both => "",
            Dialect::RuntimeRs => "rs",
            Dialect::Go => "Go",
            Dialect::Slipway => "slipway",
        };
        let standing = match entry.standing {
            Standing::Honoured => "honoured".to_owned(),
            Standing::Ignored => "ignored".to_owned(),
            Standing::Refused if entry.fine.is_empty() => "refused".to_owned(),
            Standing::Refused => format!("refused, but `{}`", entry.fine.join("`, `")),
        };
        let note = entry.note.replace('|', "\\|");
        let _ = writeln!(text, "| `{}` | {dialect} | {standing} | {note} |", entry.name);
    }
}

const INTRODUCTION: &str = "\
# Kata's configuration in slipway

This page is printed from the table that drives the parser (`shim/config/src/keys`), and a test
compares the two: `UPDATE=1 cargo test -p kata-config --test compat` writes it anew.

**Honoured**: it has its effect. **Ignored**: it is accepted and has none; the last column says what
holds instead, and `slipwayctl env` lists those that are set. **Refused**: the pod fails with file, line
and remedy, as it would be something else than what was asked for; what says \"off\" (`false`, `0`, `\"\"`,
`[]`) is accepted. Any other key is a warning with file, line and the nearest known name.

- Files, the first that is said or there: the `ConfigPath` option of the runtime class,
  `$KATA_CONF_FILE`, `/etc/slipway/configuration.toml`, then Kata's own places, those of its Rust runtime
  (rs) first, then those of its Go runtime. Without any file the defaults hold, and a warning says so;
  they name no kernel.
- Drop-ins: `config.d/*.toml` beside the file (where a link leads to), in lexical order, each over the
  last; tables key by key, everything else as a whole.
- Both dialects are understood, in one file even. Where both have a word for one thing and both are said,
  the Rust runtime's holds.
- The hypervisor's table: the one that `[runtime] hypervisor_name` names, else `[hypervisor.qemu]`, else
  `[hypervisor.clh]` or `[hypervisor.cloud-hypervisor]`. Other VMMs are refused; their tables are not
  looked at beside one of these.
";

const ANNOTATIONS: &str = "\
`config.runtime` and `config.agent` always hold, if containerd is told to pass them
(`pod_annotations = [\"io.katacontainers.*\"]`). `config.hypervisor` needs the operator's leave: a regular
expression in `enable_annotations` that matches a part of the name, as in both of Kata's runtimes (write
`^path$` for `path` alone). Without it the pod fails, as with the Go runtime; the Rust runtime would start
it without what it asked for. Where a list is named in the last column, one of its globs has to match the
value too; `*` does not match a `/`, and a path with `..` matches nothing.

";

const DAN: &str = "
## Directly attachable networks

`DAN_CONF/SANDBOX.json` is read as it is. Devices of type `vhost-user` are honoured with
`guest_mac`, `queue_num`, `queue_size`, addresses, MTU, routes and neighbours, on every VMM. Types
`host-tap` and `vfio` are refused by name. Our own field `device.mode` says who listens on the socket:
`\"server\"`, the default and what Kata does, is the VMM; `\"client\"` is the switch.
";
