//! "What would happen to this frame?": a described frame, and each stage's answer to it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ApiError, Mac, port::check_port_name};

/// The longest frame that can be explained, in bytes; the pipeline judges only the first 128.
pub const MAX_EXPLAIN_FRAME_BYTES: usize = 9216;

/// A frame to send through the pipeline's functions without sending it.
///
/// Either `hex`, the frame's bytes, or a description from which the server builds one: `src` and
/// `dst` at least.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// The name of the port it would come from.
    pub port: String,
    /// The whole frame from the destination address on, as hex digits; blanks and colons between
    /// octets are skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub hex: Option<String>,
    /// Source address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub src: Option<Mac>,
    /// Destination address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub dst: Option<Mac>,
    /// EtherType; default from the addresses below, or 0x88b5 (local experiments) without them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub ethertype: Option<u16>,
    /// Source of an IPv4 or IPv6 header; goes with `dst_ip` of the same family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = String)]
    pub src_ip: Option<IpAddr>,
    /// Destination of that header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = String)]
    pub dst_ip: Option<IpAddr>,
    /// IP protocol number (6 TCP, 17 UDP); default 17 when a port is given, 253 (experiments) else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub ip_protocol: Option<u8>,
    /// Source port of TCP or UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub src_port: Option<u16>,
    /// Destination port of TCP or UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub dst_port: Option<u16>,
}

impl ExplainRequest {
    /// Refuses descriptions that contradict themselves.
    ///
    /// # Errors
    /// [`crate::ErrorCode::InvalidValue`], with the field to blame.
    pub fn check(&self) -> Result<(), ApiError> {
        check_port_name("port", &self.port)?;
        let described = [
            ("src", self.src.is_some()),
            ("dst", self.dst.is_some()),
            ("ethertype", self.ethertype.is_some()),
            ("src_ip", self.src_ip.is_some()),
            ("dst_ip", self.dst_ip.is_some()),
            ("ip_protocol", self.ip_protocol.is_some()),
            ("src_port", self.src_port.is_some()),
            ("dst_port", self.dst_port.is_some()),
        ];
        if let Some(hex) = &self.hex {
            return match described.iter().find(|(_, given)| *given) {
                None => Ok(()),
                Some((field, _)) => Err(ApiError::invalid(
                    "hex",
                    hex,
                    format!("`hex` is the whole frame, so `{field}` cannot be given with it"),
                    "Give either `hex` or a description",
                )),
            };
        }
        for (field, given) in &described[..2] {
            if !given {
                return Err(ApiError::invalid(
                    field,
                    "none",
                    format!("A described frame needs `{field}`"),
                    "Give `src` and `dst`, or the whole frame as `hex`",
                ));
            }
        }
        self.check_ip()
    }

    fn check_ip(&self) -> Result<(), ApiError> {
        match (self.src_ip, self.dst_ip) {
            (Some(src), Some(dst)) if src.is_ipv4() != dst.is_ipv4() => {
                return Err(ApiError::invalid(
                    "dst_ip",
                    dst,
                    "Both addresses of a header are of one family",
                    "Give two IPv4 or two IPv6 addresses",
                ));
            }
            (Some(one), None) | (None, Some(one)) => {
                let missing = if self.src_ip.is_some() { "dst_ip" } else { "src_ip" };
                return Err(ApiError::invalid(
                    missing,
                    "none",
                    format!("An IP header has two addresses; only {one} is given"),
                    format!("Give `{missing}` too"),
                ));
            }
            _ => {}
        }
        let has_ports = self.src_port.is_some() || self.dst_port.is_some();
        if self.src_ip.is_none() && (has_ports || self.ip_protocol.is_some()) {
            return Err(ApiError::invalid(
                "src_ip",
                "none",
                "A protocol or port needs an IP header to stand in",
                "Give `src_ip` and `dst_ip` too",
            ));
        }
        match self.ip_protocol {
            Some(protocol) if has_ports && !matches!(protocol, 6 | 17) => Err(ApiError::invalid(
                "ip_protocol",
                protocol,
                "Only TCP (6) and UDP (17) have ports",
                "Leave the ports out, or choose 6 or 17",
            )),
            _ => Ok(()),
        }
    }
}

/// What one stage of the pipeline said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stage {
    /// The stage's name (`parse`, `anti_spoof`, `fdb`).
    pub stage: String,
    /// Its answer in a few words (`pass`, `known: vm2`, `drop: spoofed`).
    pub answer: String,
    /// What it looked at, if there is more to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub detail: Option<String>,
}

/// What would become of the frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Decision {
    /// It would leave by one port.
    Output {
        /// The port's name.
        port: String,
    },
    /// It would leave by several ports.
    Flood {
        /// Their names.
        ports: Vec<String>,
    },
    /// The switch would answer it to its sender, and it would go nowhere else.
    Answer {
        /// The address that the sender would be told.
        mac: Mac,
    },
    /// It would be dropped.
    Drop {
        /// The reason, as it is counted.
        reason: String,
    },
}

/// Each stage's answer, in the pipeline's order, up to the one that settled it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainReply {
    /// The stages.
    pub stages: Vec<Stage>,
    /// What would become of the frame.
    pub decision: Decision,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described() -> ExplainRequest {
        ExplainRequest {
            port: "a".into(),
            src: Some(Mac([2, 0, 0, 0, 0, 1])),
            dst: Some(Mac([2, 0, 0, 0, 0, 2])),
            ..ExplainRequest::default()
        }
    }

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("address"))
    }

    #[test]
    fn two_addresses_are_description_enough() {
        assert_eq!(described().check(), Ok(()));
    }

    #[test]
    fn contradictions_are_refused_by_the_name_of_a_field() {
        let cases = [
            ("port", ExplainRequest { port: "a b".into(), ..described() }),
            ("hex", ExplainRequest { hex: Some("00".into()), ..described() }),
            ("src", ExplainRequest { src: None, ..described() }),
            ("dst", ExplainRequest { dst: None, ..described() }),
            ("dst_ip", ExplainRequest { src_ip: ip("10.0.0.1"), ..described() }),
            ("src_ip", ExplainRequest { dst_ip: ip("10.0.0.1"), ..described() }),
            (
                "dst_ip",
                ExplainRequest { src_ip: ip("10.0.0.1"), dst_ip: ip("fd00::1"), ..described() },
            ),
            ("src_ip", ExplainRequest { dst_port: Some(80), ..described() }),
            (
                "ip_protocol",
                ExplainRequest {
                    src_ip: ip("10.0.0.1"),
                    dst_ip: ip("10.0.0.2"),
                    ip_protocol: Some(1),
                    dst_port: Some(80),
                    ..described()
                },
            ),
        ];
        for (field, request) in cases {
            let error = request.check().expect_err(field);
            assert_eq!(error.field.as_deref(), Some(field), "{request:?}");
        }
    }
}
