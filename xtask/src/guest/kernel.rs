//! Takes the ELF kernel out of a bzImage.
//!
//! QEMU boots an ELF kernel with a PVH note without real mode and without the kernel's own
//! decompressor, which would be emulated. Debian compresses with LZ4 in the legacy framing
//! (lz4's doc/lz4_Frame_format.md): a magic number, then blocks of at most 8 MiB, each after its
//! compressed size.

use anyhow::{Context as _, Result, bail, ensure};

const LZ4_LEGACY: [u8; 4] = 0x184c_2102_u32.to_le_bytes();
/// What one block decompresses to at most, in bytes.
const BLOCK: usize = 8 << 20;
/// More than any kernel decompresses to, in bytes.
const LARGEST_KERNEL: usize = 256 << 20;

/// The `vmlinux` in `image`, found by the boot protocol's header (the kernel's
/// Documentation/arch/x86/boot.rst).
///
/// # Errors
/// No bzImage, another compression than LZ4, or no ELF file in it.
pub fn vmlinux(image: &[u8]) -> Result<Vec<u8>> {
    ensure!(image.get(0x202..0x206) == Some(b"HdrS"), "The kernel image is no bzImage");
    let setup_sectors = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let payload_offset = word(image, 0x248)?;
    let payload_length = word(image, 0x24c)?;
    let start = (setup_sectors + 1) * 512 + payload_offset;
    let payload = image.get(start..).and_then(|rest| rest.get(..payload_length));
    // The last word is the decompressed size, for the kernel's own use.
    let payload = payload.and_then(|payload| payload.split_last_chunk::<4>());
    let (compressed, _) = payload.context("The kernel image is shorter than its header says")?;
    let kernel = unpack(compressed)?;
    ensure!(kernel.starts_with(b"\x7fELF"), "The kernel image holds no ELF file");
    Ok(kernel)
}

fn word(image: &[u8], at: usize) -> Result<usize> {
    let bytes = image.get(at..).and_then(|rest| rest.first_chunk());
    Ok(u32::from_le_bytes(*bytes.context("The kernel image ends within its header")?) as usize)
}

fn unpack(compressed: &[u8]) -> Result<Vec<u8>> {
    let Some(mut rest) = compressed.strip_prefix(&LZ4_LEGACY) else {
        let magic = compressed.get(..4).unwrap_or(compressed);
        bail!("The kernel is not compressed with LZ4: it begins with {magic:02x?}");
    };
    let mut kernel = Vec::new();
    while !rest.is_empty() {
        let length = word(rest, 0)?;
        let block = rest[4..].get(..length).context("A block of the kernel is cut short")?;
        let block = lz4_flex::block::decompress(block, BLOCK)
            .context("A block of the kernel does not decompress")?;
        kernel.extend(block);
        ensure!(kernel.len() <= LARGEST_KERNEL, "The kernel decompresses without end");
        rest = &rest[4 + length..];
    }
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stored form of LZ4: a token for literals alone, without a match.
    fn stored(bytes: &[u8]) -> Vec<u8> {
        assert!(bytes.len() < 15);
        [&[(bytes.len() as u8) << 4], bytes].concat()
    }

    fn framed(blocks: &[&[u8]]) -> Vec<u8> {
        let mut frame = LZ4_LEGACY.to_vec();
        for block in blocks {
            let block = stored(block);
            frame.extend((block.len() as u32).to_le_bytes());
            frame.extend(block);
        }
        frame
    }

    fn image_with(frame: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        let length = frame.len() as u32 + 4;
        image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        image.extend(frame);
        image.extend([0; 4]);
        image
    }

    #[test]
    fn the_blocks_are_put_together() {
        let image = image_with(&framed(&[b"\x7fELF", b" and", b" more"]));
        assert_eq!(vmlinux(&image).unwrap(), b"\x7fELF and more");
    }

    #[test]
    fn another_compression_is_refused_by_its_magic() {
        let error = vmlinux(&image_with(b"\x28\xb5\x2f\xfd...")).unwrap_err();
        assert!(error.to_string().contains("28, b5, 2f, fd"), "{error}");
    }

    #[test]
    fn a_payload_that_is_no_elf_file_is_refused() {
        assert!(vmlinux(&image_with(&framed(&[b"data"]))).is_err());
    }

    #[test]
    fn an_image_cut_short_anywhere_is_refused() {
        let image = image_with(&framed(&[b"\x7fELF"]));
        for length in 0..image.len() {
            assert!(vmlinux(&image[..length]).is_err(), "{length} bytes");
        }
    }
}
