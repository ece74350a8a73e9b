//! Frames from their description.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::read::*;
use crate::testing::driver::VirtioNetHdr;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Shortest Ethernet frame without its check sequence, in bytes.
const MIN_FRAME: usize = 60;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Network {
    /// Payload behind the Ethernet header.
    None(u16),
    Arp {
        request: bool,
        target_mac: Mac,
    },
    Ip,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Transport {
    Raw(u8),
    Udp { ports: [u16; 2] },
    Tcp { ports: [u16; 2], sequence: u32, flags: u8 },
    Echo { id: u16, sequence: u16, reply: bool },
}

/// A description of a frame. [`FrameBuilder::new`] is an Ethernet frame with a payload; the
/// methods add layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameBuilder {
    source: Mac,
    destination: Mac,
    /// Outermost first.
    vlans: Vec<u16>,
    network: Network,
    addresses: [IpAddr; 2],
    hop_limit: u8,
    transport: Transport,
    payload: Vec<u8>,
    pad: bool,
}

impl FrameBuilder {
    /// An Ethernet frame of the local experimental type.
    pub fn new(source: Mac, destination: Mac) -> Self {
        Self {
            source,
            destination,
            vlans: Vec::new(),
            network: Network::None(ETHERTYPE_EXPERIMENT),
            addresses: [Ipv4Addr::UNSPECIFIED.into(); 2],
            hop_limit: 64,
            transport: Transport::Raw(0xfd),
            payload: Vec::new(),
            pad: true,
        }
    }

    /// With this EtherType, and the payload right behind it.
    #[must_use]
    pub fn ethertype(self, ethertype: u16) -> Self {
        Self { network: Network::None(ethertype), ..self }
    }

    /// With a VLAN tag inside those added before; the outer of two is an S-tag (IEEE 802.1ad).
    #[must_use]
    pub fn vlan(mut self, tci: u16) -> Self {
        self.vlans.push(tci);
        self
    }

    /// An ARP request for `target`, who-has (RFC 826).
    #[must_use]
    pub fn arp_request(self, sender: Ipv4Addr, target: Ipv4Addr) -> Self {
        let network = Network::Arp { request: true, target_mac: [0; 6] };
        Self { network, addresses: [sender.into(), target.into()], ..self }
    }

    /// An ARP reply to `target_mac`, is-at (RFC 826).
    #[must_use]
    pub fn arp_reply(self, sender: Ipv4Addr, target_mac: Mac, target: Ipv4Addr) -> Self {
        let network = Network::Arp { request: false, target_mac };
        Self { network, addresses: [sender.into(), target.into()], ..self }
    }

    /// An IPv4 packet of an experimental protocol, unless a transport is added.
    #[must_use]
    pub fn ipv4(self, source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        Self { network: Network::Ip, addresses: [source.into(), destination.into()], ..self }
    }

    /// An IPv6 packet of an experimental protocol, unless a transport is added.
    #[must_use]
    pub fn ipv6(self, source: Ipv6Addr, destination: Ipv6Addr) -> Self {
        Self { network: Network::Ip, addresses: [source.into(), destination.into()], ..self }
    }

    /// With this TTL or hop limit; 64 otherwise.
    #[must_use]
    pub fn hop_limit(self, hop_limit: u8) -> Self {
        Self { hop_limit, ..self }
    }

    /// A UDP datagram.
    #[must_use]
    pub fn udp(self, source: u16, destination: u16) -> Self {
        Self { transport: Transport::Udp { ports: [source, destination] }, ..self }
    }

    /// A TCP segment with ACK and PSH, or [`Self::tcp_flags`].
    #[must_use]
    pub fn tcp(self, source: u16, destination: u16, sequence: u32) -> Self {
        let ports = [source, destination];
        Self { transport: Transport::Tcp { ports, sequence, flags: 0x18 }, ..self }
    }

    /// With these flags, if it is a TCP segment.
    #[must_use]
    pub fn tcp_flags(mut self, new_flags: u8) -> Self {
        if let Transport::Tcp { flags, .. } = &mut self.transport {
            *flags = new_flags;
        }
        self
    }

    /// An ICMP or ICMPv6 echo request, or the reply to one.
    #[must_use]
    pub fn echo(self, id: u16, sequence: u16, reply: bool) -> Self {
        Self { transport: Transport::Echo { id, sequence, reply }, ..self }
    }

    /// With this payload.
    #[must_use]
    pub fn payload(self, payload: &[u8]) -> Self {
        Self { payload: payload.to_vec(), ..self }
    }

