//! Amounts of data on the command line.

use slipway_agent::protocol::MAX_STREAM;

/// Reads bytes with an optional decimal unit: `1500`, `20k`, `100M`, `2G`.
///
/// # Errors
/// It is no such number, zero, or more than a stream may have.
pub fn parse(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'k')) => (&text[..at], 1_000),
        Some((at, 'M')) => (&text[..at], 1_000_000),
        Some((at, 'G')) => (&text[..at], 1_000_000_000),
        _ => (text, 1),
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let bytes = digits.parse::<u64>().ok().filter(|_| is_number);
    let bytes = bytes.and_then(|number| number.checked_mul(unit));
    bytes.filter(|bytes| (1..=MAX_STREAM).contains(bytes)).ok_or_else(|| {
        format!("write 1 to {MAX_STREAM} bytes, as a number or with k, M or G: 1500, 100M")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_decimal() {
        let cases = [("1", 1), ("20k", 20_000), ("100M", 100_000_000), ("2G", 2_000_000_000)];
        for (text, bytes) in cases {
            assert_eq!(parse(text), Ok(bytes));
        }
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for text in ["", "M", "0", "-1", "+1", "1.5M", "1m", "69G", "99999999999999999999"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
