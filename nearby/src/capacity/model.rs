//! What so many people take, from what was measured.
//!
//! Costs add up: hearing a report costs each processor the same, whoever sends it; testing a friend, telling a viewer and closing
//! a batch cost the one that owns the viewer. Everything else is per report, per notice, per socket or per row.

use crate::capacity::coefficients::Coefficients;
use serde::Serialize;

/// What is to be planned for.
#[derive(Clone, Debug, Serialize)]
pub struct Load {
    /// People who have a list.
    pub users: f64,
    /// Part of them who are connected at once, and report.
    pub connected: f64,
    /// Friends in each list.
    pub friends: f64,
    /// Part of a connected viewer's connected friends who are near.
    pub near: f64,
    /// Seconds between two reports of one person.
    pub interval_s: f64,
    /// Partitions of the topics that are keyed by user; no more processors than these can own something.
    pub partitions: f64,
}

/// What is there to take it.
#[derive(Clone, Debug, Serialize)]
pub struct Machines {
    pub cores: f64,
    pub memory_bytes: f64,
    pub network_bytes_per_s: f64,
    /// Part of cores, memory and network that is planned with.
    pub usable: f64,
    /// Sockets of one gateway.
    pub gateway_sockets: f64,
    /// Engine threads of a processor. Each has all positions and hears all reports.
    pub engine_threads: f64,
    /// So many processors and gateways, instead of as many as it takes.
    pub processors: Option<f64>,
    pub gateways: Option<f64>,
    /// Copies of each record.
    pub replicas: f64,
    /// How long `location-events` keeps reports.
    pub retention_days: f64,
}

/// What one kind of process takes, all of them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Share {
    /// Machines; the most that any of the following asks for.
    pub machines: f64,
    pub cores: f64,
    pub memory_bytes: f64,
    pub in_bytes_per_s: f64,
    pub out_bytes_per_s: f64,
    pub disk_bytes: f64,
}

/// What the brokers' cores do, all together, for one copy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BrokerCost {
    /// Without much to do.
    pub awake_cores: f64,
    /// For what is written, reports as if many of them were in a request.
    pub taken_cores: f64,
    /// For the requests that reports come in.
    pub requests_cores: f64,
    /// For each reader of all reports.
    pub reader_cores: f64,
}

/// Something that more machines do not make wider.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bottleneck {
    pub what: &'static str,
    /// Part of it that the plan takes.
    pub taken: f64,
}

/// The plan.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    pub reports_per_s: f64,
    pub notices_per_s: f64,
    /// If all connected friends were near.
    pub notices_per_s_max: f64,
    pub batches_per_s: f64,
    pub processor: Share,
    pub gateway: Share,
    pub broker: Share,
    pub sink: Share,
    pub postgres: Share,
    pub lists_bytes: f64,
    pub index_bytes: f64,
    pub known_bytes: f64,
    /// Of all processors together.
    pub processor_cpu_s_per_million_reports: f64,
    pub broker_cost: BrokerCost,
    /// Part of the processors' time that each of them adds: hearing all reports, and sending its own batches. (Telling grows too, until each
    /// notice has an engine of its own; it is not in here.)
    pub hearing: f64,
    /// So many processors spend half of their time on that.
    pub processors_half_hearing: f64,
    /// Seconds that a processor which starts needs for its lists.
    pub restore_s: f64,
    /// The tightest first.
    pub bottlenecks: Vec<Bottleneck>,
}

/// With how many viewers in a process costs were measured (`Coefficients`).
pub const FEW_VIEWERS: f64 = 20_000.0;
const MANY_VIEWERS: f64 = 1_000_000.0;
/// As in `processor/src/batch_interval.rs`.
const BATCH_GATEWAYS: f64 = 40.0;
const BATCH_INTERVAL_S: (f64, f64) = (0.005, 0.050);
/// A processor sends each gateway a batch in each interval, a request each.
const GATEWAYS_MEASURED: f64 = 1_000.0;
/// A viewer who reports is told the distances from the new place.
const OWN_PLACE: f64 = 1.0;
/// As in `service/src/kafka.rs`: who writes reports waits so long for more of the same partition.
const LINGER_S: f64 = 0.001;
/// How long a gateway's topic keeps its batches, in seconds.
const GATEWAY_RETENTION_S: f64 = 600.0;
const DAY_S: f64 = 86_400.0;
const MILLION: f64 = 1e6;
/// Looking for a number of processors ends after so many steps; each has more than the one before.
const STEPS_MAX: usize = 64;

