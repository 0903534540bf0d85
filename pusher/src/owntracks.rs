//! `POST /owntracks`: OwnTracks' HTTP mode, so that the phone app works as it is.
//!
//! The app posts one message at a time, waits for 200, and otherwise sends the same message again before any later one. So
//! what it sends in good faith must not be refused for ever: message types that mean nothing here, and places that are too
//! old after days without a network, are answered with 200 and left out. Nothing in a message says whose it is; the token does.

use crate::delivery::Shown;
use crate::gateway::Gateway;
use crate::polling::Pollers;
use futures_util::Stream;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use nearby_ingest::admission::{self, Report};
use nearby_ingest::reports::counted;
use nearby_schemas::nearness::UNITS_PER_DEGREE;
use nearby_schemas::{Source, TimestampMs, UserId};
use nearby_service::body::read_body;
use nearby_service::http::Routes;
use nearby_service::problem::{Problem, json};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;
use warp::reply::Response;
use warp::{Buf, Filter};

/// A phone waits at most so long for its friends: its report counts, and they also come with the next answer.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(1);
const KMH_PER_MPS: f64 = 3.6;
/// The app's name of a field, and ours.
const FIELDS: [(&str, &str); 6] = [
    ("lat", "lat"),
    ("lon", "lon"),
    ("tst", "reported_at_ms"),
    ("acc", "accuracy_m"),
    ("vel", "speed_mps"),
    ("cog", "heading_deg"),
];

/// What a phone says.
#[derive(Debug, PartialEq)]
enum Message {
    /// Where it is.
    Location(Report),
    /// Where it was longer ago than anybody wants to know.
    TooOld,
    /// Something else: a waypoint, a status, an encrypted message, nothing at all.
    Other,
}

/// The one route.
pub fn routes(gateway: &Arc<Gateway>, pollers: &Arc<Pollers>) -> Routes {
    let shared = (Arc::clone(gateway), Arc::clone(pollers));
    let path = warp::path!("owntracks").and(warp::post());
    let route = path.and(warp::header::headers_cloned()).and(warp::body::stream());
    route
        .then(move |headers: HeaderMap, body| {
            let (gateway, pollers) = shared.clone();
            async move { answer(&gateway, &pollers, &headers, body).await.unwrap_or_else(refused) }
        })
        .boxed()
}

