//! A Redis server of the test's own: on a unix socket and on a free loopback port, in the test's
//! directory, ended by its process id.
//!
//! Nothing is shared with a Redis that may run on the machine. `load` starts one on an RDB file made
//! elsewhere. Direct commands go through `connection`, for tests that damage or inspect records.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use crate::deadline::{patience, wait_until};

/// Ports tried before giving up: between finding a free one and using it, another process may take it.
const PORT_TRIES: usize = 8;

/// A running Redis.
pub struct RedisServer {
    child: Child,
    port: u16,
    socket: PathBuf,
}

impl RedisServer {
    /// Starts one that logs every write to its append-only file in `dir`.
    pub fn start(dir: &Path) -> Result<RedisServer> {
        RedisServer::launch(dir, &["--appendonly", "yes", "--appendfsync", "everysec"])
    }

    /// Starts one that holds what the RDB file holds.
    pub fn load(dir: &Path, rdb: &Path) -> Result<RedisServer> {
        std::fs::copy(rdb, dir.join("dump.rdb"))?;
        // With an append-only file Redis would ignore the RDB.
        RedisServer::launch(dir, &["--appendonly", "no"])
    }

    fn launch(dir: &Path, options: &[&str]) -> Result<RedisServer> {
        for _ in 0..PORT_TRIES {
            if let Some(server) = RedisServer::try_launch(dir, options)? {
                return Ok(server);
            }
        }
        bail!(
            "redis-server did not start, see {}",
            dir.join("redis.log").display()
        )
    }

    // `None` when it ended by itself, as it does when the port was taken meanwhile.
    fn try_launch(dir: &Path, options: &[&str]) -> Result<Option<RedisServer>> {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let socket = dir.join("redis.sock");
        let child = Command::new("redis-server")
            .args([
                "--bind",
                "127.0.0.1",
                "--port",
                &port.to_string(),
                "--save",
                "",
            ])
            .args(["--enable-debug-command", "local", "--daemonize", "no"])
            .args(["--maxmemory-policy", "noeviction"])
            .arg("--unixsocket")
            .arg(&socket)
            .arg("--dir")
            .arg(dir)
            .arg("--logfile")
            .arg(dir.join("redis.log"))
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting redis-server (package redis-server)")?;
        let mut server = RedisServer {
            child,
            port,
            socket,
        };
        let mut ended = false;
        wait_until("redis-server answers", patience(30), || {
            ended = server.child.try_wait()?.is_some();
            // Refused or still loading: not yet.
            let answers = || {
                redis::cmd("PING")
                    .query::<String>(&mut server.connection(0).ok()?)
                    .ok()
            };
            Ok(ended || answers().is_some())
        })?;
        Ok((!ended).then_some(server))
    }

    /// URL of a database over TCP.
    pub fn url(&self, database: u32) -> String {
        format!("redis://127.0.0.1:{}/{database}", self.port)
    }

    /// URL of a database over the unix socket.
    pub fn unix_url(&self, database: u32) -> String {
        format!("unix://{}?db={database}", self.socket.display())
    }

    /// A connection to a database.
    pub fn connection(&self, database: u32) -> Result<redis::Connection> {
        let client = redis::Client::open(self.url(database))?;
        client
            .get_connection()
            .with_context(|| format!("connecting to {}", self.url(database)))
    }

    /// A digest of everything in it; equal digests mean equal contents.
    pub fn digest(&self) -> Result<String> {
        let mut connection = self.connection(0)?;
        Ok(redis::cmd("DEBUG").arg("DIGEST").query(&mut connection)?)
    }

    /// The number of the one database in use.
    pub fn only_database(&self) -> Result<u32> {
        let keyspace: String = redis::cmd("INFO")
            .arg("keyspace")
            .query(&mut self.connection(0)?)?;
        let numbers: Vec<u32> = keyspace
            .lines()
            .filter_map(|line| line.strip_prefix("db")?.split_once(':')?.0.parse().ok())
            .collect();
        match numbers[..] {
            [number] => Ok(number),
            _ => Err(anyhow!("expected one database in use, found {numbers:?}")),
        }
    }

    /// Ends it the hard way, as a crash would.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Ended already: nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
