//! The addresses of one range: which are taken, and which is next.
//!
//! ```text
//!   10.88.0.0/16   .0   .1   .2 .3 .4 .5 .6 .7 ...                      .255.254  .255.255
//!                  net  gw   x  x     x     ^ next                      last      broadcast
//!                  `-- reserved --'  `- taken   `- .7: a freed .4 rests until the walk comes round
//! ```
//! Addresses are chosen by next fit: the walk goes on behind the last one given, so an address that
//! was given back rests as long as the range allows, and what still waits in somebody's cache for
//! its former owner does not reach its next one.
//!
//! # Bounds
//! Memory goes with the addresses taken, not with the size of the range. A choice walks over taken
//! and reserved addresses only.
//!
//! # Threads
//! None: plain data, owned by [`crate::attach`].

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Why an address that was asked for cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It does not lie in the range, or is its network or broadcast address.
    Outside,
    /// It is the gateway's, or excluded by the configuration.
    Reserved,
    /// Somebody has it.
    Taken,
}

/// A prefix, and who is where in it. Addresses are numbers inside, so that both families are one.
#[derive(Clone, Debug)]
pub struct Range {
    prefix: IpNet,
    first: u128,
    last: u128,
    /// Inclusive, in order, apart from each other.
    reserved: Vec<(u128, u128)>,
    taken: BTreeSet<u128>,
    next: u128,
}

impl Range {
    /// A range of which `reserved` is never given out.
    #[must_use]
    pub fn new(prefix: IpNet, reserved: impl IntoIterator<Item = IpNet>) -> Self {
        let (first, last) = hosts(prefix);
        let mut spans: Vec<_> = reserved
            .into_iter()
            .map(|net| (number(net.network()).max(first), number(net.broadcast()).min(last)))
            .filter(|(from, to)| from <= to)
            .collect();
        spans.sort_unstable();
        let mut reserved: Vec<(u128, u128)> = Vec::with_capacity(spans.len());
        for (from, to) in spans {
            match reserved.last_mut() {
                Some((_, end)) if from <= *end => *end = to.max(*end),
                _ => reserved.push((from, to)),
            }
        }
        Self { prefix, first, last, reserved, taken: BTreeSet::new(), next: first }
    }

    /// The prefix it gives addresses of.
    #[must_use]
    pub const fn prefix(&self) -> IpNet {
        self.prefix
    }

    /// Takes the next free address; `None` when there is none.
    pub fn take_next(&mut self) -> Option<IpAddr> {
        let found = self.free_within(self.next, self.last).or_else(|| {
            let before = self.next.checked_sub(1)?;
            self.free_within(self.first, before)
        })?;
        self.taken.insert(found);
        self.walk_on(found);
        Some(self.address(found))
    }

    /// Takes this address.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    pub fn take(&mut self, address: IpAddr) -> Result<(), Refused> {
        let at = number(address);
        if !self.prefix.contains(&address) || !(self.first..=self.last).contains(&at) {
            return Err(Refused::Outside);
        }
        if self.reserved_until(at).is_some() {
            return Err(Refused::Reserved);
        }
        if self.taken.insert(at) { Ok(()) } else { Err(Refused::Taken) }
    }

    /// Takes an address that was given before a restart, whatever the configuration says of it now.
    /// `false` when somebody has it, or it belongs to no such range any more.
    pub fn take_again(&mut self, address: IpAddr) -> bool {
        let is_ours = self.prefix.contains(&address);
        let is_new = is_ours && self.taken.insert(number(address));
        if is_new && number(address) >= self.first {
            self.walk_on(number(address));
        }
        is_new
    }

    /// Gives an address back; one that is free already stays free.
    pub fn give_back(&mut self, address: IpAddr) {
        if self.prefix.contains(&address) {
            self.taken.remove(&number(address));
        }
    }

    /// Addresses taken.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.taken.len() as u64
    }

    /// Addresses that can be taken at all, `u64::MAX` if there are more.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        let held: u128 = self.reserved.iter().map(|(from, to)| to - from + 1).sum();
        u64::try_from((self.last - self.first + 1).saturating_sub(held)).unwrap_or(u64::MAX)
    }

    fn walk_on(&mut self, from: u128) {
        self.next = if from >= self.last { self.first } else { from + 1 };
    }

    fn free_within(&self, from: u128, to: u128) -> Option<u128> {
        let mut at = from;
        while at <= to {
            if let Some(end) = self.reserved_until(at) {
                at = end.checked_add(1)?;
            } else if self.taken.contains(&at) {
                at = at.checked_add(1)?;
            } else {
                return Some(at);
            }
        }
        None
    }

    /// The end of the reserved span that `at` lies in.
    fn reserved_until(&self, at: u128) -> Option<u128> {
        let behind = self.reserved.partition_point(|(from, _)| *from <= at);
        let (_, to) = self.reserved.get(behind.checked_sub(1)?)?;
        (at <= *to).then_some(*to)
    }

    fn address(&self, at: u128) -> IpAddr {
        match self.prefix {
            IpNet::V4(_) => Ipv4Addr::from_bits(at as u32).into(),
            IpNet::V6(_) => Ipv6Addr::from_bits(at).into(),
        }
    }
}

