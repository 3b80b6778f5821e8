//! A network between learner and broker that can be cut, slow and narrow: a TCP proxy, and what the learner
//! makes of it.

use crate::brokers::Cluster;
use crate::delivery::{Lineage, PARTITIONS, Way};
use crate::harness::{number, wait_for};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that are passed on at a time.
const CHUNK_BYTES: usize = 16 * 1024;
/// Chunks under way in one direction of a connection; a reader waits where there are more.
const CHUNKS: usize = 1024;

/// What the network is like.
#[derive(Default)]
struct Network {
    connections: Mutex<Connections>,
    delay_ms: AtomicU64,
    /// Of each connection and direction; 0 is no limit.
    bytes_per_second: AtomicU64,
}

#[derive(Default)]
struct Connections {
    is_cut: bool,
    /// Both ends of each; those that have ended are among them.
    open: Vec<TcpStream>,
}

/// A broker behind a proxy.
pub(crate) struct Proxied {
    /// The broker; its own address leads around the proxy.
    pub(crate) cluster: Cluster,
    /// The proxy's address.
    pub(crate) address: String,
    network: Arc<Network>,
}

impl Proxied {
    /// Starts both; `None` where tests are to do without brokers.
    pub(crate) fn start() -> Option<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let cluster = Cluster::start(1, Some(port))?;
        let network = Arc::new(Network::default());
        let (target, ours) = (cluster.behind(), Arc::clone(&network));
        // It ends with the test's process.
        thread::spawn(move || {
            for client in listener.incoming() {
                connect(&ours, client.unwrap(), &target);
            }
        });
        Some(Self { cluster, address: format!("127.0.0.1:{port}"), network })
    }

    /// A learner that reaches the broker through the proxy alone.
    pub(crate) fn way(&self) -> Way<'_> {
        Way { learner: &self.address, ..Way::to(&self.cluster.brokers) }
    }

    /// Ends every connection, and lets none come about until [`Proxied::mend`].
    pub(crate) fn cut(&self) {
        let mut connections = self.network.connections.lock().unwrap();
        connections.is_cut = true;
        for stream in connections.open.drain(..) {
            // Its other end may have ended it already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Ends a cut.
    pub(crate) fn mend(&self) {
        self.network.connections.lock().unwrap().is_cut = false;
    }

    /// Holds every byte up for so long in either direction.
    pub(crate) fn delay(&self, delay: Duration) {
        self.network.delay_ms.store(delay.as_millis() as u64, Ordering::Relaxed);
    }

    /// Lets so many bytes a second through, for each connection and direction.
    fn throttle(&self, bytes_per_second: u64) {
        self.network.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }
}

/// Connects `client` to `target`, unless the network is cut.
fn connect(network: &Arc<Network>, client: TcpStream, target: &str) {
    let mut connections = network.connections.lock().unwrap();
    if connections.is_cut {
        return;
    }
    // A broker that is down looks like a cut.
    let Ok(broker) = TcpStream::connect(target) else { return };
    for stream in [&client, &broker] {
        stream.set_nodelay(true).unwrap();
        connections.open.push(stream.try_clone().unwrap());
    }
    let ends = [(&client, &broker), (&broker, &client)];
    for (from, to) in ends.map(|(from, to)| (from.try_clone().unwrap(), to.try_clone().unwrap())) {
        let (sender, receiver) = sync_channel(CHUNKS);
        let (reading, writing) = (Arc::clone(network), Arc::clone(network));
        thread::spawn(move || take(&reading, from, &sender));
        thread::spawn(move || pass_on(&writing, to, &receiver));
    }
}

/// Reads until the end, and notes when each chunk is due.
fn take(network: &Network, mut from: TcpStream, chunks: &SyncSender<(Instant, Vec<u8>)>) {
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(n) = from.read(&mut chunk)
        && n > 0
    {
        let delay = Duration::from_millis(network.delay_ms.load(Ordering::Relaxed));
        if chunks.send((Instant::now() + delay, chunk[..n].to_vec())).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Read);
}

/// Writes each chunk when it is due and as fast as is allowed; ends the connection after the last one.
fn pass_on(network: &Network, mut to: TcpStream, chunks: &Receiver<(Instant, Vec<u8>)>) {
    for (due, chunk) in chunks {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&chunk).is_err() {
            break;
        }
        let limit = network.bytes_per_second.load(Ordering::Relaxed);
        if limit > 0 {
            thread::sleep(Duration::from_secs_f64(chunk.len() as f64 / limit as f64));
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// The promise is 15 s on an idle machine; this is for loaded ones.
const RESUMED: Duration = Duration::from_secs(90);

#[test]
fn a_cut_network_loses_nothing_and_doubles_nothing() {
    const THIRD: u64 = 900;
    let Some(proxied) = Proxied::start() else { return };
    let lineage = Lineage::new(proxied.way(), "cut", "");
    lineage.produce(0..THIRD);
    let mut program = lineage.start(&[]);
    lineage.await_learning(&mut program, 0);
    proxied.cut();
    lineage.produce(THIRD..2 * THIRD);
    // The fault itself, which has a length.
    thread::sleep(Duration::from_secs(number("SELFSTREAM_CUT_SECONDS", 5)));
    let first_new = (THIRD / PARTITIONS as u64) as i64;
    let has_new = || lineage.done().into_keys().any(|(_, offset)| offset >= first_new);
    assert!(!has_new(), "images came through a network that was cut");
    program.assert_alive();
    proxied.mend();
    let mended = Instant::now();
    wait_for("resumed learning", || {
        program.assert_alive();
        has_new().then_some(())
    });
    let took = mended.elapsed();
    println!("learning resumed {:.1} s after the network was mended", took.as_secs_f64());
    assert!(took < RESUMED, "{took:?}");
    lineage.produce(2 * THIRD..3 * THIRD);
    lineage.finish_by(program, 3 * THIRD);
}

/// 200 ms either way, and 64 KiB a second: some 6 s for the images alone.
#[test]
fn a_slow_and_narrow_network_loses_nothing_and_doubles_nothing() {
    const IMAGES: u64 = 1500;
    let Some(proxied) = Proxied::start() else { return };
    proxied.delay(Duration::from_millis(200));
    proxied.throttle(64 * 1024);
    let lineage = Lineage::new(proxied.way(), "narrow", "");
    lineage.produce(0..IMAGES);
    lineage.finish(IMAGES);
}
