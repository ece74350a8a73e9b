//! What a comparison as a whole needs, and what it may leave behind: nothing.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// The slipwayd that `SLIPWAYD` names, or the one beside the program under test.
pub fn slipwayd(bench: &Path) -> PathBuf {
    let program = env::var_os("SLIPWAYD").map(PathBuf::from);
    let program = program.unwrap_or_else(|| bench.with_file_name("slipwayd"));
    assert!(
        program.exists(),
        "there is no {}; run: cargo build -p dataplane --bin slipwayd",
        program.display()
    );
    program
}

/// Command lines of processes that name `folder`.
pub fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.to_string_lossy();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(&*folder)).collect()
}

/// How many hugepages the machine has.
pub fn hugepages() -> String {
    fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages").unwrap()
}

/// Neither a process nor a file of a run with `temporary` as its folder is left, nor a hugepage that it
/// took from the machine, which had as many as in `before`.
pub fn assert_nothing_is_left(temporary: &Path, before: &str) {
    assert_eq!(processes_of(temporary), Vec::<String>::new());
    assert_eq!(hugepages(), before);
    let left: Vec<_> = fs::read_dir(temporary).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
