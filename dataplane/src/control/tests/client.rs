//! The client and the server understand each other, in every call.

use slipway_api::{
    AttachmentSpec, Created, Decision, ErrorCode, ExplainRequest, FdbFilter, FdbKind, HealthStatus,
    LinkState, Mac, PortSpec, StaticEntry, UnknownUnicast, VniSpec,
    client::{Client, ClientError},
};

use super::Rig;

const MAC_A: Mac = Mac([2, 0, 0, 0, 0, 1]);
const MAC_B: Mac = Mac([2, 0, 0, 0, 0, 2]);

fn code_of<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Option<ErrorCode> {
    result.expect_err("refused").refusal().map(|error| error.code)
}

#[tokio::test(flavor = "current_thread")]
async fn a_port_is_created_once_found_again_and_deleted_once() {
    let rig = Rig::start();
    let client = Client::new(&rig.socket);
    let spec = PortSpec { mac: Some(MAC_A), ..PortSpec::named("a") };
    let (port, created) = client.create_port(&spec).await.expect("creates");
    assert_eq!((port.link, created), (LinkState::Waiting, Created::New));
    let again = client.create_port(&spec).await.expect("finds");
    assert_eq!(again, (port.clone(), Created::Existing));
    assert_eq!(client.get_port("a").await.expect("shows"), port);
    assert_eq!(client.list_ports().await.expect("lists").ports, [port]);
    client.delete_port("a").await.expect("deletes");
    assert_eq!(code_of(client.delete_port("a").await), Some(ErrorCode::NotFound));
}

