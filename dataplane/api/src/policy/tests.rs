//! Rules as text and JSON, and those that are refused.

use super::*;

fn rule(text: &str) -> PolicyRule {
    text.parse().expect(text)
}

fn policy(rules: &[&str]) -> Policy {
    Policy { rules: rules.iter().map(|text| rule(text)).collect(), ..Policy::default() }
}

#[test]
fn a_rule_reads_the_same_as_text_and_as_json() {
    for text in [
        "allow egress",
        "deny ingress ip ipv6 protocol icmpv6 icmp-type 128",
        "allow egress protocol tcp remote 10.0.0.0/8 ports 80-90 source-ports 1024-65535",
        "deny egress protocol 132 remote fd00::/8",
        "deny ingress protocol udp ports 53",
    ] {
        let rule = rule(text);
        assert_eq!(rule.to_string(), text);
        let json = serde_json::to_string(&rule).expect("serialises");
        assert_eq!(serde_json::from_str::<PolicyRule>(&json).expect(&json), rule);
        assert_eq!(policy(&[text]).check(), Ok(()), "{text}");
    }
    assert_eq!(rule("deny egress ip 4 remote 10.1.2.3").remote, "10.1.2.3/32".parse().ok());
}

#[test]
fn conditions_come_in_any_order_but_once() {
    let rule = rule("allow ingress ports 22 protocol tcp");
    assert_eq!(rule.to_string(), "allow ingress protocol tcp ports 22");
    for (text, word) in [
        ("", "\"\""),
        ("permit egress", "permit"),
        ("allow out", "out"),
        ("allow egress port 80", "\"port\""),
        ("allow egress ports", "needs a value"),
        ("allow egress protocol tcp protocol udp", "twice"),
        ("allow egress protocol quic", "quic"),
        ("allow egress protocol +6", "+6"),
        ("allow egress ports 90-80", "90-80"),
        ("allow egress ports 65536", "65536"),
        ("allow egress ports -", "\"-\""),
        ("allow egress icmp-type 256", "256"),
        ("allow egress remote 10.0.0.0/33", "10.0.0.0/33"),
        ("allow egress ip 5", "\"5\""),
    ] {
        let error = text.parse::<PolicyRule>().expect_err(text).to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[test]
fn rules_that_can_match_nothing_are_refused_by_their_place() {
    for (text, field) in [
        ("allow egress ports 80", "ports"),
        ("allow egress protocol 132 ports 80", "ports"),
        ("allow egress protocol icmp source-ports 80", "source_ports"),
        ("allow egress icmp-type 8", "icmp_type"),
        ("allow egress protocol tcp icmp-type 8", "icmp_type"),
        ("allow egress ip ipv6 protocol icmp", "protocol"),
        ("allow egress protocol icmpv6 remote 10.0.0.0/8", "protocol"),
        ("allow egress ip ipv4 remote fd00::/8", "remote"),
        ("allow egress remote 10.0.0.1/8", "remote"),
    ] {
        let error = policy(&["allow egress", text]).check().expect_err(text);
        assert_eq!(error.field, Some(format!("policy.rules[1].{field}")), "{text}");
        assert!(!error.remedy.is_empty() && error.value.is_some(), "{error:?}");
    }
}

#[test]
fn a_policy_has_at_most_256_rules_and_denies_what_it_does_not_name() {
    let of = |count| Policy { rules: vec![rule("allow egress"); count], ..Policy::default() };
    assert_eq!(of(MAX_POLICY_RULES).check(), Ok(()));
    let error = of(MAX_POLICY_RULES + 1).check().expect_err("too many");
    assert_eq!(
        (error.field.as_deref(), error.value.as_deref()),
        (Some("policy.rules"), Some("257"))
    );
    let empty: Policy = serde_json::from_str("{}").expect("reads");
    assert_eq!(empty.default_of(PolicyDirection::Egress), PolicyAction::Deny);
    assert_eq!(empty.default_of(PolicyDirection::Ingress), PolicyAction::Deny);
}

#[test]
fn the_longest_policy_fits_in_a_request() {
    let longest = "deny ingress ip ipv6 protocol tcp remote \
                   ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128 ports 10000-20000 \
                   source-ports 10000-20000";
    let policy = Policy { rules: vec![rule(longest); MAX_POLICY_RULES], ..Policy::default() };
    assert_eq!(policy.check(), Ok(()));
    let json = serde_json::to_vec(&policy).expect("serialises");
    assert!(json.len() + 4096 < crate::MAX_REQUEST_BYTES, "{}", json.len());
}
