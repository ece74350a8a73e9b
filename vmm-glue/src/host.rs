//! What a machine model needs to know of the host.

use std::fs;

/// Frequency of the host's time-stamp counter in kHz, or `None` where the kernel does not say.
///
/// Linux derives `bogomips` from the TSC frequency (two loops per cycle count), and prints it with
/// two decimals: exact to 5 kHz. `cpu MHz` is what a core runs at right now, which on real hardware
/// is another number; it is taken only where there is no `bogomips`.
pub fn tsc_khz() -> Option<u32> {
    parse_tsc_khz(&fs::read_to_string("/proc/cpuinfo").ok()?)
}

fn parse_tsc_khz(cpuinfo: &str) -> Option<u32> {
    let value = |key: &str| {
        let lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        let mut values = lines.filter(|(name, _)| name.trim() == key);
        values.find_map(|(_, value)| thousandths(value.trim()))
    };
    value("bogomips").map(|bogomips| bogomips / 2).or_else(|| value("cpu MHz")).filter(|&k| k > 0)
}

/// `5192.26` as 5192260, without floating point. More than three decimals are cut.
fn thousandths(text: &str) -> Option<u32> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000".chars()).take(3).collect();
    whole.parse::<u32>().ok()?.checked_mul(1000)?.checked_add(digits.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tsc_runs_at_half_the_bogomips() {
        let text = "cpu MHz\t\t: 800.000\nbogomips\t: 5192.26\ncpu MHz\t: 1.0\nbogomips\t: 1.0\n";
        assert_eq!(parse_tsc_khz(text), Some(2_596_130));
    }

    #[test]
    fn without_bogomips_the_clock_of_the_first_core_is_taken() {
        assert_eq!(parse_tsc_khz("cpu MHz\t\t: 2000.5\n"), Some(2_000_500));
    }

    #[test]
    fn nonsense_is_no_frequency() {
        for text in
            ["", "bogomips\n", "bogomips : x\n", "bogomips : 0.00\n", "bogomips : 9999999999"]
        {
            assert_eq!(parse_tsc_khz(text), None, "{text:?}");
        }
    }
}