/// There is no such plan.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Beyond {
    /// However many processors there are.
    #[error("hearing all reports, or holding all positions, takes more than a machine")]
    OneMachine,
    /// More processors than that own nothing.
    #[error("it takes more processors than there are partitions")]
    Partitions,
}

/// Works it out.
///
/// # Errors
/// If no number of processors is enough.
pub fn plan(coefficients: &Coefficients, load: &Load, machines: &Machines) -> Result<Plan, Beyond> {
    let viewers = load.users * load.connected;
    let reports_per_s = viewers / load.interval_s;
    let connected_friends = load.friends * load.connected;
    let mut planner = Planner {
        coefficients,
        load,
        machines,
        viewers,
        connected_friends,
        reports_per_s,
        notices_per_s: reports_per_s * (connected_friends * load.near + OWN_PLACE),
        usable: Usable {
            cores: machines.cores * machines.usable,
            bytes: machines.memory_bytes * machines.usable,
            bytes_per_s: machines.network_bytes_per_s * machines.usable,
        },
        gateways: machines.gateways.unwrap_or(1.0),
    };
    if machines.gateways.is_none() {
        planner.gateways = planner.gateway().machines.max((viewers / machines.gateway_sockets).ceil());
    }
    let processors = machines.processors.map_or_else(|| planner.enough_processors(), Ok)?;
    Ok(planner.with_processors(processors))
}

/// Of a machine.
struct Usable {
    cores: f64,
    bytes: f64,
    bytes_per_s: f64,
}

struct Planner<'a> {
    coefficients: &'a Coefficients,
    load: &'a Load,
    machines: &'a Machines,
    viewers: f64,
    /// Of each viewer.
    connected_friends: f64,
    reports_per_s: f64,
    notices_per_s: f64,
    usable: Usable,
    gateways: f64,
}

