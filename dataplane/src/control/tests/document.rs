//! The OpenAPI document says what the server does: every route, every reply, every body.

use std::collections::BTreeSet;

use axum::routing::MethodFilter;
use serde_json::{Value, json};
use slipway_api::{AttachmentSpec, ErrorCode, Mac, Policy, PolicyRule, PortSpec, VniSpec};

use super::{Answer, Rig, schema::faults};
use crate::control::{openapi, routes};

fn document() -> Value {
    serde_json::from_str(openapi::text()).expect("the document is JSON")
}

/// (METHOD, path, operation) of everything documented.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().expect("has paths");
    let methods = paths.iter().flat_map(|(path, item)| {
        let item = item.as_object().expect("is an object");
        item.iter().map(move |(method, operation)| {
            (method.to_uppercase(), path.clone(), operation.clone())
        })
    });
    methods.collect()
}

fn name_of(method: MethodFilter) -> &'static str {
    let names = [
        (MethodFilter::GET, "GET"),
        (MethodFilter::PUT, "PUT"),
        (MethodFilter::POST, "POST"),
        (MethodFilter::DELETE, "DELETE"),
    ];
    names.into_iter().find(|(filter, _)| *filter == method).expect("a method in use").1
}

#[test]
fn every_route_is_documented_and_every_documented_operation_is_a_route() {
    let routed: BTreeSet<_> = routes::table()
        .iter()
        .map(|route| (name_of(route.method).to_owned(), route.path.to_owned()))
        .collect();
    let documented: BTreeSet<_> =
        operations(&document()).into_iter().map(|(method, path, _)| (method, path)).collect();
    assert_eq!(routed, documented);
}

/// Asks for something and holds the answer, and the body if it was taken, against the document.
struct Walk<'a> {
    rig: &'a Rig,
    document: Value,
    /// (METHOD, path of the document, status) seen and judged.
    judged: BTreeSet<(String, String, String)>,
}

impl Walk<'_> {
    fn ask(&mut self, method: &str, path: &str, body: Option<&Value>, expected: u16) {
        let text = body.map(Value::to_string);
        let operation = self.ask_with(method, path, text.as_deref(), expected);
        if let Some(body) = body.filter(|_| expected < 400) {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            let found = faults(&self.document, schema, body);
            assert!(found.is_empty(), "{method} {path} took {body}: {found:#?}");
        }
    }

    /// Asks with any body, and returns what is documented of the operation.
    fn ask_with(&mut self, method: &str, path: &str, body: Option<&str>, expected: u16) -> Value {
        let answer = self.rig.ask(method, path, body);
        assert_eq!(answer.status, expected, "{method} {path}: {answer:?}");
        let (_, route, operation) = operations(&self.document)
            .into_iter()
            .find(|(of, route, _)| of == method && is_instance(route, path))
            .unwrap_or_else(|| panic!("{method} {path} is not documented"));
        let status = expected.to_string();
        let response = operation["responses"]
            .get(&status)
            .unwrap_or_else(|| panic!("{method} {route} does not document {status}"));
        self.judge_reply(&format!("{method} {path} {status}"), response, &answer);
        self.judged.insert((method.to_owned(), route, status));
        operation
    }

    fn judge_reply(&self, what: &str, response: &Value, answer: &Answer) {
        let Some(content) = response.get("content").and_then(Value::as_object) else {
            return assert!(answer.body.is_empty(), "{what} has no documented body: {answer:?}");
        };
        let (media_type, content) = content.iter().next().expect("one media type");
        let header = format!("content-type: {media_type}").to_lowercase();
        assert!(answer.headers.contains(&header), "{what} is not {media_type}: {answer:?}");
        if media_type == "application/json" {
            let found = faults(&self.document, &content["schema"], &answer.json());
            assert!(found.is_empty(), "{what}: {found:#?}\n{}", answer.body);
        }
    }
}

fn is_instance(route: &str, path: &str) -> bool {
    let path = path.split('?').next().unwrap_or_default();
    let (route, path): (Vec<_>, Vec<_>) = (route.split('/').collect(), path.split('/').collect());
    route.len() == path.len()
        && route.iter().zip(path).all(|(part, given)| part.starts_with('{') || *part == given)
}

