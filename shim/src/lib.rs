//! containerd's runtime class `io.containerd.slipway.v2`: one pod, one microVM.
//!
//! ```text
//! containerd --exec--> args, bootstrap (start), delete       short-lived
//!            --ttrpc-> serve: task (v2 and v3), sandbox_api  one process a pod
//!                        pod: containers, and the sandbox with VM, agent, share, cgroup
//! ```
//! | module | what it knows |
//! |---|---|
//! | [`args`], [`bootstrap`], [`delete`], [`serve`], [`telemetry`] | being a shim |
//! | [`task`], [`sandbox_api`], [`events`], [`error`], [`stats`] | containerd's words |
//! | [`pod`], [`container`], [`process`], [`stdio`], [`health`], [`growth`] | state, and what may follow on what |
//! | [`sandbox`], [`prepare`], [`undo`], [`host`], [`stages`], [`persist`], [`debts`] | bringing a VM up, and everything down again |
//! | [`bundle`], [`clock`], [`kind`], [`order`], [`guest`], [`oci`], [`vm`] | translation, without effects |
//! | [`rootfs`], [`share`], [`disks`], [`mounts`], [`cgroup`], [`network`] | what a pod uses of the host |
//!
//! # What it never does
//! Open a netlink socket: every process of a pod's way installs a seccomp filter that refuses it.
//! Addresses and ports come from slipwayd, interfaces exist in the guest only.

pub mod args;
pub mod bootstrap;
pub mod bundle;
pub mod cgroup;
pub mod clock;
pub mod container;
pub mod debts;
pub mod delete;
pub mod disks;
pub mod error;
pub mod events;
pub mod growth;
pub mod guest;
pub mod health;
pub mod helpers;
pub mod host;
pub mod kind;
pub mod mounts;
pub mod network;
pub mod oci;
pub mod order;
pub mod persist;
pub mod pod;
pub mod prepare;
pub mod process;
pub mod rootfs;
pub mod sandbox;
pub mod sandbox_api;
pub mod serve;
pub mod share;
pub mod stages;
pub mod stats;
pub mod stdio;
pub mod task;
pub mod telemetry;
pub mod undo;
pub mod vm;
