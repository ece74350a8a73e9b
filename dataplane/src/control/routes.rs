//! Every route of the API: method, path, and what it asks of the switch.
//!
//! The router is built from [`table`] and nothing else, so a test can hold the table against the
//! OpenAPI document. Handlers check their input and call [`Control`]; all else is the switch's.

pub(super) mod attachments;
pub(super) mod cni;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::map_response_with_state,
    response::{IntoResponse, Response},
    routing::{MethodFilter, MethodRouter, on},
};
use slipway_api::{
    ApiError, Created, ErrorReply, ExplainReply, ExplainRequest, FdbEntry, FdbFilter, FdbList,
    Health, HealthStatus, PmdList, Policy, Port, PortList, PortSpec, Rebalanced, StaticEntry,
    StaticEntrySpec, Stats, Version, Vni, VniList, VniSpec,
};

use super::{
    Control, describe,
    metrics::{self, ApiCounters},
    openapi,
    refusal::{self, JsonBody, PathParts, Refusal, StrictQuery, parse_mac, parse_vni},
};

type Reply<T> = Result<T, Refusal>;

/// What every handler shares.
#[derive(Clone)]
pub struct Api {
    /// The switch.
    pub control: Arc<dyn Control>,
    /// What the server itself counts.
    pub counters: Arc<ApiCounters>,
}

/// One method of one path.
pub struct Route {
    /// The method.
    pub method: MethodFilter,
    /// The path, with its variable parts in braces.
    pub path: &'static str,
    handler: fn(MethodFilter) -> MethodRouter<Api>,
}

/// Every route there is.
pub fn table() -> Vec<Route> {
    // `on` takes any handler; a macro because each handler is a type of its own.
    macro_rules! routes {
        ($($method:ident $path:literal => $handler:expr;)*) => {
            vec![$(Route {
                method: MethodFilter::$method,
                path: $path,
                handler: |method| on(method, $handler),
            }),*]
        };
    }
    routes! {
        GET "/v1/ports" => list_ports;
        GET "/v1/ports/{name}" => get_port;
        PUT "/v1/ports/{name}" => put_port;
        DELETE "/v1/ports/{name}" => delete_port;
        PUT "/v1/ports/{name}/policy" => put_policy;
        DELETE "/v1/ports/{name}/policy" => delete_policy;
        GET "/v1/vnis" => list_vnis;
        PUT "/v1/vnis/{vni}" => put_vni;
        DELETE "/v1/vnis/{vni}" => delete_vni;
        GET "/v1/fdb" => list_fdb;
        PUT "/v1/fdb/{vni}/{mac}" => put_fdb;
        DELETE "/v1/fdb/{vni}/{mac}" => delete_fdb;
        GET "/v1/networks" => attachments::list_networks;
        GET "/v1/attachments" => attachments::list_attachments;
        GET "/v1/attachments/{owner}/{interface}" => attachments::get_attachment;
        PUT "/v1/attachments/{owner}/{interface}" => attachments::put_attachment;
        DELETE "/v1/attachments/{owner}/{interface}" => attachments::delete_attachment;
        POST "/v1/cni" => cni::post_cni;
        GET "/v1/stats" => stats;
        GET "/v1/pmds" => pmds;
        POST "/v1/pmds/rebalance" => rebalance;
        POST "/v1/explain" => explain;
        GET "/v1/health" => health;
        GET "/v1/version" => version;
        GET "/metrics" => metrics;
        GET "/openapi.json" => document;
    }
}

/// The router for peers that may use the API.
pub fn router(api: Api) -> Router {
    let counters = Arc::clone(&api.counters);
    table()
        .into_iter()
        .fold(Router::new(), |router, route| {
            router.route(route.path, (route.handler)(route.method))
        })
        .fallback(refusal::no_such_route)
        .method_not_allowed_fallback(refusal::method_not_allowed)
        .with_state(api)
        .layer(map_response_with_state(counters, count))
}

async fn count(State(counters): State<Arc<ApiCounters>>, response: Response) -> Response {
    counters.request_answered(response.status().as_u16());
    response
}

fn created<T: serde::Serialize>((made, outcome): (T, Created)) -> Response {
    let status = match outcome {
        Created::New => StatusCode::CREATED,
        Created::Existing => StatusCode::OK,
    };
    (status, Json(made)).into_response()
}

