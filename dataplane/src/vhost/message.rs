//! vhost-user messages: from bytes and files to a [`Request`], and from a reply to bytes.
//!
//! # How it works
//! [`Header::parse`] judges the 12 bytes at the head of every message and says how many follow;
//! [`Request::parse`] judges the whole. Nothing here does I/O or keeps state, so any byte string
//! can be tried on it.
//!
//! # Bounds
//! A payload has at most [`MAX_PAYLOAD`] bytes, a message at most [`MAX_FILES`] files. Sizes and
//! counts of files must be exactly what the request calls for. Files of a message that is refused
//! are closed as they go out of scope.
//!
//! Source: vhost-user specification, "Message Specification" and "Front-end message types".

use std::fs::File;

use vhost::vhost_user::message::{FrontendReq, MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE};

use super::mem::RegionSpec;

/// Bytes of a header: request, flags, payload size, each a native `u32`.
pub const HEADER_LEN: usize = 12;
/// Bytes of a reply: all of ours carry 8 bytes of payload.
pub const REPLY_LEN: usize = HEADER_LEN + 8;
/// The largest payload taken: a memory table of as many regions as files may come with it needs
/// less, and nothing else is longer.
pub const MAX_PAYLOAD: usize = MAX_MSG_SIZE;
/// The most files one message may bring.
pub const MAX_FILES: usize = MAX_ATTACHED_FD_ENTRIES;

const VERSION_MASK: u32 = 0x3;
const VERSION: u32 = 0x1;
const REPLY: u32 = 0x4;
const NEED_REPLY: u32 = 0x8;
const KNOWN_FLAGS: u32 = VERSION_MASK | REPLY | NEED_REPLY;

/// Why bytes are no message. The connection they came from is ended: what follows them on the
/// stream has no meaning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The flags are not those of a request of version 1.
    #[error("Message {code} has flags {flags:#x}; a request of version 1 has 0x1 or 0x9")]
    Flags {
        /// Request code.
        code: u32,
        /// The flags.
        flags: u32,
    },
    /// The payload is longer than any message of the protocol.
    #[error("Message {code} announces {size} bytes; none has more than {MAX_PAYLOAD}")]
    Oversized {
        /// Request code.
        code: u32,
        /// The announced size in bytes.
        size: u32,
    },
    /// The payload does not have the size that the request calls for.
    #[error("{request} has {size} bytes instead of {expected}")]
    Size {
        /// Name of the request.
        request: String,
        /// Size of the payload in bytes.
        size: usize,
        /// What it should be.
        expected: usize,
    },
    /// A field has a value without meaning.
    #[error("{request} has the value {value:#x} in {field}")]
    Value {
        /// Name of the request.
        request: String,
        /// Name of the field.
        field: &'static str,
        /// The value.
        value: u64,
    },
    /// Not as many files as the request calls for.
    #[error("{request} came with {found} file descriptors instead of {expected}")]
    Files {
        /// Name of the request.
        request: String,
        /// How many came.
        found: usize,
        /// How many should have.
        expected: usize,
    },
}

/// The head of a message, found sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Request code, known or not.
    pub code: u32,
    /// Whether the sender wants an acknowledgement of a request that has no reply of its own
    /// (protocol feature REPLY_ACK).
    pub need_reply: bool,
    /// Bytes that follow.
    pub size: usize,
}

impl Header {
    /// Judges the first bytes of a message.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, Malformed> {
        let [code, flags, size] = words(bytes);
        if flags & VERSION_MASK != VERSION || flags & REPLY != 0 || flags & !KNOWN_FLAGS != 0 {
            return Err(Malformed::Flags { code, flags });
        }
        let oversized = Malformed::Oversized { code, size };
        let payload = usize::try_from(size).ok().filter(|&size| size <= MAX_PAYLOAD);
        let size = payload.ok_or(oversized)?;
        Ok(Self { code, need_reply: flags & NEED_REPLY != 0, size })
    }
}

fn words(bytes: &[u8; HEADER_LEN]) -> [u32; 3] {
    let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
    [word(0), word(4), word(8)]
}

/// The name of a request, or its code.
pub fn name_of(code: u32) -> String {
    FrontendReq::try_from(code).map_or_else(|()| format!("request {code}"), |r| format!("{r:?}"))
}

/// An event descriptor of one ring, as SET_VRING_KICK, _CALL and _ERR carry it.
#[derive(Debug)]
pub struct RingFile {
    /// Ring index.
    pub index: u8,
    /// `None`: poll instead.
    pub file: Option<File>,
}

