//! No netlink from the first moment on: the filter of `slipway_api::confine`, translated when this was built.
#![expect(unsafe_code, reason = "no safe wrapper hands the kernel a filter")]

use rustix::thread::set_no_new_privs;
use syscalls::{Sysno, syscall};

/// What seccomp(2) is asked for.
const SET_MODE_FILTER: usize = 1;

/// One instruction of a filter: `struct sock_filter` of linux/filter.h.
#[repr(C)]
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    k: u32,
}

/// `struct sock_fprog` of linux/filter.h.
#[repr(C)]
struct Program {
    length: u16,
    instructions: *const Instruction,
}

/// Each as code, jumps and constant.
const FILTER: &[(u16, u8, u8, u32)] = include!(concat!(env!("OUT_DIR"), "/filter.rs"));

static INSTRUCTIONS: [Instruction; FILTER.len()] = {
    let mut all =
        [const { Instruction { code: 0, jump_true: 0, jump_false: 0, k: 0 } }; FILTER.len()];
    let mut at = 0;
    while at < FILTER.len() {
        let (code, jump_true, jump_false, k) = FILTER[at];
        all[at] = Instruction { code, jump_true, jump_false, k };
        at += 1;
    }
    all
};

/// From now on this process opens no netlink socket.
///
/// # Errors
/// The number of the kernel's error.
pub fn refuse_netlink() -> Result<(), i32> {
    set_no_new_privs(true).map_err(rustix::io::Errno::raw_os_error)?;
    let length = INSTRUCTIONS.len() as u16;
    let program = Program { length, instructions: INSTRUCTIONS.as_ptr() };
    // SAFETY: `program` is a sock_fprog that tells of as many instructions as there are; the kernel copies all
    // of it before the call returns, and writes nowhere.
    let set = unsafe { syscall!(Sysno::seccomp, SET_MODE_FILTER, 0, &raw const program) };
    set.map(drop).map_err(syscalls::Errno::into_raw)
}
