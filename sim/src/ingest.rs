//! An ingest: admission and the directory of gateways of production, and around them what `reports.rs`, `friend_lists.rs` and
//! `gateways.rs` do with Kafka.

use crate::agenda::Who;
use crate::around::Around;
use crate::broker::{Append, ProducerId, Topic};
use crate::gateway::number_of;
use crate::judge::GATEWAY_LOST_AFTER_MS;
use nearby_ingest::admission;
use nearby_ingest::directory::Directory;
use nearby_schemas::codec::Codec;
use nearby_schemas::partitioning::partition_of;
use nearby_schemas::{FriendList, GatewayHeartbeat, GatewayId, LocationEvent, Source, UserId};
use std::collections::BTreeMap;

/// The next one starts after at most so long.
const RESTART_MS_MAX: i64 = 5_000;

/// A machine that runs an ingest.
pub struct Ingest {
    number: usize,
    ahead_ms: i64,
    run: Option<Run>,
    starts_at_ms: i64,
}

struct Run {
    producer: ProducerId,
    directory: Directory,
    next_heartbeat: i64,
    reports: Codec<LocationEvent>,
    lists: Codec<FriendList>,
    heartbeats: Codec<GatewayHeartbeat>,
    /// Requests whose records are on their way.
    requests: BTreeMap<u64, Request>,
    next_token: u64,
}

/// What is acknowledged.
struct Request {
    client: usize,
    /// The client's number for it.
    request: u64,
    event: LocationEvent,
}

/// The answer to a request.
pub struct Answer {
    /// Who asked.
    pub client: usize,
    /// The client's number for it.
    pub request: u64,
    /// 202, or else 503.
    pub accepted: bool,
}

impl Ingest {
    /// A machine whose ingest is about to start.
    pub fn new(number: usize, around: &mut Around) -> Ingest {
        around.agenda.wake(Who::Ingest(number), around.now_ms());
        Ingest { number, ahead_ms: around.dice.between(-400, 400), run: None, starts_at_ms: 0 }
    }

    /// The process ends without a word; requests are never answered.
    pub fn crash(&mut self, around: &mut Around) {
        if let Some(run) = self.run.take() {
            around.broker.end_producer(run.producer, &mut around.dice);
            self.starts_at_ms = around.now_ms() + around.dice.between(0, RESTART_MS_MAX);
            around.agenda.wake(Who::Ingest(self.number), self.starts_at_ms);
        }
    }

    /// Where a client should connect.
    pub fn choose(&mut self, around: &Around) -> Option<u32> {
        let local_ms = around.now_ms();
        let chosen = self.run.as_mut()?.directory.choose(local_ms)?;
        Some(number_of(chosen.gateway.as_str()))
    }

    /// `POST /v1/locations` with this body.
    ///
    /// # Errors
    /// The code of a refusal.
    pub fn report(
        &mut self,
        user: UserId,
        body: &str,
        client: usize,
        request: u64,
        around: &mut Around,
    ) -> Result<(), &'static str> {
        let now = around.wall(self.ahead_ms);
        let Some(run) = &mut self.run else { return Err("kafka_unavailable") };
        let reports = admission::reports(body.as_bytes(), now).map_err(|problem| problem.code)?;
        for report in reports {
            run.append_report(Request { client, request, event: report.event(user, Source::Http, now) }, around);
        }
        Ok(())
    }

    /// `DELETE /v1/location` with this body.
    ///
    /// # Errors
    /// The code of a refusal.
    pub fn withdraw(
        &mut self,
        user: UserId,
        body: &str,
        client: usize,
        request: u64,
        around: &mut Around,
    ) -> Result<(), &'static str> {
        let now = around.wall(self.ahead_ms);
        let Some(run) = &mut self.run else { return Err("kafka_unavailable") };
        let reported_at = admission::withdrawal(body.as_bytes(), now).map_err(|problem| problem.code)?.unwrap_or(now);
        let event =
            LocationEvent { user_id: user, reported_at, received_at: now, position: None, source: Source::Http };
        run.append_report(Request { client, request, event }, around);
        Ok(())
    }

    /// `PUT /v1/users/{id}/friends` with this body; the caller does not wait for the answer.
    ///
    /// # Errors
    /// The code of a refusal.
    pub fn put_friends(&mut self, user: UserId, body: &str, around: &mut Around) -> Result<(), &'static str> {
        let now = around.wall(self.ahead_ms);
        let Some(run) = &mut self.run else { return Err("kafka_unavailable") };
        let friends = admission::friend_list(body.as_bytes()).map_err(|problem| problem.code)?;
        let value = Some(run.lists.encode(&FriendList { user_id: user, friends, changed_at: now }));
        let partition = partition_of(user, around.plan.partitions);
        let key = Some(user.to_string().into_bytes());
        around.append(run.producer, Append { topic: Topic::FriendLists, partition, key, value, token: 0 });
        Ok(())
    }

    /// Reads heartbeats and the broker's answers.
    pub fn step(&mut self, around: &mut Around) -> Vec<Answer> {
        let now_ms = around.now_ms();
        if self.run.is_none() {
            if self.starts_at_ms > now_ms || around.broker.away {
                around.within(Who::Ingest(self.number), (self.starts_at_ms - now_ms).max(500));
                return Vec::new();
            }
            self.run = Some(Run::start(Who::Ingest(self.number), around));
        }
        let Some(run) = &mut self.run else { return Vec::new() };
        run.read(around);
        run.answers(around)
    }
}

impl Run {
    fn start(who: Who, around: &mut Around) -> Run {
        Run {
            producer: around.broker.producer(who),
            directory: Directory::new(GATEWAY_LOST_AFTER_MS),
            next_heartbeat: 0,
            reports: Codec::new(),
            lists: Codec::new(),
            heartbeats: Codec::new(),
            requests: BTreeMap::new(),
            next_token: 0,
        }
    }

    fn read(&mut self, around: &Around) {
        while let Some((offset, record)) = around.broker.read(Topic::Gateways, 0, self.next_heartbeat) {
            self.next_heartbeat = offset + 1;
            match &record.value {
                Some(value) => {
                    if let Ok(beat) = self.heartbeats.decode(value) {
                        self.directory.heard(beat, record.appended_at, around.now_ms());
                    }
                }
                None => {
                    let key = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
                    if let Some(gateway) = key.and_then(|key| GatewayId::new(key).ok()) {
                        self.directory.removed(&gateway);
                    }
                }
            }
        }
        if !around.broker.away {
            self.directory.caught_up();
        }
    }

    fn append_report(&mut self, request: Request, around: &mut Around) {
        self.next_token += 1;
        let event = &request.event;
        let append = Append {
            topic: Topic::LocationEvents,
            partition: partition_of(event.user_id, around.plan.partitions),
            key: Some(event.user_id.to_string().into_bytes()),
            value: Some(self.reports.encode(event)),
            token: self.next_token,
        };
        self.requests.insert(self.next_token, request);
        around.append(self.producer, append);
    }

    fn answers(&mut self, around: &mut Around) -> Vec<Answer> {
        let mut answers = Vec::new();
        for (token, accepted) in around.broker.answers(self.producer) {
            let Some(request) = self.requests.remove(&token) else { continue };
            // The way back may be lost, too; then nothing was promised, and the client sends it again.
            if around.dice.chance(around.broker.answer_lost) {
                continue;
            }
            if accepted {
                around.judge.accepted(&request.event);
            }
            answers.push(Answer { client: request.client, request: request.request, accepted });
        }
        answers
    }
}
