//! What the guest tells about itself, read from `/proc` and `/sys`.

use std::fs;
use std::io;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use nix::sys::utsname::uname;
use slipway_agent::protocol::{Info, Nic, Ready, Refusal, RefusalCode};

/// The guest's only NIC. Nothing in the image renames interfaces, so the first has this name.
pub const NIC: &str = "eth0";

/// Names of the feature bits of a virtio NIC that are offloads (virtio 1.3, 5.1.3).
const OFFLOADS: [(usize, &str); 14] = [
    (0, "csum"),
    (1, "guest_csum"),
    (7, "guest_tso4"),
    (8, "guest_tso6"),
    (9, "guest_ecn"),
    (10, "guest_ufo"),
    (11, "host_tso4"),
    (12, "host_tso6"),
    (13, "host_ecn"),
    (14, "host_ufo"),
    (15, "mrg_rxbuf"),
    (54, "guest_uso4"),
    (55, "guest_uso6"),
    (56, "host_uso"),
];

/// Whether the guest has its NIC.
pub fn has_nic() -> bool {
    fs::exists(format!("/sys/class/net/{NIC}")).unwrap_or(false)
}

/// The kernel's random name of this boot.
pub fn boot_id() -> Result<String> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let id = fs::read_to_string(PATH).with_context(|| format!("Failed to read {PATH}"))?;
    Ok(id.trim_end().to_owned())
}

/// Answers [`slipway_agent::protocol::Call::Info`].
pub fn info(ready: &Ready, ip: Option<(Ipv4Addr, u8)>) -> Result<Info, Refusal> {
    let kernel = uname().map_err(io::Error::from).map_err(|error| failed(&error))?;
    let nic = if has_nic() { Some(nic(ip).map_err(|error| failed(&error))?) } else { None };
    Ok(Info {
        boot_id: ready.boot_id.clone(),
        ready_ms: ready.ready_ms,
        kernel: kernel.release().to_string_lossy().into_owned(),
        nic,
    })
}

fn failed(error: &io::Error) -> Refusal {
    Refusal::new(RefusalCode::Failed, format!("Failed to describe the guest: {error}"))
}

fn nic(ip: Option<(Ipv4Addr, u8)>) -> io::Result<Nic> {
    let read = |name: &str| -> io::Result<String> {
        let path = format!("/sys/class/net/{NIC}/{name}");
        let text = fs::read_to_string(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
        Ok(text.trim_end().to_owned())
    };
    let number = |name: &str| {
        let text = read(name)?;
        text.parse().map_err(|_| io::Error::other(format!("{name} is '{text}', no number")))
    };
    let (virtio_features, offloads) = features(&read("device/features")?);
    Ok(Nic {
        name: NIC.to_owned(),
        mac: read("address")?,
        mtu: u32::try_from(number("mtu")?).map_err(io::Error::other)?,
        carrier: read("carrier")? == "1",
        ip: ip.map(|(address, prefix)| format!("{address}/{prefix}")),
        virtio_features,
        offloads,
        received_frames: number("statistics/rx_packets")?,
        sent_frames: number("statistics/tx_packets")?,
    })
}

/// Reads a virtio device's `features` attribute: one digit per bit, bit 0 first.
fn features(attribute: &str) -> (String, Vec<String>) {
    let is_set = |bit: usize| attribute.as_bytes().get(bit) == Some(&b'1');
    let bits = (0..64).filter(|&bit| is_set(bit)).fold(0u64, |bits, bit| bits | 1 << bit);
    let names = OFFLOADS.iter().filter(|&&(bit, _)| is_set(bit)).map(|&(_, name)| name.to_owned());
    (format!("{bits:016x}"), names.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feature_digits_begin_with_bit_zero() {
        let mut digits = ['0'; 64];
        for bit in [0, 11, 32] {
            digits[bit] = '1';
        }
        let (bits, names) = features(&digits.iter().collect::<String>());
        assert_eq!(bits, "0000000100000801");
        assert_eq!(names, ["csum", "host_tso4"]);
    }

    #[test]
    fn a_short_attribute_has_no_further_bits() {
        assert_eq!(features("1"), ("0000000000000001".to_owned(), vec!["csum".to_owned()]));
    }
}
