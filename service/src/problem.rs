//! Errors as clients see them: `application/problem+json` (RFC 9457) with a stable `code`.

use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use std::time::Duration;
use warp::reply::Response;

/// One item of a request that is at fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ItemError {
    /// Position in the array, from 0.
    pub index: usize,
    /// The field, empty when it is the item itself.
    pub field: String,
    /// Stable code.
    pub code: &'static str,
}

/// What went wrong, for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable code that programs may depend on.
    pub code: &'static str,
    /// For a person.
    pub detail: String,
    /// The items at fault, if it is about items.
    pub errors: Vec<ItemError>,
    /// Seconds after which it is worth trying again.
    pub retry_after_s: Option<u32>,
}

impl Problem {
    /// A problem without items.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Problem {
        Problem { status, code, detail: detail.into(), errors: Vec::new(), retry_after_s: None }
    }

    /// 400.
    pub fn bad_request(code: &'static str, detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 503: worth trying again in a second.
    pub fn unavailable(code: &'static str, detail: impl Into<String>) -> Problem {
        Problem { retry_after_s: Some(1), ..Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, detail) }
    }

    /// 429, and when to try again: in whole seconds, at least one, and not before `wait` is over.
    pub fn too_many(code: &'static str, detail: impl Into<String>, wait: Duration) -> Problem {
        let seconds = u32::try_from(wait.as_nanos().div_ceil(1_000_000_000)).unwrap_or(u32::MAX).max(1);
        Problem { retry_after_s: Some(seconds), ..Problem::new(StatusCode::TOO_MANY_REQUESTS, code, detail) }
    }

    /// The response.
    pub fn into_response(self) -> Response {
        let mut body = serde_json::json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
            "code": self.code,
        });
        if !self.errors.is_empty() {
            body["errors"] = serde_json::json!(self.errors);
        }
        let mut response = Response::new(body.to_string().into());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UPGRADE_REQUIRED {
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A JSON response.
pub fn json(status: StatusCode, body: &serde_json::Value) -> Response {
    let mut response = Response::new(body.to_string().into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
