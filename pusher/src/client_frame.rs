//! Frames that clients send.

use nearby_ingest::admission::{self, Report};
use nearby_schemas::TimestampMs;
use serde_json::Value;

/// A frame that makes sense.
#[derive(Debug)]
pub enum ClientFrame {
    /// A report.
    Location(Box<Report>),
    /// Stop sharing, as of then.
    Unshare(Option<TimestampMs>),
    /// A new token for this socket.
    Auth(String),
}

/// A frame that does not.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// Stable code.
    pub code: &'static str,
    /// For a person.
    pub detail: String,
    /// What the client calls the frame.
    pub reference: Option<Value>,
}

/// Parses one frame and the client's name for it, which is a string or a number.
///
/// # Errors
/// What the client is told.
pub fn parse(text: &str, now: TimestampMs) -> Result<(ClientFrame, Option<Value>), Refused> {
    let refused = |code, detail: String, reference| Refused { code, detail, reference };
    let value = admission::json(text.as_bytes()).map_err(|problem| refused(problem.code, problem.detail, None))?;
    let reference = match value.get("ref") {
        Some(reference @ (Value::String(_) | Value::Number(_))) => Some(reference.clone()),
        Some(Value::Null) | None => None,
        Some(_) => return Err(refused("wrong_type", "ref has to be a string or a number".to_owned(), None)),
    };
    let fault = |faults: Vec<(String, &'static str)>| {
        let detail: Vec<String> = faults.iter().map(|(field, code)| format!("{field}: {code}")).collect();
        let code = faults.first().map_or("bad_json", |(_, code)| *code);
        refused(code, detail.join(", "), reference.clone())
    };
    let frame = match value.get("type").and_then(Value::as_str) {
        Some("location") => ClientFrame::Location(Box::new(admission::report(&value, now).map_err(fault)?)),
        Some("unshare") => ClientFrame::Unshare(admission::withdrawal_value(&value, now).map_err(fault)?),
        Some("auth") => match value.get("token").and_then(Value::as_str) {
            Some(token) => ClientFrame::Auth(token.to_owned()),
            None => return Err(fault(vec![("token".to_owned(), "missing")])),
        },
        Some(other) => {
            let shown: String = other.chars().take(40).collect();
            return Err(refused("unknown_type", format!("no frame has the type {shown:?}"), reference));
        }
        None => return Err(refused("unknown_type", "a frame has a type, a string".to_owned(), reference)),
    };
    Ok((frame, reference))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(text: &str, expected: Expect) {
        let shown = match parse(text, TimestampMs(1_700_000_000_000)) {
            Ok((frame, reference)) => format!("{frame:?} {reference:?}"),
            Err(refused) => format!("{} {:?} {:?}", refused.code, refused.detail, refused.reference),
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn frames_that_make_sense() {
        check(
            r#"{"type":"location","lat":1,"lon":2,"ref":"a","more":[]}"#,
            expect![[
                r#"Location(Report { user_id: None, reported_at: None, position: Position { lat_e7: 10000000, lon_e7: 20000000, accuracy_m: None, speed_mps: None, heading_deg: None } }) Some(String("a"))"#
            ]],
        );
        check(r#"{"type":"unshare","ref":7}"#, expect!["Unshare(None) Some(Number(7))"]);
        check(
            r#"{"type":"unshare","reported_at_ms":1699999999999}"#,
            expect!["Unshare(Some(TimestampMs(1699999999999))) None"],
        );
        check(r#"{"type":"auth","token":"t"}"#, expect![[r#"Auth("t") None"#]]);
    }

    #[test]
    fn frames_that_do_not() {
        check("{", expect![[r#"bad_json "not JSON: EOF while parsing an object at line 1 column 1" None"#]]);
        check("[]", expect![[r#"unknown_type "a frame has a type, a string" None"#]]);
        check(r#"{"type":7,"ref":1}"#, expect![[r#"unknown_type "a frame has a type, a string" Some(Number(1))"#]]);
        check(
            r#"{"type":"dance","ref":1}"#,
            expect![[r#"unknown_type "no frame has the type \"dance\"" Some(Number(1))"#]],
        );
        check(
            r#"{"type":"location","lat":91,"lon":"x","ref":1}"#,
            expect![[r#"out_of_range "lat: out_of_range, lon: wrong_type" Some(Number(1))"#]],
        );
        check(
            r#"{"type":"location","lat":1,"lon":1,"ref":{}}"#,
            expect![[r#"wrong_type "ref has to be a string or a number" None"#]],
        );
        check(
            r#"{"type":"unshare","reported_at_ms":"now"}"#,
            expect![[r#"wrong_type "reported_at_ms: wrong_type" None"#]],
        );
        check(r#"{"type":"auth"}"#, expect![[r#"missing "token: missing" None"#]]);
    }
}
