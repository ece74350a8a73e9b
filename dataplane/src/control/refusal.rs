//! Requests that are refused before the switch hears of them, all in one form.
//!
//! Everything a peer can get wrong in a body, a query, a path or a method ends as an
//! [`ApiError`] with the field, the value and a remedy; nothing here panics or answers in prose.

use std::time::Duration;

use axum::{
    Json,
    body::{Bytes, to_bytes},
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE, request::Parts},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use slipway_api::{ApiError, ErrorCode, ErrorReply, MAX_REQUEST_BYTES, Mac};

/// How long a body may take to arrive once its headers are there.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// An [`ApiError`] as the reply it becomes.
#[derive(Debug)]
pub struct Refusal(pub ApiError);

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(ErrorReply { error: self.0 })).into_response()
    }
}

/// A JSON body of a type that knows all its fields.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Refusal> {
        require_json(request.headers())?;
        Ok(Self(parse(&whole(request, MAX_REQUEST_BYTES).await?)?))
    }
}

/// The body of `request`, of at most `limit` bytes.
pub async fn whole(request: Request, limit: usize) -> Result<Bytes, ApiError> {
    let body = tokio::time::timeout(BODY_TIMEOUT, to_bytes(request.into_body(), limit));
    let late = |_| {
        ApiError::new(
            ErrorCode::RequestTimeout,
            "The body did not arrive within 10 seconds",
            "Send the whole body at once",
        )
    };
    body.await.map_err(late)?.map_err(|error| unreadable(&error, limit))
}

/// A query of a type that knows all its fields.
#[derive(Debug)]
pub struct StrictQuery<T>(pub T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for StrictQuery<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(query)) => Ok(Self(query)),
            Err(rejection) => {
                let why = root_cause(&rejection);
                let code = code_of(&why);
                Err(Refusal(
                    ApiError::new(
                        code,
                        format!("The query is not understood: {why}"),
                        "See the parameters of this route in /openapi.json",
                    )
                    .about("query", parts.uri.query().unwrap_or_default()),
                ))
            }
        }
    }
}

/// The variable parts of a path, percent-decoded.
#[derive(Debug)]
pub struct PathParts<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for PathParts<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(values)) => Ok(Self(values)),
            Err(rejection) => Err(Refusal(ApiError::invalid(
                "path",
                parts.uri.path(),
                format!("The path is not understood: {}", rejection.body_text()),
                "Percent-encode UTF-8",
            ))),
        }
    }
}

/// A VNI in a path.
pub fn parse_vni(text: &str) -> Result<u32, ApiError> {
    text.parse().ok().filter(|vni| *vni <= slipway_api::MAX_VNI).ok_or_else(|| {
        ApiError::invalid(
            "vni",
            text,
            "A VNI has 24 bits: 0 to 16777215",
            "Write it as a decimal number; 0 is the default segment",
        )
    })
}

/// A MAC address in a path.
pub fn parse_mac(text: &str) -> Result<Mac, ApiError> {
    text.parse().map_err(|error: slipway_api::MacError| {
        ApiError::invalid("mac", text, error.to_string(), "Write it as 52:54:00:12:34:56")
    })
}

/// A port that only its attachment's end removes.
pub fn port_of(user: &str, name: &str) -> ApiError {
    ApiError::new(
        ErrorCode::InUse,
        format!("It is the port of {user}"),
        "Delete the attachment instead: `slipwayctl attachments rm`",
    )
    .about("name", name)
}

/// A pod's port cannot have this name.
pub fn port_exists(name: &str) -> ApiError {
    ApiError::new(
        ErrorCode::Conflict,
        format!("There is a port {name} that belongs to no attachment"),
        "Delete that port first: its name is the one of a pod's port",
    )
    .about("port", name)
}

/// No route of this path.
pub async fn no_such_route(parts: Parts) -> Refusal {
    Refusal(
        ApiError::new(
            ErrorCode::NoSuchRoute,
            "There is no such route",
            "See the routes in /openapi.json; they begin with /v1",
        )
        .about("path", parts.uri.path()),
    )
}

/// A route, but not with this method.
pub async fn method_not_allowed(parts: Parts) -> Refusal {
    Refusal(
        ApiError::new(
            ErrorCode::MethodNotAllowed,
            format!("{} does not take this method", parts.uri.path()),
            "See the `Allow` header of this reply",
        )
        .about("method", &parts.method),
    )
}

fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers.get(CONTENT_TYPE).map_or("", |value| value.to_str().unwrap_or("?"));
    let essence = given.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::UnsupportedMediaType,
        "The body must be announced as JSON",
        "Add the header `content-type: application/json`",
    )
    .about("content-type", given))
}

