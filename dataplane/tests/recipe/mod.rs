//! Frames by recipe, built by etherparse: an oracle that shares no code with what is tested.

use etherparse::{
    EtherType, Ethernet2Header, IpHeaders, IpNumber, Ipv4Header, Ipv6Extensions, Ipv6Header,
    Ipv6RawExtHeader, SingleVlanHeader, TcpHeader, UdpHeader, VlanId,
};
use proptest::prelude::*;

/// How to make a frame.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// VLAN tags: 0 to 2.
    pub tags: usize,
    pub is_ipv6: bool,
    /// IPv4 options, or IPv6 hop-by-hop and destination options.
    pub has_ip_options: bool,
    pub is_tcp: bool,
    pub has_tcp_options: bool,
    pub src: u128,
    pub dst: u128,
    pub src_port: u16,
    pub dst_port: u16,
    /// IPv4 identification.
    pub id: u16,
    pub seq: u32,
    pub fin: bool,
    pub psh: bool,
    pub cwr: bool,
}

pub fn any_recipe() -> impl Strategy<Value = Recipe> {
    let shape = (0usize..=2, any::<[bool; 7]>());
    let numbers = any::<(u128, u128, u16, u16, u16, u32)>();
    (shape, numbers).prop_map(|((tags, bits), (src, dst, src_port, dst_port, id, seq))| {
        let [is_ipv6, has_ip_options, is_tcp, has_tcp_options, fin, psh, cwr] = bits;
        Recipe {
            tags,
            is_ipv6,
            has_ip_options,
            is_tcp,
            has_tcp_options,
            src,
            dst,
            src_port,
            dst_port,
            id,
            seq,
            fin,
            psh,
            cwr,
        }
    })
}

impl Recipe {
    /// Where the IP header starts.
    pub fn l3(&self) -> usize {
        14 + 4 * self.tags
    }

    /// Where the TCP or UDP header starts.
    pub fn l4(&self) -> usize {
        let options = match (self.has_ip_options, self.is_ipv6) {
            (false, _) => 0,
            (true, false) => 8,
            (true, true) => 8 + 16,
        };
        self.l3() + if self.is_ipv6 { 40 } else { 20 } + options
    }

    /// Where the payload starts.
    pub fn payload(&self) -> usize {
        let header = match (self.is_tcp, self.has_tcp_options) {
            (false, _) => 8,
            (true, false) => 20,
            (true, true) => 32,
        };
        self.l4() + header
    }

    /// The frame with all checksums complete.
    pub fn frame(&self, payload: &[u8]) -> Vec<u8> {
        let mut frame = self.ethernet();
        let ip = self.ip(self.payload() - self.l4() + payload.len());
        ip.write(&mut frame).expect("written to memory");
        self.transport(&ip, payload, &mut frame);
        frame.extend(payload);
        frame
    }

    fn ethernet(&self) -> Vec<u8> {
        let network = if self.is_ipv6 { EtherType::IPV6 } else { EtherType::IPV4 };
        let types = match self.tags {
            0 => vec![network],
            1 => vec![EtherType::VLAN_TAGGED_FRAME, network],
            _ => vec![EtherType::PROVIDER_BRIDGING, EtherType::VLAN_TAGGED_FRAME, network],
        };
        let header = Ethernet2Header {
            source: [2, 0, 0, 0, 0, 1],
            destination: [2, 0, 0, 0, 0, 2],
            ether_type: types[0],
        };
        let mut frame = header.to_bytes().to_vec();
        for (n, &ether_type) in types[1..].iter().enumerate() {
            let vlan_id = VlanId::try_new(100 + n as u16).expect("below 4096");
            let tag = SingleVlanHeader { vlan_id, ether_type, ..Default::default() };
            frame.extend(tag.to_bytes());
        }
        frame
    }

    fn ip(&self, payload_len: usize) -> IpHeaders {
        let protocol = if self.is_tcp { IpNumber::TCP } else { IpNumber::UDP };
        let mut headers = if self.is_ipv6 {
            let header = Ipv6Header {
                source: self.src.to_be_bytes(),
                destination: self.dst.to_be_bytes(),
                hop_limit: 64,
                ..Default::default()
            };
            let options = |len| {
                // PadN over the whole option area (RFC 8200, section 4.2).
                let mut bytes = vec![0; len];
                bytes[..2].copy_from_slice(&[1, len as u8 - 2]);
                Ipv6RawExtHeader::new_raw(protocol, &bytes).expect("a valid length")
            };
            let extensions = Ipv6Extensions {
                hop_by_hop_options: self.has_ip_options.then(|| options(6)),
                destination_options: self.has_ip_options.then(|| options(14)),
                ..Default::default()
            };
            IpHeaders::Ipv6(header, extensions)
        } else {
            let mut header = Ipv4Header {
                source: (self.src as u32).to_be_bytes(),
                destination: (self.dst as u32).to_be_bytes(),
                identification: self.id,
                time_to_live: 64,
                protocol,
                ..Default::default()
            };
            if self.has_ip_options {
                header.options = [1, 1, 1, 1, 1, 1, 1, 0].into();
            }
            IpHeaders::Ipv4(header, Default::default())
        };
        headers.set_next_headers(protocol);
        headers.set_payload_len(payload_len).expect("fits a datagram");
        if let IpHeaders::Ipv4(header, _) = &mut headers {
            header.header_checksum = header.calc_header_checksum();
        }
        headers
    }

    fn transport(&self, ip: &IpHeaders, payload: &[u8], frame: &mut Vec<u8>) {
        if self.is_tcp {
            let mut tcp = TcpHeader::new(self.src_port, self.dst_port, self.seq, 512);
            (tcp.fin, tcp.psh, tcp.cwr, tcp.ack) = (self.fin, self.psh, self.cwr, true);
            tcp.acknowledgment_number = 77;
            if self.has_tcp_options {
                // Two NOPs and a timestamp (RFC 7323, section 3.2).
                tcp.set_options_raw(&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]).expect("12 bytes");
            }
            let checksum = match ip {
                IpHeaders::Ipv4(ip, _) => tcp.calc_checksum_ipv4(ip, payload),
                IpHeaders::Ipv6(ip, _) => tcp.calc_checksum_ipv6(ip, payload),
            };
            // 0 and 0xffff are the same number; the switch always writes the latter.
            tcp.checksum = match checksum.expect("not too long") {
                0 => 0xffff,
                checksum => checksum,
            };
            tcp.write(frame).expect("written to memory");
        } else {
            let udp = match ip {
                IpHeaders::Ipv4(ip, _) => {
                    UdpHeader::with_ipv4_checksum(self.src_port, self.dst_port, ip, payload)
                }
                IpHeaders::Ipv6(ip, _) => {
                    UdpHeader::with_ipv6_checksum(self.src_port, self.dst_port, ip, payload)
                }
            };
            udp.expect("not too long").write(frame).expect("written to memory");
        }
    }
}