#[test]
fn every_operation_answers_as_documented_with_every_documented_status() {
    let rig = Rig::start();
    let mut walk = Walk { rig: &rig, document: document(), judged: BTreeSet::new() };
    let all_of_a_rule = [
        "deny egress ip ipv4 protocol tcp remote 10.0.0.0/8 ports 80-90 source-ports 1024-65535",
        "allow ingress protocol icmp icmp-type 8",
    ];
    let rules = all_of_a_rule.iter().map(|text| text.parse::<PolicyRule>().expect("a rule"));
    let policy = Policy { rules: rules.collect(), ..Policy::default() };
    let everything = serde_json::to_value(PortSpec {
        name: "a".into(),
        vni: 7,
        mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        socket: Some("/run/a.sock".into()),
        queue_pairs: 4,
        learning: Some(false),
        mac_quota: Some(3),
        anti_spoof: Some(true),
        mtu: Some(1500),
        policy: Some(policy.clone()),
        ..PortSpec::named("a")
    })
    .expect("serialises");
    walk.ask("PUT", "/v1/ports/a", Some(&everything), 201);
    walk.ask("PUT", "/v1/ports/a", Some(&everything), 200);
    walk.ask("PUT", "/v1/ports/a", Some(&json!({"vni": 8})), 409);
    walk.ask("PUT", "/v1/ports/b", Some(&json!({"vni": 7, "mode": "connect"})), 201);
    walk.ask("PUT", "/v1/ports/b", Some(&json!({"queue_pairs": 0})), 422);
    let netns = json!({"path": "/run/netns/c", "interface": "eth1", "addresses": ["10.0.0.3/24"]});
    walk.ask("PUT", "/v1/ports/c", Some(&json!({"netns": netns})), 201);
    walk.ask("PUT", "/v1/ports/d", Some(&json!({"netns": {"path": "netns/d"}})), 422);
    walk.ask("DELETE", "/v1/ports/c", None, 204);
    let rules = serde_json::to_value(&policy).expect("serialises");
    walk.ask("PUT", "/v1/ports/a/policy", Some(&rules), 200);
    walk.ask("PUT", "/v1/ports/b/policy", Some(&json!({"egress_default": "allow"})), 201);
    walk.ask("PUT", "/v1/ports/none/policy", Some(&rules), 404);
    let refused = json!({"rules": [{"action": "deny", "direction": "egress", "ports": "80"}]});
    walk.ask("PUT", "/v1/ports/b/policy", Some(&refused), 422);
    walk.ask("DELETE", "/v1/ports/b/policy", None, 204);
    walk.ask("DELETE", "/v1/ports/b/policy", None, 404);
    rig.switch.connect("a");
    rig.switch.break_port("b", "ring 1: the available index jumped by 4711");
    rig.switch.learn(7, Mac([2, 0, 0, 0, 0, 9]), "b");
    walk.ask("GET", "/v1/ports", None, 200);
    walk.ask("GET", "/v1/ports/a", None, 200);
    walk.ask("GET", "/v1/ports/b", None, 200);
    walk.ask("GET", "/v1/ports/none", None, 404);

    let settings = VniSpec { ageing_s: Some(60), ..VniSpec::default() };
    let settings = serde_json::to_value(settings).expect("serialises");
    walk.ask("PUT", "/v1/vnis/7", Some(&settings), 201);
    walk.ask("PUT", "/v1/vnis/7", Some(&json!({"vni": 7, "unknown_unicast": "flood"})), 200);
    walk.ask("PUT", "/v1/vnis/7", Some(&json!({"ageing_s": 0})), 422);
    walk.ask("PUT", "/v1/vnis/9", Some(&settings), 201);
    walk.ask("GET", "/v1/vnis", None, 200);
    walk.ask("DELETE", "/v1/vnis/9", None, 204);
    walk.ask("DELETE", "/v1/vnis/9", None, 404);
    walk.ask("DELETE", "/v1/vnis/7", None, 409);

    let entry = "/v1/fdb/7/02:00:00:00:00:05";
    walk.ask("PUT", entry, Some(&json!({"port": "a"})), 201);
    walk.ask("PUT", entry, Some(&json!({"port": "a"})), 200);
    walk.ask("PUT", entry, Some(&json!({"port": "b"})), 409);
    walk.ask("PUT", entry, Some(&json!({"port": "none"})), 404);
    walk.ask("PUT", "/v1/fdb/7/ff:ff:ff:ff:ff:ff", Some(&json!({"port": "a"})), 422);
    walk.ask("GET", "/v1/fdb?vni=7&kind=static&limit=2", None, 200);
    walk.ask("GET", "/v1/fdb", None, 200);
    walk.ask("DELETE", entry, None, 204);
    walk.ask("DELETE", entry, None, 404);
    walk.ask("DELETE", "/v1/fdb/7/02:00:00:00:00:01", None, 409);

    let wanted = AttachmentSpec {
        network: Some("default".into()),
        addresses: vec!["10.88.0.7".parse().expect("an address")],
        mac: Some(Mac([2, 0, 0, 0, 0, 7])),
        mtu: Some(1400),
        queue_pairs: Some(2),
        labels: [("pod".to_owned(), "web".to_owned())].into(),
        policy: Some(policy),
        pmds: vec![0],
    };
    let wanted = serde_json::to_value(wanted).expect("serialises");
    let attachment = "/v1/attachments/sandbox/eth0";
    walk.ask("PUT", attachment, Some(&wanted), 201);
    walk.ask("PUT", attachment, Some(&wanted), 200);
    walk.ask("PUT", attachment, Some(&json!({"mtu": 1300})), 409);
    walk.ask("PUT", "/v1/attachments/other/eth0", Some(&json!({"network": "none"})), 422);
    walk.ask("GET", attachment, None, 200);
    walk.ask("GET", "/v1/attachments/none/eth0", None, 404);
    walk.ask("GET", "/v1/attachments?owner=sandbox", None, 200);
    walk.ask("GET", "/v1/attachments", None, 200);
    walk.ask("GET", "/v1/networks", None, 200);
    let port = rig.ask("GET", attachment, None).json()["port"].as_str().expect("named").to_owned();
    walk.ask("DELETE", &format!("/v1/ports/{port}"), None, 409);
    walk.ask("DELETE", attachment, None, 204);
    walk.ask("DELETE", attachment, None, 204);

    let call = |command: &str| {
        let environment =
            "CNI_CONTAINERID=pod\0CNI_IFNAME=eth0\0CNI_NETNS=/n\0SLIPWAY_STARTED_MS=1";
        let config = json!({"cniVersion": "1.0.0", "name": "slipway", "type": "slipway-cni"});
        format!("CNI_COMMAND={command}\0{environment}\0\0{config}")
    };
    walk.ask_with("POST", "/v1/cni", Some(&call("ADD")), 200);
    walk.ask_with("POST", "/v1/cni", Some(&call("MOVE")), 422);
    rig.ask("DELETE", "/v1/attachments/pod/eth0", None);

    let to_b = json!({"port": "a", "src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:09",
        "src_ip": "10.0.0.1", "dst_ip": "10.0.0.2", "ip_protocol": 6, "dst_port": 80});
    walk.ask("POST", "/v1/explain", Some(&to_b), 200);
    let to_all = json!({"port": "a", "hex": "ffffffffffff 020000000001 0806"});
    walk.ask("POST", "/v1/explain", Some(&to_all), 200);
    let to_none = json!({"port": "a", "src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:77"});
    walk.ask("POST", "/v1/explain", Some(&to_none), 200);
    walk.ask("POST", "/v1/explain", Some(&json!({"port": "a"})), 422);
    walk.ask("POST", "/v1/explain", Some(&json!({"port": "none", "hex": "00".repeat(14)})), 404);

    for path in ["/v1/stats", "/v1/pmds", "/v1/version", "/v1/health", "/metrics", "/openapi.json"]
    {
        walk.ask("GET", path, None, 200);
    }
    walk.ask("POST", "/v1/pmds/rebalance", None, 200);
    rig.switch.ail("PMD 0 made no progress for 10 s");
    walk.ask("GET", "/v1/health", None, 503);
    walk.ask("DELETE", "/v1/ports/b", None, 204);
    walk.ask("DELETE", "/v1/ports/b", None, 404);
    for index in 0..7 {
        walk.ask("PUT", &format!("/v1/ports/more{index}"), Some(&json!({})), 201);
    }
    walk.ask("PUT", "/v1/ports/toomany", Some(&json!({})), 507);
    walk.ask("PUT", attachment, Some(&json!({})), 507);

    let documented =
        operations(&walk.document).into_iter().flat_map(|(method, path, operation)| {
            let statuses = operation["responses"].as_object().expect("has responses").clone();
            statuses.into_iter().map(move |(status, _)| (method.clone(), path.clone(), status))
        });
    let missed: Vec<_> = documented
        .filter(|(_, _, status)| status != "default")
        .filter(|operation| !walk.judged.contains(operation))
        .collect();
    // The fake's FDB has no limit; the document's word for a full one is that of the port table.
    let full_fdb = ("PUT".to_owned(), "/v1/fdb/{vni}/{mac}".to_owned(), "507".to_owned());
    assert_eq!(missed, [full_fdb]);
}

