//! The policy of vports: may the guest send this frame, may it receive it?
//!
//! ```text
//! egress:   in judge(), once per frame, behind anti-spoofing       drop: policy_egress
//! ingress:  in deliver(), once per frame and receiver, floods too  drop: policy_ingress
//!
//! head --subject--> exempt (ARP, neighbour discovery)     -> passes
//!                   other EtherType                       -> the default action
//!                   flow --cache--> verdict of this epoch
//!                             `--> rules, first match     -> remembered
//! ```
//! Frames are judged by the private copy of their heads, which is also what the receiver gets.
//!
//! # Epochs
//! [`Policies`] are a part of the published tables. Each set that differs from the one before it has a
//! higher epoch, and a verdict counts only in the epoch that it was found in: it can not outlive a change of
//! any rule, nor reach another port that was given the number of one that is gone.
//!
//! # Bounds
//! At most [`slipway_api::MAX_POLICY_RULES`] rules are walked for a frame whose verdict is not known. A guest
//! with ever new flows makes its PMD do that for each, and takes the places of other flows in the cache of
//! that PMD; it can not choose whose, as the hash is secret.
//!
//! # Threads
//! Rules are read-only. Each PMD has a cache of its own.

pub mod cache;
pub mod rules;
pub mod subject;

use std::sync::Arc;

pub use slipway_api::PolicyDirection as Direction;

use crate::port::PortId;
use crate::stats::DropReason;

use cache::{Key, VerdictCache};
use rules::{Rules, Verdict};
use subject::Subject;

/// The rules of all vports that have some, and which generation of them it is.
#[derive(Debug, Default, Clone)]
pub struct Policies {
    epoch: u64,
    by_port: Vec<Option<Arc<Rules>>>,
}

impl Policies {
    /// What comes after `self`: of the next epoch if the rules of any port are not the same ones.
    #[must_use]
    pub fn next(&self, by_port: Vec<Option<Arc<Rules>>>) -> Self {
        // `self` holds its rules, so no new ones can be where they are.
        let is_same = |a: &Option<Arc<Rules>>, b: &Option<Arc<Rules>>| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        let slots = by_port.len().max(self.by_port.len());
        let of = |ports: &[Option<Arc<Rules>>], at: usize| ports.get(at).cloned().flatten();
        let stays = (0..slots).all(|at| is_same(&of(&self.by_port, at), &of(&by_port, at)));
        Self { epoch: if stays { self.epoch } else { self.epoch + 1 }, by_port }
    }

    /// The generation of the rules; 0 is that of none at all.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The rules of a vport, if it has any.
    #[inline]
    pub fn of(&self, port: PortId) -> Option<Guard<'_>> {
        let rules = self.by_port.get(port.0 as usize)?.as_deref()?;
        Some(Guard { rules, port, epoch: self.epoch })
    }
}

/// The rules of one vport in one epoch.
#[derive(Debug, Clone, Copy)]
pub struct Guard<'a> {
    rules: &'a Rules,
    port: PortId,
    epoch: u64,
}

impl Guard<'_> {
    /// Whether a frame may go this way. `head` is the copy of its first [`crate::flow::HEAD_LEN`] bytes,
    /// or all.
    ///
    /// # Errors
    /// Why not.
    pub fn check(
        &self,
        direction: Direction,
        head: &[u8],
        frame_len: u32,
        verdicts: &mut VerdictCache,
    ) -> Result<(), DropReason> {
        let verdict = match Subject::read(head, frame_len).map_err(|_| DropReason::Malformed)? {
            Subject::Exempt => Verdict::Allow,
            Subject::Other => self.rules.default_of(direction),
            Subject::Flow(flow) => {
                let key = Key { flow, port: self.port, direction };
                verdicts.get_or(self.epoch, &key, || self.rules.judge(direction, &flow).verdict)
            }
        };
        match (verdict, direction) {
            (Verdict::Allow, _) => Ok(()),
            (Verdict::Deny, Direction::Egress) => Err(DropReason::PolicyEgress),
            (Verdict::Deny, Direction::Ingress) => Err(DropReason::PolicyIngress),
        }
    }

    /// As [`Self::check`] without a cache, and what decided it, in words.
    pub fn explain(
        &self,
        direction: Direction,
        head: &[u8],
        frame_len: u32,
    ) -> (Result<(), DropReason>, String) {
        let outcome = self.check(direction, head, frame_len, &mut VerdictCache::none());
        let why = match Subject::read(head, frame_len) {
            Err(error) => format!("headers that can not be judged: {error}"),
            Ok(Subject::Exempt) => "ARP and neighbour discovery always pass".to_owned(),
            Ok(Subject::Other) => "neither IPv4 nor IPv6: the default action".to_owned(),
            Ok(Subject::Flow(flow)) => match self.rules.judge(direction, &flow).rule {
                Some((number, text)) => format!("rule {number}: {text}"),
                None => "no rule matches: the default action".to_owned(),
            },
        };
        (outcome, why)
    }
}

#[cfg(test)]
mod tests;
