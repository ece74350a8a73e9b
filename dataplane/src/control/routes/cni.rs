//! The route of the CNI plugin.

use axum::{
    extract::{Request, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use slipway_api::ErrorReply;
use slipway_cni::{STATUS_DONE, STATUS_FAILED};

use super::super::{cni, refusal::whole};
use super::{Api, Reply};

/// A call of the CNI plugin: its environment as in execve(2), an empty variable, and its configuration.
///
/// For slipway-cni of the same release; the attachments' own routes are for everybody.
#[utoipa::path(post, path = "/v1/cni", tag = "attachments",
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 200, description = "What the plugin prints: a result of the CNI specification, or nothing", body = serde_json::Value),
        (status = 422, description = "What the plugin prints: an error of the CNI specification", body = serde_json::Value),
        (status = "default", description = "Refused", body = ErrorReply),
    ))]
pub async fn post_cni(State(api): State<Api>, request: Request) -> Reply<Response> {
    let body = whole(request, cni::MAX_CALL_BYTES).await?;
    let (status, text) = match cni::answer(&*api.control, &body) {
        Ok(text) => (STATUS_DONE, text),
        Err(text) => (STATUS_FAILED, text),
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    Ok((status, [(CONTENT_TYPE, "application/json")], text).into_response())
}
