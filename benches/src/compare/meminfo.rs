//! How much memory is in use, by the kernel's account (proc(5), meminfo).

use std::fs;

use anyhow::{Context as _, Result};

/// At one moment, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// The kernel's own objects.
    pub slab_kib: i64,
    /// Everything but what is free or page cache. Shared memory counts as page cache there, so that
    /// guests' memory, which is not the network's, is left out.
    pub used_kib: i64,
}

impl Memory {
    /// Now.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn now() -> Result<Self> {
        let path = "/proc/meminfo";
        let text = fs::read_to_string(path).with_context(|| format!("Failed to read {path}"))?;
        Self::of(&text).with_context(|| format!("{path} is not as proc(5) has it:\n{text}"))
    }

    fn of(text: &str) -> Option<Self> {
        let kib = |name: &str| -> Option<i64> {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            value.trim().strip_suffix(" kB")?.parse().ok()
        };
        let unused = kib("MemFree")? + kib("Buffers")? + kib("Cached")?;
        Some(Self { slab_kib: kib("Slab")?, used_kib: kib("MemTotal")? - unused })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_free_nor_cached_is_used() {
        let text = "MemTotal:  1000 kB\nMemFree: 300 kB\nMemAvailable: 900 kB\nBuffers: 50 kB\n\
                    Cached: 250 kB\nSwapCached: 7 kB\nSlab: 120 kB\n";
        let memory = Memory::of(text).unwrap();
        assert_eq!(memory, Memory { slab_kib: 120, used_kib: 400 });
        assert_eq!(Memory::of("MemTotal: 1000 kB\n"), None);
        assert!(Memory::now().unwrap().slab_kib > 0);
    }
}