    /// With a payload that makes the frame `len` bytes long, all of `byte`.
    ///
    /// # Panics
    /// When the headers alone are longer.
    #[must_use]
    pub fn filled_to(self, len: usize, byte: u8) -> Self {
        let headers = self.clone().unpadded().payload(&[]).build().len();
        assert!(len >= headers, "{headers} bytes of headers in a frame of {len}");
        self.payload(&vec![byte; len - headers])
    }

    /// Without padding to the 60 bytes of the shortest Ethernet frame.
    #[must_use]
    pub fn unpadded(self) -> Self {
        Self { pad: false, ..self }
    }

    /// The frame, every checksum right.
    pub fn build(&self) -> Vec<u8> {
        let (mut frame, checksum) = self.assemble();
        if let Some((start, offset)) = checksum {
            // The field holds the pseudo-header's sum, so summing the rest completes it. Zero
            // means "none" in UDP and is sent as its other form (RFC 768).
            let udp = matches!(self.transport, Transport::Udp { .. });
            let sum = match internet_checksum(&frame[start..]) {
                0 if udp => 0xffff,
                sum => sum,
            };
            put(&mut frame, start + offset, sum);
        }
        self.padded(frame)
    }

    /// The frame with a partial transport checksum (the sum of the pseudo-header alone), and the
    /// header that says so (virtio 1.3, section 5.1.6.2).
    ///
    /// # Panics
    /// When there is no TCP or UDP checksum.
    pub fn build_partial(&self) -> (VirtioNetHdr, Vec<u8>) {
        let (frame, checksum) = self.assemble();
        let header = partial_header(checksum);
        (header, self.padded(frame))
    }

    /// A super-frame, to be cut into segments of `gso_size` payload bytes: TCP or UDP.
    ///
    /// # Panics
    /// When it is neither.
    pub fn build_gso(&self, gso_size: u16) -> (VirtioNetHdr, Vec<u8>) {
        let (frame, checksum) = self.assemble();
        let gso_type = match (&self.transport, self.addresses[0]) {
            (Transport::Tcp { .. }, IpAddr::V4(_)) => VirtioNetHdr::GSO_TCPV4,
            (Transport::Tcp { .. }, IpAddr::V6(_)) => VirtioNetHdr::GSO_TCPV6,
            (Transport::Udp { .. }, _) => VirtioNetHdr::GSO_UDP_L4,
            (other, _) => panic!("{other:?} cannot be segmented"),
        };
        let hdr_len = (frame.len() - self.payload.len()) as u16;
        let header = VirtioNetHdr { gso_type, gso_size, hdr_len, ..partial_header(checksum) };
        (header, self.padded(frame))
    }

    fn padded(&self, mut frame: Vec<u8>) -> Vec<u8> {
        if self.pad && frame.len() < MIN_FRAME {
            frame.resize(MIN_FRAME, 0);
        }
        frame
    }

    /// The frame with the pseudo-header's sum in the transport checksum, and where that is: the
    /// first byte it covers, and the field's offset from there. ICMP counts as transport here.
    fn assemble(&self) -> (Vec<u8>, Option<(usize, usize)>) {
        let mut frame = Vec::with_capacity(128 + self.payload.len());
        frame.extend_from_slice(&self.destination);
        frame.extend_from_slice(&self.source);
        for (depth, tci) in self.vlans.iter().enumerate() {
            let outer = depth + 1 < self.vlans.len();
            push(&mut frame, if outer { ETHERTYPE_QINQ } else { ETHERTYPE_VLAN });
            push(&mut frame, *tci);
        }
        match &self.network {
            Network::None(ethertype) => {
                push(&mut frame, *ethertype);
                frame.extend_from_slice(&self.payload);
                (frame, None)
            }
            Network::Arp { request, target_mac } => {
                self.push_arp(&mut frame, *request, target_mac);
                (frame, None)
            }
            Network::Ip => {
                let (transport, checksum_at) = self.transport();
                self.push_ip(&mut frame, transport.len() + self.payload.len());
                let start = frame.len();
                frame.extend_from_slice(&transport);
                frame.extend_from_slice(&self.payload);
                if let Some(offset) = checksum_at {
                    let sum = self.pseudo_header_sum(frame.len() - start);
                    put(&mut frame, start + offset, sum);
                }
                (frame, checksum_at.map(|offset| (start, offset)))
            }
        }
    }

    fn push_arp(&self, frame: &mut Vec<u8>, request: bool, target_mac: &Mac) {
        push(frame, ETHERTYPE_ARP);
        for word in [1, ETHERTYPE_IPV4, 0x0604, if request { 1 } else { 2 }] {
            push(frame, word);
        }
        for (mac, address) in [&self.source, target_mac].into_iter().zip(self.addresses) {
            frame.extend_from_slice(mac);
            push_address(frame, address);
        }
    }

