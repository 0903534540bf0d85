//! What is let in: bytes or JSON and the time go in, reports and friend lists come out, or the reason why not.
//!
//! Pure: no I/O, no clock. Validation is all or nothing, and every item at fault is named with its field and a stable code.
//! What needs to know who is calling (scopes, rates) is decided in [`crate::reports`].

use h3o::{LatLng, Resolution};
use nearby_schemas::{FriendList, LocationEvent, OutOfRange, Place, Position, Source, TimestampMs, UserId};
use nearby_service::problem::{ItemError, Problem};
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// Reports in one request.
pub const REPORTS_MAX: usize = 1_000;
/// Nested arrays and objects, the outermost included.
pub const NESTING_MAX: usize = 32;
/// A client's clock may be ahead by so much.
pub const AHEAD_MS_MAX: i64 = 60_000;
/// A report may be so old: the log keeps no more.
pub const AGE_MS_MAX: i64 = 7 * 86_400_000;
/// Listed faults of a request: a small body of bad ids must not ask for a huge answer.
const FAULTS_MAX: usize = 10_000;
/// H3 cells of `"precision":"coarse"`: about 1.2 km from edge to centre.
const COARSE: Resolution = Resolution::Seven;
/// Greater whole numbers may already have been rounded when they are written with a point or an exponent.
const EXACT_FLOAT_MAX: u64 = (1 << 53) - 1;

/// A report that may be stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// Whose it is, if the item says so; otherwise the caller's.
    pub user_id: Option<UserId>,
    /// When, by the client's clock; otherwise the time of acceptance.
    pub reported_at: Option<TimestampMs>,
    /// Where, already snapped if `precision` is `coarse`.
    pub position: Position,
}

impl Report {
    /// Its record. What it does not say is the caller's, and the time of acceptance.
    pub fn event(self, caller: UserId, source: Source, now: TimestampMs) -> LocationEvent {
        LocationEvent {
            user_id: self.user_id.unwrap_or(caller),
            reported_at: self.reported_at.unwrap_or(now),
            received_at: now,
            position: Some(self.position),
            source,
        }
    }
}

/// A field (empty: the item itself) and the stable code of what is wrong with it.
pub type Fault = (String, &'static str);

/// JSON out of bytes.
///
/// # Errors
/// `bad_json`, also when nested too deep; `not_finite` for a number that no double holds.
pub fn json(bytes: &[u8]) -> Result<Value, Problem> {
    if nested_too_deep(bytes) {
        let detail = format!("the JSON is nested more than {NESTING_MAX} levels deep");
        return Err(Problem::bad_request("bad_json", detail));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        // serde_json tells the kinds of syntax errors apart by their text alone.
        let error = error.to_string();
        if error.starts_with("number out of range") {
            Problem::bad_request("not_finite", format!("not a finite number: {error}"))
        } else {
            Problem::bad_request("bad_json", format!("not JSON: {error}"))
        }
    })
}

/// The reports of `POST /v1/locations`: one object, or an array of at most [`REPORTS_MAX`].
///
/// # Errors
/// 400 with the code of the first fault, and all faults in `errors`.
pub fn reports(bytes: &[u8], now: TimestampMs) -> Result<Vec<Report>, Problem> {
    let body = json(bytes)?;
    let items = match &body {
        Value::Array(items) => items.as_slice(),
        item => std::slice::from_ref(item),
    };
    if items.len() > REPORTS_MAX {
        return Err(Problem::bad_request("too_many", format!("more than {REPORTS_MAX} reports in one request")));
    }
    let mut errors = Vec::new();
    let mut accepted = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        match report(item, now) {
            Ok(report) => accepted.push(report),
            Err(faults) => errors.extend(at(index, faults)),
        }
    }
    all_or_nothing(accepted, errors)
}

/// One report: an item of the request, or a `location` frame. Unknown fields are ignored.
///
/// # Errors
/// Everything that is wrong with it.
pub fn report(value: &Value, now: TimestampMs) -> Result<Report, Vec<Fault>> {
    let mut fields = Fields::of(value)?;
    let lat = fields.required("lat", -90.0..=90.0);
    let lon = fields.required("lon", -180.0..=180.0);
    let reported_at = fields.reported_at(now);
    let accuracy_m = fields.optional("accuracy_m", 0.0..=f64::from(f32::MAX));
    let speed_mps = fields.optional("speed_mps", 0.0..=f64::from(f32::MAX));
    let heading_deg = fields.optional("heading_deg", 0.0..=360.0);
    let coarse = fields.coarse();
    let user_id = fields.user_id();
    let (Some(lat), Some(lon), true) = (lat, lon, fields.faults.is_empty()) else {
        return Err(fields.faults);
    };
    let place = if coarse { centre_of_cell(lat, lon) } else { Place::from_degrees(lat, lon) };
    let Place { lat_e7, lon_e7 } = place.map_err(|out_of_range| match out_of_range {
        OutOfRange::Lat => vec![fault("lat", "out_of_range")],
        OutOfRange::Lon => vec![fault("lon", "out_of_range")],
    })?;
    let narrow = |value: Option<f64>| value.map(|value| value as f32);
    let position = Position {
        lat_e7,
        lon_e7,
        accuracy_m: narrow(accuracy_m),
        speed_mps: narrow(speed_mps),
        heading_deg: narrow(heading_deg),
    };
    Ok(Report { user_id, reported_at, position })
}

