//! Writes the initrd: a cpio archive in the "newc" format (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst), uncompressed.
//!
//! The same files make the same bytes: entries are sorted by name, owned by root, dated to the
//! epoch and numbered in order.

use std::collections::BTreeMap;

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Archive(BTreeMap<String, Entry>);

#[derive(Debug)]
struct Entry {
    mode: u32,
    contents: Vec<u8>,
}

impl Archive {
    /// Adds a directory. `name` is its path without a leading slash.
    pub fn directory(&mut self, name: &str) {
        self.0.insert(name.to_owned(), Entry { mode: DIRECTORY | 0o755, contents: Vec::new() });
    }

    /// Adds a file with its permissions. Its directory must be added too.
    pub fn file(&mut self, name: &str, permissions: u32, contents: Vec<u8>) {
        self.0.insert(name.to_owned(), Entry { mode: FILE | permissions, contents });
    }

    /// The archive's bytes. A directory's name sorts before the names in it, as the kernel needs.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (inode, (name, entry)) in (1..).zip(&self.0) {
            write_entry(&mut bytes, inode, name, entry.mode, &entry.contents);
        }
        write_entry(&mut bytes, 0, "TRAILER!!!", 0, &[]);
        bytes
    }
}

/// Writes the header, thirteen numbers of eight hexadecimal digits after the magic, then name
/// and contents, each padded to four bytes.
fn write_entry(bytes: &mut Vec<u8>, inode: u32, name: &str, mode: u32, contents: &[u8]) {
    let links = if mode & DIRECTORY == 0 { 1 } else { 2 };
    let size = u32::try_from(contents.len()).expect("no file of the image comes near 4 GiB");
    let name_size = name.len() as u32 + 1;
    let (owner, group, time, device, checksum) = (0, 0, 0, 0, 0);
    bytes.extend(b"070701");
    for number in [
        inode, mode, owner, group, links, time, size, device, device, device, device, name_size,
        checksum,
    ] {
        bytes.extend(format!("{number:08X}").bytes());
    }
    bytes.extend(name.as_bytes());
    bytes.push(0);
    pad(bytes);
    bytes.extend(contents);
    pad(bytes);
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive_of(names: &[&str]) -> Archive {
        let mut archive = Archive::default();
        archive.directory("dev");
        for name in names {
            archive.file(name, 0o755, name.as_bytes().to_vec());
        }
        archive
    }

    #[test]
    fn an_entry_is_header_name_and_contents_each_padded_to_four_bytes() {
        let mut bytes = Vec::new();
        write_entry(&mut bytes, 7, "init", FILE | 0o755, b"hello");
        let header = "070701\
            00000007000081ED000000000000000000000001000000000000000500000000\
            0000000000000000000000000000000500000000";
        let expected = [header.as_bytes(), b"init\0\0", b"hello\0\0\0"].concat();
        assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(&expected));
        assert_eq!(header.len(), 110);
    }

    #[test]
    fn the_order_of_adding_does_not_change_the_bytes() {
        let (one, other) = (archive_of(&["dev/a", "init"]), archive_of(&["init", "dev/a"]));
        assert_eq!(one.to_bytes(), other.to_bytes());
    }

    #[test]
    fn an_archive_ends_with_the_trailer_and_whole_words() {
        let bytes = archive_of(&["init"]).to_bytes();
        assert!(bytes.len().is_multiple_of(4));
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0"), "{:?}", bytes.last_chunk::<16>());
    }

    #[test]
    fn a_directory_comes_before_what_is_in_it() {
        let text = String::from_utf8(archive_of(&["dev/a", "dev-b"]).to_bytes()).unwrap();
        assert!(text.find("dev\0").unwrap() < text.find("dev/a").unwrap());
    }
}