/// What a front end asks for.
#[derive(Debug)]
pub enum Request {
    /// Which virtio features are offered?
    GetFeatures,
    /// These virtio features were chosen.
    SetFeatures(u64),
    /// Which protocol features are offered?
    GetProtocolFeatures,
    /// These protocol features were chosen.
    SetProtocolFeatures(u64),
    /// The session begins.
    SetOwner,
    /// Disable all rings (deprecated).
    ResetOwner,
    /// Back to the initial state.
    ResetDevice,
    /// How many rings are there?
    GetQueueNum,
    /// How many memory regions may there be?
    GetMaxMemSlots,
    /// This is all memory.
    SetMemTable(Vec<(RegionSpec, File)>),
    /// One memory region more.
    AddMemReg(RegionSpec, File),
    /// One memory region less.
    RemMemReg(RegionSpec),
    /// Size of a ring.
    SetVringNum {
        /// Ring index.
        index: u32,
        /// Descriptors.
        num: u32,
    },
    /// Where a ring lies, in addresses of the VMM.
    SetVringAddr {
        /// Ring index.
        index: u32,
        /// Descriptor table.
        desc: u64,
        /// Used ring.
        used: u64,
        /// Available ring.
        avail: u64,
    },
    /// Where a ring goes on.
    SetVringBase {
        /// Ring index.
        index: u32,
        /// Next available index.
        base: u32,
    },
    /// Stop a ring and say where it stands.
    GetVringBase {
        /// Ring index.
        index: u32,
    },
    /// How the guest tells us of available buffers.
    SetVringKick(RingFile),
    /// How we tell the guest of used buffers.
    SetVringCall(RingFile),
    /// How we tell the VMM that a ring is broken.
    SetVringErr(RingFile),
    /// Let traffic flow on a ring, or not.
    SetVringEnable {
        /// Ring index.
        index: u32,
        /// Whether to.
        on: bool,
    },
    /// A message that no feature we offer allows.
    NotOffered {
        /// Request code.
        code: u32,
    },
}

impl Request {
    /// Judges a whole message: the payload has the size that the header announced.
    pub fn parse(code: u32, payload: &[u8], files: Vec<File>) -> Result<Self, Malformed> {
        let Ok(request) = FrontendReq::try_from(code) else {
            return Ok(Self::NotOffered { code });
        };
        let body = Body { request, payload, files };
        match request {
            FrontendReq::GET_FEATURES => body.empty(Self::GetFeatures),
            FrontendReq::SET_FEATURES => Ok(Self::SetFeatures(body.one_u64()?)),
            FrontendReq::GET_PROTOCOL_FEATURES => body.empty(Self::GetProtocolFeatures),
            FrontendReq::SET_PROTOCOL_FEATURES => Ok(Self::SetProtocolFeatures(body.one_u64()?)),
            FrontendReq::SET_OWNER => body.empty(Self::SetOwner),
            FrontendReq::RESET_OWNER => body.empty(Self::ResetOwner),
            FrontendReq::RESET_DEVICE => body.empty(Self::ResetDevice),
            FrontendReq::GET_QUEUE_NUM => body.empty(Self::GetQueueNum),
            FrontendReq::GET_MAX_MEM_SLOTS => body.empty(Self::GetMaxMemSlots),
            FrontendReq::SET_MEM_TABLE => body.mem_table(),
            FrontendReq::ADD_MEM_REG => {
                let region = body.one_region()?;
                let file = body.files_exactly(1)?.remove(0);
                Ok(Self::AddMemReg(region, file))
            }
            // Older front ends pass the file here too; it is closed (vhost-user specification,
            // VHOST_USER_REM_MEM_REG).
            FrontendReq::REM_MEM_REG => {
                if body.files.len() > 1 {
                    return Err(body.wrong_files(0));
                }
                Ok(Self::RemMemReg(body.one_region()?))
            }
            FrontendReq::SET_VRING_NUM => {
                let [index, num] = body.two_u32()?;
                Ok(Self::SetVringNum { index, num })
            }
            FrontendReq::SET_VRING_ADDR => body.vring_addr(),
            FrontendReq::SET_VRING_BASE => {
                let [index, base] = body.two_u32()?;
                Ok(Self::SetVringBase { index, base })
            }
            FrontendReq::GET_VRING_BASE => {
                let [index, _] = body.two_u32()?;
                Ok(Self::GetVringBase { index })
            }
            FrontendReq::SET_VRING_KICK => Ok(Self::SetVringKick(body.ring_file()?)),
            FrontendReq::SET_VRING_CALL => Ok(Self::SetVringCall(body.ring_file()?)),
            FrontendReq::SET_VRING_ERR => Ok(Self::SetVringErr(body.ring_file()?)),
            FrontendReq::SET_VRING_ENABLE => {
                let [index, on] = body.two_u32()?;
                match on {
                    0 | 1 => Ok(Self::SetVringEnable { index, on: on == 1 }),
                    _ => Err(body.wrong_value("enable", on.into())),
                }
            }
            _ => Ok(Self::NotOffered { code }),
        }
    }
}

