//! slipwayctl as a process, against the API server with a fake switch behind it.

use std::{
    path::PathBuf,
    process::{Command, Output},
    sync::Arc,
};

use dataplane::control::{
    Control, fake::FakeSwitch, peer::PeerPolicy, server::ApiServer, socket::ApiSocket,
};
use serde_json::{Value, json};
use slipway_api::{AttachmentSpec, Mac, PortDefaults};

/// A served fake switch; all of it ends with the value.
struct Rig {
    switch: Arc<FakeSwitch>,
    socket: PathBuf,
    _server: ApiServer,
    _folder: tempfile::TempDir,
}

impl Rig {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("tempdir");
        let socket = folder.path().join("api.sock");
        let switch = Arc::new(FakeSwitch::new(PortDefaults {
            socket_dir: "/run/slipway/ports".into(),
            mac_quota: 64,
            max_queue_pairs: 16,
        }));
        let listening = ApiSocket::bind(&socket, None).expect("binds");
        let control = Arc::clone(&switch) as Arc<dyn Control>;
        let server = ApiServer::start(listening, PeerPolicy::new(None), control).expect("starts");
        Self { switch, socket, _server: server, _folder: folder }
    }

    /// Runs `slipwayctl` with these words, separated by blanks.
    fn run(&self, words: &str) -> Output {
        slipwayctl()
            .env("SLIPWAY_SOCKET", &self.socket)
            .args(words.split(' '))
            .output()
            .expect("slipwayctl runs")
    }

    /// What it printed, when it did as told.
    fn text(&self, words: &str) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words}: {output:?}");
        assert!(output.stderr.is_empty(), "{words}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn json(&self, words: &str) -> Value {
        serde_json::from_str(&self.text(words)).expect("JSON")
    }

    /// Exit code and standard error of a failure; nothing was printed as a result.
    fn failure(&self, words: &str) -> (i32, String) {
        let output = self.run(words);
        assert!(output.stdout.is_empty(), "{words}: {output:?}");
        let told = String::from_utf8(output.stderr).expect("text");
        (output.status.code().expect("ended by itself"), told)
    }
}

fn slipwayctl() -> Command {
    Command::new(env!("CARGO_BIN_EXE_slipwayctl"))
}

