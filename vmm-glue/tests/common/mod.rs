//! Shared by the tests that start real processes.

use vmm_glue::qemu::Qemu;

/// The QEMU of this host. A test that needs it fails without it: skipping would prove nothing.
pub async fn qemu() -> Qemu {
    Qemu::discover().await.unwrap_or_else(|error| {
        panic!(
            "{error}\nThis test runs QEMU: apt-get install --no-install-recommends qemu-system-x86"
        )
    })
}
