//! The shim as containerd sees it: the task and sandbox services on a real ttrpc socket, with fakes of
//! VMM, guest, switch and containerd around them. Mounts and cgroups are real, so this needs root.

mod around;
mod crash;
mod disks;
mod exec;
mod faults;
mod growth;
mod guest;
mod life;
mod pods;
mod rig;
mod sandboxes;
mod settings;
mod streams;