#[test]
fn a_port_in_a_namespace_shows_its_interface_in_place_of_a_socket() {
    let rig = Rig::start();
    let add = "port add c1 --netns /run/netns/blue --ifname eth1 --ip 10.0.0.2/24 --mtu 9000";
    assert_eq!(rig.text(add), "Created port c1: eth1 in /run/netns/blue 10.0.0.2/24\n");
    assert_eq!(rig.text(add), "Port c1 exists: eth1 in /run/netns/blue 10.0.0.2/24\n");
    let shown = rig.text("port show c1");
    for line in [
        "Socket       eth1 in /run/netns/blue 10.0.0.2/24 (netns)",
        "MAC          0a:58:0a:00:00:02",
        "MTU          9000",
        "Addresses    10.0.0.2",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
    let (code, told) = rig.failure("port add c2 --netns blue");
    assert!(code == 1 && told.contains("netns.path") && told.contains("/run/netns/blue"), "{told}");
}

#[test]
fn a_port_is_added_found_listed_shown_and_deleted() {
    let rig = Rig::start();
    assert_eq!(rig.text("port list"), "There are no ports.\n");
    let add = "port add vm1 --vni 7 --mac 52:54:00:00:00:01 --mtu 1500";
    assert_eq!(rig.text(add), "Created port vm1: /run/slipway/ports/vm1.sock\n");
    assert_eq!(rig.text(add), "Port vm1 exists: /run/slipway/ports/vm1.sock\n");
    rig.text("port add longer-name --mode connect --socket-path /run/vm2.sock --queue-pairs 4");
    rig.switch.connect("vm1");
    assert_eq!(rig.text("port list"), PORT_LIST);
    assert_eq!(rig.text("port list --vni 7").lines().count(), 2);
    assert_eq!(rig.text("port show vm1"), PORT_SHOW);
    assert_eq!(rig.text("port del vm1"), "Deleted port vm1\n");
    let (code, told) = rig.failure("port del vm1");
    assert_eq!(code, 4, "{told}");
}

const PORT_LIST: &str = "\
PORT         VNI  MAC                LINK     PAIRS  MODE     SOCKET
longer-name    0  -                  waiting      4  connect  /run/vm2.sock
vm1            7  52:54:00:00:00:01  up           1  listen   /run/slipway/ports/vm1.sock
";

const PORT_SHOW: &str = "\
Port         vm1 (id 1)
Link         up
VNI          7
MAC          52:54:00:00:00:01
Socket       /run/slipway/ports/vm1.sock (listen)
Queue pairs  1
Learning     no
Anti-spoof   yes
MTU          1500
Addresses    -
Policy       -
Pinned to    -
Features     VIRTIO_F_VERSION_1 VIRTIO_NET_F_MRG_RXBUF
Memory       256 MiB at 0x0

RING  WAY  SIZE  STATE    ENABLED  PMD
   0  rx    256  running  yes        0
   1  tx    256  running  yes        0
";

#[test]
fn a_policy_is_set_shown_replaced_and_taken_off() {
    let rig = Rig::start();
    rig.text("port add vm1 --ingress-default allow");
    assert_eq!(rig.json("--json port show vm1")["spec"]["policy"]["egress_default"], "deny");
    let set = |words: &[&str]| {
        let output = slipwayctl()
            .env("SLIPWAY_SOCKET", &rig.socket)
            .args(["port", "policy", "set", "vm1"])
            .args(words)
            .output()
            .expect("slipwayctl runs");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (output.status.code(), text(output.stdout) + &text(output.stderr))
    };
    let rules = ["allow egress protocol tcp ports 80-90", "deny ingress remote 10.0.0.0/8"];
    let (code, told) = set(&["--rule", rules[0], "--rule", rules[1]]);
    assert_eq!(told, "Port vm1 has 2 rules, then deny from the guest, deny to it\n");
    assert_eq!(code, Some(0));
    let shown = rig.text("port show vm1");
    assert!(shown.ends_with(POLICY_SHOW), "{shown}");
    let (code, told) = set(&["--rule", "deny egress remote 10.0.0.1/8"]);
    assert!(told.contains("policy.rules[0].remote") && told.contains("10.0.0.0/8"), "{told}");
    assert_eq!(code, Some(1));
    assert_eq!(set(&["--rule", "deny all"]).0, Some(2));
    assert_eq!(rig.text("port policy del vm1"), "Port vm1 has no policy\n");
    assert_eq!(rig.failure("port policy del vm1").0, 4);
}

const POLICY_SHOW: &str = "
RULE  WHAT IT SAYS
   1  allow egress protocol tcp ports 80-90
   2  deny ingress remote 10.0.0.0/8
";

#[test]
fn a_broken_port_says_why() {
    let rig = Rig::start();
    rig.text("port add vm1");
    rig.switch.break_port("vm1", "ring 1: the available index jumped by 4711");
    let shown = rig.text("port show vm1");
    let link = "Link         broken: ring 1: the available index jumped by 4711";
    assert!(shown.lines().any(|line| line == link), "{shown}");
}

#[test]
fn segments_are_set_listed_and_forgotten() {
    let rig = Rig::start();
    assert_eq!(rig.text("vni list"), "There are no segments.\n");
    rig.text("port add vm1 --vni 7");
    assert_eq!(
        rig.text("vni set 9 --unknown-unicast drop --ageing 60"),
        "Set VNI 9: frames for unknown addresses are dropped\n"
    );
    assert_eq!(rig.text("vni list"), VNI_LIST);
    assert_eq!(rig.text("vni del 9"), "Forgot the settings of VNI 9\n");
    assert_eq!(rig.failure("vni del 7").0, 1);
}

const VNI_LIST: &str = "\
VNI  PORTS  UNKNOWN UNICAST  FDB  AGEING
  7      1  auto (flood)       0   300 s
  9      0  drop               0    60 s
";

#[test]
fn forwarding_entries_are_added_listed_and_removed() {
    let rig = Rig::start();
    assert_eq!(rig.text("fdb list"), "There are no entries.\n");
    rig.text("port add vm1");
    let add = "fdb add 0 52:54:00:00:00:09 vm1";
    assert_eq!(rig.text(add), "52:54:00:00:00:09 on VNI 0 is now behind port vm1\n");
    assert_eq!(rig.text(add), "52:54:00:00:00:09 on VNI 0 was already behind port vm1\n");
    rig.switch.learn(0, Mac([0x52, 0x54, 0, 0, 0, 1]), "vm1");
    assert_eq!(rig.text("fdb list"), FDB_LIST);
    assert!(rig.text("fdb list --limit 1").ends_with("(1 of 2; see --limit)\n"));
    assert_eq!(rig.text("fdb list --kind learned --port vm1 --vni 0").lines().count(), 2);
    rig.text("fdb del 0 52:54:00:00:00:09");
    assert_eq!(rig.failure("fdb del 0 52:54:00:00:00:09").0, 4);
}

const FDB_LIST: &str = "\
VNI  MAC                PORT  KIND     AGE
  0  52:54:00:00:00:01  vm1   learned  3 s
  0  52:54:00:00:00:09  vm1   static     -
";

#[test]
fn attachments_are_listed_shown_and_removed() {
    let rig = Rig::start();
    assert_eq!(rig.text("attachments"), "Nothing is attached.\n");
    let spec = AttachmentSpec {
        labels: [("namespace", "shop"), ("name", "web")]
            .map(|(key, value)| (format!("io.kubernetes.pod.{key}"), value.to_owned()))
            .into(),
        ..AttachmentSpec::default()
    };
    let (made, _) = rig.switch.attach("sandbox", "eth0", &spec).expect("attaches");
    rig.switch.attach("other", "net1", &AttachmentSpec::default()).expect("attaches");
    rig.switch.connect(&made.port);
    assert_eq!(rig.text("networks"), NETWORK_LIST);
    assert_eq!(rig.text("attachments"), ATTACHMENT_LIST);
    assert_eq!(rig.text("attachments list --owner other").lines().count(), 2);
    assert_eq!(rig.text("attachments show sandbox"), ATTACHMENT_SHOW);
    assert_eq!(rig.json("--json attachments show other net1")["mac"], "0a:58:0a:58:00:03");
    assert_eq!(rig.json("--json networks")["networks"][0]["used"], 2);
    let (code, told) = rig.failure(&format!("port del {}", made.port));
    assert!(code == 1 && told.contains("eth0 of sandbox"), "{told}");
    assert_eq!(rig.text("attachments rm sandbox"), "eth0 of sandbox is not attached\n");
    assert_eq!(rig.text("attachments rm sandbox"), "eth0 of sandbox is not attached\n");
    assert_eq!(rig.failure("attachments show sandbox").0, 4);
}

const NETWORK_LIST: &str = "\
NETWORK  VNI  RANGES        GATEWAYS   HOST   MTU  USED   FREE
default    0  10.88.0.0/16  10.88.0.1  yes   1500     2  65531
";

const ATTACHMENT_LIST: &str = "\
OWNER    INTERFACE  NETWORK  ADDRESSES     MAC                LINK     POD
sandbox  eth0       default  10.88.0.2/16  0a:58:0a:58:00:02  up       shop/web
other    net1       default  10.88.0.3/16  0a:58:0a:58:00:03  waiting  -
";

const ATTACHMENT_SHOW: &str = "\
Attachment   eth0 of sandbox
Pod          shop/web
Network      default (VNI 0)
Addresses    10.88.0.2/16
MAC          0a:58:0a:58:00:02
MTU          1500
Routes       0.0.0.0/0 via 10.88.0.1
Nameservers  -
Search       -
Port         sandbox-04e83ac458110400
Socket       /run/slipway/vm/sandbox-04e83ac458110400.sock (connect)
Queue pairs  1
Pinned to    -
Link         up
Label        io.kubernetes.pod.name=web
Label        io.kubernetes.pod.namespace=shop
";

#[test]
fn counters_are_shown_with_drops_by_reason() {
    let rig = Rig::start();
    rig.text("port add vm1");
    assert_eq!(rig.text("stats"), STATS);
    rig.switch.connect("vm1");
    let text = rig.text("stats --pmd --interval 0.01");
    let lines: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let [heads, row, blank, ..] = &lines[..] else { panic!("{text}") };
    assert_eq!((heads[2], heads[4], row[2], blank.len()), ("POLLED", "BUSY", "1", 0), "{text}");
    assert_eq!((row[13], row[16]), ("20.0", "vm1:1"), "{text}");
    assert!(text.ends_with(PMD_COSTS), "{text}");
    let rates = rig.json("--json stats --pmd --interval 0.01");
    assert_eq!(rates["pmds"][0]["cycles_per_frame"]["stages"]["deliver"], 50.0);
    assert_eq!(rates["pmds"][0]["ns_per_frame"]["total"], 75.0);
}

const STATS: &str = "\
PORT  VNI  RECEIVED  FORWARDED  ANSWERED  IN DROPS  IN HAND  OFFERED  DELIVERED  OUT DROPS
vm1     0      1000        986         4         9        1     1000        995          5

PORT  DROPPED     REASON     FRAMES
vm1   from guest  no_route        7
vm1   from guest  spoofed         2
vm1   to guest    ring_full       5

PORT  RING FAULT  TIMES
vm1   avail_jump      1
";

#[test]
fn vrings_are_listed_by_pmd_and_moved_unless_they_are_pinned() {
    let rig = Rig::start();
    assert_eq!(rig.text("pmd list"), "No vring is polled.\n");
    rig.text("port add vm1");
    rig.text("port add vm2 --queue-pairs 2 --pmd 0,0");
    rig.switch.connect("vm1");
    rig.switch.connect("vm2");
    assert_eq!(rig.text("pmd list"), PMD_LIST);
    assert_eq!(rig.text("pmd rebalance"), PMD_REBALANCE);
    assert!(rig.text("port show vm2").contains("Pinned to    0 0\n"));
    let (code, told) = rig.failure("port add vm3 --pmd 0,1");
    assert_eq!(code, 1, "{told}");
    assert!(told.contains("pmds") && told.contains("0 1"), "{told}");
    rig.text("port del vm1");
    let nothing = "No vring was moved: it would not have paid.\n";
    assert_eq!(rig.text("pmd rebalance"), nothing);
}

const PMD_LIST: &str = "\
PMD  CORE  PORT  RING    LOAD  PINNED
  0     1  vm1      1  75.0 %  no
  0     1  vm2      1  75.0 %  yes
  0     1  vm2      3  75.0 %  yes
";

const PMD_REBALANCE: &str = "\
PORT  RING  FROM PMD  TO PMD
vm1      1         1       0
";

const PMD_COSTS: &str = "
PMD  NS/FRAME  CYCLES/FRAME  TAKE  JUDGE  DELIVER  SETTLE  OTHER  CYCLES/EMPTY LOOK
  0      75.0         150.0  30.0   40.0     50.0    20.0   10.0               40.0
";

#[test]
fn watching_shows_rates_again_and_again() {
    let rig = Rig::start();
    rig.text("port add vm1");
    let text = rig.text("stats --watch 0.01 --count 2");
    let heads = text.lines().filter(|line| line.starts_with("PORT") && line.contains("BIT/s"));
    assert_eq!(heads.count(), 2, "{text}");
    // Between two readings of the fake nothing is dropped.
    assert!(!text.contains("REASON"), "{text}");
    let pmds = rig.text("stats --pmd --watch 0.01 --count 1");
    assert!(pmds.contains("CYCLES/FRAME"), "{pmds}");
    let raw = rig.text("--json stats --watch 0.01 --count 3");
    let documents = serde_json::Deserializer::from_str(&raw).into_iter::<Value>();
    assert_eq!(documents.filter_map(Result::ok).count(), 3);
}

#[test]
fn a_frame_is_explained_stage_by_stage() {
    let rig = Rig::start();
    rig.text("port add vm1");
    rig.text("port add vm2 --mac 52:54:00:00:00:02");
    let frame = "--src 52:54:00:00:00:01 --dst 52:54:00:00:00:02";
    assert_eq!(rig.text(&format!("explain --port vm1 {frame}")), EXPLAIN);
    let unknown = rig.text("explain --port vm1 --hex 5254000000775254000000010800");
    assert!(unknown.ends_with("\nThe frame is dropped: no_route.\n"), "{unknown}");
    let to_all = rig.text(
        "explain --port vm1 --src 52:54:00:00:00:01 --dst ff:ff:ff:ff:ff:ff --ethertype 0x0806",
    );
    assert!(to_all.ends_with("\nThe frame is flooded to vm2.\n"), "{to_all}");
    let tcp = format!(
        "explain --port vm1 {frame} --src-ip 10.0.0.1 --dst-ip 10.0.0.2 --ip-protocol tcp --dst-port 80"
    );
    assert!(rig.text(&tcp).ends_with("\nThe frame leaves by port vm2.\n"));
}

const EXPLAIN: &str = "\
STAGE  ANSWER  DETAIL
parse  pass    60 bytes to 52:54:00:00:00:02
fdb    known

The frame leaves by port vm2.
";

#[test]
fn a_switch_that_is_not_well_is_an_answer_and_exit_code_1() {
    let rig = Rig::start();
    assert_eq!(rig.text("health"), "ok: up for 61 s, 0 ports (0 up, 0 broken), 1 PMD threads\n");
    rig.switch.ail("PMD 0 made no progress for 10 s");
    let output = rig.run("health");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(
        text.starts_with("degraded: ") && text.ends_with("  PMD 0 made no progress for 10 s\n")
    );
}

#[test]
fn both_versions_are_told() {
    let rig = Rig::start();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(rig.text("version"), format!("slipwayctl {version}\nslipwayd {version} (API v1)\n"));
    assert_eq!(rig.json("version --json")["slipwayd"]["api"], "v1");
}

#[test]
fn json_is_the_answer_of_the_api() {
    let rig = Rig::start();
    assert_eq!(rig.json("--json port add vm1")["spec"]["name"], "vm1");
    assert_eq!(rig.json("port list --json")["ports"][0]["link"], "waiting");
    assert_eq!(rig.json("--json vni set 7")["vni"], 7);
    assert_eq!(rig.json("--json fdb list"), json!({"entries": [], "matching": 0}));
    assert_eq!(rig.text("--json port del vm1"), "");
}

#[test]
fn a_refusal_is_told_with_its_remedy_and_in_json_when_asked() {
    let rig = Rig::start();
    rig.text("port add vm1");
    let (code, told) = rig.failure("port add vm1 --vni 8");
    assert_eq!(code, 1);
    assert_eq!(
        told,
        "slipwayctl: Port vm1 exists with another vni: 0 (vni: 8)\n  \
         Ask for the same settings, choose another name, or delete the port first\n"
    );
    let (_, told) = rig.failure("--json port add vm1 --vni 8");
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["error"]["code"], "conflict");
    let (code, told) = rig.failure("port add vm2 --queue-pairs 17");
    assert_eq!(code, 1);
    assert!(told.contains("max_queue_pairs"), "{told}");
}