fn unreadable(error: &axum::Error, limit: usize) -> ApiError {
    let why = root_cause(error);
    // axum names the limit only in the text of the innermost error.
    if why.contains("length limit exceeded") {
        ApiError::new(
            ErrorCode::BodyTooLarge,
            format!("The body is longer than {limit} bytes"),
            "Send a smaller one; no such request needs so much",
        )
    } else {
        ApiError::new(
            ErrorCode::MalformedJson,
            format!("The body ended early: {why}"),
            "Send as many bytes as announced",
        )
    }
}

/// The typed body, or the field that is to blame and its value.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // serde would also take the fields of a struct from an array, by their order.
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(ApiError::new(
            ErrorCode::InvalidValue,
            "The body is a JSON array where an object is needed",
            "Send one JSON object; `{}` takes every default",
        ));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let error = match serde_path_to_error::deserialize(&mut reader) {
        Ok(value) => match reader.end() {
            Ok(()) => return Ok(value),
            Err(error) => return Err(malformed(&error)),
        },
        Err(error) => error,
    };
    let path = error.path().to_string();
    let inner = error.into_inner();
    if inner.classify() != Category::Data {
        return Err(malformed(&inner));
    }
    let why = inner.to_string();
    let refused = ApiError::new(
        code_of(&why),
        format!("The body is not what this route takes: {why}"),
        "See the schema of this route in /openapi.json",
    );
    if path == "." {
        return Err(refused);
    }
    let whole: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    let value = path.split('.').try_fold(&whole, |at, key| at.get(key));
    Err(refused.about(&path, value.unwrap_or(&serde_json::Value::Null)))
}

fn malformed(error: &serde_json::Error) -> ApiError {
    ApiError::new(
        ErrorCode::MalformedJson,
        format!("The body is not JSON: {error}"),
        "Send one JSON object; `{}` takes every default",
    )
}

fn code_of(why: &str) -> ErrorCode {
    if why.contains("unknown field") { ErrorCode::UnknownField } else { ErrorCode::InvalidValue }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use slipway_api::{PortSpec, StaticEntrySpec};

    use super::*;

    fn refusal_of(body: &str) -> ApiError {
        parse::<PortSpec>(body.as_bytes()).expect_err(body)
    }

    #[test]
    fn a_wrong_type_is_refused_with_its_field_and_value() {
        let error = refusal_of(r#"{"vni":"seven"}"#);
        assert_eq!(error.code, ErrorCode::InvalidValue);
        assert_eq!(error.field.as_deref(), Some("vni"));
        assert_eq!(error.value.as_deref(), Some("\"seven\""));
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let error = refusal_of(r#"{"vlan":7}"#);
        assert_eq!(error.code, ErrorCode::UnknownField);
        assert_eq!(error.field.as_deref(), Some("vlan"));
        assert!(error.message.contains("queue_pairs"), "names what is known: {}", error.message);
    }

    #[test]
    fn a_mac_that_is_none_is_refused_with_its_field_and_value() {
        let error = refusal_of(r#"{"mac":"52:54"}"#);
        assert_eq!(error.field.as_deref(), Some("mac"));
        assert_eq!(error.value.as_deref(), Some("\"52:54\""));
    }

    #[test]
    fn a_missing_field_is_named_in_the_message() {
        let error = parse::<StaticEntrySpec>(b"{}").expect_err("port is missing");
        assert_eq!(error.code, ErrorCode::InvalidValue);
        assert!(error.message.contains("missing field `port`"), "{}", error.message);
    }

    #[test]
    fn what_is_not_one_json_value_is_malformed() {
        let deep = "[".repeat(100_000);
        let deep_value = format!(r#"{{"mac":{}"#, "[".repeat(10_000));
        for body in ["", "{", "{} {}", "\u{feff}{}", "{\"vni\":}", &deep, &deep_value] {
            let error = parse::<PortSpec>(body.as_bytes()).expect_err("malformed");
            let expected = [ErrorCode::MalformedJson, ErrorCode::InvalidValue];
            assert!(expected.contains(&error.code), "{error:?}");
        }
        assert_eq!(refusal_of("").code, ErrorCode::MalformedJson);
        assert_eq!(refusal_of("{} {}").code, ErrorCode::MalformedJson);
    }

    #[test]
    fn a_field_given_twice_is_refused() {
        let error = refusal_of(r#"{"vni":1,"vni":2}"#);
        assert!(error.message.contains("duplicate field"), "{}", error.message);
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        for body in
            [r#"{"vni":-1}"#, r#"{"vni":1e3}"#, r#"{"queue_pairs":65536}"#, r#"{"vni":1.5}"#]
        {
            assert_eq!(refusal_of(body).code, ErrorCode::InvalidValue, "{body}");
        }
    }
}