impl Planner<'_> {
    fn with_processors(&self, processors: f64) -> Plan {
        let processor = self.processor(processors);
        let postgres = self.postgres();
        let hear_cores = self.hear_cores();
        let each_cores = hear_cores
            + self.batches_per_s(processors) / processors * self.coefficients.processor.batch_cpu_s / MILLION;
        let known_bytes = self.known_bytes(processors);
        let (broker_cost, broker) = self.broker(processors);
        let reading_cores = self.reports_per_s * self.coefficients.processor.read_cpu_s / MILLION;
        let mut bottlenecks = vec![
            Bottleneck {
                what: "the one thread of a processor that reads all reports",
                taken: reading_cores / self.machines.usable,
            },
            Bottleneck { what: "the cores of a processor, by hearing alone", taken: hear_cores / self.usable.cores },
            Bottleneck {
                what: "the memory of a processor, by those whom it knows",
                taken: known_bytes / self.usable.bytes,
            },
            Bottleneck { what: "partitions to own", taken: processors / self.load.partitions },
            Bottleneck { what: "the cores of the one Postgres server", taken: postgres.cores / self.usable.cores },
            Bottleneck { what: "gateway topics, as many as were measured", taken: self.gateways / GATEWAYS_MEASURED },
        ];
        if self.machines.processors.is_some() {
            let taken = self.as_machines(processor).machines / processors;
            bottlenecks.push(Bottleneck { what: "so many processors", taken });
        }
        if self.machines.gateways.is_some() {
            bottlenecks.push(Bottleneck { what: "so many gateways", taken: self.gateway().machines / self.gateways });
        }
        bottlenecks.sort_by(|a, b| b.taken.total_cmp(&a.taken));
        Plan {
            reports_per_s: self.reports_per_s,
            notices_per_s: self.notices_per_s,
            notices_per_s_max: self.reports_per_s * (self.connected_friends + OWN_PLACE),
            batches_per_s: self.batches_per_s(processors),
            processor,
            gateway: Share { machines: self.gateways, ..self.gateway() },
            broker,
            sink: self.sink(),
            postgres,
            lists_bytes: self.lists_bytes(),
            index_bytes: self.index_bytes(),
            known_bytes,
            processor_cpu_s_per_million_reports: processor.cores / self.reports_per_s * MILLION,
            broker_cost,
            hearing: processors * each_cores / processor.cores,
            processors_half_hearing: (processor.cores - processors * each_cores) / each_cores,
            restore_s: self.load.users * self.load.friends / processors * self.coefficients.processor.restore_cpu_s
                / MILLION
                / self.machines.engine_threads,
            bottlenecks,
        }
    }

    /// The fewest that are enough.
    fn enough_processors(&self) -> Result<f64, Beyond> {
        let mut processors: f64 = 1.0;
        for _ in 0..STEPS_MAX {
            let needed = self.as_machines(self.processor(processors)).machines;
            if needed <= processors {
                let is_enough = processors <= self.load.partitions;
                return if is_enough { Ok(processors) } else { Err(Beyond::Partitions) };
            }
            processors = needed;
        }
        Err(Beyond::OneMachine)
    }

    fn processor(&self, processors: f64) -> Share {
        let (costs, broker) = (&self.coefficients.processor, &self.coefficients.broker);
        let few_to_many = (MANY_VIEWERS / FEW_VIEWERS).ln();
        let many = ((self.viewers / processors / FEW_VIEWERS).ln() / few_to_many).max(0.0);
        let cache = 1.0 + (costs.cache_factor - 1.0) * many;
        // At each report the connected who have its user as a friend are looked at, and all of its user's own friends.
        let tests_per_s = self.reports_per_s * (self.connected_friends + self.load.friends);
        let telling = self.reports_per_s * self.telling(processors) * costs.told_cpu_s;
        let joining = cache * (telling + tests_per_s * costs.test_cpu_s + self.notices_per_s * costs.tell_cpu_s)
            + self.batches_per_s(processors) * costs.batch_cpu_s;
        Share {
            machines: processors,
            cores: processors * self.hear_cores() + joining / MILLION,
            memory_bytes: processors * (costs.base_bytes + self.known_bytes(processors))
                + self.lists_bytes()
                + self.index_bytes(),
            in_bytes_per_s: processors * self.reports_per_s * broker.report_bytes,
            out_bytes_per_s: self.notices_per_s * broker.notice_bytes,
            disk_bytes: 0.0,
        }
    }

    /// Engines that tell anybody of a report, if viewers are spread over them evenly. It is measured with one: that it grows so is reckoned.
    fn telling(&self, processors: f64) -> f64 {
        let engines = processors * self.machines.engine_threads;
        engines * (1.0 - (1.0 - 1.0 / engines).powf(self.connected_friends * self.load.near + OWN_PLACE))
    }

    /// Of each processor.
    fn hear_cores(&self) -> f64 {
        let costs = &self.coefficients.processor;
        let by_engine = (costs.hear_cpu_s - costs.read_cpu_s) * self.machines.engine_threads;
        costs.awake_cpu_s + self.reports_per_s * (costs.read_cpu_s + by_engine) / MILLION
    }

    /// Of each processor. An engine knows all who report, and all who are in its lists.
    fn known_bytes(&self, processors: f64) -> f64 {
        let in_lists = self.load.users * self.load.friends / processors / self.machines.engine_threads;
        let known = self.viewers.max(in_lists.min(self.load.users));
        known * self.coefficients.processor.slot_bytes * self.machines.engine_threads
    }

    fn lists_bytes(&self) -> f64 {
        self.load.users * self.load.friends * self.coefficients.processor.list_bytes
    }

    fn index_bytes(&self) -> f64 {
        self.viewers * self.load.friends * self.coefficients.processor.index_bytes
    }

    /// A gateway gets a batch of each engine in each interval, or less often if brokers do not take them so fast, or if there is nothing to tell.
    fn batches_per_s(&self, processors: f64) -> f64 {
        let costs = &self.coefficients.processor;
        let intervals_max = BATCH_INTERVAL_S.1 / BATCH_INTERVAL_S.0;
        let interval_s = BATCH_INTERVAL_S.0 * (self.gateways / BATCH_GATEWAYS).clamp(1.0, intervals_max);
        // There are at least so many brokers, which take batches at the same time.
        let broker_cores = self.machines.replicas * self.machines.cores;
        let round_s = costs.round_s + costs.round_gateway_core_s * self.gateways / broker_cores;
        let interval_s = interval_s.max(round_s);
        (processors * self.machines.engine_threads * self.gateways / interval_s).min(self.notices_per_s)
    }

    /// Reports come in at the gateways, and librdkafka writes a request for each partition that has some.
    fn report_requests_per_s(&self) -> f64 {
        (self.gateways * self.load.partitions / LINGER_S).min(self.reports_per_s)
    }

    fn broker(&self, processors: f64) -> (BrokerCost, Share) {
        let (costs, copies) = (&self.coefficients.broker, self.machines.replicas);
        let (reports, notices) = (self.reports_per_s, self.notices_per_s);
        let notices_as_reports = notices * costs.notice_bytes / costs.report_bytes;
        let cost = BrokerCost {
            awake_cores: costs.awake_cpu_s,
            taken_cores: (reports * costs.report_cpu_s
                + notices * costs.notice_cpu_s
                + self.batches_per_s(processors) * costs.request_cpu_s)
                / MILLION,
            requests_cores: self.report_requests_per_s() * costs.request_cpu_s / MILLION,
            reader_cores: costs.reader_cpu_s + reports * costs.read_cpu_s / MILLION,
        };
        // The processors and the sink read every report. Not measured but assumed: a copy costs as much as the first but comes
        // many records in a request; who fetches it is one more reader; a batch takes a request to be read, too, and its bytes
        // are as cheap to read as those of reports.
        let readers = processors + 1.0;
        let batches_cores = self.batches_per_s(processors) * costs.request_cpu_s / MILLION
            + notices_as_reports * costs.read_cpu_s / MILLION;
        let cores = copies * (cost.awake_cores + cost.taken_cores)
            + cost.requests_cores
            + cost.reader_cores * (readers + copies - 1.0)
            + batches_cores;
        let (report_bytes, notice_bytes) = (reports * costs.report_bytes, notices * costs.notice_bytes);
        let share = self.as_machines(Share {
            machines: 0.0,
            cores,
            memory_bytes: 0.0,
            in_bytes_per_s: (report_bytes + notice_bytes) * copies,
            out_bytes_per_s: (report_bytes + notice_bytes) * (copies - 1.0) + readers * report_bytes + notice_bytes,
            disk_bytes: copies
                * (report_bytes * self.machines.retention_days * DAY_S + notice_bytes * GATEWAY_RETENTION_S),
        });
        // Copies are on different machines.
        (cost, Share { machines: share.machines.max(copies), ..share })
    }

    /// Reports come in by its sockets too. (By `POST` an ingest takes them, for about as much.)
    fn gateway(&self) -> Share {
        let (costs, bytes) = (&self.coefficients.gateway, &self.coefficients.broker);
        // Who reports is told of all friends who are near once more, from the new place.
        let friends_per_s = self.notices_per_s - self.reports_per_s * OWN_PLACE
            + self.reports_per_s * self.connected_friends * self.load.near;
        self.as_machines(Share {
            cores: (self.notices_per_s * costs.frame_cpu_s + self.reports_per_s * costs.report_cpu_s) / MILLION,
            memory_bytes: self.viewers * costs.socket_bytes,
            in_bytes_per_s: self.notices_per_s * bytes.notice_bytes + self.report_bytes_per_s(),
            out_bytes_per_s: self.notices_per_s * costs.frame_bytes
                + friends_per_s * costs.friend_bytes
                + self.report_bytes_per_s(),
            ..Share::default()
        })
    }

    fn sink(&self) -> Share {
        self.as_machines(Share {
            cores: self.reports_per_s * self.coefficients.sink.row_cpu_s / MILLION,
            in_bytes_per_s: self.report_bytes_per_s(),
            out_bytes_per_s: self.report_bytes_per_s(),
            ..Share::default()
        })
    }

    /// One server. Its disk is what a day adds.
    fn postgres(&self) -> Share {
        Share {
            machines: 1.0,
            cores: self.reports_per_s * self.coefficients.sink.postgres_row_cpu_s / MILLION,
            in_bytes_per_s: self.report_bytes_per_s(),
            disk_bytes: self.reports_per_s * self.coefficients.sink.row_bytes * DAY_S,
            ..Share::default()
        }
    }

    fn report_bytes_per_s(&self) -> f64 {
        self.reports_per_s * self.coefficients.broker.report_bytes
    }

    fn as_machines(&self, share: Share) -> Share {
        let network = share.in_bytes_per_s.max(share.out_bytes_per_s) / self.usable.bytes_per_s;
        let needed = (share.cores / self.usable.cores).max(share.memory_bytes / self.usable.bytes).max(network);
        Share { machines: needed.ceil().max(1.0), ..share }
    }
}
