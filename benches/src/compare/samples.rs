//! All that a comparison gave, as it is stored: every report is drawn from this and nothing else.

use std::path::Path;
use std::{fs, io::BufReader};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::arms::ArmKind;
use super::burst::Burst;
use super::count::{Count, Methods};
use super::flows::measurement::{Absence, Lack, Measurement};
use crate::machine::Machine;

/// Of the file. Another one is refused.
pub const FORMAT: u32 = 2;

/// A file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// [`FORMAT`].
    pub format: u32,
    /// What it was measured on.
    pub machine: Machine,
    /// How.
    pub parameters: Parameters,
    /// Start-up: arms that could not be measured, with the reason.
    pub absent: Vec<(ArmKind, String)>,
    /// What went wrong beside single pods.
    pub failures: Vec<String>,
    /// Start-up: each burst in the order they ran.
    pub bursts: Vec<Sample>,
    /// How rtnetlink and RTNL were counted, or why not.
    pub methods: Methods,
    /// What was counted.
    pub counts: Vec<Count>,
    /// Arms of others that could not be counted, with the reason.
    #[serde(default)]
    pub uncounted: Vec<String>,
    /// The data plane: each window in the order they ran.
    pub measurements: Vec<Measurement>,
    /// Arms that are not in its figures.
    pub absences: Vec<Absence>,
    /// Points that arms in its figures have not.
    #[serde(default)]
    pub lacks: Vec<Lack>,
}

/// How it was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// Which arms.
    pub arms: Vec<ArmKind>,
    /// Names that were asked for, of groups or single figures; none are all.
    pub figures: Vec<String>,
    /// Fewer points and shorter windows.
    pub quick: bool,
    /// Points of the data plane with more pairs were left out.
    pub pairs: Option<usize>,
    /// TCP's congestion control, as the kernel presets it.
    pub congestion_control: String,
    /// Pods at once, a burst for each of these; none without the start-up figures.
    pub pods: Vec<usize>,
    /// Rounds that count. One more, with the fewest pods, warms up.
    pub rounds: usize,
    /// Threads that set pods up.
    pub parallel: usize,
    /// Seed of the bootstrap.
    pub seed: u64,
}

/// One burst.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Who.
    pub arm: ArmKind,
    /// From 0.
    pub round: usize,
    /// Who was before it in this round.
    pub place: usize,
    /// What it took.
    pub burst: Burst,
    /// Bursts thrown away before this one, because the hypervisor took too much time.
    pub repeated: usize,
    /// Why it does not count, if it does not.
    pub discarded: Option<String>,
}

impl Samples {
    /// Those of a run that begins now.
    pub fn begin(parameters: Parameters) -> Self {
        let nothing = || "not counted: start-up was not measured".to_owned();
        Self {
            format: FORMAT,
            machine: Machine::here(),
            parameters,
            absent: Vec::new(),
            failures: Vec::new(),
            bursts: Vec::new(),
            methods: Methods { messages: nothing(), acquisitions: nothing(), waits: nothing() },
            counts: Vec::new(),
            uncounted: Vec::new(),
            measurements: Vec::new(),
            absences: Vec::new(),
            lacks: Vec::new(),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It is not there, or not one of ours.
    pub fn read(path: &Path) -> Result<Self> {
        let name = || format!("Failed to read {}", path.display());
        let file = fs::File::open(path).with_context(name)?;
        let samples: Self = serde_json::from_reader(BufReader::new(file)).with_context(name)?;
        let format = samples.format;
        ensure!(format == FORMAT, "{} has format {format}, not {FORMAT}", path.display());
        Ok(samples)
    }

    /// What counts of the bursts of an arm with so many pods.
    pub fn of(&self, arm: ArmKind, pods: usize) -> impl Iterator<Item = &Burst> {
        let counts = |sample: &&Sample| sample.discarded.is_none();
        self.all_of(arm, pods).filter(counts).map(|sample| &sample.burst)
    }

    /// How many bursts of an arm with so many pods were thrown away.
    pub fn discarded_of(&self, arm: ArmKind, pods: usize) -> usize {
        let lost = |sample: &Sample| sample.repeated + usize::from(sample.discarded.is_some());
        self.all_of(arm, pods).map(lost).sum()
    }

    fn all_of(&self, arm: ArmKind, pods: usize) -> impl Iterator<Item = &Sample> {
        let is_it = move |sample: &&Sample| sample.arm == arm && sample.burst.pods == pods;
        self.bursts.iter().filter(is_it)
    }

    /// Arms that were measured, in the order of the tables.
    pub fn arms(&self) -> Vec<ArmKind> {
        let is_there = |arm: &&ArmKind| self.bursts.iter().any(|sample| sample.arm == **arm);
        self.parameters.arms.iter().filter(is_there).copied().collect()
    }

    /// What went wrong in the bursts of an arm at start-up.
    pub fn failures_of(&self, arm: ArmKind) -> usize {
        let bursts = self.bursts.iter().filter(|sample| sample.arm == arm);
        bursts.map(|sample| sample.burst.failures.len()).sum()
    }

    /// What was counted of an arm.
    pub fn count(&self, arm: ArmKind) -> Option<&Count> {
        self.counts.iter().find(|count| count.arm == arm)
    }
}