#[tokio::test(flavor = "current_thread")]
async fn a_conflict_names_the_field_and_what_to_do() {
    let rig = Rig::start();
    let client = Client::new(&rig.socket);
    client.create_port(&PortSpec::named("a")).await.expect("creates");
    let other = PortSpec { vni: 9, ..PortSpec::named("a") };
    let error = client.create_port(&other).await.expect_err("conflicts");
    let refusal = error.refusal().expect("the switch refused");
    assert_eq!(refusal.code, ErrorCode::Conflict);
    assert_eq!(refusal.field.as_deref(), Some("vni"));
    assert_eq!(refusal.value.as_deref(), Some("9"));
    assert!(!refusal.remedy.is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn a_segment_is_set_changed_and_forgotten() {
    let rig = Rig::start();
    let client = Client::new(&rig.socket);
    let spec = VniSpec { unknown_unicast: UnknownUnicast::Flood, ..VniSpec::default() };
    let (vni, created) = client.put_vni(7, &spec).await.expect("sets");
    assert_eq!((vni.floods_unknown, created), (true, Created::New));
    let (vni, created) = client.put_vni(7, &VniSpec::default()).await.expect("changes");
    assert_eq!((vni.floods_unknown, created), (false, Created::Existing));
    assert_eq!(client.list_vnis().await.expect("lists").vnis, [vni]);
    client.delete_vni(7).await.expect("forgets");
    assert_eq!(code_of(client.delete_vni(7).await), Some(ErrorCode::NotFound));
}

#[tokio::test(flavor = "current_thread")]
async fn forwarding_entries_are_added_filtered_and_removed() {
    let rig = Rig::start();
    let client = Client::new(&rig.socket);
    client.create_port(&PortSpec::named("a")).await.expect("creates");
    rig.switch.learn(0, MAC_B, "a");
    let entry = StaticEntry { vni: 0, mac: MAC_A, port: "a".into() };
    let (added, created) = client.add_fdb(&entry).await.expect("adds");
    assert_eq!((added.kind, created), (FdbKind::Static, Created::New));
    let filter = FdbFilter {
        vni: Some(0),
        mac: Some(MAC_B),
        port: Some("a".into()),
        kind: Some(FdbKind::Learned),
        limit: Some(5),
    };
    let learned = client.list_fdb(&filter).await.expect("lists");
    assert_eq!((learned.matching, learned.entries[0].mac), (1, MAC_B));
    assert_eq!(client.list_fdb(&FdbFilter::default()).await.expect("lists").matching, 2);
    client.delete_fdb(0, MAC_A).await.expect("removes");
    assert_eq!(code_of(client.delete_fdb(0, MAC_A).await), Some(ErrorCode::NotFound));
}

#[tokio::test(flavor = "current_thread")]
async fn an_interface_is_attached_found_listed_and_detached() {
    let rig = Rig::start();
    let client = Client::new(&rig.socket);
    let spec = AttachmentSpec::default();
    let (made, created) = client.attach("b", "eth0", &spec).await.expect("attaches");
    assert_eq!((created, made.addresses[0].to_string()), (Created::New, "10.88.0.2/16".to_owned()));
    let again = client.attach("b", "eth0", &spec).await.expect("finds");
    assert_eq!(again, (made.clone(), Created::Existing));
    let odd = client.attach("a", "odd name", &spec).await;
    assert_eq!(code_of(odd), Some(ErrorCode::InvalidValue));
    let (second, _) = client.attach("a", "e%?#[]", &spec).await.expect("attaches");
    assert_eq!(second.interface, "e%?#[]");
    assert_eq!(client.get_attachment("b", "eth0").await.expect("shows"), made);
    let all = client.list_attachments(None).await.expect("lists").attachments;
    assert_eq!(all, [made.clone(), second.clone()], "in the order of creation");
    let of_a = client.list_attachments(Some("a")).await.expect("lists").attachments;
    assert_eq!(of_a, [second]);
    assert_eq!(client.list_networks().await.expect("lists").networks[0].used, 2);
    client.detach("b", "eth0").await.expect("detaches");
    client.detach("b", "eth0").await.expect("is detached");
    assert_eq!(code_of(client.get_attachment("b", "eth0").await), Some(ErrorCode::NotFound));
    assert_eq!(client.list_networks().await.expect("lists").networks[0].used, 1);
}

#[tokio::test(flavor = "current_thread")]
async fn a_frame_is_explained() {
    let rig = Rig::start();
    let client = Client::new(&rig.socket);
    client.create_port(&PortSpec::named("a")).await.expect("creates");
    rig.switch.learn(0, MAC_B, "a");
    let request = ExplainRequest {
        port: "a".into(),
        src: Some(MAC_A),
        dst: Some(MAC_B),
        ..ExplainRequest::default()
    };
    let reply = client.explain(&request).await.expect("explains");
    assert_eq!(reply.decision, Decision::Output { port: "a".into() });
    assert_eq!(reply.stages[0].detail.as_deref(), Some("60 bytes to 02:00:00:00:00:02"));
}

#[tokio::test(flavor = "current_thread")]
async fn a_switch_that_is_not_well_says_so_in_an_answer() {
    let rig = Rig::start();
    let client = Client::new(&rig.socket);
    assert_eq!(client.health().await.expect("answers").status, HealthStatus::Ok);
    rig.switch.ail("PMD 0 made no progress for 10 s");
    let health = client.health().await.expect("answers");
    assert_eq!(health.status, HealthStatus::Degraded);
    assert_eq!(health.problems, ["PMD 0 made no progress for 10 s"]);
}

#[tokio::test(flavor = "current_thread")]
async fn counters_threads_and_version_are_read() {
    let rig = Rig::start();
    let client = Client::new(&rig.socket);
    client.create_port(&PortSpec::named("a")).await.expect("creates");
    rig.switch.connect("a");
    let stats = client.stats().await.expect("answers");
    assert_eq!(stats.ports[0].ingress.drops["no_route"], 7);
    let pmds = client.pmds().await.expect("answers");
    assert_eq!((pmds.pmds[0].core, pmds.pmds[0].rings.len()), (Some(1), 1));
    assert_eq!(client.version().await.expect("answers").api, "v1");
}
