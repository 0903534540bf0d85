//! What goes wrong, when, and for how long.

use crate::agenda::Who;
use crate::around::BEGINNING_MS;
use crate::broker::{Append, Topic};
use crate::plan::Fault;
use crate::processor::Processor;
use crate::world::World;

/// Outages are looked after so often.
const CARE_MS: i64 = 250;

/// Everything that is wrong now and ends by itself, and when the next thing goes wrong.
#[derive(Default)]
pub struct Chaos {
    next_strike_ms: i64,
    broker_back_ms: Option<i64>,
    appends_heal_ms: Option<i64>,
    database_back_ms: Option<i64>,
    commits_heal_ms: Option<i64>,
    clock_back_ms: Option<(usize, i64, i64)>,
    batches_expire_ms: Option<(usize, i64)>,
}

impl Chaos {
    /// Ends what is over and begins something new, if its time has come.
    pub fn step(world: &mut World) {
        let now_ms = world.around.now_ms();
        Chaos::heal(world, now_ms);
        if now_ms < BEGINNING_MS + world.around.plan.faulty_ms && now_ms >= world.chaos.next_strike_ms {
            let mean_ms = world.around.plan.fault_interval_ms;
            world.chaos.next_strike_ms = now_ms + world.around.dice.between(1, 2 * mean_ms);
            Chaos::compact(world);
            if !world.around.plan.faults.is_empty() {
                let fault = *world.around.dice.pick(&world.around.plan.faults);
                world.around.note(format_args!("{fault:?}"));
                Chaos::strike(world, fault, now_ms);
            }
        }
        world.around.within(Who::Chaos, CARE_MS);
    }

    /// No more faults: everybody is up and reaches everybody.
    pub fn end(world: &mut World) {
        world.around.note(format_args!("the faults end"));
        world.around.plan.faults.clear();
        // What has piled up can be worked off.
        world.around.plan.pace_ms_max = 5;
        Chaos::heal(world, i64::MAX);
        for number in 0..world.processors.len() {
            let processor = &mut world.processors[number];
            (processor.paused_until_ms, processor.stalled_until_ms, processor.cut_off_until_ms) = (0, 0, 0);
            world.around.soon(Who::Processor(number));
        }
        for number in 0..world.gateways.len() {
            world.gateways[number].held_until_ms = 0;
            world.gateways[number].cut_off(0, &mut world.around);
        }
        for number in 0..world.sinks.len() {
            world.sinks[number].paused_until_ms = 0;
            world.around.soon(Who::Sink(number));
        }
        for client in &mut world.clients {
            client.stall(0, &mut world.gateways);
        }
    }

    fn heal(world: &mut World, now_ms: i64) {
        let over = |at_ms: &mut Option<i64>| at_ms.take_if(|at_ms| *at_ms <= now_ms).is_some();
        if over(&mut world.chaos.broker_back_ms) {
            world.around.broker.away = false;
            let now_ms = world.around.now_ms();
            world.around.processors.back(now_ms);
            world.around.sinks.back(now_ms);
            world.around.soon(Who::Broker);
        }
        if over(&mut world.chaos.appends_heal_ms) {
            (world.around.broker.lost, world.around.broker.answer_lost) = (0.0, 0.0);
        }
        let expired = world.chaos.batches_expire_ms.take_if(|(_, at_ms)| *at_ms <= now_ms);
        if let Some((number, _)) = expired
            && let Some(run) = &world.gateways[number].run
        {
            let topic = Topic::FriendMoved(run.number);
            let until = world.around.broker.ends(topic, 0).1 - world.around.dice.between(0, 2);
            world.around.broker.expire(topic, 0, until);
        }
        if over(&mut world.chaos.database_back_ms) {
            world.database.away = false;
        }
        if over(&mut world.chaos.commits_heal_ms) {
            world.database.answer_lost = 0.0;
        }
        let back = world.chaos.clock_back_ms.take_if(|(_, at_ms, _)| *at_ms <= now_ms);
        if let Some((number, _, step_ms)) = back {
            world.processors[number].ahead_ms -= step_ms;
        }
    }

    fn compact(world: &mut World) {
        if world.around.dice.chance(0.2) {
            let keep = world.around.dice.between(0, 20);
            for partition in 0..world.around.plan.partitions {
                world.around.broker.compact(Topic::FriendLists, partition, keep);
                world.around.broker.compact(Topic::Sessions, partition, keep);
            }
            world.around.broker.compact(Topic::Gateways, 0, keep);
        }
    }

