//! What an ADD answers, in the form of each version (CNI specification, section 5, "Success").
//!
//! 1.1.0 tells more of an interface; before 1.0.0 an address says its family. The rest is the same.

use std::path::Path;

use serde_json::{Map, Value, json};
use slipway_api::{Attachment, Dns};

/// The result of an ADD.
pub fn added(version: &str, attachment: &Attachment, netns: Option<&Path>) -> Value {
    let mut interface = Map::new();
    interface.insert("name".into(), json!(attachment.interface));
    interface.insert("mac".into(), json!(attachment.mac));
    if let Some(netns) = netns {
        interface.insert("sandbox".into(), json!(netns));
    }
    if version == "1.1.0" {
        interface.insert("mtu".into(), json!(attachment.mtu));
        interface.insert("socketPath".into(), json!(attachment.socket));
    }
    let tells_family = matches!(version, "0.3.1" | "0.4.0");
    let ips = attachment.addresses.iter().map(|net| {
        let mut ip = Map::new();
        if tells_family {
            ip.insert("version".into(), json!(if net.addr().is_ipv4() { "4" } else { "6" }));
        }
        ip.insert("address".into(), json!(net));
        let is_near = |gateway: &&std::net::IpAddr| net.contains(*gateway);
        let gateways = attachment.routes.iter().filter(|route| route.destination.prefix_len() == 0);
        if let Some(gateway) = gateways.filter_map(|route| route.gateway.as_ref()).find(is_near) {
            ip.insert("gateway".into(), json!(gateway));
        }
        ip.insert("interface".into(), json!(0));
        Value::Object(ip)
    });
    let routes = attachment.routes.iter().map(|route| {
        let mut entry = Map::from_iter([("dst".to_owned(), json!(route.destination))]);
        if let Some(gateway) = route.gateway {
            entry.insert("gw".into(), json!(gateway));
        }
        Value::Object(entry)
    });
    json!({
        "cniVersion": version,
        "interfaces": [interface],
        "ips": ips.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "dns": dns(&attachment.dns),
    })
}

fn dns(dns: &Dns) -> Value {
    let Dns { nameservers, domain, search, options } = dns;
    let mut object = Map::new();
    let mut put = |key: &str, value: Value, is_there: bool| {
        if is_there {
            object.insert(key.to_owned(), value);
        }
    };
    put("nameservers", json!(nameservers), !nameservers.is_empty());
    put("domain", json!(domain), domain.is_some());
    put("search", json!(search), !search.is_empty());
    put("options", json!(options), !options.is_empty());
    Value::Object(object)
}
