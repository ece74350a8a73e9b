//! A unit of systemd's, run without systemd: its command under the privileges that it grants.
//!
//! Of the rest, namespaces and filters of system calls, nothing is done here; `systemd-analyze verify`
//! reads it.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// What stands in a unit and its drop-ins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    settings: Vec<(String, String)>,
}

impl Unit {
    /// Reads the texts of a unit and of its drop-ins.
    ///
    /// # Errors
    /// A line is neither a section, a comment nor a setting.
    pub fn parse(texts: &[String]) -> Result<Self> {
        let mut settings = Vec::new();
        for line in texts.iter().flat_map(|text| text.lines()).map(str::trim) {
            if line.is_empty() || line.starts_with(['#', '[']) {
                continue;
            }
            let Some((key, value)) = line.split_once('=') else { bail!("no setting: {line:?}") };
            settings.push((key.to_owned(), value.to_owned()));
        }
        Ok(Self { settings })
    }

    /// The values of a key, in order.
    pub fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        let settings = self.settings.iter().filter(move |(name, _)| name == key);
        settings.map(|(_, value)| value.as_str())
    }

    /// The one value of a key.
    ///
    /// # Errors
    /// There is none, or several.
    pub fn value<'a>(&'a self, key: &'a str) -> Result<&'a str> {
        let mut values = self.values(key);
        let first = values.next().with_context(|| format!("there is no {key}="))?;
        if values.next().is_some() {
            bail!("{key}= stands twice");
        }
        Ok(first)
    }

    /// Program and arguments of `ExecStart`, which here are words without quotes.
    ///
    /// # Errors
    /// There is no such line.
    pub fn command(&self) -> Result<(&Path, Vec<&str>)> {
        let mut words = self.value("ExecStart")?.split(' ');
        let program = words.next().unwrap_or_default();
        Ok((Path::new(program), words.collect()))
    }

    /// What to run the command under so that it can do what the unit lets it: with no capability besides
    /// those of `CapabilityBoundingSet`, and without new privileges.
    ///
    /// # Errors
    /// The unit grants all capabilities, or new privileges.
    pub fn wrapper(&self) -> Result<Vec<String>> {
        if self.value("NoNewPrivileges")? != "yes" {
            bail!("NoNewPrivileges= is not yes");
        }
        let sets = self.values("CapabilityBoundingSet").flat_map(|set| set.split(' '));
        let names = sets.map(|name| name.trim_start_matches("CAP_").to_lowercase());
        let granted: Vec<_> = names.map(|name| format!("+{name}")).collect();
        if granted.is_empty() {
            bail!("there is no CapabilityBoundingSet=");
        }
        Ok(vec![
            "setpriv".to_owned(),
            "--no-new-privs".to_owned(),
            format!("--bounding-set=-all,{}", granted.join(",")),
            "--inh-caps=-all".to_owned(),
            "--".to_owned(),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_and_its_drop_in_are_read_as_one() {
        let unit = "# one\n[Service]\nExecStart=/bin/a --b c\nNoNewPrivileges=yes\n\
                    CapabilityBoundingSet=CAP_CHOWN CAP_KILL\n";
        let drop_in = "[Service]\nCapabilityBoundingSet=CAP_NET_ADMIN\n";
        let unit = Unit::parse(&[unit.to_owned(), drop_in.to_owned()]).unwrap();
        assert_eq!(unit.command().unwrap(), (Path::new("/bin/a"), vec!["--b", "c"]));
        assert_eq!(unit.wrapper().unwrap()[2], "--bounding-set=-all,+chown,+kill,+net_admin");
        assert!(unit.value("CapabilityBoundingSet").unwrap_err().to_string().contains("twice"));
        assert!(unit.value("Type").unwrap_err().to_string().contains("no Type="));
    }

    #[test]
    fn a_unit_that_grants_everything_is_not_run_with_less() {
        for text in
            ["NoNewPrivileges=yes\n", "NoNewPrivileges=no\nCapabilityBoundingSet=CAP_KILL\n"]
        {
            assert!(Unit::parse(&[text.to_owned()]).unwrap().wrapper().is_err(), "{text}");
        }
        assert!(Unit::parse(&["nothing".to_owned()]).is_err());
    }
}