async fn answer(
    gateway: &Gateway,
    pollers: &Pollers,
    headers: &HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Result<Response, Problem> {
    let caller = gateway.tokens.basic(headers)?;
    let refused = |problem| counted(gateway.reports.refused(&caller, problem));
    let body = read_body(body).await.map_err(refused)?;
    let now = TimestampMs::now();
    let message = parse(&body, now).map_err(refused)?;
    drop(body);
    let report = match message {
        Message::Location(report) => report,
        Message::TooOld => {
            gateway.reports.count_other(&caller)?;
            counted(Problem::bad_request("too_old", ""));
            return Ok(friends(&[]));
        }
        Message::Other => {
            gateway.reports.count_other(&caller)?;
            return Ok(friends(&[]));
        }
    };
    // The report first: a view that is opened after it knows where the viewer is.
    gateway.reports.submit(&caller, vec![report], Source::OwnTracks, now)?.await?;
    // What was accepted must not be sent again because the gateway has no room for a session.
    let view = pollers.view(gateway, caller.user, SNAPSHOT_WAIT).await;
    Ok(friends(&view.ok().flatten().unwrap_or_default()))
}

/// A browser that asks for a password would send the wrong one; OwnTracks does not look.
fn refused(problem: Problem) -> Response {
    let unauthorized = problem.status == StatusCode::UNAUTHORIZED;
    let mut response = problem.into_response();
    if unauthorized {
        let basic = HeaderValue::from_static("Basic realm=\"nearby\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, basic);
    }
    response
}

/// What the bytes say.
fn parse(bytes: &[u8], now: TimestampMs) -> Result<Message, Problem> {
    // The app posts nothing when its user removes a friend.
    if bytes.trim_ascii().is_empty() {
        return Ok(Message::Other);
    }
    let message = admission::json(bytes)?;
    let kind = match (&message, message.get("_type")) {
        (Value::Object(_), Some(Value::String(kind))) => kind,
        (Value::Object(_), None) => return Err(admission::refused(vec![("_type".to_owned(), "missing")])),
        (Value::Object(_), Some(_)) => return Err(admission::refused(vec![("_type".to_owned(), "wrong_type")])),
        _ => return Err(admission::refused(vec![(String::new(), "wrong_type")])),
    };
    if kind != "location" {
        return Ok(Message::Other);
    }
    match admission::report(&in_our_words(&message), now) {
        Ok(report) => Ok(Message::Location(report)),
        Err(faults) if faults.iter().all(|(_, code)| *code == "too_old") => Ok(Message::TooOld),
        Err(faults) => Err(admission::refused(faults.into_iter().map(in_their_words).collect())),
    }
}

/// The message as a report of `POST /v1/locations`, and nothing else of it.
fn in_our_words(message: &Value) -> Value {
    let known = FIELDS.iter().filter_map(|(theirs, ours)| {
        let value = message.get(theirs)?;
        let number = value.as_f64();
        let value = match *theirs {
            // A phone that does not know says -1.
            "acc" | "vel" | "cog" if number.is_some_and(|number| number < 0.0) => return None,
            "vel" => number.map_or_else(|| value.clone(), |kmh| json!(kmh / KMH_PER_MPS)),
            // As it is where it is no number, in milliseconds either: a time that is too large must not become none, which is now.
            "tst" => {
                let ms = number.map(|seconds| (seconds * 1000.0).round()).filter(|ms| ms.is_finite());
                ms.map_or_else(|| value.clone(), |ms| json!(ms))
            }
            _ => value.clone(),
        };
        Some(((*ours).to_owned(), value))
    });
    Value::Object(known.collect::<Map<_, _>>())
}

fn in_their_words((field, code): admission::Fault) -> admission::Fault {
    let theirs = FIELDS.iter().find(|(_, ours)| *ours == field).map(|(theirs, _)| (*theirs).to_owned());
    (theirs.unwrap_or(field), code)
}

/// The friends as messages. Both apps tell people apart by `tid` in HTTP mode, so it is the whole id.
fn friends(shown: &[(UserId, Shown)]) -> Response {
    let degrees = |e7: i32| f64::from(e7) / UNITS_PER_DEGREE;
    let locations = shown.iter().map(|(id, shown)| {
        json!({
            "_type": "location",
            "tid": id.to_string(),
            "topic": format!("owntracks/{id}/phone"),
            "lat": degrees(shown.place.lat_e7),
            "lon": degrees(shown.place.lon_e7),
            "tst": shown.updated_at.0 / 1000,
        })
    });
    json(StatusCode::OK, &locations.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    const NOW: TimestampMs = TimestampMs(1_700_000_000_000);

    fn check(message: &str, expected: Expect) {
        let shown = match parse(message.as_bytes(), NOW) {
            Ok(Message::Location(report)) => {
                let mut event = report.event(UserId(9), Source::OwnTracks, NOW);
                let position = event.position.take().expect("a place");
                format!("{} {} {position:?}", event.user_id, event.reported_at.0)
            }
            Ok(other) => format!("{other:?}"),
            Err(problem) => format!("{} {}", problem.code, problem.detail),
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn a_location_is_a_report_of_the_token_s_user() {
        check(
            r#"{"_type":"location","lat":50.1,"lon":8.5,"tst":1699999990,"acc":12,"vel":36,"cog":270,"tid":"jj","batt":55,
                "topic":"owntracks/jane/phone","user_id":"7","reported_at_ms":1,"conn":"w","inregions":["home"]}"#,
            expect![[
                r#"9 1699999990000 Position { lat_e7: 501000000, lon_e7: 85000000, accuracy_m: Some(12.0), speed_mps: Some(10.0), heading_deg: Some(270.0) }"#
            ]],
        );
        check(
            r#"{"_type":"location","lat":50.1,"lon":8.5,"acc":-1,"vel":-1,"cog":-1}"#,
            expect![[
                r#"9 1700000000000 Position { lat_e7: 501000000, lon_e7: 85000000, accuracy_m: None, speed_mps: None, heading_deg: None }"#
            ]],
        );
    }

    #[test]
    fn what_means_nothing_here_is_not_refused() {
        for kind in ["waypoint", "waypoints", "transition", "status", "lwt", "card", "cmd", "encrypted", "steps", "new"]
        {
            check(&format!(r#"{{"_type":"{kind}","lat":"not even looked at"}}"#), expect!["Other"]);
        }
        check("", expect!["Other"]);
        check(" \r\n", expect!["Other"]);
        check(r#"{"_type":"location","lat":1,"lon":1,"tst":1600000000}"#, expect!["TooOld"]);
    }

    #[test]
    fn faults_have_the_app_s_names() {
        check("{", expect!["bad_json not JSON: EOF while parsing an object at line 1 column 1"]);
        check("[]", expect!["wrong_type item 0 has the wrong type"]);
        check("{}", expect!["missing item 0: _type is missing"]);
        check(r#"{"_type":7}"#, expect!["wrong_type item 0: _type has the wrong type"]);
        check(r#"{"_type":"location","lat":91,"lon":8}"#, expect!["out_of_range item 0: lat is out of range"]);
        check(
            r#"{"_type":"location","lat":1,"lon":8,"tst":"now"}"#,
            expect!["wrong_type item 0: tst has the wrong type"],
        );
        check(
            r#"{"_type":"location","lat":1,"lon":8,"tst":1700000100}"#,
            expect!["in_future item 0: tst is more than 60 s in the future"],
        );
        check(
            // In milliseconds it is no number any more.
            r#"{"_type":"location","lat":1,"lon":8,"tst":1e306}"#,
            expect!["in_future item 0: tst is more than 60 s in the future"],
        );
        check(r#"{"_type":"location","lon":8,"tst":1600000000}"#, expect!["missing item 0: lat is missing"]);
    }
}
