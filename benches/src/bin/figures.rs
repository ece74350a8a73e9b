//! Prints the figures of the README.

use anyhow::Result;
use benches::figures;

fn main() -> Result<()> {
    for row in figures::forwarding(&[64, 256, 1518], 5)? {
        println!(
            "{:>5} B  {:.2} Mpps  {:.0} cycles/frame  generator-bound {}",
            row.wire_bytes, row.mpps, row.cycles_per_frame, row.generator_bound_rounds
        );
    }
    Ok(())
}
