//! The beginning and the end of a process without libc.
//!
//! ```text
//! kernel --> _start --> begin --> slipway_cni::run --> exit_group(2)
//! ```
//! What a C library does before `main` is left out, as nothing here needs it: there is one thread, no
//! thread-local storage, no relocation (the program is linked statically, for a fixed address), and nothing
//! depends on what the processor offers. What a compiler takes for granted (memcpy and the like) is at the end.
#![expect(unsafe_code, reason = "the kernel hands over a stack, and no library wraps it")]

use core::{
    alloc::{GlobalAlloc, Layout},
    arch::{asm, naked_asm},
    cell::UnsafeCell,
    ffi::{CStr, c_char},
    iter, ptr,
    sync::atomic::{AtomicUsize, Ordering},
};

use syscalls::{Sysno, syscall};

/// Where the kernel begins, with the stack pointer at the number of arguments (System V ABI, AMD64 supplement,
/// section 3.4.1). Leaves the frame pointer zero, as that asks for, and the stack aligned for a call.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!("xor ebp, ebp", "mov rdi, rsp", "and rsp, -16", "call {begin}", "ud2", begin = sym begin)
}

/// Runs the plugin. `stack` is what the kernel has left on it: the number of arguments, a pointer to each, null,
/// a pointer to each variable of the environment, null.
unsafe extern "C" fn begin(stack: *const usize) -> ! {
    // SAFETY: the number of arguments is where `stack` points to.
    let arguments = unsafe { *stack };
    // SAFETY: behind the number are as many pointers and a null; the variables' pointers follow.
    let mut next = unsafe { stack.add(arguments + 2) }.cast::<*const c_char>();
    let environment = iter::from_fn(|| {
        // SAFETY: `next` is at one of the variables' pointers, or at the null behind them, which it never passes.
        let variable = unsafe { *next };
        if variable.is_null() {
            return None;
        }
        // SAFETY: this one was not the null behind them.
        next = unsafe { next.add(1) };
        // SAFETY: the kernel has copied a string there, zero byte included; nobody changes it.
        Some(unsafe { CStr::from_ptr(variable) }.to_bytes())
    });
    exit(slipway_cni::run(environment, now_ms()))
}

/// Milliseconds since 1970; 0 if the kernel has no clock.
fn now_ms() -> u64 {
    const CLOCK_REALTIME: usize = 0;
    // A timespec: seconds and nanoseconds.
    let mut now = [0_i64; 2];
    // SAFETY: the kernel writes one timespec, which is as large as `now`, and keeps no pointer.
    let told = unsafe { syscall!(Sysno::clock_gettime, CLOCK_REALTIME, now.as_mut_ptr()) };
    let [seconds, nanos] = now;
    told.map_or(0, |_| seconds as u64 * 1000 + nanos as u64 / 1_000_000)
}

fn exit(code: i32) -> ! {
    loop {
        // SAFETY: it takes a number and does not return.
        let _ = unsafe { syscall!(Sysno::exit_group, code) };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    const REPLY: &[u8] =
        b"{\"cniVersion\":\"1.1.0\",\"code\":5,\"msg\":\"slipway-cni gave up: it ran out of memory, or \
          this is a mistake in it\",\"details\":\"Report it, with the configuration\"}\n";
    const STDOUT: usize = 1;
    // SAFETY: the kernel reads as many bytes as there are.
    let _ = unsafe { syscall!(Sysno::write, STDOUT, REPLY.as_ptr(), REPLY.len()) };
    exit(1)
}

/// What all allocations of the process come from, in bytes; the kernel gives pages as they are touched. A
/// configuration and an answer of the greatest length fit in, with the copies that growing vectors leave.
const ARENA_BYTES: usize = 32 << 20;

/// Memory that is given out once and never taken back: the process ends soon.
struct Arena {
    bytes: UnsafeCell<[u8; ARENA_BYTES]>,
    used: AtomicUsize,
}

// SAFETY: `used` only grows, so that each byte is given out once, whoever asks.
unsafe impl Sync for Arena {}

#[global_allocator]
static ARENA: Arena = Arena { bytes: UnsafeCell::new([0; ARENA_BYTES]), used: AtomicUsize::new(0) };

// SAFETY: blocks are aligned, lie in `bytes`, and do not overlap, as `used` grows past each of them.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let base = self.bytes.get().cast::<u8>();
        let mut at = 0;
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            at = (base as usize + used).next_multiple_of(layout.align()) - base as usize;
            at.checked_add(layout.size()).filter(|end| *end <= ARENA_BYTES)
        });
        match taken {
            // SAFETY: `at` and the block behind it are within `bytes`.
            Ok(_) => unsafe { base.add(at) },
            Err(_) => ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

/// Copies `count` bytes; forwards, as the direction flag is clear between functions.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise: both have `count` bytes.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
             options(nostack, preserves_flags));
    }
    to
}

/// Copies `count` bytes which may overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: the caller's promise; no byte is overwritten before it is read.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: the caller's promise; from the last byte on, and the direction flag is cleared again.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") count => _,
             inout("rdi") to.wrapping_add(count).wrapping_sub(1) => _,
             inout("rsi") from.wrapping_add(count).wrapping_sub(1) => _, options(nostack));
    }
    to
}

/// Sets `count` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise: there are `count` bytes.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") byte as u8,
             options(nostack, preserves_flags));
    }
    to
}

/// Compares `count` bytes. The reads are volatile, so that the compiler sees no memcmp in it.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    // SAFETY: the caller's promise: both have `count` bytes.
    let read = |bytes: *const u8, at| unsafe { bytes.wrapping_add(at).read_volatile() };
    for at in 0..count {
        let (a, b) = (read(a, at), read(b, at));
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// Whether `count` bytes differ.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    // SAFETY: the caller's promise is the same.
    unsafe { memcmp(a, b, count) }
}

/// Bytes before the first zero.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: the caller's promise: there is a zero byte, and this goes no further.
    while unsafe { text.wrapping_add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}
