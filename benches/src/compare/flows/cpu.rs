//! Where the machine's cores spent their time, by /proc/stat (proc(5)).

use std::fs;
use std::ops::Sub;

use anyhow::{Context as _, Result};
use dataplane::clock;

use super::measurement::Reading;

/// Seconds of all cores so far, in steps of 10 ms.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cpu {
    /// Programs, niced ones too.
    pub user_s: f64,
    /// The kernel for them.
    pub sys_s: f64,
    /// The kernel for devices: soft and hard interrupts.
    pub softirq_s: f64,
    /// Nothing to do.
    pub idle_s: f64,
    /// Taken by the hypervisor.
    pub steal_s: f64,
}

impl Cpu {
    /// Now.
    ///
    /// # Errors
    /// /proc/stat is not as proc(5) has it.
    pub fn now() -> Result<Self> {
        let path = "/proc/stat";
        let text = fs::read_to_string(path).with_context(|| format!("Failed to read {path}"))?;
        Self::of(&text, "cpu").with_context(|| format!("{path} has no line of all CPUs"))
    }

    /// Now, of one core.
    ///
    /// # Errors
    /// There is no such core.
    pub fn of_core(core: usize) -> Result<Self> {
        let path = "/proc/stat";
        let text = fs::read_to_string(path).with_context(|| format!("Failed to read {path}"))?;
        let name = format!("cpu{core}");
        Self::of(&text, &name).with_context(|| format!("{path} has no line of {name}"))
    }

    /// Of the line that begins with the word `name`.
    fn of(text: &str, name: &str) -> Option<Self> {
        let of_name = |line: &str| line.split_once(' ').filter(|(word, _)| *word == name).is_some();
        let line = text.lines().find(|line| of_name(line))?.strip_prefix(name)?;
        let ticks: Vec<f64> = line.split_whitespace().map_while(|n| n.parse().ok()).collect();
        let [user, nice, sys, idle, wait, irq, softirq, steal, ..] = ticks[..] else { return None };
        Some(Self {
            user_s: (user + nice) / 100.0,
            sys_s: sys / 100.0,
            softirq_s: (irq + softirq) / 100.0,
            idle_s: (idle + wait) / 100.0,
            steal_s: steal / 100.0,
        })
    }

    /// At work.
    pub fn busy_s(&self) -> f64 {
        self.user_s + self.sys_s + self.softirq_s
    }

    /// Enters it, for a window in which `bytes` arrived. A polling thread's time is user time, whether it
    /// found something or not.
    pub fn enter(&self, reading: &mut Reading, bytes: f64) {
        reading.value("cpu_user_s", self.user_s);
        reading.value("cpu_sys_s", self.sys_s);
        reading.value("cpu_softirq_s", self.softirq_s);
        let cycles = self.busy_s() * clock::ticks_per_us() as f64 * 1e6;
        reading.value("cycles_per_byte", cycles / bytes);
        let all = self.busy_s() + self.idle_s + self.steal_s;
        reading.value("cpu_percent", 100.0 * self.busy_s() / all);
    }
}

impl Sub for Cpu {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            user_s: self.user_s - before.user_s,
            sys_s: self.sys_s - before.sys_s,
            softirq_s: self.softirq_s - before.softirq_s,
            idle_s: self.idle_s - before.idle_s,
            steal_s: self.steal_s - before.steal_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_all_cores_is_read_in_seconds() {
        let text = "cpu  100 50 300 1000 20 5 45 7 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        let cpu = Cpu::of(text, "cpu").unwrap();
        let expected = Cpu { user_s: 1.5, sys_s: 3.0, softirq_s: 0.5, idle_s: 10.2, steal_s: 0.07 };
        assert_eq!(cpu, expected);
        let first = Cpu::of(text, "cpu0").unwrap();
        assert_eq!((first.sys_s, first.idle_s), (0.01, 0.02));
        assert_eq!(Cpu::of("cpu0 1 2 3 4 5 6 7 8\n", "cpu"), None);
        assert_eq!(Cpu::of("cpu10 1 2 3 4 5 6 7 8\n", "cpu1"), None);
        let mut reading = Reading::default();
        (cpu - Cpu::default()).enter(&mut reading, 0.0);
        assert!(!reading.values.contains_key("cycles_per_byte"), "nothing arrived");
        assert!((reading.values["cpu_percent"] - 100.0 * 5.0 / 15.27).abs() < 1e-9);
    }
}