#[test]
fn words_that_make_no_sense_are_the_command_lines_exit_code() {
    let rig = Rig::start();
    for words in [
        "port",
        "port add",
        "fdb add 0 52:54 vm1",
        "explain --port a --src 02:00:00:00:00:01",
        "stats --count 3",
        "port add a --learning perhaps",
    ] {
        assert_eq!(rig.failure(words).0, 2, "{words}");
    }
}

#[test]
fn a_switch_that_is_not_there_is_asked_after() {
    let folder = tempfile::tempdir().expect("tempdir");
    let socket = folder.path().join("none.sock");
    let output = slipwayctl().arg("--socket").arg(&socket).arg("health").output().expect("runs");
    assert_eq!(output.status.code(), Some(3));
    let told = String::from_utf8(output.stderr).expect("text");
    assert!(told.contains("none.sock") && told.contains("is slipwayd running"), "{told}");
}

#[test]
fn completions_name_the_commands_and_need_no_switch() {
    for shell in ["bash", "zsh", "fish"] {
        let output = slipwayctl().args(["completions", shell]).output().expect("runs");
        assert!(output.status.success(), "{output:?}");
        let script = String::from_utf8(output.stdout).expect("text");
        for word in ["explain", "unknown-unicast", "watch"] {
            assert!(script.contains(word), "{shell} lacks {word}");
        }
    }
}
