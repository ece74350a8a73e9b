//! What a container is to its pod, by the annotations of its OCI specification.
//!
//! | engine | kind | sandbox |
//! |---|---|---|
//! | containerd CRI | `io.kubernetes.cri.container-type` | `io.kubernetes.cri.sandbox-id` |
//! | CRI-O | `io.kubernetes.cri-o.ContainerType` | `io.kubernetes.cri-o.SandboxID` |
//! | dockershim | `io.kubernetes.docker.type` | `io.kubernetes.sandbox.id` |
//! | ctr, nerdctl, docker | none | the container itself |

use std::collections::HashMap;

/// The part a container plays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The pause container that stands for a pod: its VM begins and ends with it.
    Sandbox,
    /// A container of the pod of that sandbox.
    InPod(String),
    /// A container without a pod, and a VM of its own.
    Single,
}

const DIALECTS: [(&str, &str); 3] = [
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
    ("io.kubernetes.docker.type", "io.kubernetes.sandbox.id"),
];

/// Annotations that contradict themselves.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KindError {
    /// A container of a pod that is not named.
    #[error("The annotation {kind} says 'container', but {sandbox} does not name its sandbox")]
    NoSandbox {
        /// The annotation with the kind.
        kind: &'static str,
        /// The annotation with the sandbox.
        sandbox: &'static str,
    },
    /// A kind that is not known.
    #[error(
        "The annotation {annotation} is '{value}', but must be sandbox, podsandbox or container"
    )]
    Unknown {
        /// The annotation.
        annotation: &'static str,
        /// Its value.
        value: String,
    },
}

impl Kind {
    /// Reads the annotations of any engine.
    ///
    /// # Errors
    /// [`KindError`]
    pub fn of(annotations: &HashMap<String, String>) -> Result<Self, KindError> {
        for (kind, sandbox) in DIALECTS {
            let Some(value) = annotations.get(kind) else { continue };
            return match value.as_str() {
                "sandbox" | "podsandbox" => Ok(Self::Sandbox),
                "container" => match annotations.get(sandbox).filter(|id| !id.is_empty()) {
                    Some(id) => Ok(Self::InPod(id.clone())),
                    None => Err(KindError::NoSandbox { kind, sandbox }),
                },
                _ => Err(KindError::Unknown { annotation: kind, value: value.clone() }),
            };
        }
        Ok(Self::Single)
    }

    /// The pod that container `id` belongs to.
    pub fn sandbox_id<'a>(&'a self, id: &'a str) -> &'a str {
        match self {
            Self::InPod(sandbox) => sandbox,
            Self::Sandbox | Self::Single => id,
        }
    }

    /// Whether the pod's VM begins and ends with this container.
    pub fn is_first(&self) -> bool {
        !matches!(self, Self::InPod(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Kind, KindError> {
        Kind::of(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn every_engine_s_words_are_understood() {
        for (kind, sandbox) in DIALECTS {
            assert_eq!(of(&[(kind, "sandbox")]), Ok(Kind::Sandbox));
            assert_eq!(of(&[(kind, "podsandbox")]), Ok(Kind::Sandbox));
            let inside = of(&[(kind, "container"), (sandbox, "s1")]).unwrap();
            assert_eq!(inside, Kind::InPod("s1".into()));
            assert_eq!(inside.sandbox_id("c1"), "s1");
            assert!(!inside.is_first());
        }
    }

    #[test]
    fn a_container_without_annotations_is_its_own_pod() {
        let single = of(&[("other", "container")]).unwrap();
        assert_eq!(single, Kind::Single);
        assert_eq!(single.sandbox_id("c1"), "c1");
        assert!(single.is_first());
    }

    #[test]
    fn contradictions_are_named() {
        let (kind, sandbox) = DIALECTS[0];
        assert_eq!(of(&[(kind, "container")]), Err(KindError::NoSandbox { kind, sandbox }));
        let error = of(&[(kind, "pod")]).unwrap_err().to_string();
        assert!(error.contains("'pod'"), "{error}");
    }
}
