//! What README.md says about files, commands and messages is so.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).unwrap()
}

/// The lines from the heading on to the next one.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let start = text.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no '{heading}'"));
    let rest = &text[start + heading.len() + 2..];
    &rest[..rest.find("\n#").unwrap_or(rest.len())]
}

/// All Rust source below `folder`; texts that are broken over lines are put together.
fn sources(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let mut lines = text.split("\\\n");
            into.push_str(lines.next().unwrap());
            for line in lines {
                into.push_str(line.trim_start());
            }
        }
    }
}

#[test]
fn the_messages_of_the_troubleshooting_table_are_ours_word_for_word() {
    let mut code = String::new();
    for folder in ["shim/src", "dataplane/src", "dataplane/ctl/src", "vmm-glue/src"] {
        sources(&root().join(folder), &mut code);
    }
    let text = readme();
    let rows = section(&text, "### When a pod does not start").lines();
    let rows = rows.filter(|line| line.starts_with("| `") && !line.contains("(containerd's)"));
    let messages: Vec<_> = rows.map(|line| line.split('`').nth(1).unwrap()).collect();
    assert!(messages.len() > 5, "{messages:?}");
    for message in messages {
        assert!(code.contains(message), "nobody says '{message}'");
    }
}

#[test]
fn the_files_that_it_names_exist() {
    let text = readme();
    let mut named = BTreeSet::<PathBuf>::new();
    for link in text.split("](").skip(1) {
        named.insert(root().join(link.split(')').next().unwrap()));
    }
    for example in text.split("/usr/share/slipway/examples/").skip(1) {
        let end = example.find(|c: char| !c.is_ascii_alphanumeric() && !"-._".contains(c));
        named.insert(root().join("configs").join(&example[..end.unwrap_or(example.len())]));
    }
    assert!(named.len() > 4, "{named:?}");
    for file in named {
        assert!(file.exists(), "{}", file.display());
    }
}

#[test]
fn the_commands_that_it_names_are_commands() {
    let text = readme();
    let commands: BTreeSet<_> = text
        .split("cargo xtask ")
        .skip(1)
        .filter_map(|rest| rest.split(|c: char| !c.is_ascii_lowercase()).next())
        .collect();
    assert!(commands.contains("install") && commands.contains("deb"), "{commands:?}");
    for command in commands {
        let help = Command::new(env!("CARGO_BIN_EXE_xtask")).args([command, "--help"]).output();
        assert!(help.unwrap().status.success(), "cargo xtask {command}");
    }
}
