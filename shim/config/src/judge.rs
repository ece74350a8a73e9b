//! The tables of a file, one after the other: each key looked up, judged and put in its place.

use std::{collections::BTreeMap, path::PathBuf};

use crate::{
    Host, HypervisorKind, InternetworkingModel, KataConfig, Loaded,
    error::{ConfigError, Place, Warning},
    host::settle,
    keys::{self, Deed, Key, Scope},
    value::{self, Node, Table, Value},
};

/// Everything that is learned on the way through the tables.
struct Judge {
    config: KataConfig,
    warnings: Vec<Warning>,
    ignored: Vec<Warning>,
    /// Where the honoured keys stand, for what contradicts another.
    places: BTreeMap<(Scope, &'static str), (Place, String)>,
}

/// Judges what the files say together.
pub(crate) fn judge(
    mut root: Table,
    files: Vec<PathBuf>,
    host: Host,
) -> Result<Loaded, ConfigError> {
    let (name, hypervisor) = select_hypervisor(&mut root)?;
    let mut judge = Judge {
        config: blank(files.first(), &name),
        warnings: Vec::new(),
        ignored: Vec::new(),
        places: BTreeMap::new(),
    };
    let mut tables = BTreeMap::from([(Scope::Hypervisor, hypervisor)]);
    for (key, node) in root {
        let scope = match key.as_str() {
            "runtime" => Scope::Runtime,
            "factory" => Scope::Factory,
            "slipway" => Scope::Slipway,
            "agent" => {
                judge.agents(into_table(node, "agent")?, &mut tables)?;
                continue;
            }
            _ => {
                judge.unknown(Scope::None, &key, node.place);
                continue;
            }
        };
        let table = into_table(node, &key)?;
        value::merge(tables.entry(scope).or_default(), table);
    }
    // The Rust runtime has the factory's table in the hypervisor's.
    let hypervisor = tables.entry(Scope::Hypervisor).or_default();
    if let Some(node) = hypervisor.remove("factory") {
        let table = into_table(node, "factory")?;
        value::merge(tables.entry(Scope::Factory).or_default(), table);
    }
    for scope in Scope::TABLES {
        judge.table(scope, &name, tables.remove(&scope).unwrap_or_default())?;
    }
    judge.config.runtime.hypervisor_name = name;
    judge.contradictions()?;
    judge.warnings.extend(settle(&mut judge.config, host));
    let Judge { config, warnings, ignored, .. } = judge;
    Ok(Loaded { config, warnings, ignored, files })
}

/// The defaults, before [`settle`] knows what the host has.
fn blank(file: Option<&PathBuf>, name: &str) -> KataConfig {
    let mut config = KataConfig { file: file.cloned(), ..KataConfig::default() };
    config.hypervisor.kind = kind_of(name).unwrap_or_default();
    config.hypervisor.default_maxvcpus = 0;
    config.hypervisor.default_maxmemory_mib = 0;
    config
}

fn into_table(node: Node, name: &str) -> Result<Table, ConfigError> {
    match node.value {
        Value::Table(table) => Ok(table),
        other => Err(ConfigError::BadValue {
            place: node.place,
            key: name.to_owned(),
            value: other.to_string(),
            remedy: format!("it is a table: write [{name}]"),
        }),
    }
}

fn kind_of(name: &str) -> Option<HypervisorKind> {
    match name {
        "qemu" => Some(HypervisorKind::Qemu),
        "clh" | "cloud-hypervisor" => Some(HypervisorKind::CloudHypervisor),
        _ => None,
    }
}

/// Takes the `[hypervisor.*]` table that holds, with its name.
fn select_hypervisor(root: &mut Table) -> Result<(String, Table), ConfigError> {
    let mut tables = match root.remove("hypervisor") {
        Some(node) => into_table(node, "hypervisor")?,
        None => Table::new(),
    };
    let wanted = match root.get("runtime").map(|node| &node.value) {
        Some(Value::Table(runtime)) => runtime.get("hypervisor_name"),
        _ => None,
    };
    let name = match wanted {
        Some(Node { place, value: Value::Text(name) }) if !name.is_empty() => {
            let bad = |remedy: String| ConfigError::BadValue {
                place: place.clone(),
                key: "runtime.hypervisor_name".into(),
                value: format!("{name:?}"),
                remedy,
            };
            if kind_of(name).is_none() {
                return Err(bad("slipway runs pods in qemu, clh or cloud-hypervisor".into()));
            }
            if !tables.is_empty() && !tables.contains_key(name) {
                let there: Vec<_> =
                    tables.keys().map(|name| format!("[hypervisor.{name}]")).collect();
                let there = there.join(" and ");
                return Err(bad(format!("there is {there}, but no [hypervisor.{name}]")));
            }
            name.clone()
        }
        // A value of another type is refused with all others of its table.
        _ => {
            let known = ["qemu", "clh", "cloud-hypervisor"];
            match known.into_iter().find(|name| tables.contains_key(*name)) {
                Some(name) => name.to_owned(),
                None => match tables.iter().next() {
                    None => "qemu".to_owned(),
                    Some((name, node)) => {
                        return Err(ConfigError::Refused {
                            place: node.place.clone(),
                            key: format!("hypervisor.{name}"),
                            value: "{...}".into(),
                            reason: "slipway runs pods in qemu, clh or cloud-hypervisor: take a file of Kata's for one of these".into(),
                        });
                    }
                },
            }
        }
    };
    let table = match tables.remove(&name) {
        Some(node) => into_table(node, &format!("hypervisor.{name}"))?,
        None => Table::new(),
    };
    Ok((name, table))
}

impl Judge {
    /// `[agent.kata]`, with the table in it; other agents are none of ours.
    fn agents(
        &mut self,
        agents: Table,
        tables: &mut BTreeMap<Scope, Table>,
    ) -> Result<(), ConfigError> {
        for (name, node) in agents {
            if name != "kata" {
                let message = format!("`agent.{name}` has no effect: the agent is `kata`");
                self.warnings.push(Warning { place: Some(node.place), message });
                continue;
            }
            let mut table = into_table(node, "agent.kata")?;
            if let Some(node) = table.remove("mem_agent") {
                tables.insert(Scope::MemAgent, into_table(node, "agent.kata.mem_agent")?);
            }
            tables.insert(Scope::Agent, table);
        }
        Ok(())
    }