/// All ports, by name.
#[utoipa::path(get, path = "/v1/ports", tag = "ports", responses(
    (status = 200, description = "All ports", body = PortList),
    (status = "default", description = "Refused", body = ErrorReply),
))]
pub(super) async fn list_ports(State(api): State<Api>) -> Json<PortList> {
    Json(api.control.list_ports())
}

/// One port: its settings, link, negotiated features, vrings and memory.
#[utoipa::path(get, path = "/v1/ports/{name}", tag = "ports",
    params(("name" = String, Path, description = "The port's name")),
    responses(
        (status = 200, description = "The port", body = Port),
        (status = 404, description = "There is no port of this name", body = ErrorReply),
        (status = "default", description = "Refused", body = ErrorReply),
    ))]
pub(super) async fn get_port(
    State(api): State<Api>,
    PathParts(name): PathParts<String>,
) -> Reply<Json<Port>> {
    let port = api.control.get_port(&name).ok_or_else(|| ApiError::not_found("port", &name))?;
    Ok(Json(port))
}

/// Creates a port and its socket; asking again for the same port finds it.
#[utoipa::path(put, path = "/v1/ports/{name}", tag = "ports",
    params(("name" = String, Path, description = "The port's name")),
    request_body = PortSpec,
    responses(
        (status = 200, description = "It existed, with these settings", body = Port),
        (status = 201, description = "It was created", body = Port),
        (status = 409, description = "The name is taken by a port with other settings", body = ErrorReply),
        (status = 422, description = "A setting is refused", body = ErrorReply),
        (status = 507, description = "There are as many ports as are allowed", body = ErrorReply),
        (status = "default", description = "Refused", body = ErrorReply),
    ))]
pub(super) async fn put_port(
    State(api): State<Api>,
    PathParts(name): PathParts<String>,
    JsonBody(mut spec): JsonBody<PortSpec>,
) -> Reply<Response> {
    if !spec.name.is_empty() && spec.name != name {
        return Err(names_another("name", &spec.name, &name).into());
    }
    spec.name = name;
    spec.check()?;
    Ok(created(api.control.create_port(spec)?))
}

/// Removes a port, its socket and its FDB entries.
#[utoipa::path(delete, path = "/v1/ports/{name}", tag = "ports",
    params(("name" = String, Path, description = "The port's name")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, description = "There is no port of this name", body = ErrorReply),
        (status = 409, description = "It is the port of an attachment", body = ErrorReply),
        (status = "default", description = "Refused", body = ErrorReply),
    ))]
pub(super) async fn delete_port(
    State(api): State<Api>,
    PathParts(name): PathParts<String>,
) -> Reply<StatusCode> {
    api.control.delete_port(&name)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sets the policy of a port: which frames its guest may send and receive. The port goes on meanwhile.
#[utoipa::path(put, path = "/v1/ports/{name}/policy", tag = "ports",
    params(("name" = String, Path, description = "The port's name")),
    request_body = Policy,
    responses(
        (status = 200, description = "It had a policy; this one is in force now", body = Port),
        (status = 201, description = "It had none before", body = Port),
        (status = 404, description = "There is no port of this name", body = ErrorReply),
        (status = 422, description = "A rule is refused", body = ErrorReply),
        (status = "default", description = "Refused", body = ErrorReply),
    ))]
pub(super) async fn put_policy(
    State(api): State<Api>,
    PathParts(name): PathParts<String>,
    JsonBody(policy): JsonBody<Policy>,
) -> Reply<Response> {
    policy.check()?;
    Ok(created(api.control.put_policy(&name, policy)?))
}

/// Takes the policy off a port: its guest may send and receive everything.
#[utoipa::path(delete, path = "/v1/ports/{name}/policy", tag = "ports",
    params(("name" = String, Path, description = "The port's name")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, description = "There is no port of this name, or it has no policy", body = ErrorReply),
        (status = "default", description = "Refused", body = ErrorReply),
    ))]
pub(super) async fn delete_policy(
    State(api): State<Api>,
    PathParts(name): PathParts<String>,
) -> Reply<StatusCode> {
    api.control.delete_policy(&name)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Every segment that has settings or ports, by number.
#[utoipa::path(get, path = "/v1/vnis", tag = "vnis", responses(
    (status = 200, description = "The segments", body = VniList),
    (status = "default", description = "Refused", body = ErrorReply),
))]
pub(super) async fn list_vnis(State(api): State<Api>) -> Json<VniList> {
    Json(api.control.list_vnis())
}

