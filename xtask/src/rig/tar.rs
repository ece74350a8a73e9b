//! Writes tar archives (POSIX.1-2001, the `ustar` format), for image layers and images.
//!
//! The same entries make the same bytes: all are owned by root and dated to the epoch.

const BLOCK: usize = 512;
/// The longest name that fits into the header's first field.
const NAME: usize = 100;

/// An archive in the making. Entries stand in the order they are added in.
#[derive(Debug, Default)]
pub struct Archive(Vec<u8>);

impl Archive {
    /// Adds a directory.
    pub fn directory(&mut self, name: &str, permissions: u32) {
        self.header(&format!("{name}/"), permissions, b'5', 0, "");
    }

    /// Adds a file.
    pub fn file(&mut self, name: &str, permissions: u32, contents: &[u8]) {
        self.header(name, permissions, b'0', contents.len(), "");
        self.0.extend(contents);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, name: &str, target: &str) {
        self.header(name, 0o777, b'2', 0, target);
    }

    /// The archive's bytes, two empty blocks last.
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }

    fn header(&mut self, name: &str, permissions: u32, kind: u8, size: usize, target: &str) {
        assert!(name.len() < NAME && target.len() < NAME, "{name} -> {target}: too long for ustar");
        let mut header = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, format!("{permissions:07o}").as_bytes());
        put(108, b"0000000");
        put(116, b"0000000");
        put(124, format!("{size:011o}").as_bytes());
        put(136, b"00000000000");
        // The sum is taken with blanks in its own place.
        put(148, b"        ");
        put(156, &[kind]);
        put(157, target.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(header);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    #[test]
    fn tar_unpacks_what_was_packed() {
        let mut archive = Archive::default();
        archive.directory("bin", 0o755);
        archive.file("bin/tool", 0o750, &[7; 700]);
        archive.link("bin/other", "tool");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.tar");
        fs::write(&file, archive.into_bytes()).unwrap();
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(folder.path()).arg("-xpf").arg(&file);
        let output = tar.output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let tool = folder.path().join("bin/tool");
        assert_eq!(fs::read(&tool).unwrap(), [7; 700]);
        assert_eq!(tool.metadata().unwrap().permissions().mode() & 0o777, 0o750);
        assert_eq!(folder.path().join("bin/other").read_link().unwrap(), Path::new("tool"));
    }
}