    fn table(&mut self, scope: Scope, name: &str, table: Table) -> Result<(), ConfigError> {
        let title = match scope {
            Scope::Hypervisor => format!("hypervisor.{name}"),
            other => other.table().to_owned(),
        };
        for (name, node) in table {
            match keys::find(scope, &name) {
                Some(key) => self.key(key, &format!("{title}.{name}"), node)?,
                None => self.unknown(scope, &format!("{title}.{name}"), node.place),
            }
        }
        Ok(())
    }

    fn key(&mut self, key: &'static Key, title: &str, node: Node) -> Result<(), ConfigError> {
        let Node { place, value } = node;
        match key.deed {
            Deed::Honoured(set) => {
                if let Err(remedy) = set.put(&mut self.config, &value) {
                    let (key, value) = (title.to_owned(), value.to_string());
                    return Err(ConfigError::BadValue { place, key, value, remedy });
                }
                if let Some(name) = key.name {
                    self.places.insert((key.scope, name), (place, value.to_string()));
                }
            }
            Deed::Ignored => {
                let message = format!("`{title}` has no effect: {}", key.note);
                self.ignored.push(Warning { place: Some(place), message });
            }
            Deed::Refused(_) | Deed::Only(_) if !key.deed.refuses(&value) => {}
            Deed::Refused(_) | Deed::Only(_) => {
                let (key, value, reason) = (title.to_owned(), value.to_string(), key.note.into());
                return Err(ConfigError::Refused { place, key, value, reason });
            }
        }
        Ok(())
    }

    /// A key that no dialect has: a typing error, most likely, so the nearest one is named.
    fn unknown(&mut self, scope: Scope, title: &str, place: Place) {
        let (table, name) = title.rsplit_once('.').unwrap_or(("", title));
        let here = keys::all().filter(|key| key.scope == scope).filter_map(|key| key.name);
        let home = keys::all().find(|key| key.name == Some(name) && key.scope != scope);
        let hint = match (keys::nearest(name, here), home) {
            (Some(near), _) => format!("; did you mean `{near}`?"),
            (None, Some(home)) => format!("; it belongs under [{}]", home.scope.table()),
            (None, None) if table.is_empty() => {
                let tables = ["hypervisor", "factory", "agent", "runtime", "slipway"];
                keys::nearest(name, tables)
                    .map(|near| format!("; did you mean [{near}]?"))
                    .unwrap_or_default()
            }
            (None, None) => String::new(),
        };
        let message = format!("`{title}` is not known and has no effect{hint}");
        self.warnings.push(Warning { place: Some(place), message });
    }

    /// Keys that are right each, and wrong together.
    fn contradictions(&self) -> Result<(), ConfigError> {
        let bad = |scope: Scope, name: &'static str, remedy: &str| {
            let (place, value) = match self.places.get(&(scope, name)) {
                Some(found) => found.clone(),
                // Only what stands in a file can contradict.
                None => return Ok(()),
            };
            let key = match scope {
                Scope::Hypervisor => {
                    format!("hypervisor.{}.{name}", self.config.runtime.hypervisor_name)
                }
                other => format!("{}.{name}", other.table()),
            };
            Err(ConfigError::BadValue { place, key, value, remedy: remedy.to_owned() })
        };
        let KataConfig { hypervisor, runtime, .. } = &self.config;
        if hypervisor.image.is_some() && hypervisor.initrd.is_some() {
            let remedy = "`image` is set too, and a guest has one of them: set the other to \"\"";
            return bad(Scope::Hypervisor, "initrd", remedy);
        }
        if runtime.disable_new_netns && runtime.internetworking_model != InternetworkingModel::None
        {
            let remedy = "it needs internetworking_model = \"none\"";
            return bad(Scope::Runtime, "disable_new_netns", remedy);
        }
        Ok(())
    }
}