    fn push_ip(&self, frame: &mut Vec<u8>, body: usize) {
        let [source, destination] = self.addresses;
        let is_v4 = source.is_ipv4();
        push(frame, if is_v4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 });
        let start = frame.len();
        if is_v4 {
            let dont_fragment = 0x4000;
            for word in [0x4500, (20 + body) as u16, 0, dont_fragment] {
                push(frame, word);
            }
            frame.extend_from_slice(&[self.hop_limit, self.protocol()]);
            push(frame, 0);
        } else {
            frame.extend_from_slice(&[0x60, 0, 0, 0]);
            push(frame, body as u16);
            frame.extend_from_slice(&[self.protocol(), self.hop_limit]);
        }
        push_address(frame, source);
        push_address(frame, destination);
        if is_v4 {
            let sum = internet_checksum(&frame[start..]);
            put(frame, start + 10, sum);
        }
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Raw(protocol) => protocol,
            Transport::Udp { .. } => PROTO_UDP,
            Transport::Tcp { .. } => PROTO_TCP,
            Transport::Echo { .. } if self.addresses[0].is_ipv4() => PROTO_ICMP,
            Transport::Echo { .. } => PROTO_ICMPV6,
        }
    }

    /// The transport header, and where in it the checksum is.
    fn transport(&self) -> (Vec<u8>, Option<usize>) {
        let mut header = Vec::new();
        match self.transport {
            Transport::Raw(_) => (header, None),
            Transport::Udp { ports } => {
                for word in [ports[0], ports[1], (8 + self.payload.len()) as u16, 0] {
                    push(&mut header, word);
                }
                (header, Some(6))
            }
            Transport::Tcp { ports, sequence, flags } => {
                ports.into_iter().for_each(|port| push(&mut header, port));
                header.extend_from_slice(&sequence.to_be_bytes());
                header.extend_from_slice(&1u32.to_be_bytes());
                header.extend_from_slice(&[5 << 4, flags]);
                for word in [0xffff, 0, 0] {
                    push(&mut header, word);
                }
                (header, Some(16))
            }
            Transport::Echo { id, sequence, reply } => {
                let kind = match (self.addresses[0].is_ipv4(), reply) {
                    (true, false) => 8,
                    (true, true) => 0,
                    (false, false) => 128,
                    (false, true) => 129,
                };
                header.extend_from_slice(&[kind, 0]);
                for word in [0, id, sequence] {
                    push(&mut header, word);
                }
                (header, Some(2))
            }
        }
    }

    /// Sum over the pseudo-header, folded and not inverted (RFC 9293, section 3.1; RFC 8200,
    /// section 8.1). ICMP over IPv4 has none.
    fn pseudo_header_sum(&self, body: usize) -> u16 {
        if self.protocol() == PROTO_ICMP {
            return 0;
        }
        let mut pseudo = Vec::new();
        self.addresses.into_iter().for_each(|address| push_address(&mut pseudo, address));
        pseudo.extend_from_slice(&(body as u32).to_be_bytes());
        pseudo.extend_from_slice(&[0, self.protocol()]);
        !internet_checksum(&pseudo)
    }
}

fn partial_header(checksum: Option<(usize, usize)>) -> VirtioNetHdr {
    let (start, offset) = checksum.expect("a frame with a transport checksum");
    VirtioNetHdr {
        flags: VirtioNetHdr::NEEDS_CSUM,
        csum_start: start as u16,
        csum_offset: offset as u16,
        ..VirtioNetHdr::default()
    }
}

fn push(bytes: &mut Vec<u8>, word: u16) {
    bytes.extend_from_slice(&word.to_be_bytes());
}

