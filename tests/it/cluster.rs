//! Brokers that die and come back: nothing is lost, nothing doubled, and learning goes on.

use crate::brokers::Cluster;
use crate::delivery::{Lineage, PARTITIONS, Way};
use crate::harness::{Program, number, wait_for};
use std::time::{Duration, Instant};

/// The promise is 15 s on an idle machine; this is for loaded ones.
const RESUMED: Duration = Duration::from_secs(90);

/// Prints the time since `back` when `has_resumed`, and checks it.
fn await_resumed(what: &str, back: Instant, program: &mut Program, has_resumed: impl Fn() -> bool) {
    wait_for("resumed learning", || {
        program.assert_alive();
        has_resumed().then_some(())
    });
    let took = back.elapsed();
    println!("learning resumed {:.1} s after {what}", took.as_secs_f64());
    assert!(took < RESUMED, "after {what}: {took:?}");
}

/// SIGKILL to one of three brokers while images arrive and are learned; then, once it is back, to all three.
#[test]
fn brokers_that_die_and_come_back_lose_nothing_and_double_nothing() {
    let Some(cluster) = Cluster::start(3, None) else { return };
    // Quarters are dealt evenly to the partitions.
    let quarter = number("SELFSTREAM_CLUSTER_IMAGES", 6000).div_ceil(4).next_multiple_of(30);
    let way = Way { copies: 3, ..Way::to(&cluster.brokers) };
    let lineage = Lineage::new(way, "cluster", "");
    lineage.produce(0..quarter);
    let mut program = lineage.start(&[]);
    wait_for("learning", || {
        program.assert_alive();
        (!lineage.done().is_empty()).then_some(())
    });

    // In ten parts, so that some are on their way when the broker dies.
    let produce = || {
        for part in 10..20 {
            lineage.produce(part * quarter / 10..(part + 1) * quarter / 10);
        }
    };
    std::thread::scope(|scope| {
        let producing = scope.spawn(produce);
        cluster.kill(Some(1));
        producing.join().unwrap();
    });
    cluster.start_again();
    let (back, before) = (Instant::now(), lineage.done().len());
    lineage.produce(2 * quarter..3 * quarter);
    let has_resumed = || lineage.done().len() > before;
    await_resumed("one broker of three was back", back, &mut program, has_resumed);

    lineage.await_done(&mut program, 3 * quarter);
    cluster.kill(None);
    cluster.start_again();
    let back = Instant::now();
    lineage.produce(3 * quarter..4 * quarter);
    let first_new = 3 * quarter as i64 / i64::from(PARTITIONS);
    let has_resumed = || lineage.done().into_keys().any(|(_, offset)| offset >= first_new);
    await_resumed("all three brokers were back", back, &mut program, has_resumed);
    lineage.finish_by(program, 4 * quarter);
}
