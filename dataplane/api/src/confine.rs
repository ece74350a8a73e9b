//! No netlink: the promise that nothing on a pod's way configures the host's network, enforced.
//!
//! ```text
//! refuse_netlink() --> every thread, every child from now on:
//!     socket(AF_NETLINK, ..), socketpair(AF_NETLINK, ..)    EPERM
//!     io_uring_setup(..)                                    EPERM: a ring opens sockets unseen
//!     any call of another ABI (i386, x32)                   killed, or EPERM
//! ```
//! The kernel judges each call by a seccomp filter (seccomp(2)). A filter is never taken off, and a
//! program that is executed keeps it: what a confined process starts is confined too.
//!
//! # Bounds
//! Sockets that were opened before, or come from another process, are not touched. A network device
//! can still be changed by ioctl by who has the right to.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// Set in the number of a system call of the x32 ABI, which the kernel counts as x86-64.
const X32: i64 = 0x4000_0000;

/// Why this process cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// There is no filter for this machine, or it cannot be built.
    #[error("Failed to build a seccomp filter for this machine: {0}")]
    Build(BackendError),
    /// The kernel did not take it.
    #[error("The kernel did not take the seccomp filter: {0}; it needs CONFIG_SECCOMP_FILTER")]
    Install(seccompiler::Error),
}

/// From now on no thread of this process, and no program it starts, opens a netlink socket.
///
/// Call it before a second thread does anything that matters, and after the last netlink socket that
/// is needed was opened. Sets `no_new_privs` (prctl(2)): set-user-id programs gain nothing any more.
///
/// # Errors
/// [`ConfineError`]; nothing is confined then.
pub fn refuse_netlink() -> Result<(), ConfineError> {
    let program = filter(std::env::consts::ARCH).map_err(ConfineError::Build)?;
    seccompiler::apply_filter_all_threads(&program).map_err(ConfineError::Install)
}

/// The filter for machines of `arch` (`x86_64`, `aarch64`, `riscv64`), for who hands it to the kernel itself.
///
/// # Errors
/// There is none for such machines.
pub fn filter(arch: &str) -> Result<BpfProgram, BackendError> {
    let arch = TargetArch::try_from(arch)?;
    let is_netlink = || {
        // The kernel takes the family as an int: the upper half of the register does not count.
        let family = libc::AF_NETLINK as u64;
        let first = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, family)?;
        Ok(vec![SeccompRule::new(vec![first])?])
    };
    let calls = [libc::SYS_socket, libc::SYS_socketpair, libc::SYS_io_uring_setup];
    let mut rules = BTreeMap::from([
        (libc::SYS_socket, is_netlink()?),
        (libc::SYS_socketpair, is_netlink()?),
        (libc::SYS_io_uring_setup, Vec::new()),
    ]);
    if arch == TargetArch::x86_64 {
        rules.extend(calls.map(|call| (call | X32, Vec::new())));
    }
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?.try_into()
}
