//! `[agent.kata]` and `[agent.kata.mem_agent]`.

use std::time::Duration;

use super::{Deed::*, Key, ListRule, Scope, Set::*};
use crate::model::LogLevel;

const DAY_S: i64 = 86_400;
const DAY_MS: i64 = DAY_S * 1000;
/// What Kata's Rust runtime has unless it is told otherwise.
const KATA_RECONNECT_MS: u32 = 3000;

const fn key(name: &'static str, deed: super::Deed, note: &'static str) -> Key {
    Key::new(Scope::Agent, name, deed, note)
}

const fn milliseconds(number: u32) -> Duration {
    Duration::from_millis(number as u64)
}

const fn seconds(number: u32) -> Duration {
    Duration::from_secs(number as u64)
}

pub(super) static KEYS: &[Key] = &[
    key(
        "enable_debug",
        Honoured(Flag(|c| &mut c.agent.enable_debug)),
        "the agent logs at level debug",
    ),
    key(
        "log_level",
        Honoured(Choice(LogLevel::NAMES, |c, name| {
            LogLevel::from_name(name).map(|level| c.agent.log_level = level)
        })),
        "level of the agent's log",
    )
    .rs(),
    key(
        "debug_console_enabled",
        Honoured(Flag(|c| &mut c.agent.debug_console)),
        "a shell on port 1026 of the guest's vsock, if the guest's agent has one",
    ),
    key(
        "kernel_modules",
        Honoured(List(ListRule::Semicolons, |c| &mut c.agent.kernel_modules)),
        "loaded by the agent before the first container; in the annotation separated by `;`",
    )
    .annotated(),
    key(
        "container_pipe_size",
        Honoured(Whole(0, 1 << 30, |c, size| c.agent.container_pipe_size = size)),
        "bytes; given to the agent as a kernel parameter",
    )
    .annotated(),
    key(
        "dial_timeout",
        Honoured(Whole(1, DAY_S, |c, s| c.agent.dial_timeout = seconds(s))),
        "seconds from the VMM's start to the agent's first answer; default 45",
    )
    .go(),
    key("dial_timeout_ms", Ignored, "time of one try; we are told when the agent listens").rs(),
    key(
        "reconnect_timeout_ms",
        Honoured(Whole(1, DAY_MS, |c, ms| {
            if ms != KATA_RECONNECT_MS {
                c.agent.dial_timeout = milliseconds(ms);
            }
        })),
        "from the VMM's start to the agent's first answer. Kata's default 3000 stands for 300 tries there, which take longer, and means our default of 45 s",
    )
    .rs(),
    key(
        "create_container_timeout",
        Honoured(Whole(1, DAY_S, |c, s| c.agent.create_container_timeout = seconds(s))),
        "seconds of one CreateContainer; default 60",
    )
    .rs(),
    key(
        "health_check_request_timeout_ms",
        Honoured(Whole(1, DAY_MS, |c, ms| {
            c.agent.health_check_request_timeout = milliseconds(ms);
        })),
        "asked every 30 s; an agent that is silent for longer is told of in the shim's log, and nothing more: default 90000",
    )
    .rs(),
    key(
        "server_port",
        Honoured(Whole(1, u32::MAX as i64 - 1, |c, port| c.agent.server_port = port)),
        "vsock port of the agent; default 1024",
    )
    .rs(),
    key(
        "log_port",
        Ignored,
        "the agent's log goes to the guest's console",
    )
    .rs(),
    key("passfd_listener_port", Ignored, "streams go through the agent's protocol").rs(),
    key("launch_process_timeout", Ignored, "the agent's own time-out holds").go(),
    key("cdh_api_timeout", Ignored, "there is no confidential data hub").go().annotated(),
    key("cdh_api_timeout_ms", Ignored, "there is no confidential data hub").rs().annotated(),
    key("image_pull_timeout", Ignored, "images are pulled on the host").go(),
    key("enable_tracing", Ignored, "the shim writes spans of its own into its log").annotated(),
    key(
        "policy",
        Refused(&[]),
        "the agent would have to be asked to enforce it: use a guest image with a policy in it",
    )
    .annotated(),
];

const fn mem(name: &'static str, deed: super::Deed, note: &'static str) -> Key {
    Key::new(Scope::MemAgent, name, deed, note).rs()
}

const MEM_DETAIL: &str = "detail of the memory agent, which is off";

pub(super) static MEM_AGENT: &[Key] = &[
    mem("mem_agent_enable", Refused(&[]), "the guest's memory agent is not driven: leave it off"),
    mem("enable", Refused(&[]), "the guest's memory agent is not driven: leave it off"),
    mem("memcg_disable", Ignored, MEM_DETAIL),
    mem("memcg_swap", Ignored, MEM_DETAIL),
    mem("memcg_swappiness_max", Ignored, MEM_DETAIL),
    mem("memcg_period_secs", Ignored, MEM_DETAIL),
    mem("memcg_period_psi_percent_limit", Ignored, MEM_DETAIL),
    mem("memcg_eviction_psi_percent_limit", Ignored, MEM_DETAIL),
    mem("memcg_eviction_run_aging_count_min", Ignored, MEM_DETAIL),
    mem("compact_disable", Ignored, MEM_DETAIL),
    mem("compact_period_secs", Ignored, MEM_DETAIL),
    mem("compact_period_psi_percent_limit", Ignored, MEM_DETAIL),
    mem("compact_psi_percent_limit", Ignored, MEM_DETAIL),
    mem("compact_sec_max", Ignored, MEM_DETAIL),
    mem("compact_order", Ignored, MEM_DETAIL),
    mem("compact_threshold", Ignored, MEM_DETAIL),
    mem("compact_force_times", Ignored, MEM_DETAIL),
];
