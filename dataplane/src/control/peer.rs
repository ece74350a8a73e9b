//! Who may use the API: judged by what the kernel says of the peer (SO_PEERCRED, unix(7)).
//!
//! The socket's mode already keeps others out; this is the second lock, for a socket that was moved
//! or whose mode was widened. Membership of the group is looked up per connection, so a change in
//! the user database needs no restart.

use std::ffi::CString;

use nix::unistd::{Gid, Uid, User, geteuid, getgrouplist};

/// What the kernel knows of a connected peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user when it connected.
    pub uid: u32,
    /// Its effective group when it connected.
    pub gid: u32,
}

/// The rule: these users, and members of this group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPolicy {
    users: Vec<u32>,
    group: Option<u32>,
}

impl PeerPolicy {
    /// Root, the user this process runs as, and members of `group`.
    #[must_use]
    pub fn new(group: Option<Gid>) -> Self {
        Self { users: vec![0, geteuid().as_raw()], group: group.map(Gid::as_raw) }
    }

    /// Nobody at all; for tests of the refusal.
    #[cfg(test)]
    pub(crate) const fn nobody() -> Self {
        Self { users: Vec::new(), group: None }
    }

    /// Whether `peer` may use the API.
    #[must_use]
    pub fn allows(&self, peer: Peer) -> bool {
        self.allows_member(peer, groups_of)
    }

    fn allows_member(&self, peer: Peer, groups_of: impl FnOnce(u32) -> Vec<u32>) -> bool {
        self.users.contains(&peer.uid)
            || self.group.is_some_and(|group| {
                // The cheap question first: the user database may be a network service.
                peer.gid == group || groups_of(peer.uid).contains(&group)
            })
    }
}

/// The groups of a user in the user database; none for a user it does not know.
fn groups_of(uid: u32) -> Vec<u32> {
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { return Vec::new() };
    let Ok(name) = CString::new(user.name) else { return Vec::new() };
    getgrouplist(&name, user.gid)
        .map(|groups| groups.into_iter().map(Gid::as_raw).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRANGER: Peer = Peer { uid: 4001, gid: 4001 };

    fn policy() -> PeerPolicy {
        PeerPolicy { users: vec![0, 1000], group: Some(77) }
    }

    #[test]
    fn root_and_our_own_user_are_let_in_without_a_look_at_groups() {
        for uid in [0, 1000] {
            let peer = Peer { uid, gid: 5 };
            assert!(policy().allows_member(peer, |_| unreachable!("no look-up needed")));
        }
    }

    #[test]
    fn the_group_lets_in_by_primary_and_by_supplementary_membership() {
        let primary = Peer { gid: 77, ..STRANGER };
        assert!(policy().allows_member(primary, |_| unreachable!("no look-up needed")));
        assert!(policy().allows_member(STRANGER, |_| vec![4001, 77]));
    }

    #[test]
    fn a_stranger_is_kept_out() {
        assert!(!policy().allows_member(STRANGER, |_| vec![4001, 78]));
        let ungrouped = PeerPolicy { group: None, ..policy() };
        assert!(!ungrouped.allows_member(STRANGER, |_| unreachable!("no group is configured")));
    }

    #[test]
    fn the_user_database_tells_the_groups_of_root_and_none_of_a_user_it_does_not_know() {
        assert!(groups_of(0).contains(&0));
        assert!(groups_of(u32::MAX - 7).is_empty());
    }
}
