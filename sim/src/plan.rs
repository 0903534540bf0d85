//! What a seed draws before anything happens: the sizes of the world and the rates of faults.

use crate::dice::Dice;
use nearby_schemas::UserId;

/// Everything that can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A processor ends between two steps, and starts again.
    ProcessorCrashes,
    /// A processor is told to stop, hands over, and starts again.
    ProcessorStops,
    /// A processor stands still, its member of the group too: when it goes on, it is a zombie.
    ProcessorPauses,
    /// The engine's thread stands still, and the member of the group does not.
    EngineStalls,
    /// A processor does not reach the broker, and comes back.
    ProcessorCutOff,
    /// The wall clock of a processor makes a step forward, and back later.
    ClockSteps,
    /// A gateway ends between two steps; another starts in its place.
    GatewayCrashes,
    /// A gateway is told to stop and sends its clients away.
    GatewayDrains,
    /// A gateway does not reach the broker, and comes back.
    GatewayCutOff,
    /// An ingest ends and starts again.
    IngestCrashes,
    /// A sink ends between two steps and starts again.
    SinkCrashes,
    /// A sink stands still, its member of the group too.
    SinkPauses,
    /// The broker is away for up to a minute.
    BrokerAway,
    /// For a while records get lost, or their acknowledgements.
    AppendsFail,
    /// The database is away.
    DatabaseAway,
    /// For a while the answers to commits get lost.
    CommitsUnknown,
    /// A record that nobody can read is in a gateway's topic, instead of a batch.
    BatchUnreadable,
    /// A gateway does not read its topic for a while, and retention removes what it has not read.
    BatchesExpire,
    /// Bytes that are no record in a topic that people write to.
    BadBytes,
    /// A client's phone is gone without a word; it comes back, perhaps before the gateway has noticed.
    ClientVanishes,
    /// A client reads nothing for a while.
    ClientStalls,
}

const FAULTS: [Fault; 21] = [
    Fault::ProcessorCrashes,
    Fault::ProcessorStops,
    Fault::ProcessorPauses,
    Fault::EngineStalls,
    Fault::ProcessorCutOff,
    Fault::ClockSteps,
    Fault::GatewayCrashes,
    Fault::GatewayDrains,
    Fault::GatewayCutOff,
    Fault::IngestCrashes,
    Fault::SinkCrashes,
    Fault::SinkPauses,
    Fault::BrokerAway,
    Fault::AppendsFail,
    Fault::DatabaseAway,
    Fault::CommitsUnknown,
    Fault::BatchUnreadable,
    Fault::BatchesExpire,
    Fault::BadBytes,
    Fault::ClientVanishes,
    Fault::ClientStalls,
];

/// After so long without faults and inputs everything has to be right: a partition that was lost lingers for 120 s, and a
/// socket whose peer is gone is noticed after 105 s.
pub const SETTLING_MS: i64 = 150_000;
/// After so long without faults nothing old may be shown any more.
pub const UNSTALE_MS: i64 = 130_000;
/// For how long anything that is shown may be out of date where nothing stands still.
pub const STALE_MS_MAX: i64 = 12_000;
/// Nothing is reported for so long before views are compared.
pub const QUIET_MS: i64 = 5_000;

/// Where people live: a city, the 180th meridian, and a pole.
pub const HOMES: [(f64, f64); 3] = [(37.77, -122.41), (0.0, 179.97), (89.97, 10.0)];