#[test]
fn the_default_reply_of_every_operation_is_a_refusal() {
    let document = document();
    for (method, path, operation) in operations(&document) {
        let schema = &operation["responses"]["default"]["content"]["application/json"]["schema"];
        assert_eq!(schema["$ref"], "#/components/schemas/ErrorReply", "{method} {path}");
    }
}

#[test]
fn every_body_refuses_fields_that_its_schema_does_not_name() {
    let rig = Rig::start();
    let document = document();
    let mut asked = 0;
    for (method, path, operation) in operations(&document) {
        let Some(body) = operation.get("requestBody") else { continue };
        // The call of the CNI plugin is not JSON.
        let Some(content) = body["content"].get("application/json") else { continue };
        let schema = &content["schema"];
        let reference = schema["$ref"].as_str().expect("a named schema");
        let schema = document.pointer(&reference[1..]).expect("leads somewhere");
        assert_eq!(schema["additionalProperties"], json!(false), "{reference}");
        let parts = [
            ("{name}", "a"),
            ("{vni}", "7"),
            ("{mac}", "02:00:00:00:00:01"),
            ("{owner}", "a"),
            ("{interface}", "eth0"),
        ];
        let path = parts.iter().fold(path, |path, (part, value)| path.replace(part, value));
        let error = rig.ask(&method, &path, Some(r#"{"no_such_field":1}"#)).refusal();
        assert_eq!(error.code, ErrorCode::UnknownField, "{method} {path}");
        assert_eq!(error.field.as_deref(), Some("no_such_field"), "{method} {path}");
        asked += 1;
    }
    assert_eq!(asked, 6);
}

#[test]
fn a_range_in_the_document_is_the_range_that_is_enforced() {
    let rig = Rig::start();
    let document = document();
    let schemas = [
        ("PortSpec", "/v1/ports/a"),
        ("VniSpec", "/v1/vnis/7"),
        ("AttachmentSpec", "/v1/attachments/a/eth0"),
    ];
    let mut held = 0;
    for (schema, path) in schemas {
        let fields = document["components"]["schemas"][schema]["properties"].clone();
        for (field, rule) in fields.as_object().expect("has properties") {
            let limits = [("minimum", -1), ("maximum", 1)];
            for (keyword, beyond) in limits {
                let Some(limit) = rule.get(keyword).and_then(Value::as_i64) else { continue };
                let body = json!({ field.as_str(): limit + beyond }).to_string();
                let error = rig.ask("PUT", path, Some(&body)).refusal();
                assert_eq!(error.field.as_deref(), Some(field.as_str()), "{body}: {error:?}");
                held += 1;
            }
        }
    }
    assert!(held >= 13, "only {held} limits were found");
}