/// Payload and files of a message whose request is known.
struct Body<'a> {
    request: FrontendReq,
    payload: &'a [u8],
    files: Vec<File>,
}

impl Body<'_> {
    fn name(&self) -> String {
        format!("{:?}", self.request)
    }

    fn wrong_files(&self, expected: usize) -> Malformed {
        Malformed::Files { request: self.name(), found: self.files.len(), expected }
    }

    fn wrong_value(&self, field: &'static str, value: u64) -> Malformed {
        Malformed::Value { request: self.name(), field, value }
    }

    fn sized(&self, expected: usize) -> Result<(), Malformed> {
        if self.payload.len() == expected {
            return Ok(());
        }
        Err(Malformed::Size { request: self.name(), size: self.payload.len(), expected })
    }

    fn files_exactly(self, expected: usize) -> Result<Vec<File>, Malformed> {
        if self.files.len() == expected { Ok(self.files) } else { Err(self.wrong_files(expected)) }
    }

    fn no_files(&self) -> Result<(), Malformed> {
        if self.files.is_empty() { Ok(()) } else { Err(self.wrong_files(0)) }
    }

    /// The `u64` at `at` bytes; the caller checked the size.
    fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| self.payload[at + i]))
    }

    /// The `u32` at `at` bytes; the caller checked the size.
    fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes([0, 1, 2, 3].map(|i| self.payload[at + i]))
    }

    fn region(&self, at: usize) -> RegionSpec {
        RegionSpec {
            gpa: self.u64(at),
            size: self.u64(at + 8),
            vmm_addr: self.u64(at + 16),
            file_offset: self.u64(at + 24),
        }
    }

    fn empty(self, request: Request) -> Result<Request, Malformed> {
        self.sized(0)?;
        self.no_files()?;
        Ok(request)
    }

    fn one_u64(&self) -> Result<u64, Malformed> {
        self.sized(8)?;
        self.no_files()?;
        Ok(self.u64(0))
    }

    fn two_u32(&self) -> Result<[u32; 2], Malformed> {
        self.sized(8)?;
        self.no_files()?;
        Ok([self.u32(0), self.u32(4)])
    }

    /// "Single memory region description": 8 bytes of padding, then the region.
    fn one_region(&self) -> Result<RegionSpec, Malformed> {
        self.sized(40)?;
        Ok(self.region(8))
    }

    /// "Multiple memory regions description": their number, padding, the regions.
    fn mem_table(self) -> Result<Request, Malformed> {
        if self.payload.len() < 8 {
            self.sized(8)?;
        }
        let count = self.u32(0) as usize;
        if count == 0 || count > MAX_FILES {
            return Err(self.wrong_value("the number of regions", count as u64));
        }
        self.sized(8 + count * 32)?;
        let regions: Vec<_> = (0..count).map(|i| self.region(8 + i * 32)).collect();
        let files = self.files_exactly(count)?;
        Ok(Request::SetMemTable(regions.into_iter().zip(files).collect()))
    }

    /// "A vring address description". The dirty log (last field) is not offered.
    fn vring_addr(&self) -> Result<Request, Malformed> {
        self.sized(40)?;
        self.no_files()?;
        Ok(Request::SetVringAddr {
            index: self.u32(0),
            desc: self.u64(8),
            used: self.u64(16),
            avail: self.u64(24),
        })
    }

    /// Ring index in bits 0 to 7; bit 8 says that no file comes along.
    fn ring_file(mut self) -> Result<RingFile, Malformed> {
        self.sized(8)?;
        let value = self.u64(0);
        let expected = usize::from(value & 0x100 == 0);
        if self.files.len() != expected {
            return Err(self.wrong_files(expected));
        }
        let [index, ..] = value.to_le_bytes();
        Ok(RingFile { index, file: self.files.pop() })
    }
}

/// The payload of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// One number; also an acknowledgement, where 0 is success.
    U64(u64),
    /// Ring index and next available index.
    VringBase {
        /// Ring index.
        index: u32,
        /// Next available index.
        base: u32,
    },
}

