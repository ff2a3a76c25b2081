//! A Redis server of the test's own: on a Unix socket in a temporary directory, gone when dropped. `--port` in
//! `extra` makes it listen there too.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use sluice_meta::runtime::Address;
use sluice_meta::url::{RedisHosts, RedisUrl};

/// A running server.
pub(crate) struct RedisServer {
    child: Child,
    extra: Vec<String>,
    dir: tempfile::TempDir,
}

impl RedisServer {
    /// Starts a server that keeps nothing on disk; `extra` goes to its command line.
    pub(crate) fn start(extra: &[&str]) -> RedisServer {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let extra: Vec<String> = extra.iter().map(|&word| word.to_owned()).collect();
        let child = spawn(&dir.path().join("redis.sock"), dir.path(), &extra, READY);
        RedisServer { child, extra, dir }
    }

    /// Path of the socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }

    /// Database 0, no password.
    pub(crate) fn url(&self) -> RedisUrl {
        RedisUrl {
            hosts: RedisHosts::Single(Address::Unix(self.socket())),
            user: None,
            password: None,
            db: 0,
        }
    }

    /// Another client.
    #[allow(dead_code, reason = "not every test binary needs every helper")]
    pub(crate) fn client(&self) -> redis::Connection {
        let url = format!("unix://{}", self.socket().display());
        let client = redis::Client::open(url).expect("a URL of a Unix socket");
        client
            .get_connection()
            .expect("a connection to the test's Redis server")
    }

    /// Ends the server.
    #[allow(dead_code, reason = "not every test binary needs every helper")]
    pub(crate) fn stop(&mut self) {
        self.child.kill().expect("the server can be killed");
        self.child.wait().expect("the server ends");
    }

    /// Starts it again at the same address, empty.
    #[allow(dead_code, reason = "not every test binary needs every helper")]
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(&self.socket(), self.dir.path(), &self.extra, READY);
    }

    /// Starts it again, and waits only until it loads what it has on disk.
    #[allow(dead_code, reason = "not every test binary needs every helper")]
    pub(crate) fn start_loading(&mut self) {
        self.child = spawn(&self.socket(), self.dir.path(), &self.extra, "loading rdb");
    }

    /// Sends it a signal, by name.
    #[allow(dead_code, reason = "not every test binary needs every helper")]
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args(["-s", name, &self.child.id().to_string()])
            .status();
        assert!(status.expect("kill can be run").success());
    }
}

/// What a server says when it serves.
const READY: &str = "ready to accept connections";

/// Starts a server and waits until it says so much.
fn spawn(socket: &Path, dir: &Path, extra: &[String], until: &str) -> Child {
    let mut child = Command::new("redis-server")
        .args([
            "--port",
            "0",
            "--save",
            "",
            "--appendonly",
            "no",
            "--daemonize",
            "no",
        ])
        .arg("--unixsocket")
        .arg(socket)
        .arg("--dir")
        .arg(dir)
        .args(extra)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("redis-server is needed for this test: install redis-server");
    let log = child.stdout.take().expect("the server's output is piped");
    let mut said = String::new();
    for line in BufReader::new(log).lines() {
        let line = line.expect("the server's log can be read");
        if line.to_lowercase().contains(until) {
            return child;
        }
        said.push_str(&line);
        said.push('\n');
    }
    let status = child.wait();
    panic!("redis-server ended at its start ({status:?}):\n{said}");
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
