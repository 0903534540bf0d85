//! Whether a request may become a WebSocket: token first, then the handshake, then whether there is room.

use crate::gateway::Gateway;
use crate::hub::Connection;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use nearby_service::auth::Caller;
use nearby_service::problem::Problem;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use warp::reply::Response;

const SUBPROTOCOL: &str = "nearby.v1";
const BEARER_PREFIX: &str = "bearer.";

/// A handshake that is accepted.
pub struct Accepted {
    /// Whose socket it is.
    pub caller: Caller,
    /// Its place in the gateway, held from before the answer, so that a crowd of handshakes keeps the limits.
    pub connection: Connection,
    /// 101.
    pub response: Response,
}

/// Checks one request.
///
/// # Errors
/// 401 without a good token, 426 and 400 for what is no handshake, 503 or 429 when there is no room.
pub fn check<B>(gateway: &Gateway, request: &http::Request<B>) -> Result<Accepted, Problem> {
    let headers = request.headers();
    let offered = offered_subprotocols(headers);
    let caller = match offered.iter().find_map(|offer| offer.strip_prefix(BEARER_PREFIX)) {
        Some(token) => gateway.tokens.verify(token)?,
        None => gateway.tokens.bearer(headers)?,
    };
    if request.method() != Method::GET {
        return Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "a WebSocket starts with GET"));
    }
    let upgrade =
        has_token(headers, &header::UPGRADE, "websocket") && has_token(headers, &header::CONNECTION, "upgrade");
    if !upgrade {
        let detail = "this path speaks WebSocket: send Upgrade: websocket";
        return Err(Problem::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", detail));
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Problem::bad_request("bad_handshake", "Sec-WebSocket-Version has to be 13"));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    if key.len() != 24 {
        return Err(Problem::bad_request("bad_handshake", "Sec-WebSocket-Key has to be 16 bytes in base64"));
    }
    gateway.reports.count_other(&caller)?;
    let connection = gateway.admit(caller.user)?;
    let mut response = Response::default();
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    let accept = HeaderValue::try_from(derive_accept_key(key));
    let accept = accept.map_err(|_| Problem::bad_request("bad_handshake", "Sec-WebSocket-Key is not base64"))?;
    answer.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if offered.contains(&SUBPROTOCOL) {
        answer.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    Ok(Accepted { caller, connection, response })
}

fn offered_subprotocols(headers: &HeaderMap) -> Vec<&str> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).map(str::trim).collect()
}

fn has_token(headers: &HeaderMap, name: &header::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
}
