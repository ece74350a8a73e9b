//! stub
use ipnet::IpNet;
/// x
#[derive(Debug)]
pub struct Masquerade;
/// x
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct MasqueradeError;
impl Masquerade {
    /// x
    pub fn start(_: &str, _: &[IpNet]) -> Result<Self, MasqueradeError> { Err(MasqueradeError) }
}
