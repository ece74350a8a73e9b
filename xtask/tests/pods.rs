//! Pods and containers as users of containerd know them: the same cases with every runtime.
//!
//! They run over the CRI, and where that has no word for it (terminals, pipes, events) with `ctr`,
//! against a containerd of their own (see [`Node`]). That they pass with runc says that they test what
//! containerd means. They need root.

use anyhow::Result;
use xtask::rig::{Node, RUNC, Runtime};

#[path = "pods/basics.rs"]
mod basics;

/// Runs a case on a node of its own, on which it must leave nothing.
async fn run(runtime: Runtime, case: impl AsyncFnOnce(&mut Node) -> Result<()>) {
    let mut node = Node::start(runtime).await.unwrap_or_else(|error| panic!("{error:?}"));
    if let Err(error) = case(&mut node).await {
        panic!("{error:?}\ncontainerd logged last:\n{}", node.log_tail());
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
    => {
        basics:
            a_container_runs_and_its_output_is_logged_by_stream,
            a_command_runs_in_a_container_and_tells_its_code,
        ;
    }
}
