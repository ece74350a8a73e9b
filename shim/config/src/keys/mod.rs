//! Every key and annotation that is known, with what becomes of it: the one source of the parser's
//! behaviour and of `docs/kata-compat.md`.
//!
//! ```text
//! [table] name = value --find--> Key --> Honoured(Set)   checked, and put where Set says
//!                                  |---> Ignored         accepted; the note says what holds instead
//!                                  `---> Refused(fine)   an error, unless it says "off" or is fine
//! ```
//! A setting is refused when a pod would be something else than what was asked for: less isolated,
//! less limited, without a device. One that only says how Kata does its work is ignored.

mod agent;
mod hypervisor;
mod runtime;
mod set;

use serde::Serialize;

pub(crate) use set::{ListRule, Set};

use crate::{KataConfig, value::Value};

/// Whose key it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// Kata's Rust and Go runtimes both.
    Both,
    /// Kata's Rust runtime.
    RuntimeRs,
    /// Kata's Go runtime.
    Go,
    /// slipway.
    Slipway,
}

/// What becomes of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It has its effect.
    Honoured,
    /// It is accepted, and has none.
    Ignored,
    /// It is an error, unless it says "off".
    Refused,
}

/// The table a key stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    Hypervisor,
    Factory,
    Runtime,
    Agent,
    MemAgent,
    Slipway,
    /// An annotation that no table has a key for.
    None,
}

impl Scope {
    /// The tables, in the order in which they are judged: what stands twice, in both dialects, is
    /// taken from the later one.
    pub(crate) const TABLES: [Self; 6] = [
        Self::Hypervisor,
        Self::Factory,
        Self::Runtime,
        Self::Agent,
        Self::MemAgent,
        Self::Slipway,
    ];

    /// As an operator finds it in a file.
    pub(crate) const fn table(self) -> &'static str {
        match self {
            Self::Hypervisor => "hypervisor.*",
            Self::Factory => "factory",
            Self::Runtime => "runtime",
            Self::Agent => "agent.kata",
            Self::MemAgent => "agent.kata.mem_agent",
            Self::Slipway => "slipway",
            Self::None => "",
        }
    }

    /// What the names of its annotations begin with.
    pub(crate) const fn prefix(self) -> &'static str {
        match self {
            Self::Hypervisor => HYPERVISOR_PREFIX,
            Self::Runtime => "io.katacontainers.config.runtime.",
            Self::Agent => "io.katacontainers.config.agent.",
            Self::Slipway => "io.slipway.",
            Self::Factory | Self::MemAgent | Self::None => "",
        }
    }
}

/// Annotations that begin so need the operator's leave.
pub(crate) const HYPERVISOR_PREFIX: &str = "io.katacontainers.config.hypervisor.";

/// What is done with a value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Deed {
    Honoured(Set),
    Ignored,
    /// Values besides "off" that say what slipway does anyway, as [`Value`] shows them.
    Refused(&'static [&'static str]),
    /// Refused unless it is this: "off" would ask for something.
    Only(&'static str),
}

impl Deed {
    /// Whether a value has to be refused.
    pub(crate) fn refuses(self, value: &Value) -> bool {
        let shown = match value {
            Value::Text(text) => text.clone(),
            other => other.to_string(),
        };
        match self {
            Self::Honoured(_) | Self::Ignored => false,
            Self::Refused(fine) => !value.is_neutral() && !fine.contains(&shown.as_str()),
            Self::Only(fine) => shown != fine,
        }
    }
}

/// How a pod may say the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Annotation {
    /// The annotation without its prefix.
    pub name: &'static str,
    /// What allows its values, if anything does.
    pub guard: Option<Guard>,
}

/// A list of globs of the operator's that a value has to match.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard {
    pub list: &'static str,
    pub globs: fn(&KataConfig) -> &Vec<String>,
}

/// One key, one annotation, or both.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    pub scope: Scope,
    /// `None`: there is only the annotation.
    pub name: Option<&'static str>,
    pub dialect: Dialect,
    pub deed: Deed,
    pub annotation: Option<Annotation>,
    pub note: &'static str,
}

impl Key {
    const fn new(scope: Scope, name: &'static str, deed: Deed, note: &'static str) -> Self {
        Self { scope, name: Some(name), dialect: Dialect::Both, deed, annotation: None, note }
    }

    /// An annotation that has no key, by its name without the prefix.
    const fn only_annotation(
        scope: Scope,
        name: &'static str,
        deed: Deed,
        note: &'static str,
    ) -> Self {
        let annotation = Some(Annotation { name, guard: None });
        Self { scope, name: None, dialect: Dialect::Both, deed, annotation, note }
    }

    const fn rs(mut self) -> Self {
        self.dialect = Dialect::RuntimeRs;
        self
    }

    const fn go(mut self) -> Self {
        self.dialect = Dialect::Go;
        self
    }

    const fn slipway(mut self) -> Self {
        self.dialect = Dialect::Slipway;
        self
    }

    /// Pods may say it by the same name.
    const fn annotated(self) -> Self {
        match self.name {
            Some(name) => self.annotated_as(name),
            None => self,
        }
    }

    const fn annotated_as(mut self, name: &'static str) -> Self {
        self.annotation = Some(Annotation { name, guard: None });
        self
    }

    const fn guarded(mut self, list: &'static str, globs: fn(&KataConfig) -> &Vec<String>) -> Self {
        if let Some(Annotation { name, .. }) = self.annotation {
            self.annotation = Some(Annotation { name, guard: Some(Guard { list, globs }) });
        }
        self
    }

    pub(crate) const fn standing(&self) -> Standing {
        match self.deed {
            Deed::Honoured(_) => Standing::Honoured,
            Deed::Ignored => Standing::Ignored,
            Deed::Refused(_) | Deed::Only(_) => Standing::Refused,
        }
    }

    /// The annotation's whole name.
    pub(crate) fn annotation_name(&self) -> Option<String> {
        Some(format!("{}{}", self.scope.prefix(), self.annotation?.name))
    }
}

/// All keys, table by table.
pub(crate) fn all() -> impl Iterator<Item = &'static Key> {
    [hypervisor::KEYS, hypervisor::FACTORY, runtime::KEYS, agent::KEYS, agent::MEM_AGENT]
        .into_iter()
        .chain([runtime::SLIPWAY, runtime::OTHER_ANNOTATIONS])
        .flatten()
}

/// The key of this name in this table.
pub(crate) fn find(scope: Scope, name: &str) -> Option<&'static Key> {
    all().find(|key| key.scope == scope && key.name == Some(name))
}

/// The known name most like `name`, if one is like it at all.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = known.into_iter().map(|known| (strsim::damerau_levenshtein(name, known), known));
    let (edits, known) = near.min()?;
    (edits <= known.chars().count() / 3).then_some(known)
}