/// The time of a withdrawal out of the body of `DELETE /v1/location`, which may be empty.
///
/// # Errors
/// As for reports.
pub fn withdrawal(bytes: &[u8], now: TimestampMs) -> Result<Option<TimestampMs>, Problem> {
    if bytes.trim_ascii().is_empty() {
        return Ok(None);
    }
    match withdrawal_value(&json(bytes)?, now) {
        Ok(reported_at) => Ok(reported_at),
        Err(faults) => all_or_nothing(None, at(0, faults).collect()),
    }
}

/// The time of a withdrawal out of an object, such as an `unshare` frame.
///
/// # Errors
/// As for reports.
pub fn withdrawal_value(value: &Value, now: TimestampMs) -> Result<Option<TimestampMs>, Vec<Fault>> {
    let mut fields = Fields::of(value)?;
    let reported_at = fields.reported_at(now);
    if fields.faults.is_empty() { Ok(reported_at) } else { Err(fields.faults) }
}

/// The friends of `PUT /v1/users/{id}/friends`. In `errors`, `index` is the position in the list.
///
/// # Errors
/// 400 with the code of the first fault.
pub fn friend_list(bytes: &[u8]) -> Result<Vec<UserId>, Problem> {
    let body = json(bytes)?;
    let mut errors = Vec::new();
    let friends = match member(&body, "friends") {
        Ok(list) => ids("friends", list, &mut errors),
        Err(fault) => {
            errors.extend(at(0, vec![fault]));
            Vec::new()
        }
    };
    all_or_nothing(friends, errors)
}

/// The lists of `POST /v1/friend-lists`, by whose they are. In `errors`, `field` is `lists.<user>` and `index` the position
/// in that user's list, 0 if the fault is the list's or the user's own.
///
/// # Errors
/// 400 with the code of the first fault.
pub fn friend_lists(bytes: &[u8]) -> Result<Vec<(UserId, Vec<UserId>)>, Problem> {
    let body = json(bytes)?;
    let mut errors = Vec::new();
    let mut accepted = Vec::new();
    match member(&body, "lists") {
        Ok(Value::Object(lists)) => {
            for (user, list) in lists {
                let field = format!("lists.{user}");
                match user.parse() {
                    Ok(user) => accepted.push((user, ids(&field, list, &mut errors))),
                    // Its friends are not looked at: this name may be long and would be repeated for each.
                    Err(_) => add(&mut errors, 0, &field, "bad_id"),
                }
            }
        }
        Ok(_) => add(&mut errors, 0, "lists", "wrong_type"),
        Err(fault) => errors.extend(at(0, vec![fault])),
    }
    all_or_nothing(accepted, errors)
}

/// The refusal of a request that is one item, which has these faults.
pub fn refused(faults: Vec<Fault>) -> Problem {
    let refused = all_or_nothing((), at(0, faults).collect());
    refused.err().unwrap_or_else(|| Problem::bad_request("bad_json", "the item is not acceptable"))
}

/// Scans before anything is parsed, because the parser's own limit is deeper and its stack is not ours.
fn nested_too_deep(bytes: &[u8]) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' if depth == NESTING_MAX => return true,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

fn centre_of_cell(lat: f64, lon: f64) -> Result<Place, OutOfRange> {
    let exact = LatLng::new(lat, lon).map_err(|_| OutOfRange::Lat)?;
    let centre = LatLng::from(exact.to_cell(COARSE));
    Place::from_degrees(centre.lat(), centre.lng())
}

/// The fields of an object and what was found to be wrong with them.
struct Fields<'a> {
    object: &'a Map<String, Value>,
    faults: Vec<Fault>,
}

