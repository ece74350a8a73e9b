//! Pods on a real switch: attached first, their VMMs come later, and both outlive the switch.

mod rig;

use std::path::Path;

use dataplane::attach::{AttachConfig, Attachments};
use dataplane::config::NetworkConfig;
use dataplane::control::Control;
use dataplane::control::switch::Switch;
use dataplane::testing::{GuestConfig, GuestListener};
use rig::{TIMEOUT, eventually, stamp_of, stamped, start_switch};
use slipway_api::{Attachment, AttachmentSpec, Created, ErrorCode, LinkState, Mac, PortSpec};
use tempfile::TempDir;

/// A switch whose attachments are kept in `folder`.
fn start(folder: &Path) -> Switch {
    let config = AttachConfig {
        networks: vec![NetworkConfig::preset()],
        socket_dir: folder.join("vm"),
        store_dir: Some(folder.join("attachments")),
    };
    start_switch(1, folder).with_attachments(Attachments::open(config).unwrap()).unwrap()
}

fn attach(switch: &Switch, owner: &str) -> Attachment {
    let (attachment, created) = switch.attach(owner, "eth0", &AttachmentSpec::default()).unwrap();
    assert_eq!(created, Created::New);
    attachment
}

fn await_up(switch: &Switch, owner: &str) {
    let link = || switch.get_attachment(owner, "eth0").unwrap().link;
    eventually(&format!("{owner} up"), || link() == LinkState::Up);
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn pods_talk_once_their_vmms_listen_and_again_after_the_switch_was_replaced() {
    let folder = folder();
    let mut switch = start(folder.path());
    let pods = ["a", "b"].map(|owner| attach(&switch, owner));
    assert_eq!(pods[0].link, LinkState::Waiting);
    let vmms = [0, 1].map(|n| GuestListener::bind(&pods[n].socket).unwrap());
    let mut guests = [0, 1].map(|n| vmms[n].accept(GuestConfig::default(), TIMEOUT).unwrap());
    for round in 0..3 {
        for pod in &pods {
            await_up(&switch, &pod.owner);
        }
        let (from, to) = (round % 2, (round + 1) % 2);
        let frame = stamped(pods[from].mac.0, pods[to].mac.0, 1, round as u64, 100);
        guests[from].send(&frame).unwrap();
        let (_, received) = guests[to].recv(TIMEOUT).unwrap().expect("it arrives");
        assert_eq!(stamp_of(&received), stamp_of(&frame));
        drop(switch);
        switch = start(folder.path());
        for n in [0, 1] {
            let stream = vmms[n].accept_stream(TIMEOUT).unwrap();
            guests[n].reconnect_over(stream).unwrap();
        }
    }
}

#[test]
fn a_pod_sends_from_its_own_address_only() {
    let folder = folder();
    let switch = start(folder.path());
    let pods = ["a", "b"].map(|owner| attach(&switch, owner));
    let vmms = [0, 1].map(|n| GuestListener::bind(&pods[n].socket).unwrap());
    let mut guests = [0, 1].map(|n| vmms[n].accept(GuestConfig::default(), TIMEOUT).unwrap());
    pods.iter().for_each(|pod| await_up(&switch, &pod.owner));
    guests[0].send(&stamped([2, 0, 0, 0, 0, 1], pods[1].mac.0, 1, 0, 100)).unwrap();
    guests[0].send(&stamped(pods[0].mac.0, pods[1].mac.0, 1, 1, 100)).unwrap();
    let (_, received) = guests[1].recv(TIMEOUT).unwrap().expect("the honest one arrives");
    assert_eq!(stamp_of(&received).sequence, 1);
    // A burst is accounted for after it was delivered.
    eventually("the other one is counted as spoofed", || {
        let stats = switch.stats().ports;
        let stats = stats.iter().find(|stats| stats.port == pods[0].port).unwrap();
        stats.ingress.drops.get("spoofed") == Some(&1)
    });
}

#[test]
fn a_pod_s_port_is_its_attachment_s_to_remove() {
    let folder = folder();
    let switch = start(folder.path());
    let pod = attach(&switch, "a");
    let refusal = switch.delete_port(&pod.port).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::InUse);
    assert!(refusal.message.contains("eth0 of a"), "{refusal:?}");
    switch.detach("a", "eth0").unwrap();
    assert_eq!(switch.get_port(&pod.port), None);
    assert!(switch.list_vnis().vnis.is_empty(), "its addresses are forgotten with it");
    // Somebody takes the name of the port that it would have again.
    switch.create_port(PortSpec::named(pod.port.clone())).unwrap();
    let refusal = switch.attach("a", "eth0", &AttachmentSpec::default()).unwrap_err();
    assert_eq!((refusal.code, refusal.field.as_deref()), (ErrorCode::Conflict, Some("port")));
    assert_eq!(switch.list_networks().networks[0].used, 0);
    switch.delete_port(&pod.port).unwrap();
    attach(&switch, "a");
}

#[test]
fn a_mac_of_a_port_made_by_hand_is_passed_over() {
    let folder = folder();
    let switch = start(folder.path());
    let mac = Mac([0x0a, 0x58, 10, 88, 0, 2]);
    switch.create_port(PortSpec { mac: Some(mac), ..PortSpec::named("by-hand") }).unwrap();
    let pod = attach(&switch, "a");
    assert_eq!(pod.addresses[0].to_string(), "10.88.0.2/16");
    assert_eq!(pod.mac, Mac([0x0a, 0x59, 10, 88, 0, 2]));
    let wanted = AttachmentSpec { mac: Some(mac), ..AttachmentSpec::default() };
    let refusal = switch.attach("b", "eth0", &wanted).unwrap_err();
    assert_eq!((refusal.code, refusal.field.as_deref()), (ErrorCode::Conflict, Some("mac")));
    assert_eq!(switch.list_networks().networks[0].used, 1);
}

#[test]
fn a_switch_without_networks_says_what_to_configure() {
    let folder = folder();
    let switch = start_switch(1, folder.path());
    let refusal = switch.attach("a", "eth0", &AttachmentSpec::default()).unwrap_err();
    assert!(refusal.remedy.contains("[[networks]]"), "{refusal:?}");
}
