//! The HTTP routes. Each handler returns a response or a [`Problem`]; a request that is routed here is never rejected.
//!
//! The order of refusals is fixed: token (401), scope of the route (403), path (400), body (413, 400), then what the items
//! need (403, 429, 503).

use crate::admission;
use crate::friend_lists::FriendLists;
use crate::gateways::Gateways;
use crate::reports::{Reports, counted};
use futures_util::Stream;
use http::{HeaderMap, StatusCode};
use nearby_schemas::{InvalidUserId, Source, TimestampMs, UserId};
use nearby_service::auth::{SCOPE_FRIENDS_WRITE, SCOPES_ALL, Tokens};
use nearby_service::body::read_body;
use nearby_service::hosts::check_local;
use nearby_service::http::Routes;
use nearby_service::problem::{Problem, json};
use serde_json::json;
use std::convert::Infallible;
use std::sync::Arc;
use warp::reply::Response;
use warp::{Buf, Filter};

/// Tokens for development last a day.
const DEV_TOKEN_MS: i64 = 24 * 3_600_000;

/// What the handlers share.
pub(crate) struct Edge {
    pub(crate) reports: Reports,
    pub(crate) friend_lists: FriendLists,
    pub(crate) gateways: Gateways,
    pub(crate) tokens: Tokens,
}

type Shared = Arc<Edge>;

/// All routes; that of development tokens only if wanted.
pub(crate) fn routes(edge: Edge, dev_tokens: bool) -> Routes {
    let edge = Arc::new(edge);
    let routes = gateway(&edge).or(locations(&edge)).unify().or(location(&edge)).unify();
    let routes = routes.or(friends(&edge)).unify().or(friend_lists(&edge)).unify();
    if dev_tokens { routes.or(dev_token(&edge)).unify().boxed() } else { routes.boxed() }
}

fn gateway(edge: &Shared) -> Routes {
    let answer = |edge: Shared| {
        let chosen = edge.gateways.choose().map(|chosen| {
            let body = json!({ "gateway": chosen.gateway, "url": chosen.stream_url, "http_url": chosen.http_url });
            json(StatusCode::OK, &body)
        });
        respond(chosen.ok_or_else(|| Problem::unavailable("no_gateway", "no gateway takes clients now")))
    };
    warp::path!("v1" / "gateway").and(warp::get()).and(with(edge)).map(answer).boxed()
}

fn locations(edge: &Shared) -> Routes {
    let path = warp::path!("v1" / "locations").and(warp::post());
    let route = path.and(with(edge)).and(warp::header::headers_cloned()).and(warp::body::stream());
    route.then(|edge, headers, body| async move { respond(report(edge, headers, body).await) }).boxed()
}

fn location(edge: &Shared) -> Routes {
    let path = warp::path!("v1" / "location").and(warp::delete());
    let route = path.and(with(edge)).and(warp::header::headers_cloned()).and(warp::body::stream());
    route.then(|edge, headers, body| async move { respond(withdraw(edge, headers, body).await) }).boxed()
}

fn friends(edge: &Shared) -> Routes {
    let path = warp::path!("v1" / "users" / String / "friends").and(warp::put());
    let route = path.and(with(edge)).and(warp::header::headers_cloned()).and(warp::body::stream());
    route
        .then(|user, edge, headers, body| async move { respond(replace_list(user, edge, headers, body).await) })
        .boxed()
}

fn friend_lists(edge: &Shared) -> Routes {
    let path = warp::path!("v1" / "friend-lists").and(warp::post());
    let route = path.and(with(edge)).and(warp::header::headers_cloned()).and(warp::body::stream());
    route.then(|edge, headers, body| async move { respond(replace_lists(edge, headers, body).await) }).boxed()
}

fn dev_token(edge: &Shared) -> Routes {
    // warp's own query filters reject a query that is absent or does not fit.
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let path = warp::path!("v1" / "dev" / "token").and(warp::get()).and(warp::header::headers_cloned());
    let answer = |headers: HeaderMap, edge: Shared, query: String| {
        respond(check_local(&headers).and_then(|()| sign(&edge, &query)))
    };
    path.and(with(edge)).and(query).map(answer).boxed()
}

async fn report(
    edge: Shared,
    headers: HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Result<Response, Problem> {
    let caller = edge.tokens.bearer(&headers)?;
    let refused = |problem| counted(edge.reports.refused(&caller, problem));
    let body = read_body(body).await.map_err(refused)?;
    let now = TimestampMs::now();
    let reports = admission::reports(&body, now).map_err(refused)?;
    // Not held while the broker takes its time.
    drop(body);
    let submitted = edge.reports.submit(&caller, reports, Source::Http, now)?;
    submitted.await.map(accepted)
}

async fn withdraw(
    edge: Shared,
    headers: HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Result<Response, Problem> {
    let caller = edge.tokens.bearer(&headers)?;
    let refused = |problem| counted(edge.reports.refused(&caller, problem));
    let body = read_body(body).await.map_err(refused)?;
    let now = TimestampMs::now();
    let reported_at = admission::withdrawal(&body, now).map_err(refused)?;
    drop(body);
    let submitted = edge.reports.withdraw(&caller, reported_at, Source::Http, now)?;
    submitted.await.map(accepted)
}

async fn replace_list(
    user: String,
    edge: Shared,
    headers: HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Result<Response, Problem> {
    let caller = edge.tokens.bearer(&headers)?;
    let refused = |problem| edge.reports.refused(&caller, problem);
    caller.require(SCOPE_FRIENDS_WRITE).map_err(refused)?;
    let user = user_id(&user).map_err(refused)?;
    let body = read_body(body).await.map_err(refused)?;
    let friends = admission::friend_list(&body).map_err(refused)?;
    drop(body);
    edge.friend_lists.replace(vec![(user, friends)], TimestampMs::now()).await.map(accepted)
}

async fn replace_lists(
    edge: Shared,
    headers: HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Result<Response, Problem> {
    let caller = edge.tokens.bearer(&headers)?;
    let refused = |problem| edge.reports.refused(&caller, problem);
    caller.require(SCOPE_FRIENDS_WRITE).map_err(refused)?;
    let body = read_body(body).await.map_err(refused)?;
    let lists = admission::friend_lists(&body).map_err(refused)?;
    drop(body);
    edge.friend_lists.replace(lists, TimestampMs::now()).await.map(accepted)
}

fn sign(edge: &Edge, query: &str) -> Result<Response, Problem> {
    let user = query.split('&').find_map(|parameter| parameter.strip_prefix("user="));
    let user = user_id(user.unwrap_or_default())?;
    let token = edge.tokens.sign(user, SCOPES_ALL, TimestampMs::now().plus_ms(DEV_TOKEN_MS));
    let token =
        token.map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "cannot_sign", error.to_string()))?;
    Ok(json(StatusCode::OK, &json!({ "token": token })))
}

fn user_id(text: &str) -> Result<UserId, Problem> {
    text.parse().map_err(|error: InvalidUserId| Problem::bad_request("bad_id", error.to_string()))
}

fn accepted(count: usize) -> Response {
    json(StatusCode::ACCEPTED, &json!({ "accepted": count }))
}

fn respond(answer: Result<Response, Problem>) -> Response {
    answer.unwrap_or_else(Problem::into_response)
}

fn with(edge: &Shared) -> impl Filter<Extract = (Shared,), Error = Infallible> + Clone + Send + Sync + 'static {
    let edge = Arc::clone(edge);
    warp::any().map(move || Arc::clone(&edge))
}
