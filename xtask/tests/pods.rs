//! Pods and containers as users of containerd know them: the same cases with every runtime.
//!
//! They run over the CRI, and where that has no word for it (terminals, pipes, events) with `ctr`,
//! against a containerd of their own (see [`Node`]). That they pass with runc says that they test what
//! containerd means. They need root.

use anyhow::Result;
use xtask::rig::{Node, RUNC, Runtime, SLIPWAY};

#[path = "pods/basics.rs"]
mod basics;
#[path = "pods/deaths.rs"]
mod deaths;
#[path = "pods/errors.rs"]
mod errors;
#[path = "pods/files.rs"]
mod files;
#[path = "pods/network.rs"]
mod network;
#[path = "pods/streams.rs"]
mod streams;
#[path = "pods/upkeep.rs"]
mod upkeep;

/// Runs a case on a node of its own, on which it must leave nothing.
async fn run(runtime: Runtime, case: impl AsyncFnOnce(&Node) -> Result<()>) {
    let node = Node::start(runtime).await.unwrap_or_else(|error| panic!("{error:?}"));
    if let Err(error) = case(&node).await {
        panic!("{error:?}\nThe last lines of the logs of {}", node.log_tail());
    }
    node.end().await.unwrap_or_else(|error| panic!("{error:?}"));
}

/// Makes a test of each case with each runtime.
macro_rules! suite {
    ($($runtime:ident: $table:ident;)* => $cases:tt) => {
        $(mod $runtime { suite!(@tests $table $cases); })*
    };
    (@tests $table:ident { $($module:ident: $($case:ident,)*;)* }) => {
        $($(
            #[tokio::test]
            async fn $case() {
                crate::run(crate::$table, crate::$module::$case).await;
            }
        )*)*
    };
}

suite! {
    runc: RUNC;
    slipway: SLIPWAY;
    => {
        basics:
            a_pod_is_ready_until_it_is_stopped_which_may_be_repeated,
            output_is_logged_by_stream_and_none_of_it_is_lost,
            a_command_runs_in_a_container_and_tells_its_code,
            every_exit_code_arrives,
            an_end_by_signal_is_told_as_128_and_its_number,
            a_container_gets_the_signals_that_are_meant_for_it,
            a_container_is_run_again_in_its_pod,
            a_program_that_does_not_exist_is_named_and_harms_nobody,
            processes_are_each_containers_own_unless_the_pod_shares_them,
        ;
        files:
            a_volume_is_read_and_written_from_both_sides,
            a_read_only_mount_is_read_and_not_written,
            shared_memory_is_the_pods,
            name_and_name_servers_are_those_of_the_pod,
            environment_and_working_folder_are_as_asked_for,
            the_root_is_writable_and_each_containers_own,
            the_root_may_be_a_plain_copy,
        ;
        network:
            pods_reach_each_other,
            the_host_reaches_a_pod_and_a_pod_the_host,
            containers_of_a_pod_share_its_network,
            a_pod_is_removed_in_the_midst_of_its_traffic,
            ten_pods_start_at_once_and_reach_each_other,
        ;
        streams:
            ten_megabytes_of_output_arrive_byte_by_byte,
            what_is_piped_in_comes_out_and_its_end_is_seen,
            a_terminal_has_a_size_that_changes_and_passes_keys,
            a_command_in_a_container_has_a_terminal_if_it_wants_one,
        ;
        upkeep:
            consumption_is_counted_by_container_and_by_pod,
            limits_hold_from_the_start_and_can_be_changed,
            who_takes_too_much_memory_is_killed_and_the_reason_told,
            events_come_in_order_and_each_once,
            pods_outlive_a_killed_containerd_and_are_known_to_the_next,
            a_paused_container_stands_still_until_it_is_resumed,
        ;
    }
}

// Cases that only a pod with a VM has.
suite! {
    slipway_alone: SLIPWAY;
    => {
        deaths:
            a_pod_with_a_part_that_is_killed_ends_and_leaves_nothing,
            a_pod_with_a_part_that_hangs_can_be_removed_and_leaves_nothing,
            a_start_that_loses_a_part_fails_and_leaves_nothing,
            half_a_pod_of_a_killed_containerd_can_be_removed,
            pods_outlive_a_killed_switch,
            a_start_gives_up_a_switch_that_hangs,
        ;
        errors:
            what_is_wrong_is_told_in_one_line_and_nothing_is_left,
        ;
    }
}
