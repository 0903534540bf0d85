//! Sums that can be done in one's head.

use super::model::*;
use crate::capacity::coefficients::{self, Coefficients};

/// Round costs, so that sums can be done in one's head.
fn costs() -> Coefficients {
    Coefficients {
        measured: "invented".to_owned(),
        processor: coefficients::Processor {
            awake_cpu_s: 0.0,
            hear_cpu_s: 1.0,
            read_cpu_s: 0.5,
            told_cpu_s: 0.0,
            test_cpu_s: 0.01,
            tell_cpu_s: 0.1,
            batch_cpu_s: 10.0,
            round_s: 0.0,
            round_gateway_core_s: 0.0,
            cache_factor: 2.0,
            base_bytes: 0.0,
            list_bytes: 4.0,
            index_bytes: 6.0,
            slot_bytes: 100.0,
            restore_cpu_s: 0.2,
        },
        broker: coefficients::Broker {
            awake_cpu_s: 0.001,
            reader_cpu_s: 0.002,
            report_cpu_s: 1.0,
            read_cpu_s: 0.5,
            notice_cpu_s: 0.1,
            request_cpu_s: 20.0,
            report_bytes: 50.0,
            notice_bytes: 25.0,
        },
        gateway: coefficients::Gateway {
            frame_cpu_s: 5.0,
            report_cpu_s: 10.0,
            socket_bytes: 10_000.0,
            frame_bytes: 100.0,
            friend_bytes: 50.0,
        },
        sink: coefficients::Sink { row_cpu_s: 2.0, postgres_row_cpu_s: 4.0, row_bytes: 200.0 },
    }
}

fn load(users: f64) -> Load {
    Load { users, connected: 1.0, friends: 10.0, near: 0.5, interval_s: 10.0, partitions: 16.0 }
}

fn machines() -> Machines {
    Machines {
        cores: 8.0,
        memory_bytes: 1e10,
        network_bytes_per_s: 1e9,
        usable: 0.5,
        gateway_sockets: 10_000.0,
        engine_threads: 1.0,
        processors: Some(1.0),
        gateways: None,
        replicas: 3.0,
        retention_days: 1.0,
    }
}

#[test]
fn costs_add_up() {
    let plan = plan(&costs(), &load(20_000.0), &machines()).expect("a plan");
    assert_eq!((plan.reports_per_s, plan.notices_per_s, plan.notices_per_s_max), (2_000.0, 12_000.0, 22_000.0));
    // Two gateways, a batch every 5 ms each.
    assert_eq!((plan.gateway.machines, plan.batches_per_s), (2.0, 400.0));
    // Hearing 1, 20 tests of 0.01, 6 notices of 0.1, a fifth of a batch of 10.
    let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found}, not {expected}");
    close(plan.processor_cpu_s_per_million_reports, 1.0 + 0.2 + 0.6 + 2.0);
    // In a second 2,000 reports of 1, 12,000 notices of 0.1, 400 batches of 20; a request for each report; for a reader 2,000 of 0.5.
    let BrokerCost { awake_cores, taken_cores, requests_cores, reader_cores } = plan.broker_cost;
    close(awake_cores, 0.001);
    close(taken_cores, 0.002 + 0.0012 + 0.008);
    close(requests_cores, 0.04);
    close(reader_cores, 0.002 + 0.001);
    // Three copies; two readers and two who copy; batches and their bytes, six half reports for each, read once.
    let batches_cores = 0.008 + 2_000.0 * 3.0 * 0.5 / 1e6;
    let copied = 3.0 * (awake_cores + taken_cores);
    close(plan.broker.cores, copied + requests_cores + reader_cores * 4.0 + batches_cores);
    // 12,000 frames; ten thousand friends who moved, as many seen from a new place; and the reports.
    close(plan.gateway.out_bytes_per_s, 1_200_000.0 + 1_000_000.0 + 100_000.0);
    close(plan.gateway.cores, 0.06 + 0.02);
    close(plan.restore_s, 0.04);
    assert_eq!((plan.lists_bytes, plan.index_bytes, plan.known_bytes), (800_000.0, 1_200_000.0, 2_000_000.0));
    assert_eq!(plan.broker.machines, 3.0);
}

#[test]
fn batches_are_as_many_as_brokers_take() {
    let mut costs = costs();
    (costs.processor.round_s, costs.processor.round_gateway_core_s) = (0.004, 0.012);
    let batches = |gateways| {
        let machines = Machines { gateways: Some(gateways), ..machines() };
        plan(&costs, &load(1_000_000.0), &machines).expect("a plan").batches_per_s
    };
    // 24 cores. The interval is 5 ms for one gateway, 12.5 for 100.
    let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-6, "{found}, not {expected}");
    close(batches(1.0), 1.0 / 0.005);
    close(batches(10.0), 10.0 / 0.009);
    close(batches(100.0), 100.0 / 0.054);
}