impl Reply {
    /// The reply to request `code`, ready to send.
    pub fn encode(self, code: u32) -> [u8; REPLY_LEN] {
        let payload = match self {
            Self::U64(value) => value.to_ne_bytes(),
            Self::VringBase { index, base } => {
                let [i, b] = [index.to_ne_bytes(), base.to_ne_bytes()];
                [i[0], i[1], i[2], i[3], b[0], b[1], b[2], b[3]]
            }
        };
        let mut bytes = [0; REPLY_LEN];
        let head = [code, VERSION | REPLY, 8].map(u32::to_ne_bytes);
        let all = head.as_flattened().iter().chain(&payload);
        bytes.iter_mut().zip(all).for_each(|(to, from)| *to = *from);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(code: u32, flags: u32, size: u32) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice([code, flags, size].map(u32::to_ne_bytes).as_flattened());
        bytes
    }

    fn files(count: usize) -> Vec<File> {
        (0..count).map(|_| File::open("/dev/null").unwrap()).collect()
    }

    #[test]
    fn a_header_of_another_version_a_reply_or_an_oversized_one_is_refused() {
        assert!(Header::parse(&header(1, 1, 0)).is_ok());
        assert!(Header::parse(&header(1, 9, 4096)).unwrap().need_reply);
        for flags in [0, 2, 3, 5, 0x11, u32::MAX] {
            let refused = Header::parse(&header(1, flags, 0));
            assert_eq!(refused, Err(Malformed::Flags { code: 1, flags }));
        }
        let refused = Header::parse(&header(1, 1, 4097));
        assert_eq!(refused, Err(Malformed::Oversized { code: 1, size: 4097 }));
        assert!(Header::parse(&header(1, 1, u32::MAX)).is_err());
    }

    #[test]
    fn files_must_be_as_many_as_the_request_calls_for() {
        let kick = FrontendReq::SET_VRING_KICK as u32;
        let with = |value: u64, count| Request::parse(kick, &value.to_ne_bytes(), files(count));
        assert!(matches!(
            with(3, 1),
            Ok(Request::SetVringKick(RingFile { index: 3, file: Some(_) }))
        ));
        assert!(matches!(
            with(0x103, 0),
            Ok(Request::SetVringKick(RingFile { index: 3, file: None }))
        ));
        assert!(matches!(with(3, 0), Err(Malformed::Files { found: 0, expected: 1, .. })));
        assert!(matches!(with(0x103, 1), Err(Malformed::Files { found: 1, expected: 0, .. })));
        assert!(matches!(with(3, 2), Err(Malformed::Files { found: 2, .. })));
        let get = FrontendReq::GET_FEATURES as u32;
        assert!(matches!(Request::parse(get, &[], files(1)), Err(Malformed::Files { .. })));
    }

    #[test]
    fn a_memory_table_must_have_as_many_regions_and_files_as_it_says() {
        let code = FrontendReq::SET_MEM_TABLE as u32;
        let table = |count: u32, regions: usize, with_files| {
            let mut payload = u64::from(count).to_ne_bytes().to_vec();
            payload.resize(8 + regions * 32, 7);
            Request::parse(code, &payload, files(with_files))
        };
        assert!(matches!(table(2, 2, 2), Ok(Request::SetMemTable(regions)) if regions.len() == 2));
        assert!(matches!(table(2, 1, 2), Err(Malformed::Size { expected: 72, .. })));
        assert!(matches!(table(2, 2, 1), Err(Malformed::Files { found: 1, expected: 2, .. })));
        assert!(matches!(table(0, 0, 0), Err(Malformed::Value { value: 0, .. })));
        assert!(matches!(table(33, 33, 33), Err(Malformed::Value { value: 33, .. })));
        assert!(matches!(Request::parse(code, &[1, 0], vec![]), Err(Malformed::Size { .. })));
    }

    #[test]
    fn a_reply_says_which_request_it_answers() {
        let bytes = Reply::VringBase { index: 5, base: 0x1234 }.encode(11);
        assert_eq!(bytes[..12], header(11, 5, 8));
        assert_eq!(bytes[12..], [5u32.to_ne_bytes(), 0x1234u32.to_ne_bytes()].concat());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(
            code in 0u32..60,
            payload in prop::collection::vec(any::<u8>(), 0..200),
            count in 0usize..4,
        ) {
            let parsed = Request::parse(code, &payload, files(count));
            let carries = |request: &Request| match request {
                Request::SetMemTable(regions) => regions.len(),
                Request::AddMemReg(..) => 1,
                Request::SetVringKick(ring) | Request::SetVringCall(ring) | Request::SetVringErr(ring) =>
                    usize::from(ring.file.is_some()),
                Request::RemMemReg(_) | Request::NotOffered { .. } => count,
                _ => 0,
            };
            prop_assert!(parsed.is_err() || parsed.is_ok_and(|request| carries(&request) == count));
        }
    }
}
