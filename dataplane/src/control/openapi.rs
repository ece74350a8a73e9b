//! The document at `/openapi.json`, derived from the handlers and the types of slipway-api.
//!
//! Tests hold it against the router both ways, and every kind of reply against its schemas.

use std::sync::LazyLock;

use utoipa::OpenApi;

use super::routes;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "slipwayd",
        description = "Control of the slipway switch, HTTP and JSON on a UNIX socket.",
    ),
    servers((url = "http://localhost", description = "over the UNIX socket; the host name is ignored")),
    paths(
        routes::list_ports, routes::get_port, routes::put_port, routes::delete_port,
        routes::put_policy, routes::delete_policy,
        routes::list_vnis, routes::put_vni, routes::delete_vni,
        routes::list_fdb, routes::put_fdb, routes::delete_fdb,
        routes::attachments::list_networks, routes::attachments::list_attachments,
        routes::attachments::get_attachment, routes::attachments::put_attachment,
        routes::attachments::delete_attachment, routes::cni::post_cni,
        routes::stats, routes::pmds, routes::rebalance, routes::explain, routes::health,
        routes::version, routes::metrics, routes::document,
    ),
)]
struct Document;

/// The document as JSON text; made once.
pub fn text() -> &'static str {
    static TEXT: LazyLock<String> =
        LazyLock::new(|| serde_json::json!(Document::openapi()).to_string());
    &TEXT
}
