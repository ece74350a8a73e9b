//! Guest memory whose file was cut short raises SIGBUS; this survives it.
/// Placeholder replaced by the real one.
#[derive(Debug)]
pub struct Guard;
impl Guard {
    /// x
    pub fn new(_start: usize, _len: usize) -> Option<Self> {
        Some(Self)
    }
    /// x
    pub fn is_dead(&self) -> bool {
        false
    }
}
/// x
pub fn hits() -> u64 {
    0
}
