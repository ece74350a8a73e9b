//! Switch and guests, as the demo shows them and the tests with real guests drive them.
//!
//! ```text
//!  Slipwayd (process) <--- vhost-user socket, bound by the VMM ---> Guest (QEMU process)
//!      ^ API socket                                                   ^ control socket
//!      `------------------------- this process ----------------------'
//! ```
//! The VMM listens and the switch connects, so the switch may end and come back while guests run.
//! All files and sockets lie in one folder of the caller's, and every process names it on its command
//! line: that is how [`Leftovers`] recognises what is ours.
//!
//! Nothing outlives its handle: dropping a [`Slipwayd`] or a [`Guest`] kills the process and waits
//! until it is gone, and the kernel kills both when we die.

mod guest;
mod leftovers;
mod slipwayd;

pub use guest::{Guest, GuestPlan, Image, VNI};
pub use leftovers::{Leftovers, NetworkSnapshot};
pub use slipwayd::{Slipwayd, last_core, program};
