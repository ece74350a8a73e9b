//! What a machine model needs to know of the host.

use std::fs;

/// Frequency of the host's time-stamp counter in kHz, or `None` where the kernel does not say.
///
/// Linux derives `bogomips` from the TSC frequency (two loops per cycle count), and prints it with
/// two decimals: exact to 5 kHz. `cpu MHz` is what a core runs at right now, which is another
/// number, and a counter without the flag `constant_tsc` follows it.
pub fn tsc_khz() -> Option<u32> {
    parse_tsc_khz(&fs::read_to_string("/proc/cpuinfo").ok()?)
}

fn parse_tsc_khz(cpuinfo: &str) -> Option<u32> {
    let value = |key: &str| {
        let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim())
    };
    value("flags")?.split(' ').find(|flag| *flag == "constant_tsc")?;
    thousandths(value("bogomips")?).map(|bogomips| bogomips / 2).filter(|khz| *khz > 0)
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

    const FLAGS: &str = "flags\t\t: fpu tsc constant_tsc nonstop_tsc\n";

    #[test]
    fn the_tsc_runs_at_half_the_bogomips_of_the_first_core() {
        let text = format!("cpu MHz\t\t: 800.000\n{FLAGS}bogomips\t: 5192.26\nbogomips\t: 1.0\n");
        assert_eq!(parse_tsc_khz(&text), Some(2_596_130));
    }

    #[test]
    fn a_counter_that_is_not_constant_has_no_frequency() {
        assert_eq!(parse_tsc_khz("flags : fpu tsc\nbogomips : 5192.26\n"), None);
    }

    #[test]
    fn nonsense_is_no_frequency() {
        for text in
            ["", "bogomips\n", "bogomips : x\n", "bogomips : 0.00\n", "bogomips : 9999999999"]
        {
            assert_eq!(parse_tsc_khz(&format!("{FLAGS}{text}")), None, "{text:?}");
        }
    }
}