fn put(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

fn push_address(bytes: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => bytes.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => bytes.extend_from_slice(&address.octets()),
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    const A: Mac = [2, 0, 0, 0, 0, 1];
    const B: Mac = [2, 0, 0, 0, 0, 2];
    const A4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const B4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const A6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    const B6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

    fn all_kinds(payload: &[u8]) -> Vec<FrameBuilder> {
        let bases = [FrameBuilder::new(A, B), FrameBuilder::new(A, B).vlan(5).vlan(0x2007)];
        let networks = bases.iter().flat_map(|base| {
            let base = base.clone().payload(payload);
            [base.clone().ipv4(A4, B4), base.ipv6(A6, B6)]
        });
        let transports = |network: FrameBuilder| {
            let n = || network.clone();
            [n().udp(1000, 2000), n().tcp(3000, 4000, 0xdead_beef), n().echo(7, 9, false)]
        };
        networks.flat_map(transports).collect()
    }

    /// The transport checksum as etherparse computes it, and as the frame has it.
    fn checksums(frame: &[u8]) -> (u16, u16) {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let (v4, v6) = match packet.net.as_ref().unwrap() {
            NetSlice::Ipv4(ip) => (Some(ip.header().to_header()), None),
            NetSlice::Ipv6(ip) => (None, Some(ip.header().to_header())),
            other => panic!("not IP: {other:?}"),
        };
        match packet.transport.unwrap() {
            TransportSlice::Udp(udp) => {
                let (header, body) = (udp.to_header(), udp.payload());
                let right = match (v4, v6) {
                    (Some(ip), _) => header.calc_checksum_ipv4(&ip, body),
                    (_, ip) => header.calc_checksum_ipv6(&ip.unwrap(), body),
                };
                (right.unwrap(), header.checksum)
            }
            TransportSlice::Tcp(tcp) => {
                let (header, body) = (tcp.to_header(), tcp.payload());
                let right = match (v4, v6) {
                    (Some(ip), _) => header.calc_checksum_ipv4(&ip, body),
                    (_, ip) => header.calc_checksum_ipv6(&ip.unwrap(), body),
                };
                (right.unwrap(), header.checksum)
            }
            TransportSlice::Icmpv4(icmp) => {
                let header = icmp.header();
                (header.icmp_type.calc_checksum(icmp.payload()), header.checksum)
            }
            TransportSlice::Icmpv6(icmp) => {
                let (header, ip) = (icmp.header(), v6.unwrap());
                let right =
                    header.icmp_type.calc_checksum(ip.source, ip.destination, icmp.payload());
                (right.unwrap(), header.checksum)
            }
            other => panic!("not a transport of ours: {other:?}"),
        }
    }

    #[test]
    fn frames_of_every_kind_have_the_checksums_etherparse_computes() {
        for len in [0, 1, 18, 19, 1400, 1401] {
            let payload: Vec<u8> = (0..len).map(|n| (n * 31) as u8).collect();
            for builder in all_kinds(&payload) {
                let frame = builder.build();
                let (right, found) = checksums(&frame);
                assert_eq!(found, right, "{builder:?}");
                assert!(frame.len() >= MIN_FRAME);
                assert_eq!(frame[payload_range(&frame).unwrap()], payload);
            }
        }
    }

    #[test]
    fn udp_checksum_of_zero_is_sent_as_all_ones() {
        let frame = |word: u16| {
            let builder = FrameBuilder::new(A, B).ipv4(A4, B4).udp(1, 2);
            builder.payload(&word.to_be_bytes()).build()
        };
        // The one payload whose sum cancels out is the complement of all the rest.
        let rest = checksums(&frame(0)).1;
        assert_eq!(checksums(&frame(rest)).1, 0xffff);
    }

    #[test]
    fn a_partial_checksum_is_completed_by_summing_from_csum_start() {
        for builder in all_kinds(b"partial!").into_iter().filter(|b| b.payload.len() == 8) {
            let (header, mut frame) = builder.clone().unpadded().build_partial();
            assert_eq!(header.flags, VirtioNetHdr::NEEDS_CSUM);
            let start = usize::from(header.csum_start);
            let sum = internet_checksum(&frame[start..]);
            put(&mut frame, start + usize::from(header.csum_offset), sum);
            assert_eq!(frame, builder.unpadded().build());
        }
    }

    #[test]
    fn a_super_frame_says_how_to_cut_it() {
        let tcp = FrameBuilder::new(A, B).ipv4(A4, B4).tcp(1, 2, 3).payload(&[1; 5000]);
        let (header, frame) = tcp.build_gso(1448);
        assert_eq!((header.gso_type, header.gso_size), (VirtioNetHdr::GSO_TCPV4, 1448));
        assert_eq!((header.hdr_len, header.csum_start, header.csum_offset), (54, 34, 16));
        assert_eq!(frame.len(), 5054);
        let udp = FrameBuilder::new(A, B).ipv6(A6, B6).udp(1, 2).payload(&[1; 5000]);
        assert_eq!(udp.build_gso(1000).0.gso_type, VirtioNetHdr::GSO_UDP_L4);
    }

    #[test]
    fn arp_is_who_has_and_is_at() {
        let request = FrameBuilder::new(A, [0xff; 6]).arp_request(A4, B4).build();
        assert_eq!(request.len(), 60);
        assert_eq!(request[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(request[22..42], [2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
        let reply = FrameBuilder::new(B, A).arp_reply(B4, A, A4).build();
        assert_eq!(
            reply[20..42],
            [0, 2, 2, 0, 0, 0, 0, 2, 10, 0, 0, 2, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1]
        );
        assert_eq!(payload_range(&reply), None);
    }

    #[test]
    fn filled_frames_have_the_length_asked_for() {
        let builder = FrameBuilder::new(A, B).ipv4(A4, B4).udp(1, 2);
        for len in [60, 64, 1514] {
            assert_eq!(builder.clone().filled_to(len, 9).build().len(), len);
        }
    }
}
