//! Why a frame was not forwarded.

macro_rules! drop_reasons {
    ($($(#[doc = $text:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a frame was not forwarded: one counter per reason and vport, never a log line.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $text])+ $variant,)+ }

        impl DropReason {
            /// Every reason, in order of its number.
            pub const ALL: [Self; Self::COUNT] = [$(Self::$variant,)+];
            /// How many reasons there are.
            pub const COUNT: usize = [$($name,)+].len();

            /// The name in the API, the metrics and the CLI.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it means, for an operator.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($text),+).trim_ascii(),)+ }
            }
        }
    };
}

drop_reasons! {
    /// The guest's buffer holds less than a virtio-net and an Ethernet header.
    Truncated = "truncated",
    /// The frame is longer than any Ethernet or TSO frame may be, or than the vport's MTU.
    TooLong = "too_long",
    /// The guest spread the frame over more descriptors than the switch walks.
    TooManySegments = "too_many_segments",
    /// A header in the frame contradicts itself or the frame's length.
    Malformed = "malformed",
    /// The virtio-net header asks for an offload that does not fit the frame.
    BadOffload = "bad_offload",
    /// The virtio-net header asks for an offload that the guest did not negotiate.
    OffloadNotNegotiated = "offload_not_negotiated",
    /// The source address is not one that this vport may use.
    Spoofed = "spoofed",
    /// The policy of the sending vport does not allow it.
    PolicyEgress = "policy_egress",
    /// The policy of the receiving vport does not allow it.
    PolicyIngress = "policy_ingress",
    /// No vport of the VNI is known to own the destination address, and the VNI does not flood.
    NoRoute = "no_route",
    /// The destination is the vport that the frame came from.
    Hairpin = "hairpin",
    /// A broadcast or multicast with no other vport in the VNI.
    NoReceiver = "no_receiver",
    /// The receiving guest has no running, enabled RX vring.
    LinkDown = "link_down",
    /// The receiving guest has not enough free receive buffers.
    RingFull = "ring_full",
    /// The receiving guest's buffers are too small for the frame, and it did not negotiate MRG_RXBUF.
    BufferTooSmall = "buffer_too_small",
    /// The kernel has no room for another frame to the tap of the receiving port.
    TapFull = "tap_full",
    /// The kernel does not take the frame at the tap of the receiving port.
    TapRefused = "tap_refused",
}
