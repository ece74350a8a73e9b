//! Networks as they stand in a file: what is taken, and what is refused where.

use std::path::Path;

use super::*;
use crate::config::Config;

fn parse(text: &str) -> Result<Vec<NetworkConfig>, String> {
    match Config::parse(text, Path::new("x.toml")) {
        Ok(config) => Ok(config.networks),
        Err(error) => Err(error.to_string()),
    }
}

fn refusal(text: &str) -> String {
    parse(text).expect_err(text)
}

const GOOD: &str = "[[networks]]\nranges = [\"10.1.0.0/16\"]\n";

#[test]
fn no_section_is_the_preset_and_an_empty_list_is_none() {
    assert_eq!(parse("").expect("loads"), [NetworkConfig::preset()]);
    assert_eq!(parse("networks = []").expect("loads"), []);
}

#[test]
fn a_network_needs_ranges_and_has_defaults_for_the_rest() {
    let networks = parse(GOOD).expect("loads");
    let expected = NetworkConfig {
        ranges: vec!["10.1.0.0/16".parse().expect("a prefix")],
        host_gateway: false,
        ..NetworkConfig::preset()
    };
    assert_eq!(networks, [expected]);
    assert!(networks[0].gateways_in_force().is_empty(), "nobody is there to be one");
    assert!(refusal("[[networks]]\nname = \"a\"").contains("missing field `ranges`"));
}

#[test]
fn the_gateway_of_this_host_is_the_first_address_of_each_range() {
    let text = "[[networks]]\nranges = [\"10.1.0.0/16\", \"fd00:1::/64\"]\nhost_gateway = true";
    let gateways = parse(text).expect("loads")[0].gateways_in_force();
    assert_eq!(list(&gateways), "[10.1.0.1, fd00:1::1]");
    let chosen = text.replace("host_gateway = true", "gateways = [\"fd00:1::9\"]");
    assert_eq!(list(&parse(&chosen).expect("loads")[0].gateways_in_force()), "[fd00:1::9]");
}

#[test]
fn a_bad_value_is_refused_at_its_line_and_with_its_key() {
    for (line, key, part) in [
        ("name = \"a b\"", "name", "1 to 64 characters"),
        ("vni = 16777216", "vni", "0 to 16777215"),
        ("mtu = 67", "mtu", "68 to 65535"),
        ("gateways = [\"10.2.0.1\"]", "gateways", "no usable address"),
        ("gateways = [\"10.1.0.0\"]", "gateways", "no usable address"),
        ("gateways = [\"10.1.0.1\", \"10.1.0.2\"]", "gateways", "one gateway"),
        ("gateways = []\nhost_gateway = true", "gateways", "in each range"),
        ("exclude = [\"10.2.0.0/24\"]", "exclude", "does not lie in"),
        ("exclude = [\"10.1.0.0/16\"]", "ranges", "leave no address"),
        ("routes = [{ destination = \"10.2.0.1/24\" }]", "routes", "first address"),
        ("routes = [{ destination = \"fd00::/8\" }]", "routes", "of its family"),
        (
            "routes = [{ destination = \"10.2.0.0/24\", gateway = \"10.2.0.1\" }]",
            "routes",
            "a gateway is an address of",
        ),
        ("dns = { nameservers = [\"::1\", \"::1\", \"::1\", \"::1\"] }", "dns", "at most 3"),
        ("dns = { search = [\"a b\"] }", "dns", "visible characters"),
    ] {
        let told = refusal(&format!("{GOOD}{line}\n"));
        let at = if key == "ranges" { 2 } else { 3 };
        let begin = format!("x.toml:{at}: networks[0].{key} = ");
        assert!(told.starts_with(&begin) && told.contains(part), "{line}: {told}");
    }
}

#[test]
fn ranges_that_hosts_cannot_have_are_refused() {
    for (ranges, part) in [
        ("[]", "one IPv4 prefix, one IPv6 prefix"),
        ("[\"10.1.0.0/16\", \"10.2.0.0/16\"]", "one IPv4 prefix, one IPv6 prefix"),
        ("[\"10.1.2.3/16\"]", "write 10.1.0.0/16"),
        ("[\"0.0.0.0/0\"]", "at most a /8"),
        ("[\"fd00::/16\"]", "at most a /32"),
        ("[\"127.0.0.0/8\"]", "hosts may have"),
        ("[\"224.0.0.0/8\"]", "hosts may have"),
        ("[\"169.254.0.0/16\"]", "hosts may have"),
        ("[\"fe80::/64\"]", "hosts may have"),
        ("[\"ff02::/64\"]", "hosts may have"),
        ("[\"::ffff:10.0.0.0/104\"]", "hosts may have"),
    ] {
        let told = refusal(&format!("[[networks]]\nranges = {ranges}"));
        let begin = "x.toml:2: networks[0].ranges = ";
        assert!(told.starts_with(begin) && told.contains(part), "{told}");
    }
}

#[test]
fn ipv6_needs_its_smallest_mtu() {
    let told = refusal("[[networks]]\nranges = [\"fd00:1::/64\"]\nmtu = 1279");
    assert!(told.contains("an MTU with IPv6 is 1280"), "{told}");
}

#[test]
fn networks_are_judged_against_each_other() {
    let second = |lines: &str| format!("{GOOD}[[networks]]\n{lines}");
    for (lines, part) in [
        ("ranges = [\"10.2.0.0/16\"]", "networks[1].name = \"default\""),
        ("name = \"b\"\nranges = [\"10.1.2.0/24\"]", "overlaps with network default"),
    ] {
        let told = refusal(&second(lines));
        assert!(told.contains(part), "{told}");
    }
    let apart = second("name = \"b\"\nvni = 1\nranges = [\"10.1.2.0/24\"]");
    assert_eq!(parse(&apart).expect("another segment").len(), 2);
    let both = apart.replace("ranges", "host_gateway = true\nranges");
    let told = refusal(&both);
    assert!(told.contains("networks[1].host_gateway") && told.contains("one network only"));
}

#[test]
fn unknown_keys_are_refused_with_their_line_and_the_nearest_known_one() {
    assert_eq!(
        refusal(&format!("{GOOD}exlude = []")),
        "x.toml:3: there is no key `networks.exlude`; did you mean `exclude`?"
    );
    let told = refusal(&format!("{GOOD}dns = {{ servers = [] }}"));
    assert!(told.starts_with("x.toml:3: ") && told.contains("nameservers"), "{told}");
    let told = refusal("[networks]\nranges = []");
    assert!(told.contains("x.toml:1: `networks` does not take this value"), "{told}");
    assert!(told.contains("[[networks]]"), "{told}");
}