#[test]
fn each_engine_knows_and_hears_everybody() {
    let machines = Machines { engine_threads: 4.0, ..machines() };
    let [one, four] = [1.0, 4.0].map(|engine_threads| {
        plan(&costs(), &load(20_000.0), &Machines { engine_threads, ..machines.clone() }).expect("a plan")
    });
    assert_eq!(four.known_bytes, 4.0 * one.known_bytes);
    assert_eq!(four.batches_per_s, 4.0 * one.batches_per_s);
    // Three more engines hear for 0.5 each, and close a fifth of a batch of 10 each.
    let more = four.processor_cpu_s_per_million_reports - one.processor_cpu_s_per_million_reports;
    assert!((more - 3.0 * 2.5).abs() < 1e-9, "{more}");
}

#[test]
fn an_engine_pays_once_for_all_whom_it_tells_of_a_report() {
    let mut costs = costs();
    let processor_cpu_s = |costs: &Coefficients, engine_threads| {
        let machines = Machines { engine_threads, ..machines() };
        plan(costs, &load(20_000.0), &machines).expect("a plan").processor_cpu_s_per_million_reports
    };
    let [one, two] = [1.0, 2.0].map(|threads| processor_cpu_s(&costs, threads));
    costs.processor.told_cpu_s = 1.0;
    assert!((processor_cpu_s(&costs, 1.0) - one - 1.0).abs() < 1e-9);
    // Five friends and the reporter are on the same side in one of 32 reports.
    assert!((processor_cpu_s(&costs, 2.0) - two - (2.0 - 2.0 / 64.0)).abs() < 1e-9);
}

#[test]
fn those_in_lists_are_known_whether_they_ever_report_or_not() {
    let few = Load { connected: 0.01, ..load(1_000_000.0) };
    let known = |processors| {
        let machines = Machines { processors: Some(processors), gateways: Some(1.0), ..machines() };
        plan(&costs(), &few, &machines).expect("a plan").known_bytes
    };
    assert_eq!(known(1.0), 100e6);
    assert_eq!(known(20.0), 50e6);
    // Who reports is known in any case.
    assert_eq!(known(10_000.0), 1e6);
}

#[test]
fn many_viewers_in_a_process_miss_the_cache() {
    let few = plan(&costs(), &load(20_000.0), &machines()).expect("a plan");
    let many = Load { interval_s: 500.0, ..load(1_000_000.0) };
    let many = plan(&costs(), &many, &Machines { gateways: Some(2.0), ..machines() }).expect("a plan");
    let more = many.processor_cpu_s_per_million_reports - few.processor_cpu_s_per_million_reports;
    assert!((more - 0.8).abs() < 1e-9, "{more}");
}

#[test]
fn there_are_as_many_processors_as_the_scarcest_asks_for() {
    let machines = Machines { processors: None, gateways: Some(1.0), ..machines() };
    let by = |memory_bytes| {
        let machines = Machines { memory_bytes, ..machines.clone() };
        plan(&costs(), &load(1_000_000.0), &machines).map(|plan| plan.processor.machines)
    };
    // It takes a fifth of a core to hear, and less to tell.
    assert_eq!(by(1e12), Ok(1.0));
    // 100 MB of lists and index, and 100 MB of positions in each.
    assert_eq!(by(300e6), Ok(2.0));
    assert_eq!(by(204e6), Err(Beyond::Partitions));
    assert_eq!(by(150e6), Err(Beyond::OneMachine));
    let hearing = plan(&costs(), &load(50_000_000.0), &machines).map(|_| ());
    assert_eq!(hearing, Err(Beyond::OneMachine));
}

#[test]
fn the_tightest_is_named_first() {
    let plan = plan(&costs(), &Load { partitions: 1.0, ..load(20_000.0) }, &machines()).expect("a plan");
    assert_eq!(plan.bottlenecks[0].what, "partitions to own");
    assert!(plan.bottlenecks.is_sorted_by(|a, b| a.taken >= b.taken));
}

#[test]
fn the_costs_that_come_with_the_program_make_a_plan() {
    let costs: Coefficients = serde_json::from_str(crate::capacity::MEASURED).expect("the file is as it should be");
    let load = Load { friends: 400.0, connected: 0.1, interval_s: 30.0, partitions: 256.0, ..load(100e6) };
    let machines = Machines { processors: None, memory_bytes: 64e9, ..machines() };
    let plan = plan(&costs, &load, &machines).expect("a plan");
    assert!(plan.processor.machines > 1.0 && plan.processor.machines < 50.0, "{plan:?}");
}
