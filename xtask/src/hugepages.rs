//! Hugepages that a program of ours asked for are given back, however it ended.
//!
//! A program gives back itself what it took, and by a panic as well; but one that does not end in time
//! after an interrupt is killed, and then they would stay taken. So we note how many there were
//! before it started, and have the kernel take back what is more afterwards.

use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context as _, Result};

/// How many there are, of 2 MiB.
const TOTAL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// How many there were. Dropping it sees to it that there are no more.
#[derive(Debug)]
pub struct Hugepages {
    file: PathBuf,
    before: u64,
}

impl Hugepages {
    /// Notes how many there are.
    ///
    /// # Errors
    /// This kernel has none.
    pub fn note() -> Result<Self> {
        Self::of(TOTAL.as_ref())
    }

    fn of(file: &Path) -> Result<Self> {
        let before = read(file).with_context(|| {
            format!("Failed to read {}: a kernel with hugepages of 2 MiB is needed", file.display())
        })?;
        Ok(Self { file: file.to_owned(), before })
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        let Self { file, before } = self;
        match read(file) {
            Ok(now) if now > *before => {
                // Those that a dying process still holds go as soon as it lets go.
                let given = fs::write(&*file, before.to_string());
                match given {
                    Ok(()) => eprintln!("Gave back {} hugepages", now - *before),
                    Err(error) => eprintln!(
                        "Failed to give hugepages back: {error}; write {before} to {}",
                        file.display()
                    ),
                }
            }
            Ok(_) => {}
            Err(error) => eprintln!("Failed to read {}: {error}", file.display()),
        }
    }
}

fn read(file: &Path) -> io::Result<u64> {
    fs::read_to_string(file)?.trim().parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_meanwhile_is_given_back_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("nr_hugepages");
        for (before, during, after) in [("3\n", "643", "3"), ("3\n", "3\n", "3\n"), ("9", "5", "5")]
        {
            fs::write(&file, before).unwrap();
            let noted = Hugepages::of(&file).unwrap();
            fs::write(&file, during).unwrap();
            drop(noted);
            assert_eq!(fs::read_to_string(&file).unwrap(), after);
        }
    }

    #[test]
    fn a_kernel_without_them_is_told() {
        let error = Hugepages::of(Path::new("/nowhere/nr_hugepages")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/nr_hugepages"), "{error}");
    }
}
