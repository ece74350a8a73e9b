//! `cargo xtask demo` as a user runs it: it shows what it promises, and leaves nothing, however it
//! ends.

use std::ffi::OsStr;
use std::path::Path;

use nix::sys::signal::Signal;
use tokio::process::Command;
use whole::Ended;
use xtask::rig::{program, slipway_programs};

mod whole;

/// Runs the demo. Whatever becomes of it, nothing may be left.
async fn demo(arguments: &[&OsStr], signal: Option<(&str, Signal)>) -> Ended {
    demo_by(&mut Command::new(env!("CARGO_BIN_EXE_xtask")), arguments, signal).await
}

/// [`demo`] by a command that may have an environment of its own.
async fn demo_by(
    command: &mut Command,
    arguments: &[&OsStr],
    signal: Option<(&str, Signal)>,
) -> Ended {
    whole::run(command.args(["demo", "--accel", "tcg"]).args(arguments), signal).await
}

/// Of the demo with bare VMs.
fn arguments<'a>(slipwayd: &'a Path, bytes: &'a str) -> [&'a OsStr; 5] {
    let [vms, slipwayd_is, bytes_are] = ["--vms", "--slipwayd", "--bytes"].map(OsStr::new);
    [vms, slipwayd_is, slipwayd.as_os_str(), bytes_are, OsStr::new(bytes)]
}

#[tokio::test]
async fn the_demo_shows_what_it_promises() {
    let slipwayd = program().unwrap();
    let Ended { status, stdout, stderr } = demo(&arguments(&slipwayd, "100M"), None).await;
    assert!(status.success(), "{stdout}{stderr}");
    for text in [
        "Left behind: no processes, sockets, files",
        "port     frames in      bytes in  frames out     bytes out  drops",
        "\nvm1 ",
        "\nvm2 ",
        "Round trip vm1 -> vm2",
        "Round trip vm2 -> vm1",
        "20 of 20 answered",
        "100.0 MB in",
        "at both ends",
        "First ping",
        "rtnetlink messages",
    ] {
        assert!(stdout.contains(text), "'{text}' is missing:\n{stdout}");
    }
    let netlink = stdout.lines().find(|line| line.starts_with("rtnetlink messages")).unwrap();
    let (_, value) = netlink.split_at("rtnetlink messages".len());
    let value = value.trim_start();
    assert!(value.starts_with("0 by ") || value.starts_with("not measured: "), "{netlink}");
}

#[tokio::test]
async fn an_interrupt_at_any_step_ends_all_and_leaves_nothing() {
    let slipwayd = program().unwrap();
    let steps = [
        "Debian packages",
        "Guest image",
        "Acceleration",
        "] slipwayd",
        "Two guests",
        "vm1 is up",
        "First ping",
        "TCP stream",
        "The end of",
    ];
    for (step, signal) in steps.into_iter().zip([Signal::SIGINT, Signal::SIGTERM].iter().cycle()) {
        // A stream that would take long, so that it is the signal that ends it.
        let bytes = if step == "The end of" { "1M" } else { "60G" };
        let ended = demo(&arguments(&slipwayd, bytes), Some((step, *signal))).await;
        let Ended { status, stdout, stderr } = ended;
        assert_eq!(status.code(), Some(130), "{step}: {stdout}{stderr}");
        assert!(stderr.contains("Interrupted"), "{step}: {stderr}");
    }
}

#[tokio::test]
async fn a_build_that_is_interrupted_ends_with_its_compilers() {
    // Whether there is anything to build is not known; it ends either way.
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.env_remove("SLIPWAY_PROGRAMS");
    let ended = demo_by(&mut command, &[], Some(("slipway's programs", Signal::SIGINT))).await;
    assert_eq!(ended.status.code(), Some(130), "{}{}", ended.stdout, ended.stderr);
}

#[tokio::test]
async fn a_failure_names_the_step_and_leaves_nothing() {
    let Ended { status, stdout, stderr } =
        demo(&arguments(Path::new("/bin/false"), "1"), None).await;
    assert_eq!(status.code(), Some(1), "{stdout}{stderr}");
    assert!(stderr.contains("The demo failed at this step: slipwayd"), "{stderr}");
    assert!(stderr.contains("ended with exit code 1"), "{stderr}");
}

#[tokio::test]
async fn slipway_s_pods_cost_no_device_and_no_message() {
    // Not within the time of a demo.
    slipway_programs().unwrap();
    let Ended { status, stdout, stderr } = demo(&[], None).await;
    assert!(status.success(), "{stdout}{stderr}");
    let value = |name: &str| {
        let line = stdout.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("'{name}' is missing:\n{stdout}")).trim_start()
    };
    for way in ["one -> two", "two -> one", "one -> host", "host -> one"] {
        assert!(value(&format!("Round trip {way}")).starts_with("min/avg/max "), "{stdout}");
    }
    assert_eq!(value("Log "), "stdout: hello from two");
    for stage in ["NetNS", "AddCNI", "Cgroup", "AttachIf", "StartVM"] {
        assert!(value("  stages").contains(stage), "{stdout}");
    }
    assert_eq!(value("Devices in the pods"), "0");
    assert_eq!(value("Devices on the host"), "0");
    if stdout.contains("rtnetlink messages") {
        assert!(value("rtnetlink messages").starts_with("not measured: "), "{stdout}");
    } else {
        let ours = ["slipwayd", "slipway-cni", "containerd-shim", "qemu-system"];
        for program in ours {
            let counted = value(&format!("rtnetlink of {program}"));
            assert!(counted.ends_with("0 messages, 0 sockets"), "{program}: {counted}");
        }
    }
}

#[tokio::test]
async fn pods_are_shown_with_the_devices_and_messages_that_they_cost() {
    let arguments = ["--pods", "runc"].map(OsStr::new);
    let Ended { status, stdout, stderr } = demo(&arguments, None).await;
    assert!(status.success(), "{stdout}{stderr}");
    let value = |name: &str| {
        let line = stdout.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("'{name}' is missing:\n{stdout}")).trim_start()
    };
    for way in ["one -> two", "two -> one", "one -> host", "host -> one"] {
        assert!(value(&format!("Round trip {way}")).starts_with("min/avg/max "), "{stdout}");
    }
    assert_eq!(value("Log "), "stdout: hello from two");
    // What runc's pods cost is known: a device in each, its peer on the host, and the bridge.
    assert_eq!(value("Devices in the pods"), "2: eth0, eth0");
    assert!(value("Devices on the host").starts_with("3: slipway-br, veth"), "{stdout}");
    if stdout.contains("rtnetlink messages") {
        assert!(value("rtnetlink messages").starts_with("not measured: "), "{stdout}");
    } else {
        for plugin in ["bridge", "loopback"] {
            let counted = value(&format!("rtnetlink of {plugin} "));
            let messages: u64 = counted.split(' ').next().unwrap().parse().unwrap();
            assert!(messages > 0, "{plugin}: {counted}");
        }
    }
}

#[tokio::test]
async fn an_interrupt_while_pods_start_or_talk_ends_all_and_leaves_nothing() {
    for (step, signal) in [("Two pods", Signal::SIGINT), ("Pings", Signal::SIGTERM)] {
        let arguments = ["--pods", "runc"].map(OsStr::new);
        let Ended { status, stdout, stderr } = demo(&arguments, Some((step, signal))).await;
        assert_eq!(status.code(), Some(130), "{step}: {stdout}{stderr}");
        assert!(stderr.contains("Interrupted"), "{step}: {stderr}");
    }
}