/// Sets all settings of a segment; what is left out goes back to its default.
#[utoipa::path(put, path = "/v1/vnis/{vni}", tag = "vnis",
    params(("vni" = u32, Path, description = "The segment", maximum = 16_777_215)),
    request_body = VniSpec,
    responses(
        (status = 200, description = "It had settings; these are in force now", body = Vni),
        (status = 201, description = "It had none before", body = Vni),
        (status = 422, description = "A setting is refused", body = ErrorReply),
        (status = "default", description = "Refused", body = ErrorReply),
    ))]
pub(super) async fn put_vni(
    State(api): State<Api>,
    PathParts(vni): PathParts<String>,
    JsonBody(mut spec): JsonBody<VniSpec>,
) -> Reply<Response> {
    let vni = parse_vni(&vni)?;
    if let Some(other) = spec.vni.filter(|other| *other != vni) {
        return Err(names_another("vni", other, vni).into());
    }
    spec.vni = Some(vni);
    spec.check()?;
    Ok(created(api.control.put_vni(vni, spec)?))
}

/// Forgets a segment's settings.
#[utoipa::path(delete, path = "/v1/vnis/{vni}", tag = "vnis",
    params(("vni" = u32, Path, description = "The segment", maximum = 16_777_215)),
    responses(
        (status = 204, description = "They are gone"),
        (status = 404, description = "It has no settings", body = ErrorReply),
        (status = 409, description = "It has ports", body = ErrorReply),
        (status = "default", description = "Refused", body = ErrorReply),
    ))]
pub(super) async fn delete_vni(
    State(api): State<Api>,
    PathParts(vni): PathParts<String>,
) -> Reply<StatusCode> {
    api.control.delete_vni(parse_vni(&vni)?)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Forwarding entries, by segment and address.
#[utoipa::path(get, path = "/v1/fdb", tag = "fdb", params(FdbFilter), responses(
    (status = 200, description = "The entries that match", body = FdbList),
    (status = "default", description = "Refused", body = ErrorReply),
))]
pub(super) async fn list_fdb(
    State(api): State<Api>,
    StrictQuery(filter): StrictQuery<FdbFilter>,
) -> Reply<Json<FdbList>> {
    filter.check()?;
    Ok(Json(api.control.list_fdb(&filter)))
}

/// Adds a static entry; asking again for the same entry finds it.
#[utoipa::path(put, path = "/v1/fdb/{vni}/{mac}", tag = "fdb",
    params(
        ("vni" = u32, Path, description = "The segment", maximum = 16_777_215),
        ("mac" = String, Path, description = "The address"),
    ),
    request_body = StaticEntrySpec,
    responses(
        (status = 200, description = "It existed", body = FdbEntry),
        (status = 201, description = "It was added", body = FdbEntry),
        (status = 404, description = "There is no such port", body = ErrorReply),
        (status = 409, description = "The address is behind another port", body = ErrorReply),
        (status = 422, description = "A value is refused", body = ErrorReply),
        (status = 507, description = "The FDB is full", body = ErrorReply),
        (status = "default", description = "Refused", body = ErrorReply),
    ))]
pub(super) async fn put_fdb(
    State(api): State<Api>,
    PathParts((vni, mac)): PathParts<(String, String)>,
    JsonBody(StaticEntrySpec { port }): JsonBody<StaticEntrySpec>,
) -> Reply<Response> {
    let entry = StaticEntry { vni: parse_vni(&vni)?, mac: parse_mac(&mac)?, port };
    entry.check()?;
    Ok(created(api.control.add_fdb(&entry)?))
}

/// Removes an entry, static or learned.
#[utoipa::path(delete, path = "/v1/fdb/{vni}/{mac}", tag = "fdb",
    params(
        ("vni" = u32, Path, description = "The segment", maximum = 16_777_215),
        ("mac" = String, Path, description = "The address"),
    ),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, description = "There is no such entry", body = ErrorReply),
        (status = 409, description = "It is the address of a port", body = ErrorReply),
        (status = "default", description = "Refused", body = ErrorReply),
    ))]
