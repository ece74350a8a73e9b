//! The CNI plugin; see [`slipway_cni`].
#![cfg_attr(feature = "bare", no_std, no_main)]

#[cfg(feature = "bare")]
mod start;

#[cfg(not(feature = "bare"))]
fn main() -> std::process::ExitCode {
    use std::{env, os::unix::ffi::OsStringExt, process::ExitCode, time::UNIX_EPOCH};

    #[expect(clippy::disallowed_methods, reason = "the label says when this process was started")]
    let now = std::time::SystemTime::now();
    let started_ms = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let variables = env::vars_os().map(|(name, value)| {
        let mut variable = name.into_vec();
        variable.push(b'=');
        variable.extend(value.into_vec());
        variable
    });
    let variables: Vec<_> = variables.collect();
    let environment = variables.iter().map(Vec::as_slice);
    let code = slipway_cni::run(environment, started_ms);
    ExitCode::from(code as u8)
}