impl<'a> Fields<'a> {
    fn of(value: &'a Value) -> Result<Fields<'a>, Vec<Fault>> {
        let object = value.as_object().ok_or_else(|| vec![fault("", "wrong_type")])?;
        Ok(Fields { object, faults: Vec::new() })
    }

    /// The field's value; null is as good as absent.
    fn given(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    fn fault<T>(&mut self, field: &str, code: &'static str) -> Option<T> {
        self.faults.push(fault(field, code));
        None
    }

    fn required(&mut self, field: &str, range: RangeInclusive<f64>) -> Option<f64> {
        match self.object.get(field) {
            None => self.fault(field, "missing"),
            Some(value) => self.number(field, value, &range),
        }
    }

    fn optional(&mut self, field: &str, range: RangeInclusive<f64>) -> Option<f64> {
        let value = self.given(field)?;
        self.number(field, value, &range)
    }

    fn number(&mut self, field: &str, value: &Value, range: &RangeInclusive<f64>) -> Option<f64> {
        match value.as_f64() {
            None => self.fault(field, "wrong_type"),
            Some(number) if !range.contains(&number) => self.fault(field, "out_of_range"),
            number => number,
        }
    }

    fn reported_at(&mut self, now: TimestampMs) -> Option<TimestampMs> {
        const FIELD: &str = "reported_at_ms";
        let Some(reported_at) = whole(self.given(FIELD)?).map(TimestampMs) else {
            return self.fault(FIELD, "wrong_type");
        };
        if reported_at > now.plus_ms(AHEAD_MS_MAX) {
            return self.fault(FIELD, "in_future");
        }
        if reported_at < now.plus_ms(-AGE_MS_MAX) {
            return self.fault(FIELD, "too_old");
        }
        Some(reported_at)
    }

    fn coarse(&mut self) -> bool {
        match self.given("precision").map(Value::as_str) {
            None | Some(Some("exact")) => return false,
            Some(Some("coarse")) => return true,
            Some(Some(_)) => self.faults.push(fault("precision", "unknown_precision")),
            Some(None) => self.faults.push(fault("precision", "wrong_type")),
        }
        false
    }

    fn user_id(&mut self) -> Option<UserId> {
        let id = user_id(self.given("user_id")?);
        id.map_or_else(|code| self.fault("user_id", code), Some)
    }
}

/// A whole number is an integer however it is written, as JSON Schema has it; beyond an i64 it is the nearest one.
fn whole(value: &Value) -> Option<i64> {
    let number = value.as_number()?;
    let float = number.as_f64().filter(|float| float.fract() == 0.0);
    number.as_i64().or_else(|| float.map(|float| float as i64))
}

fn user_id(value: &Value) -> Result<UserId, &'static str> {
    match value {
        Value::String(text) => text.parse().map_err(|_| "bad_id"),
        Value::Number(number) => {
            let id = whole(value).ok_or("wrong_type")?;
            let exact = number.as_i64().is_some() || id.unsigned_abs() <= EXACT_FLOAT_MAX;
            if exact && id >= 0 { Ok(UserId(id)) } else { Err("bad_id") }
        }
        _ => Err("wrong_type"),
    }
}

fn member<'a>(body: &'a Value, field: &str) -> Result<&'a Value, Fault> {
    let object = body.as_object().ok_or_else(|| fault("", "wrong_type"))?;
    object.get(field).ok_or_else(|| fault(field, "missing"))
}

fn ids(field: &str, list: &Value, errors: &mut Vec<ItemError>) -> Vec<UserId> {
    let Value::Array(list) = list else {
        add(errors, 0, field, "wrong_type");
        return Vec::new();
    };
    if list.len() > FriendList::FRIENDS_MAX {
        add(errors, 0, field, "too_many");
        return Vec::new();
    }
    let mut ids = Vec::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        match user_id(value) {
            Ok(id) => ids.push(id),
            Err(code) => add(errors, index, field, code),
        }
    }
    ids
}

fn fault(field: &str, code: &'static str) -> Fault {
    (field.to_owned(), code)
}

fn at(index: usize, faults: Vec<Fault>) -> impl Iterator<Item = ItemError> {
    faults.into_iter().map(move |(field, code)| ItemError { index, field, code })
}

fn add(errors: &mut Vec<ItemError>, index: usize, field: &str, code: &'static str) {
    if errors.len() < FAULTS_MAX {
        errors.push(ItemError { index, field: field.to_owned(), code });
    }
}

fn all_or_nothing<T>(accepted: T, errors: Vec<ItemError>) -> Result<T, Problem> {
    let Some(ItemError { index, field, code }) = errors.first() else {
        return Ok(accepted);
    };
    let colon = if field.is_empty() { "" } else { ": " };
    let detail = format!("item {index}{colon}{field} {}", meaning(code));
    let problem = Problem::bad_request(code, detail);
    Err(Problem { errors, ..problem })
}

/// The end of a sentence about a field.
pub fn meaning(code: &str) -> &'static str {
    match code {
        "missing" => "is missing",
        "wrong_type" => "has the wrong type",
        "out_of_range" => "is out of range",
        "in_future" => "is more than 60 s in the future",
        "too_old" => "is more than 7 days ago",
        "unknown_precision" => "is neither exact nor coarse",
        "bad_id" => "is not a user id: a decimal number from 0 to 9223372036854775807 without leading zeros",
        "too_many" => "has more than 5000 entries",
        _ => "is not acceptable",
    }
}
