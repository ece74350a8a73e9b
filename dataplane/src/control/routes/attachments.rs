//! The routes of attachments and of the networks that they join.

use axum::{Json, extract::State, http::StatusCode, response::Response};
use serde::Deserialize;
use slipway_api::{
    ApiError, Attachment, AttachmentList, AttachmentSpec, ErrorReply, NetworkList, check_interface,
    check_owner,
};

use super::super::refusal::{JsonBody, PathParts, StrictQuery};
use super::{Api, Reply, created};

/// The networks that attachments may join, by name.
#[utoipa::path(get, path = "/v1/networks", tag = "attachments", responses(
    (status = 200, description = "The networks", body = NetworkList),
    (status = "default", description = "Refused", body = ErrorReply),
))]
pub async fn list_networks(State(api): State<Api>) -> Json<NetworkList> {
    Json(api.control.list_networks())
}

/// Which attachments to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AttachmentFilter {
    /// Only those of this sandbox.
    #[param(nullable = false)]
    owner: Option<String>,
}

/// Attachments, in the order in which they were made.
#[utoipa::path(get, path = "/v1/attachments", tag = "attachments", params(AttachmentFilter),
    responses(
        (status = 200, description = "The attachments that match", body = AttachmentList),
        (status = "default", description = "Refused", body = ErrorReply),
    ))]
pub async fn list_attachments(
    State(api): State<Api>,
    StrictQuery(filter): StrictQuery<AttachmentFilter>,
) -> Reply<Json<AttachmentList>> {
    filter.owner.as_deref().map_or(Ok(()), check_owner)?;
    Ok(Json(api.control.list_attachments(filter.owner.as_deref())))
}

/// One attachment: what its guest must be told, and its port.
#[utoipa::path(get, path = "/v1/attachments/{owner}/{interface}", tag = "attachments",
    params(
        ("owner" = String, Path, description = "The sandbox"),
        ("interface" = String, Path, description = "The name of the guest's interface"),
    ),
    responses(
        (status = 200, description = "The attachment", body = Attachment),
        (status = 404, description = "It is not attached", body = ErrorReply),
        (status = "default", description = "Refused", body = ErrorReply),
    ))]
pub async fn get_attachment(
    State(api): State<Api>,
    PathParts((owner, interface)): PathParts<(String, String)>,
) -> Reply<Json<Attachment>> {
    let attachment = api.control.get_attachment(&owner, &interface);
    let not_found = || ApiError::not_found("attachment", format_args!("{owner}/{interface}"));
    Ok(Json(attachment.ok_or_else(not_found)?))
}

/// Attaches an interface: gives it addresses, a MAC and a port; asking again finds it.
#[utoipa::path(put, path = "/v1/attachments/{owner}/{interface}", tag = "attachments",
    params(
        ("owner" = String, Path, description = "The sandbox"),
        ("interface" = String, Path, description = "The name of the guest's interface"),
    ),
    request_body = AttachmentSpec,
    responses(
        (status = 200, description = "It was attached, with these settings", body = Attachment),
        (status = 201, description = "It was attached by this request", body = Attachment),
        (status = 409, description = "It is attached with other settings, or an address is somebody else's", body = ErrorReply),
        (status = 422, description = "A setting is refused", body = ErrorReply),
        (status = 507, description = "The network has no address left, or the switch no port", body = ErrorReply),
        (status = "default", description = "Refused", body = ErrorReply),
    ))]
pub async fn put_attachment(
    State(api): State<Api>,
    PathParts((owner, interface)): PathParts<(String, String)>,
    JsonBody(spec): JsonBody<AttachmentSpec>,
) -> Reply<Response> {
    check_owner(&owner)?;
    check_interface(&interface)?;
    spec.check()?;
    Ok(created(api.control.attach(&owner, &interface, &spec)?))
}

/// Gives back the addresses and the port of an interface; one that is not attached is detached.
#[utoipa::path(delete, path = "/v1/attachments/{owner}/{interface}", tag = "attachments",
    params(
        ("owner" = String, Path, description = "The sandbox"),
        ("interface" = String, Path, description = "The name of the guest's interface"),
    ),
    responses(
        (status = 204, description = "It is not attached, now or before"),
        (status = "default", description = "Refused", body = ErrorReply),
    ))]
pub async fn delete_attachment(
    State(api): State<Api>,
    PathParts((owner, interface)): PathParts<(String, String)>,
) -> Reply<StatusCode> {
    api.control.detach(&owner, &interface)?;
    Ok(StatusCode::NO_CONTENT)
}