/// The first and the last address of `prefix` that a host may have. A network of two addresses or
/// one has neither network nor broadcast address (RFC 3021); in IPv6 the first address is every
/// router's (RFC 4291, section 2.6.1), and there is no broadcast.
#[must_use]
fn hosts(prefix: IpNet) -> (u128, u128) {
    let (network, broadcast) = (number(prefix.network()), number(prefix.broadcast()));
    match prefix.max_prefix_len() - prefix.prefix_len() {
        0 | 1 => (network, broadcast),
        _ if prefix.addr().is_ipv4() => (network + 1, broadcast - 1),
        _ => (network + 1, broadcast),
    }
}

/// The first address of `prefix` that a host may have: the gateway's, unless it is told another.
#[must_use]
pub fn first_host(prefix: IpNet) -> IpAddr {
    let (first, _) = hosts(prefix);
    match prefix {
        IpNet::V4(_) => Ipv4Addr::from_bits(first as u32).into(),
        IpNet::V6(_) => Ipv6Addr::from_bits(first).into(),
    }
}

/// Whether a host of `prefix` may have `address`.
#[must_use]
pub fn is_host_of(prefix: IpNet, address: IpAddr) -> bool {
    let (first, last) = hosts(prefix);
    prefix.contains(&address) && (first..=last).contains(&number(address))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn addresses_are_given_in_order_without_the_reserved_ones() {
        let mut range = Range::new(net("10.0.0.0/29"), [net("10.0.0.1/32"), net("10.0.0.4/31")]);
        assert_eq!(range.capacity(), 3);
        let given: Vec<_> = std::iter::from_fn(|| range.take_next()).collect();
        assert_eq!(given, [ip("10.0.0.2"), ip("10.0.0.3"), ip("10.0.0.6")]);
        assert_eq!((range.used(), range.take_next()), (3, None));
    }

    #[test]
    fn a_freed_address_rests_until_the_walk_comes_round() {
        let mut range = Range::new(net("10.0.0.0/29"), []);
        let first = range.take_next().expect("free");
        range.take_next().expect("free");
        range.give_back(first);
        let later: Vec<_> = std::iter::from_fn(|| range.take_next()).collect();
        assert_eq!(later.last(), Some(&first));
        assert_eq!(later.len(), 5);
    }

    #[test]
    fn what_is_asked_for_is_given_or_refused_with_the_reason() {
        let mut range = Range::new(net("10.0.0.0/24"), [net("10.0.0.1/32")]);
        assert_eq!(range.take(ip("10.0.0.7")), Ok(()));
        assert_eq!(range.take(ip("10.0.0.7")), Err(Refused::Taken));
        assert_eq!(range.take(ip("10.0.0.1")), Err(Refused::Reserved));
        for outside in ["10.0.0.0", "10.0.0.255", "10.0.1.1", "fd00::7"] {
            assert_eq!(range.take(ip(outside)), Err(Refused::Outside), "{outside}");
        }
        assert_eq!(range.used(), 1);
    }

    #[test]
    fn the_smallest_and_the_largest_ranges_do_what_they_can() {
        let mut one = Range::new(net("10.0.0.9/32"), []);
        assert_eq!((one.take_next(), one.take_next()), (Some(ip("10.0.0.9")), None));
        let mut two = Range::new(net("10.0.0.8/31"), []);
        assert_eq!((two.capacity(), two.take_next()), (2, Some(ip("10.0.0.8"))));
        let mut all = Range::new(net("::/0"), []);
        assert_eq!((all.capacity(), all.take_next()), (u64::MAX, Some(ip("::1"))));
        let mut end = Range::new(net("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127"), []);
        let given: Vec<_> = std::iter::from_fn(|| end.take_next()).collect();
        assert_eq!(given.len(), 2);
        let nothing = Range::new(net("10.0.0.8/30"), [net("10.0.0.0/8")]);
        assert_eq!((nothing.capacity(), nothing.clone().take_next()), (0, None));
    }

    #[test]
    fn what_was_given_before_a_restart_is_taken_though_it_is_reserved_now() {
        let mut range = Range::new(net("10.0.0.0/29"), [net("10.0.0.3/32")]);
        assert!(range.take_again(ip("10.0.0.3")));
        assert!(!range.take_again(ip("10.0.0.3")));
        assert!(!range.take_again(ip("10.0.1.3")));
        assert_eq!(range.take_next(), Some(ip("10.0.0.4")), "the walk goes on behind it");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Next,
        Ask(u8),
        GiveBack(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => Just(Step::Next),
            1 => any::<u8>().prop_map(Step::Ask),
            2 => any::<usize>().prop_map(Step::GiveBack),
        ];
        prop::collection::vec(step, 1..300)
    }

    proptest! {
        #[test]
        fn no_address_is_given_twice_and_none_is_lost(
            steps in steps(),
            length in 25u8..=30,
            reserved in prop::collection::vec((0u8..=255, 28u8..=32), 0..4),
            is_v6 in any::<bool>(),
        ) {
            let at = |low: u8| if is_v6 {
                ip(&format!("fd00::{low:x}"))
            } else {
                ip(&format!("10.0.0.{low}"))
            };
            let wide = |length: u8| if is_v6 { length + 96 } else { length };
            let prefix = IpNet::new(at(0), wide(length)).expect("a prefix");
            let held: Vec<_> = reserved
                .iter()
                .map(|(low, length)| IpNet::new(at(*low), wide(*length)).expect("a prefix"))
                .collect();
            let mut range = Range::new(prefix, held.clone());
            let may_be_given = |address: IpAddr| {
                is_host_of(prefix, address) && !held.iter().any(|net| net.contains(&address))
            };
            let all = (0..=255u8).map(at).filter(|a| may_be_given(*a)).count() as u64;
            prop_assert_eq!(range.capacity(), all);
            let mut taken = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Next => match range.take_next() {
                        Some(address) => {
                            prop_assert!(may_be_given(address), "{} was given", address);
                            prop_assert!(taken.insert(address), "{} was given twice", address);
                        }
                        None => prop_assert_eq!(taken.len() as u64, all),
                    },
                    Step::Ask(low) => {
                        let expected = may_be_given(at(low)) && !taken.contains(&at(low));
                        prop_assert_eq!(range.take(at(low)).is_ok(), expected);
                        if expected {
                            taken.insert(at(low));
                        }
                    }
                    Step::GiveBack(n) => {
                        let chosen = taken.iter().nth(n % (taken.len() + 1)).copied();
                        if let Some(address) = chosen {
                            taken.remove(&address);
                            range.give_back(address);
                        }
                    }
                }
                prop_assert_eq!(range.used(), taken.len() as u64);
            }
        }
    }
}