pub(super) async fn delete_fdb(
    State(api): State<Api>,
    PathParts((vni, mac)): PathParts<(String, String)>,
) -> Reply<StatusCode> {
    api.control.delete_fdb(parse_vni(&vni)?, parse_mac(&mac)?)?;
    Ok(StatusCode::NO_CONTENT)
}

/// The counters of every port.
#[utoipa::path(get, path = "/v1/stats", tag = "counters", responses(
    (status = 200, description = "Counters by port", body = Stats),
    (status = "default", description = "Refused", body = ErrorReply),
))]
pub(super) async fn stats(State(api): State<Api>) -> Json<Stats> {
    Json(api.control.stats())
}

/// The polling threads: their cores, vrings and counters.
#[utoipa::path(get, path = "/v1/pmds", tag = "counters", responses(
    (status = 200, description = "The PMD threads", body = PmdList),
    (status = "default", description = "Refused", body = ErrorReply),
))]
pub(super) async fn pmds(State(api): State<Api>) -> Json<PmdList> {
    Json(api.control.pmds())
}

/// Moves vrings from polling threads with much load to those with little, where that pays.
#[utoipa::path(post, path = "/v1/pmds/rebalance", tag = "counters", responses(
    (status = 200, description = "The vrings moved", body = Rebalanced),
    (status = "default", description = "Refused", body = ErrorReply),
))]
pub(super) async fn rebalance(State(api): State<Api>) -> Json<Rebalanced> {
    Json(api.control.rebalance())
}

/// Asks each stage of the pipeline what it would do with a frame; nothing is sent or counted.
#[utoipa::path(post, path = "/v1/explain", tag = "explain", request_body = ExplainRequest,
    responses(
        (status = 200, description = "Each stage's answer", body = ExplainReply),
        (status = 404, description = "There is no such port", body = ErrorReply),
        (status = 422, description = "The description is refused", body = ErrorReply),
        (status = "default", description = "Refused", body = ErrorReply),
    ))]
pub(super) async fn explain(
    State(api): State<Api>,
    JsonBody(request): JsonBody<ExplainRequest>,
) -> Reply<Json<ExplainReply>> {
    let frame = describe::frame(&request)?;
    Ok(Json(api.control.explain(&request.port, &frame)?))
}

/// Whether the switch does its work.
#[utoipa::path(get, path = "/v1/health", tag = "daemon", responses(
    (status = 200, description = "It does", body = Health),
    (status = 503, description = "Something of its own does not work", body = Health),
    (status = "default", description = "Refused", body = ErrorReply),
))]
pub(super) async fn health(State(api): State<Api>) -> Response {
    let health = api.control.health();
    let status = match health.status {
        HealthStatus::Ok => StatusCode::OK,
        HealthStatus::Degraded => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(health)).into_response()
}

/// Which daemon this is.
#[utoipa::path(get, path = "/v1/version", tag = "daemon", responses(
    (status = 200, description = "Name, release and API", body = Version),
    (status = "default", description = "Refused", body = ErrorReply),
))]
pub(super) async fn version(State(api): State<Api>) -> Json<Version> {
    Json(api.control.version())
}

/// All counters for Prometheus, read at this moment.
#[utoipa::path(get, path = "/metrics", tag = "counters", responses(
    (status = 200, description = "OpenMetrics text", body = String, content_type = metrics::CONTENT_TYPE),
    (status = "default", description = "Refused", body = ErrorReply),
))]
pub(super) async fn metrics(State(api): State<Api>) -> Response {
    let text = metrics::render(&*api.control, &api.counters);
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

/// This API's description.
#[utoipa::path(get, path = "/openapi.json", tag = "daemon", responses(
    (status = 200, description = "An OpenAPI document", body = serde_json::Value),
    (status = "default", description = "Refused", body = ErrorReply),
))]
pub(super) async fn document() -> Response {
    ([(CONTENT_TYPE, "application/json")], openapi::text()).into_response()
}

fn names_another(
    field: &str,
    body: impl std::fmt::Display,
    path: impl std::fmt::Display,
) -> ApiError {
    ApiError::invalid(
        field,
        &body,
        format!("The path names {path}, the body {body}"),
        "Leave the field out of the body: the path decides",
    )
}
