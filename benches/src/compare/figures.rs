//! Which figures are measured: groups, or single ones of the data plane.

use anyhow::{Result, bail};

use super::flows::experiment::{Endpoints, Experiment, all};

/// Many pods set up at once.
const STARTUP: &str = "startup";

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// Many pods set up at once.
    pub startup: bool,
    /// Of the data plane.
    pub experiments: Vec<&'static Experiment>,
}

impl Figures {
    /// By names of groups and of experiments; none are all.
    ///
    /// # Errors
    /// A name is neither; the error names all that there are.
    pub fn parse(names: &[String]) -> Result<Self> {
        let groups = [Endpoints::Container, Endpoints::Microvm, Endpoints::Pod];
        let has = |group: Endpoints| all().any(|experiment| experiment.endpoints == group);
        let groups: Vec<_> = groups.into_iter().filter(|group| has(*group)).collect();
        for name in names {
            let is_group = name == STARTUP || groups.iter().any(|group| group.group() == name);
            if !is_group && !all().any(|experiment| experiment.id == name) {
                let groups = groups.iter().map(|group| group.group());
                let known = [STARTUP].into_iter().chain(groups).chain(all().map(|e| e.id));
                let known: Vec<_> = known.collect();
                bail!("There is no figure {name:?}; there are {}", known.join(", "));
            }
        }
        let is_asked = |name: &str| names.is_empty() || names.iter().any(|asked| asked == name);
        let is_in = |experiment: &&Experiment| {
            is_asked(experiment.id) || is_asked(experiment.endpoints.group())
        };
        Ok(Self { startup: is_asked(STARTUP), experiments: all().filter(is_in).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(names: &[&str]) -> Result<Figures> {
        Figures::parse(&names.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn groups_and_single_figures_are_chosen_by_name_and_others_refused() {
        let everything = parse(&[]).unwrap();
        assert!(everything.startup);
        assert_eq!(everything.experiments.len(), all().count());
        let startup = parse(&["startup"]).unwrap();
        assert!(startup.startup && startup.experiments.is_empty());
        let two = parse(&["completion", "throughput"]).unwrap();
        let ids: Vec<_> = two.experiments.iter().map(|experiment| experiment.id).collect();
        assert_eq!((two.startup, ids), (false, vec!["throughput", "completion"]));
        let group = parse(&["containers"]).unwrap();
        assert!(group.experiments.iter().all(|e| e.endpoints == Endpoints::Container));
        let error = parse(&["througput"]).unwrap_err().to_string();
        assert!(error.contains("\"througput\"") && error.contains("throughput"), "{error}");
    }
}
