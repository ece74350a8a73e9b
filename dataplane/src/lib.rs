//! The slipway switch: vhost-user ports, served by pinned polling threads.
//!
//! # A packet's life
//! ```text
//!  guest A TX vring
//!    | vring::tx     take a burst: walk, bound, translate; copy each frame's head once   frame
//!    | pipeline      judge the copy: offload, anti-spoof, learn, where to                flow, offload, fdb
//!    |               who asks where a neighbour is, is answered at once                  spoof, neighbour
//!    | pipeline      group by egress vring; each is entered once per burst               port::cell
//!    | vring::rx     header and head from the copy, payload guest to guest               software
//!    v               publish the used index once; notify if asked
//!  guest B RX vring        ... then A's chains go back, published once
//! ```
//!
//! # Threads
//! ```text
//!  slipway-pmdN   one per configured core, pinned: polls TX vrings, runs bursts to completion    pmd
//!  slipway-vhost  one: sockets of all ports, set-up of rings, learning, ageing                   vhost
//!  slipway-tap    one, with a gateway: the host's side of its vport                    port::tap
//!  slipway-watch  one: frees the others from descriptors that a VMM made to block    vhost::unblock
//!  slipway-api    one: HTTP and JSON on a UNIX socket                                            control
//! ```
//! The number of threads does not depend on the number of ports. PMD threads read published tables
//! ([`tables`]) and the FDB ([`fdb`]) without a lock; a vring changes hands through its cell
//! ([`port::cell`]), which a PMD enters once per burst. A port in a network namespace ([`port::netns`]) has no
//! thread: its tap is read and written by PMDs, and a thread that enters the namespace ends there ([`namespace`]).
//!
//! # Modules
//! [`wire`], [`flow`], [`spoof`], [`neighbour`], [`policy`], [`offload`] and [`fdb`] know neither threads nor file descriptors.
//! [`vhost::mem`] is the only way to a guest's bytes. `unsafe` is there, in [`vhost::sigbus`] and
//! [`vhost::unblock`] (signal handlers), in [`vhost::stream`] (descriptors arrive as numbers), in
//! [`gateway::interface`] (ioctls), and in the memory of `testing`'s guest; nowhere else. Only [`clock`] reads time. [`stats`] says what is counted,
//! and by which law. [`control`] turns desired state into published state; [`daemon`] is all of it,
//! running by a [`config`].
//! [`vhost::unblock`] (signal handlers), in [`vhost::stream`] (descriptors arrive as numbers), and in
//! the memory of `testing`'s guest; nowhere else. Only [`clock`] reads time. [`stats`] says what is counted,
//! and by which law. [`control`] turns desired state into published state; [`attach`] gives pods
//! their addresses ([`ipam`]) and ports; [`daemon`] is all of it, running by a [`config`].

pub mod attach;
pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod fdb;
pub mod flow;
pub mod frame;
pub mod gateway;
pub mod ipam;
pub mod namespace;
pub mod neighbour;
pub mod offload;
pub mod pipeline;
pub mod pmd;
pub mod policy;
pub mod port;
pub mod software;
pub mod spoof;
pub mod stats;
mod sync;
pub mod tables;
#[cfg(feature = "testing")]
pub mod testing;
pub mod vhost;
pub mod vring;
pub mod wire;
