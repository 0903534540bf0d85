//! The routes over a real socket and a mock Kafka: what is answered, and what is in the log afterwards.

mod support;

use expect_test::expect;
use nearby_schemas::codec::Codec;
use nearby_schemas::partitioning::partition_of;
use nearby_schemas::{FriendList, GatewayHeartbeat, GatewayId, LocationEvent, Source, TimestampMs, UserId};
use nearby_service::append::{Appender, Outgoing};
use nearby_service::auth::{SCOPE_FRIENDS_WRITE, SCOPE_INGEST_ANY, SCOPES_ALL, Tokens};
use nearby_service::settings::SigningSettings;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use std::time::Duration;
use support::{Answer, PARTITIONS, World};

const REPORT: &str = r#"{"lat":37.77,"lon":-122.41}"#;

fn events(world: &World) -> Vec<support::Logged<LocationEvent>> {
    world.log(&world.kafka.topics.location_events(), PARTITIONS)
}

fn lists(world: &World) -> Vec<support::Logged<FriendList>> {
    world.log(&world.kafka.topics.friend_lists(), PARTITIONS)
}

#[tokio::test]
async fn a_report_is_in_the_log_once_it_is_accepted() {
    let world = World::start(false).await;
    let before = TimestampMs::now();
    let answer = world.call("POST /v1/locations", &world.bearer(42, ""), REPORT).await;
    expect![[r#"202 {"accepted":1}"#]].assert_eq(&answer.text());
    let log = events(&world);
    let [logged] = log.as_slice() else { panic!("{} records", log.len()) };
    assert_eq!((logged.key.as_str(), logged.partition), ("42", partition_of(UserId(42), PARTITIONS)));
    let LocationEvent { user_id, reported_at, received_at, position, source } = logged.record;
    let position = position.expect("shared");
    assert_eq!(
        (user_id, source, position.lat_e7, position.lon_e7),
        (UserId(42), Source::Http, 377_700_000, -1_224_100_000)
    );
    assert_eq!(reported_at, received_at, "without a time it is the time of acceptance");
    assert!(before <= received_at && received_at <= TimestampMs::now());
}

#[tokio::test]
async fn an_array_keeps_its_order() {
    let world = World::start(false).await;
    let items: Vec<String> = (0..200).map(|number| format!(r#"{{"lat":0,"lon":0,"accuracy_m":{number}}}"#)).collect();
    let answer = world.call("POST /v1/locations", &world.bearer(7, ""), format!("[{}]", items.join(","))).await;
    expect![[r#"202 {"accepted":200}"#]].assert_eq(&answer.text());
    let order = events(&world).into_iter().map(|logged| logged.record.position.and_then(|place| place.accuracy_m));
    assert!(order.eq((0..200_u8).map(|number| Some(f32::from(number)))));
    let answer = world.call("POST /v1/locations", &world.bearer(8, ""), "[]").await;
    expect![[r#"202 {"accepted":0}"#]].assert_eq(&answer.text());
}

#[tokio::test]
async fn nothing_of_a_refused_request_is_in_the_log() {
    let world = World::start(false).await;
    let bearer = world.bearer(1, "");
    let answer = world.call("POST /v1/locations", &bearer, format!(r#"[{REPORT},{{"lat":1}}]"#)).await;
    expect![[r#"400 missing [{"code":"missing","field":"lon","index":1}]"#]].assert_eq(&answer.text());
    let for_others = format!(r#"[{REPORT},{{"lat":1,"lon":2,"user_id":"1"}}]"#);
    let answer = world.call("POST /v1/locations", &bearer, for_others).await;
    expect!["403 missing_scope"].assert_eq(&answer.text());
    let answer = world.call("POST /v1/locations", &bearer, format!("[{}]", [REPORT; 201].join(","))).await;
    expect!["429 rate_limited retry after 1"].assert_eq(&answer.text());
    assert!(events(&world).is_empty());
}

#[tokio::test]
async fn the_burst_and_then_429() {
    let world = World::start(false).await;
    let bearer = world.bearer(1, "");
    let answer = world.call("POST /v1/locations", &bearer, format!("[{}]", [REPORT; 199].join(","))).await;
    expect![[r#"202 {"accepted":199}"#]].assert_eq(&answer.text());
    let answer = world.call("DELETE /v1/location", &bearer, "").await;
    expect![[r#"202 {"accepted":1}"#]].assert_eq(&answer.text());
    for call in ["POST /v1/locations", "DELETE /v1/location"] {
        let body = if call.starts_with("POST") { format!("[{}]", [REPORT; 100].join(",")) } else { String::new() };
        let answer = world.call(call, &bearer, body).await;
        assert!(answer.text().starts_with("429 rate_limited retry after "), "{call}: {}", answer.text());
    }
    let other = world.call("POST /v1/locations", &world.bearer(2, ""), REPORT).await;
    expect![[r#"202 {"accepted":1}"#]].assert_eq(&other.text());
}

#[tokio::test]
async fn what_is_refused_or_empty_counts_as_one_report() {
    let world = World::start(false).await;
    let calls = [
        ("POST /v1/locations", "{"),
        ("POST /v1/locations", "[]"),
        ("POST /v1/locations", r#"{"lat":1,"lon":2,"user_id":"7"}"#),
        ("DELETE /v1/location", "{"),
        ("PUT /v1/users/7/friends", ""),
        ("POST /v1/friend-lists", ""),
    ];
    for (user, (call, body)) in (1..).zip(calls) {
        let bearer = world.bearer(user, "");
        let answer = world.call("POST /v1/locations", &bearer, format!("[{}]", [REPORT; 195].join(","))).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        let mut refused = 0;
        // Ten places a second come back meanwhile.
        while !world.call(call, &bearer, body).await.text().starts_with("429 rate_limited retry after ") {
            refused += 1;
            assert!(refused < 500, "{call} {body} never meets the rate");
        }
        assert!(refused >= 5, "{call} {body}: the places that were left are its own");
    }
}

#[tokio::test]
async fn with_the_scope_one_reports_for_others_without_a_rate() {
    let world = World::start(false).await;
    let item = |user: u32| format!(r#"{{"lat":1,"lon":2,"user_id":"{user}"}}"#);
    let items: Vec<String> = (1..=1_000).map(item).collect();
    let bearer = world.bearer(5_000, SCOPE_INGEST_ANY);
    for _ in 0..2 {
        let answer = world.call("POST /v1/locations", &bearer, format!("[{}]", items.join(","))).await;
        expect![[r#"202 {"accepted":1000}"#]].assert_eq(&answer.text());
    }
    let log = events(&world);
    assert_eq!(log.len(), 2_000);
    for logged in &log {
        assert_eq!(logged.key, logged.record.user_id.to_string());
        assert!((1..=1_000).contains(&logged.record.user_id.0));
        assert_eq!(logged.partition, partition_of(logged.record.user_id, PARTITIONS));
    }
    let mixed = format!("[{REPORT},{}]", item(8));
    let answer = world.call("POST /v1/locations", &bearer, mixed).await;
    expect![[r#"202 {"accepted":2}"#]].assert_eq(&answer.text());
    assert!(events(&world).iter().any(|logged| logged.key == "5000"), "an item without user_id is the caller's");
}

#[tokio::test]
async fn a_withdrawal_has_no_position() {
    let world = World::start(false).await;
    let bearer = world.bearer(9, "");
    let reported_at = TimestampMs::now().plus_ms(-1_000);
    let body = format!(r#"{{"reported_at_ms":{}}}"#, reported_at.0);
    let answer = world.call("DELETE /v1/location", &bearer, body).await;
    expect![[r#"202 {"accepted":1}"#]].assert_eq(&answer.text());
    let log = events(&world);
    assert_eq!((log.len(), log[0].record.position, log[0].record.reported_at), (1, None, reported_at));
    let answer = world.call("DELETE /v1/location", &bearer, r#"{"reported_at_ms":0}"#).await;
    expect![[r#"400 too_old [{"code":"too_old","field":"reported_at_ms","index":0}]"#]].assert_eq(&answer.text());
}

#[tokio::test]
async fn friend_lists_are_in_the_log_beside_their_users_reports() {
    let world = World::start(false).await;
    let bearer = world.bearer(1, SCOPE_FRIENDS_WRITE);
    let answer = world.call("PUT /v1/users/42/friends", &bearer, r#"{"friends":["7",8]}"#).await;
    expect![[r#"202 {"accepted":1}"#]].assert_eq(&answer.text());
    let answer = world.call("POST /v1/friend-lists", &bearer, r#"{"lists":{"7":["8"],"8":[]}}"#).await;
    expect![[r#"202 {"accepted":2}"#]].assert_eq(&answer.text());
    let mut log = lists(&world);
    log.sort_by_key(|logged| std::cmp::Reverse(logged.record.user_id));
    let text = log.iter().map(|logged| {
        let FriendList { user_id, friends, changed_at } = &logged.record;
        assert_eq!(
            (logged.key.as_str(), logged.partition),
            (user_id.to_string().as_str(), partition_of(*user_id, PARTITIONS))
        );
        assert!(TimestampMs::now().since_ms(*changed_at) < 60_000);
        format!("{user_id}: {:?}", friends.iter().map(|friend| friend.0).collect::<Vec<_>>())
    });
    expect![[r#"
        42: [7, 8]
        8: []
        7: [8]"#]]
    .assert_eq(&text.collect::<Vec<_>>().join("\n"));
}

#[tokio::test]
async fn refused_friend_lists() {
    let world = World::start(false).await;
    let bearer = world.bearer(1, SCOPE_FRIENDS_WRITE);
    let mut answers = Vec::new();
    for (call, body) in [
        ("PUT /v1/users/042/friends", r#"{"friends":[]}"#),
        ("PUT /v1/users/alice/friends", "not looked at"),
        ("PUT /v1/users/42/friends", ""),
        ("PUT /v1/users/42/friends", r#"{"friends":["7","x"]}"#),
        ("POST /v1/friend-lists", r#"{"lists":{"7":["8","-8"]}}"#),
    ] {
        answers.push(world.call(call, &bearer, body).await.text());
    }
    expect![[r#"
        400 bad_id
        400 bad_id
        400 bad_json
        400 bad_id [{"code":"bad_id","field":"friends","index":1}]
        400 bad_id [{"code":"bad_id","field":"lists.7","index":1}]"#]]
    .assert_eq(&answers.join("\n"));
    assert!(lists(&world).is_empty());
}

#[tokio::test]
async fn tokens_come_before_scopes_and_bodies() {
    let world = World::start(false).await;
    let foreign = Tokens::ephemeral(&SigningSettings::default())
        .sign(UserId(1), SCOPES_ALL, TimestampMs::now().plus_ms(60_000))
        .expect("signs");
    let foreign = format!("Bearer {foreign}");
    let no_scope = world.bearer(1, "read:something");
    let huge = "x".repeat(1024 * 1024 + 1);
    let mut table = Vec::new();
    for call in [
        "POST /v1/locations",
        "DELETE /v1/location",
        "PUT /v1/users/alice/friends",
        "POST /v1/friend-lists",
        "GET /v1/gateway",
    ] {
        let mut codes = Vec::new();
        for authorization in ["", "Basic eDp5", "Bearer nonsense", foreign.as_str(), no_scope.as_str()] {
            let answer: Answer = world.call(call, authorization, "{").await;
            let challenge = answer.headers.contains_key("www-authenticate");
            assert_eq!(challenge, answer.status == 401);
            codes.push(answer.text());
        }
        table.push(format!("{call}: {}", codes.join(", ")));
    }
    expect![[r#"
        POST /v1/locations: 401 missing_token, 401 bad_token, 401 bad_token, 401 bad_token, 400 bad_json
        DELETE /v1/location: 401 missing_token, 401 bad_token, 401 bad_token, 401 bad_token, 400 bad_json
        PUT /v1/users/alice/friends: 401 missing_token, 401 bad_token, 401 bad_token, 401 bad_token, 403 missing_scope
        POST /v1/friend-lists: 401 missing_token, 401 bad_token, 401 bad_token, 401 bad_token, 403 missing_scope
        GET /v1/gateway: 503 no_gateway retry after 1, 503 no_gateway retry after 1, 503 no_gateway retry after 1, 503 no_gateway retry after 1, 503 no_gateway retry after 1"#]]
    .assert_eq(&table.join("\n"));
    let answer = world.call("POST /v1/locations", &world.bearer(1, ""), huge).await;
    expect!["413 too_large"].assert_eq(&answer.text());
    let padded = format!("{REPORT}{}", " ".repeat(1024 * 1024 - REPORT.len()));
    let answer = world.call("POST /v1/locations", &world.bearer(1, ""), padded).await;
    expect![[r#"202 {"accepted":1}"#]].assert_eq(&answer.text());
}

#[tokio::test]
async fn other_paths_and_methods() {
    let world = World::start(false).await;
    let bearer = world.bearer(1, SCOPES_ALL);
    let mut table = Vec::new();
    for call in [
        "GET /v1/locations",
        "POST /v1/gateway",
        "POST /v1/location",
        "GET /v1/users/1/friends",
        "PUT /v1/users/1/friends/2",
        "GET /v1/dev/token?user=42",
        "GET /v1/else",
    ] {
        table.push(format!("{call}: {}", world.call(call, &bearer, "").await.text()));
    }
    expect![[r#"
        GET /v1/locations: 405 method_not_allowed
        POST /v1/gateway: 405 method_not_allowed
        POST /v1/location: 405 method_not_allowed
        GET /v1/users/1/friends: 405 method_not_allowed
        PUT /v1/users/1/friends/2: 404 not_found
        GET /v1/dev/token?user=42: 404 not_found
        GET /v1/else: 404 not_found"#]]
    .assert_eq(&table.join("\n"));
}

#[tokio::test]
async fn development_tokens_work_and_need_a_user() {
    let world = World::start(true).await;
    let answer = world.call("GET /v1/dev/token?a=b&user=42", "", "").await;
    assert_eq!(answer.status, 200);
    let token = answer.body["token"].as_str().expect("a token");
    let caller = world.tokens.verify(token).expect("valid here");
    assert_eq!(caller.user, UserId(42));
    assert!(caller.has_scope(SCOPE_FRIENDS_WRITE) && caller.has_scope(SCOPE_INGEST_ANY));
    let hours = caller.expires_at.since_ms(TimestampMs::now()).div_euclid(60_000);
    assert!((1_435..=1_440).contains(&hours), "24 h, not {hours} minutes");
    for query in ["", "?", "?user", "?user=", "?user=alice", "?user=-1", "?other=1"] {
        let answer = world.call(&format!("GET /v1/dev/token{query}"), "", "").await;
        assert_eq!(answer.text(), "400 bad_id", "{query}");
    }
}

#[tokio::test]
async fn development_tokens_are_not_for_who_comes_by_a_proxy() {
    let world = World::start(true).await;
    let token = "/v1/dev/token?user=42";
    for (name, value) in [
        ("x-forwarded-for", "192.0.2.7"),
        ("forwarded", "for=192.0.2.7"),
        ("via", "1.1 proxy"),
        ("host", "near.example"),
        ("host", "localhost:8080"),
    ] {
        let answer = world.call_with(&format!("GET {token}"), &[(name, value)], "").await;
        let expected = if value == "localhost:8080" { 200 } else { 403 };
        assert_eq!(answer.status, expected, "{name}: {value}");
        assert!(expected == 200 || answer.text() == "403 not_local", "{}", answer.text());
    }
}

#[tokio::test]
async fn what_kafka_refuses_is_503_and_may_be_sent_again() {
    let world = World::start(false).await;
    let bearer = world.bearer(1, SCOPE_FRIENDS_WRITE);
    for (call, body) in [
        ("POST /v1/locations", REPORT),
        ("DELETE /v1/location", ""),
        ("PUT /v1/users/1/friends", r#"{"friends":[]}"#),
        ("POST /v1/friend-lists", r#"{"lists":{"1":[]}}"#),
    ] {
        let refusal = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE];
        world.mock.request_errors(RDKafkaApiKey::Produce, &refusal);
        let answer = world.call(call, &bearer, body).await;
        assert_eq!(answer.text(), "503 kafka_unavailable retry after 1", "{call}");
        let answer = world.call(call, &bearer, body).await;
        assert_eq!(answer.text(), r#"202 {"accepted":1}"#, "{call}");
    }
}

/// Asks again until the answer is as it should be, for at most 10 s.
async fn eventually(world: &World, expected: &str) {
    let mut text = String::new();
    for _ in 0..200 {
        text = world.call("GET /v1/gateway", "", "").await.text();
        if text == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("still {text}, not {expected}");
}

#[tokio::test]
async fn the_gateway_follows_the_topic() {
    let world = World::start(false).await;
    let appender = Appender::new(&world.kafka).expect("a producer");
    let codec = Codec::<GatewayHeartbeat>::new();
    let append = async |key: &str, value: Option<Vec<u8>>| {
        let topic = world.kafka.topics.gateways();
        let key = Some(key.as_bytes().to_vec());
        appender.append_one(Outgoing { topic, key, value, ..Outgoing::default() }).await.expect("appended");
    };
    let beat = |name: &str, draining| {
        codec.encode(&GatewayHeartbeat {
            gateway: GatewayId::new(name).expect("legal"),
            stream_url: format!("ws://{name}/v1/stream"),
            http_url: format!("http://{name}"),
            connections: 0,
            capacity: 1_000_000,
            draining,
            started_at: TimestampMs::now(),
            accept_rate_per_s: 0,
        })
    };
    let g1 = r#"200 {"gateway":"g1","http_url":"http://g1","url":"ws://g1/v1/stream"}"#;
    let g2 = r#"200 {"gateway":"g2","http_url":"http://g2","url":"ws://g2/v1/stream"}"#;
    eventually(&world, "503 no_gateway retry after 1").await;
    append("g2", Some(beat("g2", false))).await;
    eventually(&world, g2).await;
    assert!(world.readiness.missing().is_empty(), "{:?}", world.readiness.missing());
    append("g1", Some(b"no heartbeat".to_vec())).await;
    append("g1", Some(beat("g1", false))).await;
    append("g2", Some(beat("g2", true))).await;
    eventually(&world, g1).await;
    append("g1", None).await;
    eventually(&world, "503 no_gateway retry after 1").await;
    let dead = world.dead_letters();
    assert_eq!(dead, ["g1 no heartbeat"]);
}

#[tokio::test]
async fn flushing_waits_for_what_is_under_way() {
    let world = World::start(false).await;
    let caller = world.tokens.verify(world.bearer(1, "").trim_start_matches("Bearer ")).expect("valid");
    let now = TimestampMs::now();
    let submitted = world.reports.withdraw(&caller, None, Source::WebSocket, now).expect("within the rate");
    drop(submitted);
    world.reports.flush(Duration::from_secs(10)).expect("in time");
    let log = events(&world);
    assert_eq!((log.len(), log[0].record.source), (1, Source::WebSocket), "it is in the log though nobody waited");
}