/// The sizes of a world and what goes wrong in it.
#[derive(Debug)]
pub struct Plan {
    /// People. Each has a phone that reports and shows friends.
    pub users: Vec<UserId>,
    /// Of the topics that are keyed by user.
    pub partitions: i32,
    /// Processors.
    pub processors: usize,
    /// Gateways.
    pub gateways: usize,
    /// Ingests.
    pub ingests: usize,
    /// Sinks.
    pub sinks: usize,
    /// Rule R1.
    pub inactive_after_ms: i64,
    /// After the faults nobody says anything new, until views have been compared: nothing heals by itself.
    pub silent: bool,
    /// What has not changed for so long is in every view, even while the world goes on; where faults do not forbid it.
    pub prompt_ms: Option<i64>,
    /// Time with faults.
    pub faulty_ms: i64,
    /// Mean time between two reports of a phone.
    pub report_interval_ms: i64,
    /// Mean time between two changes of friend lists.
    pub list_interval_ms: i64,
    /// Mean time between two reconnects of a phone that nothing happened to.
    pub reconnect_interval_ms: i64,
    /// An actor comes to its next step after at most so long.
    pub pace_ms_max: i64,
    /// Faults that happen in this world.
    pub faults: Vec<Fault>,
    /// Mean time between two faults.
    pub fault_interval_ms: i64,
    /// For how long anything that is shown may have been out of date. What stands still may do so for a minute, twice in a
    /// row, and others wait for it.
    pub stale_ms_max: i64,
    /// The bound on one call of the engine, small enough to be hit.
    pub looks_at_once_max: usize,
    /// Records in a transaction of a sink.
    pub rows_max: u32,
    /// Where most people live.
    pub home: (f64, f64),
}

impl Plan {
    /// Draws a world.
    pub fn draw(dice: &mut Dice) -> Plan {
        let count = dice.between(2, 10);
        let stride = *dice.pick(&[1, 1, 977, 1 << 40]);
        let mut users: Vec<UserId> = (0..count).map(|number| UserId(number * stride)).collect();
        users.push(UserId::MAX);
        let faults: Vec<Fault> = match dice.between(0, 9) {
            0 => Vec::new(),
            1 => vec![Fault::ProcessorStops],
            2..=4 => (0..dice.between(1, 3)).map(|_| *dice.pick(&FAULTS)).collect(),
            _ => FAULTS.into_iter().filter(|_| dice.chance(0.5)).collect(),
        };
        // Nothing old is shown where nothing stands still; while no processor runs, gateways show what they have.
        let stands_still = |fault: &Fault| {
            matches!(
                fault,
                Fault::ProcessorCrashes
                    | Fault::ProcessorStops
                    | Fault::ProcessorPauses
                    | Fault::EngineStalls
                    | Fault::ProcessorCutOff
                    | Fault::ClientStalls
                    | Fault::BatchesExpire
                    | Fault::GatewayCutOff
                    | Fault::BrokerAway
                    | Fault::AppendsFail
                    | Fault::ClockSteps
            )
        };
        let stale_ms_max = if faults.iter().any(stands_still) { 200_000 } else { STALE_MS_MAX };
        let pace_ms_max = *dice.pick(&[5, 30, 150]);
        // A handover in order shows no gap, if there is somebody to hand over to.
        let processors = dice.between(1, 3).unsigned_abs() as usize;
        let orderly = |fault: &Fault| {
            *fault == Fault::ProcessorStops && processors > 1
                || matches!(fault, Fault::SinkCrashes | Fault::DatabaseAway)
        };
        let prompt_ms = faults.iter().all(orderly).then_some(1_500 + 25 * pace_ms_max);
        Plan {
            users,
            partitions: i32::try_from(dice.between(1, 5)).unwrap_or(1),
            processors,
            gateways: dice.between(1, 3).unsigned_abs() as usize,
            ingests: dice.between(1, 2).unsigned_abs() as usize,
            sinks: dice.between(1, 2).unsigned_abs() as usize,
            inactive_after_ms: *dice.pick(&[15_000, 40_000, 600_000, 600_000]),
            silent: dice.chance(0.5),
            prompt_ms,
            faulty_ms: dice.between(20_000, 120_000),
            report_interval_ms: *dice.pick(&[500, 2_000, 6_000]),
            list_interval_ms: *dice.pick(&[1_000, 5_000, 20_000]),
            reconnect_interval_ms: *dice.pick(&[5_000, 30_000, 120_000]),
            pace_ms_max,
            fault_interval_ms: *dice.pick(&[2_000, 8_000, 25_000]),
            stale_ms_max,
            looks_at_once_max: *dice.pick(&[1, 3, 10, 4_096]),
            rows_max: u32::try_from(dice.between(8, 40)).unwrap_or(1),
            home: *dice.pick(&HOMES),
            faults,
        }
    }
}
