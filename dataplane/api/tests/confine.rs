//! A confined process tries what it must not: this test is its own subject, run again by itself.
#![cfg(feature = "confine")]
#![expect(unsafe_code, reason = "system calls are made as a hostile program would make them")]

use std::{env, io, net::UdpSocket, os::unix::net::UnixStream, process::Command, thread};

use slipway_api::confine::refuse_netlink;

/// Says which part the process plays; without it, it is the test.
const ROLE: &str = "SLIPWAY_CONFINE_TEST";

/// Opens a socket and closes it again.
fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<()> {
    // SAFETY: socket(2) takes three numbers.
    close(unsafe { libc::socket(family, kind, protocol) })
}

fn close(fd: i32) -> io::Result<()> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened, and nobody else knows of it.
    unsafe { libc::close(fd) };
    Ok(())
}

fn io_uring() -> io::Result<()> {
    let mut parameters = [0_u8; 120];
    // SAFETY: `struct io_uring_params` has 120 bytes, which live until the call returns.
    close(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) } as i32)
}

#[cfg(target_arch = "x86_64")]
fn socket_of_x32() -> io::Result<()> {
    let number = libc::SYS_socket | 0x4000_0000;
    // SAFETY: socket(2) takes three numbers, in this ABI too.
    close(unsafe { libc::syscall(number, libc::AF_NETLINK, libc::SOCK_RAW, 0) } as i32)
}

/// Everything that opens a netlink socket, or could.
fn attempts() -> Vec<(String, io::Result<()>)> {
    let protocols = [libc::NETLINK_ROUTE, libc::NETLINK_NETFILTER, libc::NETLINK_GENERIC];
    let kinds = [libc::SOCK_RAW, libc::SOCK_DGRAM, libc::SOCK_RAW | libc::SOCK_CLOEXEC];
    let mut results = Vec::new();
    for protocol in protocols {
        for kind in kinds {
            let name = format!("socket(AF_NETLINK, {kind:#x}, {protocol})");
            results.push((name, socket(libc::AF_NETLINK, kind, protocol)));
        }
    }
    let mut pair = [0; 2];
    // SAFETY: `pair` has room for two descriptors.
    let paired =
        unsafe { libc::socketpair(libc::AF_NETLINK, libc::SOCK_RAW, 0, pair.as_mut_ptr()) };
    results.push(("socketpair".to_owned(), close(if paired < 0 { paired } else { pair[0] })));
    // The upper half of the register is not part of the family: the kernel does not look at it.
    let wide = libc::AF_NETLINK as i64 | 1 << 32;
    // SAFETY: socket(2) takes three numbers.
    let fd = unsafe { libc::syscall(libc::SYS_socket, wide, libc::SOCK_RAW, 0) } as i32;
    results.push(("socket(AF_NETLINK | 1 << 32)".to_owned(), close(fd)));
    results.push(("io_uring_setup".to_owned(), io_uring()));
    #[cfg(target_arch = "x86_64")]
    results.push(("socket of x32".to_owned(), socket_of_x32()));
    results
}

fn assert_confined() {
    for (name, result) in attempts() {
        let error = result.expect_err(&name);
        assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{name}: {error}");
    }
    UnixStream::pair().expect("UNIX sockets work");
    UdpSocket::bind(("127.0.0.1", 0)).expect("IPv4 sockets work");
    socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).expect("UNIX sockets work");
}

fn again(role: &str, test: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("this program"));
    command.args(["--exact", test, "--nocapture"]).env(ROLE, role);
    command
}

#[test]
fn a_confined_process_opens_no_netlink_socket_and_neither_do_its_threads_and_children() {
    let name = "a_confined_process_opens_no_netlink_socket_and_neither_do_its_threads_and_children";
    match env::var(ROLE).as_deref() {
        Ok("confined") => {
            // A thread that is there before the filter is held by it as well.
            let (go, wait) = std::sync::mpsc::channel();
            let thread = thread::spawn(move || {
                wait.recv().expect("is told");
                assert_confined();
            });
            socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)
                .expect("not yet confined");
            refuse_netlink().expect("confines");
            refuse_netlink().expect("twice does no harm");
            go.send(()).expect("waits");
            thread.join().expect("the thread is confined");
            assert_confined();
            let child = again("child", name).output().expect("runs");
            assert!(child.status.success(), "{child:?}");
        }
        Ok("child") => assert_confined(),
        _ => {
            let confined = again("confined", name).output().expect("runs");
            assert!(confined.status.success(), "{confined:?}");
            let text = String::from_utf8_lossy(&confined.stdout);
            assert!(text.contains("1 passed"), "the test was found: {text}");
            socket(libc::AF_NETLINK, libc::SOCK_RAW, 0).expect("this process is as it was");
        }
    }
}

/// The way into the kernel of 32-bit programs numbers its calls otherwise: a filter that judged them
/// by 64-bit numbers would see a harmless call.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_system_calls_of_32_bit_programs_are_no_way_around_it() {
    use std::os::unix::process::ExitStatusExt;

    if env::var(ROLE).as_deref() == Ok("i386") {
        refuse_netlink().expect("confines");
        let result: i64;
        // SAFETY: socket is call 359 of i386; it takes three numbers and touches no memory. `rbx`,
        // which the compiler keeps for itself, is put back.
        unsafe {
            core::arch::asm!(
                "xchg {family:r}, rbx",
                "int 0x80",
                "xchg {family:r}, rbx",
                family = inout(reg) i64::from(libc::AF_NETLINK) => _,
                inlateout("rax") 359_i64 => result,
                in("rcx") i64::from(libc::SOCK_RAW),
                in("rdx") 0_i64,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        panic!("the call returned {result}");
    }
    let name = "the_system_calls_of_32_bit_programs_are_no_way_around_it";
    let ended = again("i386", name).output().expect("runs");
    // A kernel without 32-bit calls ends the process for the attempt itself.
    let signal = ended.status.signal();
    assert!(matches!(signal, Some(libc::SIGSYS | libc::SIGSEGV)), "{ended:?}");
}