    fn strike(world: &mut World, fault: Fault, now_ms: i64) {
        // Mostly short, so that there is life between two of them.
        let for_ms = if world.around.dice.chance(0.7) {
            world.around.dice.between(100, 5_000)
        } else {
            world.around.dice.between(5_000, 60_000)
        };
        match fault {
            Fault::ProcessorCrashes
            | Fault::ProcessorStops
            | Fault::ProcessorPauses
            | Fault::EngineStalls
            | Fault::ProcessorCutOff
            | Fault::ClockSteps => Chaos::strike_processor(world, fault, now_ms, for_ms),
            Fault::GatewayCrashes
            | Fault::GatewayDrains
            | Fault::GatewayCutOff
            | Fault::BatchUnreadable
            | Fault::BatchesExpire => Chaos::strike_gateway(world, fault, now_ms, for_ms),
            Fault::IngestCrashes => {
                let number = world.around.dice.below(world.ingests.len());
                world.ingests[number].crash(&mut world.around);
            }
            Fault::SinkCrashes => {
                let number = world.around.dice.below(world.sinks.len());
                world.sinks[number].crash(&mut world.around);
            }
            Fault::SinkPauses => {
                let number = world.around.dice.below(world.sinks.len());
                world.sinks[number].paused_until_ms = now_ms + for_ms;
            }
            Fault::BrokerAway => {
                world.around.broker.away = true;
                world.chaos.broker_back_ms.get_or_insert(now_ms + for_ms);
            }
            Fault::AppendsFail => {
                world.around.broker.lost = *world.around.dice.pick(&[0.02, 0.2, 0.6]);
                world.around.broker.answer_lost = *world.around.dice.pick(&[0.0, 0.1, 0.4]);
                world.chaos.appends_heal_ms.get_or_insert(now_ms + for_ms);
            }
            Fault::DatabaseAway => {
                world.database.away = true;
                world.chaos.database_back_ms.get_or_insert(now_ms + for_ms);
            }
            Fault::CommitsUnknown => {
                world.database.answer_lost = 0.4;
                world.chaos.commits_heal_ms.get_or_insert(now_ms + for_ms);
            }
            Fault::BadBytes => Chaos::write_bad_bytes(world),
            Fault::ClientVanishes => {
                let number = world.around.dice.below(world.clients.len());
                world.clients[number].vanish(&mut world.gateways, &mut world.around);
                world.around.soon(Who::Client(number));
            }
            Fault::ClientStalls => {
                let number = world.around.dice.below(world.clients.len());
                world.clients[number].stall(now_ms + for_ms, &mut world.gateways);
            }
        }
    }

    fn strike_processor(world: &mut World, fault: Fault, now_ms: i64, for_ms: i64) {
        let number = world.around.dice.below(world.processors.len());
        // A rolling upgrade waits for one to be back before it stops the next.
        if world.around.plan.prompt_ms.is_some() && !world.processors.iter().all(Processor::is_serving) {
            return;
        }
        let processor = &mut world.processors[number];
        match fault {
            Fault::ProcessorCrashes => processor.crash(&mut world.around),
            Fault::ProcessorStops => processor.stop(&mut world.around),
            Fault::ProcessorPauses => processor.paused_until_ms = now_ms + for_ms,
            Fault::EngineStalls => processor.stalled_until_ms = now_ms + for_ms,
            Fault::ProcessorCutOff => processor.cut_off_until_ms = now_ms + for_ms,
            _ => {
                if world.chaos.clock_back_ms.is_none() {
                    world.processors[number].ahead_ms += for_ms;
                    world.chaos.clock_back_ms = Some((number, now_ms + for_ms / 4, for_ms));
                }
            }
        }
        world.around.soon(Who::Processor(number));
    }

    fn strike_gateway(world: &mut World, fault: Fault, now_ms: i64, for_ms: i64) {
        let number = world.around.dice.below(world.gateways.len());
        let gateway = &mut world.gateways[number];
        let topic = gateway.run.as_ref().map(|run| Topic::FriendMoved(run.number));
        match (fault, topic) {
            (Fault::GatewayCrashes, _) => {
                let heard = gateway.crash(&mut world.around);
                world.hear(heard);
            }
            (Fault::GatewayDrains, _) => gateway.drain(&mut world.around),
            (Fault::GatewayCutOff, _) => gateway.cut_off(now_ms + for_ms, &mut world.around),
            // A batch that nobody can read takes the place of one that could be.
            (Fault::BatchUnreadable, Some(topic)) => drop(world.around.broker.spoils_next.insert(topic)),
            (Fault::BatchesExpire, Some(_)) => {
                gateway.held_until_ms = now_ms + for_ms.min(5_000);
                world.chaos.batches_expire_ms.get_or_insert((number, gateway.held_until_ms - 1));
            }
            _ => {}
        }
        world.around.soon(Who::Gateway(number));
    }

    fn write_bad_bytes(world: &mut World) {
        let partition = i32::try_from(world.around.dice.below(world.around.plan.partitions.unsigned_abs() as usize));
        let topic = *world.around.dice.pick(&[Topic::LocationEvents, Topic::FriendLists, Topic::Sessions]);
        let bytes: Vec<u8> = (0..world.around.dice.between(0, 30))
            .map(|_| u8::try_from(world.around.dice.between(0, 255)).unwrap_or(0))
            .collect();
        let producer = world.around.broker.producer(Who::Broker);
        let (partition, key) = (partition.unwrap_or(0), Some(b"somebody".to_vec()));
        world.around.append(producer, Append { topic, partition, key, value: Some(bytes), token: 0 });
    }
}
