//! Files that the host copies into the guest, when it shares no file system with it.
//!
//! A file comes in pieces, is gathered beside its place and put there once it is whole: who reads
//! it sees the old one or the new one. Only the folder for shared files takes any.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use kata_agent_protocol::agent::CopyFileRequest;
use nix::libc;

use super::paths;

/// Takes one piece.
pub fn copy(request: &CopyFileRequest) -> Result<()> {
    copy_below(Path::new(paths::SHARED), request)
}

fn copy_below(shared: &Path, request: &CopyFileRequest) -> Result<()> {
    let path = checked(shared, &request.path)?;
    let failed = || format!("Failed to copy to {}", path.display());
    if let Some(folder) = path.parent() {
        make_folders(folder, request.dir_mode).with_context(failed)?;
    }
    match request.file_mode & libc::S_IFMT {
        libc::S_IFDIR => {
            fs::create_dir_all(&path).with_context(failed)?;
            finish(&path, request).with_context(failed)
        }
        libc::S_IFLNK => {
            let target = PathBuf::from(std::ffi::OsString::from_vec(request.data.clone()));
            let fresh = beside(&path);
            remove(&fresh).with_context(failed)?;
            symlink(target, &fresh).with_context(failed)?;
            lchown(&fresh, id(request.uid), id(request.gid)).with_context(failed)?;
            fs::rename(&fresh, &path).with_context(failed)
        }
        _ => take_piece(&path, request).with_context(failed),
    }
}

fn take_piece(path: &Path, request: &CopyFileRequest) -> Result<()> {
    let (Ok(offset), Ok(size)) = (u64::try_from(request.offset), u64::try_from(request.file_size))
    else {
        bail!("offset {} and size {} must not be negative", request.offset, request.file_size);
    };
    let end = offset.checked_add(request.data.len() as u64).filter(|end| *end <= size);
    let Some(end) = end else {
        bail!("{} bytes at {offset} go beyond the file's {size}", request.data.len());
    };
    let fresh = beside(path);
    let file = if offset == 0 {
        // What an earlier attempt left.
        remove(&fresh)?;
        File::create_new(&fresh)?
    } else {
        OpenOptions::new().write(true).open(&fresh)?
    };
    file.write_all_at(&request.data, offset)?;
    // Pieces come in their order.
    if end == size {
        finish(&fresh, request)?;
        fs::rename(&fresh, path)?;
    }
    Ok(())
}

fn finish(path: &Path, request: &CopyFileRequest) -> Result<()> {
    lchown(path, id(request.uid), id(request.gid))?;
    fs::set_permissions(path, Permissions::from_mode(request.file_mode & 0o7777))?;
    Ok(())
}

/// A negative number leaves the owner as it is.
fn id(number: i32) -> Option<u32> {
    u32::try_from(number).ok()
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    path.with_file_name(name)
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// Makes the folders that are not there.
fn make_folders(folder: &Path, mode: u32) -> std::io::Result<()> {
    if folder.exists() {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        make_folders(above, mode)?;
    }
    fs::create_dir(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(mode & 0o7777))
}

/// The path, if it is below the folder for shared files by all its parts, links included.
fn checked(shared: &Path, path: &str) -> Result<PathBuf> {
    let outside = || format!("The path '{path}' is not below {}", shared.display());
    let given = Path::new(path);
    let is_plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    if given == shared || !given.starts_with(shared) || !given.components().all(is_plain) {
        bail!(outside());
    }
    // The nearest folder that is there must not lead elsewhere by a link.
    let there = given.ancestors().skip(1).find(|folder| folder.exists());
    let there = there.with_context(outside)?.canonicalize().with_context(outside)?;
    if !there.starts_with(shared.canonicalize()?) && !shared.starts_with(&there) {
        bail!(outside());
    }
    Ok(given.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn request(path: &Path, mode: u32) -> CopyFileRequest {
        CopyFileRequest {
            path: path.to_str().unwrap().to_owned(),
            file_mode: mode,
            dir_mode: 0o750,
            uid: -1,
            gid: -1,
            ..Default::default()
        }
    }

    #[test]
    fn a_file_appears_when_its_last_piece_has_come() {
        let shared = tempfile::tempdir().unwrap();
        let path = shared.path().join("c1/etc/hosts");
        let mut piece = request(&path, libc::S_IFREG | 0o640);
        (piece.file_size, piece.data) = (8, b"half".to_vec());
        copy_below(shared.path(), &piece).unwrap();
        assert!(!path.exists());
        (piece.offset, piece.data) = (4, b"rest".to_vec());
        copy_below(shared.path(), &piece).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"halfrest");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o7777, 0o750);
    }

    #[test]
    fn an_empty_file_and_a_second_version_are_whole_at_once() {
        let shared = tempfile::tempdir().unwrap();
        let path = shared.path().join("file");
        copy_below(shared.path(), &request(&path, 0o600)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        let mut again = request(&path, 0o600);
        (again.file_size, again.data) = (3, b"new".to_vec());
        copy_below(shared.path(), &again).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn links_replace_what_was_there_and_folders_get_their_mode() {
        let shared = tempfile::tempdir().unwrap();
        let (link, folder) = (shared.path().join("link"), shared.path().join("folder"));
        fs::write(&link, "a file").unwrap();
        let mut wanted = request(&link, libc::S_IFLNK | 0o777);
        wanted.data = b"..data/key".to_vec();
        copy_below(shared.path(), &wanted).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("..data/key"));
        copy_below(shared.path(), &request(&folder, libc::S_IFDIR | 0o711)).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o7777, 0o711);
    }

    #[test]
    fn nothing_is_written_outside_the_shared_folder() {
        let (shared, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(other.path(), shared.path().join("out")).unwrap();
        for path in [
            other.path().join("x"),
            shared.path().join("../x"),
            shared.path().join("out/x"),
            shared.path().to_owned(),
        ] {
            let error = copy_below(shared.path(), &request(&path, 0o600)).unwrap_err();
            assert!(error.to_string().contains("is not below"), "{error:#}");
        }
        assert!(fs::read_dir(other.path()).unwrap().next().is_none());
    }

    #[test]
    fn a_piece_beyond_the_files_size_is_refused() {
        let shared = tempfile::tempdir().unwrap();
        let mut piece = request(&shared.path().join("file"), 0o600);
        (piece.file_size, piece.offset, piece.data) = (3, i64::MAX, b"new".to_vec());
        assert!(copy_below(shared.path(), &piece).is_err());
        piece.offset = -1;
        assert!(copy_below(shared.path(), &piece).is_err());
    }
}
