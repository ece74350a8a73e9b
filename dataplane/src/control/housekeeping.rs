//! What the control thread does on its own: learning, ageing, noting broken rings, and moving rings
//! from one PMD to another.
//!
//! Runs on the vhost control thread, woken by reports of PMDs and by a timer. Everything here goes by
//! the published snapshot, so no request waits for it and it waits for none.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::pmd::{Pmds, Report, Shared};
use crate::port::PortId;
use crate::port::cell::Slot;
use crate::vhost::socket::VhostThread;
use crate::wire::Mac;

/// How often some buckets of the FDB are looked at for old entries.
const AGEING_TICK: Duration = Duration::from_secs(1);
/// A whole round of the FDB takes this many ticks.
const AGEING_ROUND_TICKS: usize = 15;
/// How often loads of rings are measured when no ring is moved for it, in seconds.
const MEASURE_S: u32 = 5;
/// Reports handled before other work of the thread gets its turn.
const REPORTS_AT_ONCE: usize = 1024;

/// Puts the housekeeping on the control thread.
///
/// # Errors
/// No descriptor for it.
pub fn install(vhost: &VhostThread, shared: &Shared) -> io::Result<()> {
    let reader = shared.clone();
    let waker = vhost.add_wake_task(move || take_reports(&reader, REPORTS_AT_ONCE))?;
    shared.reports.read_by(waker);
    let ageing = shared.clone();
    vhost.add_task(AGEING_TICK, move || age(&ageing)).map_err(io::Error::other)
}

/// Has loads of rings measured, and rings moved to where it pays; 0: measured only.
///
/// # Errors
/// No descriptor for it.
pub fn plan(vhost: &VhostThread, pmds: &Arc<Pmds>, rebalance_interval_s: u32) -> io::Result<()> {
    let moves_rings = rebalance_interval_s > 0;
    let interval = if moves_rings { rebalance_interval_s } else { MEASURE_S };
    let pmds = Arc::clone(pmds);
    let tick = move || {
        let moves = if moves_rings { pmds.rebalance() } else { Vec::new() };
        for moved in moves {
            let (port, queue, from, to) = (&moved.vport.name, moved.queue, moved.from, moved.to);
            tracing::info!(%port, queue, from, to, "vring was moved to another PMD");
        }
        pmds.mark();
    };
    vhost.add_task(Duration::from_secs(interval.into()), tick).map_err(io::Error::other)
}

/// Forgets the addresses of a port whose rings are stopped and which is out of the tables. Its
/// number may be given to another port afterwards: no report of the old one is left then, and none
/// is being acted upon, as this happens on the thread that does.
pub fn forget_port(vhost: &VhostThread, shared: &Shared, port: PortId) {
    let for_thread = shared.clone();
    let forget = move || {
        take_reports(&for_thread, for_thread.reports.len());
        for_thread.fdb.remove_port(port);
    };
    if vhost.call(forget).is_err() {
        // No such thread any more: nobody learns.
        shared.fdb.remove_port(port);
    }
}

fn take_reports(shared: &Shared, at_most: usize) {
    for _ in 0..at_most {
        match shared.reports.take() {
            None => return,
            Some(Report::Sighted { segment, mac, port }) => {
                let tables = shared.tables.load();
                let Some(vport) = tables.port(port) else { continue };
                if vport.rules.segment != segment || !vport.rules.learning {
                    continue; // the number has a new owner
                }
                let (mac, quota) = (Mac::from_key(mac), vport.rules.mac_quota);
                // A refusal is no fault of ours: static elsewhere, or no room. The frame was
                // forwarded; replies to it are flooded or dropped as the segment says.
                let _ = shared.fdb.learn(segment, mac, port, quota, clock::seconds());
            }
            Some(Report::Broken { port, vring, fault }) => {
                let tables = shared.tables.load();
                let Some(vport) = tables.port(port) else { continue };
                let is_broken = |slot: &mut Slot| matches!(slot, Slot::Broken(..));
                if vport.cell(vring).is_some_and(|cell| cell.with(is_broken)) {
                    tracing::warn!(port = %vport.name, vring, %fault, "vring broke and was stopped");
                    vport.link.broke(vring, fault);
                    vport.count_receive_rings();
                } // else the front end set it up anew already
            }
        }
    }
    // More came in the meantime than one turn takes.
    shared.reports.wake_reader();
}

fn age(shared: &Shared) {
    let tables = Arc::clone(&shared.tables.load());
    let max_age_s = |segment| tables.segment(segment).map_or(0, |segment| segment.ageing_s);
    let buckets = shared.fdb.buckets().div_ceil(AGEING_ROUND_TICKS);
    shared.fdb.age(clock::seconds(), max_age_s, buckets);
}
