//! The pod's network, in a network namespace that has nothing but `lo`.

use kata_agent_protocol::agent::*;
use kata_agent_protocol::protobuf::MessageField;
use kata_agent_protocol::types::{ARPNeighbor, IPAddress, IPFamily, Interface, Route};

use crate::rig::{Agent, call, refusal};

const MAC: &str = "02:00:00:00:00:07";

fn address(address: &str, mask: &str) -> IPAddress {
    let family = if address.contains(':') { IPFamily::v6 } else { IPFamily::v4 };
    IPAddress {
        family: family.into(),
        address: address.to_owned(),
        mask: mask.to_owned(),
        ..Default::default()
    }
}

fn interface() -> Interface {
    Interface {
        device: "eth0".to_owned(),
        name: "eth0".to_owned(),
        hwAddr: MAC.to_uppercase(),
        mtu: 1400,
        IPAddresses: vec![address("10.9.0.2", "24"), address("fd00:9::2", "64")],
        ..Default::default()
    }
}

async fn update(agent: &Agent, interface: &Interface) -> ttrpc::Result<Interface> {
    let interface = MessageField::some(interface.clone());
    let request = UpdateInterfaceRequest { interface, ..Default::default() };
    agent.client.update_interface(call(), &request).await
}

async fn interfaces(agent: &Agent) -> Vec<Interface> {
    let request = ListInterfacesRequest::new();
    agent.client.list_interfaces(call(), &request).await.unwrap().Interfaces
}

#[tokio::test]
#[ignore = "needs root"]
async fn an_interface_found_by_its_mac_gets_name_addresses_mtu_and_routes() {
    let agent = Agent::start().await;
    agent.nic("nic7", MAC);
    update(&agent, &interface()).await.unwrap();
    let eth0 = interfaces(&agent).await.into_iter().find(|found| found.name == "eth0").unwrap();
    assert_eq!((eth0.mtu, eth0.hwAddr.as_str()), (1400, MAC));
    for wanted in interface().IPAddresses {
        assert!(eth0.IPAddresses.contains(&wanted), "{wanted} is not in {eth0}");
    }
    let route = |dest: &str, gateway: &str, scope: u32| Route {
        dest: dest.to_owned(),
        gateway: gateway.to_owned(),
        device: "eth0".to_owned(),
        scope,
        ..Default::default()
    };
    let list = vec![route("", "169.254.1.1", 0), route("169.254.1.1/32", "", 253)];
    let routes = Routes { Routes: list, ..Default::default() };
    let routes = MessageField::some(routes);
    let request = UpdateRoutesRequest { routes, ..Default::default() };
    let all = agent.client.update_routes(call(), &request).await.unwrap().Routes;
    let default = all.iter().find(|route| route.dest == "0.0.0.0").unwrap();
    assert_eq!((default.gateway.as_str(), default.device.as_str()), ("169.254.1.1", "eth0"));
    assert!(all.iter().any(|route| route.dest == "169.254.1.1/32"), "{all:?}");
    // Asked for once more, as after a restart of the runtime: nothing changes.
    update(&agent, &interface()).await.unwrap();
    let again = agent.client.update_routes(call(), &request).await.unwrap().Routes;
    assert_eq!(again.len(), all.len());
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_name_that_another_interface_has_is_swapped() {
    let agent = Agent::start().await;
    agent.nic("eth0", "02:00:00:00:00:01");
    agent.nic("eth1", MAC);
    update(&agent, &interface()).await.unwrap();
    let all = interfaces(&agent).await;
    let mac_of =
        |name: &str| all.iter().find(|found| found.name == name).map(|found| found.hwAddr.as_str());
    assert_eq!(mac_of("eth0"), Some(MAC));
    assert_eq!(mac_of("eth1"), Some("02:00:00:00:00:01"));
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_permanent_neighbour_is_added() {
    let agent = Agent::start().await;
    agent.nic("eth0", MAC);
    update(&agent, &interface()).await.unwrap();
    let neighbour = ARPNeighbor {
        toIPAddress: MessageField::some(address("10.9.0.1", "")),
        device: "eth0".to_owned(),
        lladdr: "02:00:00:00:00:99".to_owned(),
        state: 0x80,
        ..Default::default()
    };
    let neighbors = ARPNeighbors { ARPNeighbors: vec![neighbour], ..Default::default() };
    let neighbors = MessageField::some(neighbors);
    let request = AddARPNeighborsRequest { neighbors, ..Default::default() };
    agent.client.add_arp_neighbors(call(), &request).await.unwrap();
    let table = std::fs::read_to_string(agent.path("/proc/1/net/arp")).unwrap();
    assert!(table.contains("02:00:00:00:00:99"), "{table}");
}

#[tokio::test]
#[ignore = "needs root"]
async fn an_interface_that_is_not_there_or_makes_no_sense_is_refused_and_nothing_changes() {
    let agent = Agent::start().await;
    let (_, text) = refusal(update(&agent, &interface()).await);
    assert!(text.contains("Link not found"), "{text}");
    agent.nic("nic7", MAC);
    let mut wrong = interface();
    wrong.IPAddresses.push(address("10.9.0.300", "24"));
    let (_, text) = refusal(update(&agent, &wrong).await);
    assert!(text.contains("10.9.0.300"), "{text}");
    assert!(interfaces(&agent).await.iter().any(|found| found.name == "nic7"));
}
