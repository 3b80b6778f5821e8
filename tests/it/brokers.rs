//! Brokers of a test's own, to be killed and started again, or reached through a proxy.

use crate::harness::brokers;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/kafka/broker");

/// A cluster; dropping it kills it.
pub(crate) struct Cluster {
    dir: tempfile::TempDir,
    /// Its address.
    pub(crate) brokers: String,
}

impl Cluster {
    /// Starts `nodes` of them, or one behind a proxy on a port; `None` where tests are to do without
    /// brokers.
    pub(crate) fn start(nodes: u32, proxy_port: Option<u16>) -> Option<Self> {
        brokers()?;
        let parent = std::env::var_os("SELFSTREAM_CLUSTERS").map(PathBuf::from);
        let parent = parent.unwrap_or_else(std::env::temp_dir);
        let dir = tempfile::Builder::new().prefix("cluster-").tempdir_in(parent).unwrap();
        let mut cluster = Self { dir, brokers: String::new() };
        let mut more = vec![nodes.to_string()];
        more.extend(proxy_port.map(|port| port.to_string()));
        cluster.brokers = cluster.tell("start", &more);
        Some(cluster)
    }

    /// Kills node `id`, or all at once.
    pub(crate) fn kill(&self, id: Option<u32>) {
        let id: Vec<String> = id.iter().map(u32::to_string).collect();
        self.tell("kill", &id);
    }

    /// Starts what is down; it is ready when this returns.
    pub(crate) fn start_again(&self) {
        self.tell("start", &[]);
    }

    /// What a proxy has to forward to.
    pub(crate) fn behind(&self) -> String {
        self.tell("behind", &[])
    }

    fn tell(&self, verb: &str, more: &[String]) -> String {
        let output = Command::new(SCRIPT)
            .arg(verb)
            .arg(self.dir.path())
            .args(more)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{verb} {more:?}: {errors}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // It may be half started where the test has failed.
        let _ = Command::new(SCRIPT).arg("kill").arg(self.dir.path()).output();
    }
}
