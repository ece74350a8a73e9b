//! `stats --watch` and `stats --pmd`: reads the counters again and again and shows what changed.
//!
//! The first reading has nothing to be compared with, so the first table comes one interval later.
//! In JSON every reading of ports is printed as it is, one document each; programs do their own sums. Of PMD
//! threads the rates are printed, as the table shows them.

use std::{future::Future, time::Duration};

use slipway_api::client::{Client, ClientError};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{Failure, pmd_rates, run::Output, tables};

/// Cursor to the top left corner, rest of the screen cleared (ECMA-48: CUP, ED).
const CLEAR: &[u8] = b"\x1b[H\x1b[J";

/// Rates of ports, `count` times or until interrupted.
pub async fn ports(
    client: &Client,
    every: Duration,
    count: Option<u64>,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let show = |before: &_, after: &_, seconds, out: &mut Output<'_>| {
        out.answer(after, |after| tables::port_rates(before, after, seconds))
    };
    watch(|| client.stats(), show, every, count, out).await
}

/// What PMD threads did, `count` times or until interrupted.
pub async fn pmds(
    client: &Client,
    every: Duration,
    count: Option<u64>,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let show = |before: &_, after: &_, seconds, out: &mut Output<'_>| {
        out.answer(&pmd_rates::rates(before, after, seconds), tables::pmds)
    };
    watch(|| client.pmds(), show, every, count, out).await
}

async fn watch<T, R: Future<Output = Result<T, ClientError>>>(
    read: impl Fn() -> R,
    show: impl Fn(&T, &T, f64, &mut Output<'_>) -> Result<(), Failure>,
    every: Duration,
    count: Option<u64>,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let mut ticks = interval(every);
    // After a slow answer go on in step instead of catching up: a rate needs its interval.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let (mut before, mut read_at) = (read().await?, Instant::now());
    let mut shown = 0;
    while count.is_none_or(|count| shown < count) {
        ticks.tick().await;
        let (after, now) = (read().await?, Instant::now());
        if out.is_terminal && !out.as_json && count != Some(1) {
            out.stream.write_all(CLEAR)?;
        } else if shown > 0 && !out.as_json {
            out.stream.write_all(b"\n")?;
        }
        let seconds = (now - read_at).as_secs_f64();
        show(&before, &after, seconds, out)?;
        (before, read_at) = (after, now);
        shown += 1;
    }
    Ok(())
}
