//! Metadata URLs: which store a volume's metadata is in, in the spelling JuiceFS users know.
//!
//! Called by every command with the URL its user typed. Pure: nothing is opened or resolved here. What is
//! wrong with a URL becomes one sentence that says what was found and what to write instead. Passwords
//! never appear in it, nor in `Display` or `Debug`.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::runtime::Address;

/// Port of a Redis server when the URL has none.
const REDIS_PORT: u16 = 6379;
/// Port of a Redis Sentinel when the URL has none.
const SENTINEL_PORT: u16 = 26379;

/// Parameters of JuiceFS's SQLite URLs that tune its driver's connections; this engine sets its own.
const SQLITE_IGNORED: &[&str] = &[
    "cache",
    "_journal",
    "_journal_mode",
    "_timeout",
    "_busy_timeout",
    "max_open_conns",
    "max_idle_conns",
    "max_idle_time",
    "max_life_time",
];

/// Parameters of JuiceFS's Redis URLs that tune its driver's connections and caches. `_` is written for
/// `-`: both are allowed.
const REDIS_IGNORED: &[&str] = &[
    "min_retry_backoff",
    "max_retry_backoff",
    "max_retries",
    "dial_timeout",
    "read_timeout",
    "write_timeout",
    "pool_size",
    "pool_timeout",
    "min_idle_conns",
    "max_idle_conns",
    "client_name",
    "route_read",
    "client_cache",
    "client_cache_size",
    "client_cache_expire",
    "client_cache_preload",
];

/// Stores that JuiceFS has and we do not: (scheme, name).
const NOT_BUILT: &[(&str, &str)] = &[
    ("rediss", "Redis over TLS"),
    ("mysql", "MySQL"),
    ("postgres", "PostgreSQL"),
    ("postgresql", "PostgreSQL"),
    ("tikv", "TiKV"),
    ("etcd", "etcd"),
    ("badger", "Badger"),
    ("fdb", "FoundationDB"),
    ("memkv", "the in-memory store"),
];

/// Why a metadata URL was not accepted: one sentence for the person who typed it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UrlError {
    /// JuiceFS knows it, we do not (yet).
    #[error(
        "metadata in {what} is not supported because its engine is not built yet: \
         use sqlite3://PATH, redis://HOST:PORT/DB or unix:///PATH?db=N"
    )]
    NotBuilt {
        /// The store or set-up.
        what: String,
    },
    /// Nobody knows it.
    #[error(
        "`{scheme}://` is not a metadata URL scheme: \
         use sqlite3://PATH, redis://HOST:PORT/DB or unix:///PATH?db=N"
    )]
    UnknownScheme {
        /// The scheme.
        scheme: String,
    },
    /// A parameter after `?` that means nothing to us.
    #[error("parameter `{name}` of a {scheme}:// metadata URL is not known: remove it")]
    UnknownParameter {
        /// Scheme of the URL.
        scheme: &'static str,
        /// Name of the parameter.
        name: String,
    },
    /// Not of the form its scheme prescribes.
    #[error("metadata URL is malformed: {problem}")]
    Malformed {
        /// What is wrong and what was expected.
        problem: String,
    },
}

fn malformed(problem: impl Into<String>) -> UrlError {
    UrlError::Malformed {
        problem: problem.into(),
    }
}

/// A parsed metadata URL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetaUrl {
    /// A volume in a SQLite file.
    Sqlite(SqliteUrl),
    /// A logical database of a Redis server.
    Redis(RedisUrl),
}

/// A volume in a SQLite file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SqliteUrl {
    /// The file.
    pub path: PathBuf,
    /// Its tables are called `jfs_PREFIX_...` (`table_prefix=PREFIX`), without one `jfs_...`.
    pub table_prefix: Option<String>,
}

/// Where a volume's Redis server is to be found.
#[derive(Clone, PartialEq, Eq)]
pub enum RedisHosts {
    /// One server. If it says that it is a node of a Redis Cluster, it names the others.
    Single(Address),
    /// The master that sentinels know by a name.
    Sentinel {
        /// Name of the master.
        master: String,
        /// Where the sentinels listen.
        sentinels: Vec<Address>,
        /// Password of the sentinels, which is not that of the master.
        password: Option<String>,
    },
    /// Nodes of a Redis Cluster, which name the others.
    Cluster(Vec<Address>),
}

/// A logical database of a Redis server, or a volume in a Redis Cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    /// Where the server is to be found.
    pub hosts: RedisHosts,
    /// ACL user; the server's default user if absent.
    pub user: Option<String>,
    /// Password of the user.
    pub password: Option<String>,
    /// Number of the logical database; in a cluster, that of the volume: its keys begin with `{db}`.
    pub db: u32,
}

impl MetaUrl {
    /// Parses `text`; `env_password` (from `META_PASSWORD` and the like) stands in for a password that the
    /// URL does not have.
    pub fn parse(text: &str, env_password: Option<&str>) -> Result<MetaUrl, UrlError> {
        if text.is_empty() || text.starts_with('/') {
            return Err(malformed(
                "it has no scheme: write sqlite3://PATH for a SQLite file",
            ));
        }
        // As in JuiceFS, an address without a scheme is a Redis server's.
        let (scheme, rest) = text.split_once("://").unwrap_or(("redis", text));
        match scheme {
            "sqlite3" => parse_sqlite(rest).map(MetaUrl::Sqlite),
            "redis" => parse_redis(rest, env_password).map(MetaUrl::Redis),
            "unix" => parse_unix(rest, env_password).map(MetaUrl::Redis),
            _ => Err(match NOT_BUILT.iter().find(|(known, _)| *known == scheme) {
                Some((_, what)) => UrlError::NotBuilt {
                    what: (*what).to_owned(),
                },
                None => UrlError::UnknownScheme {
                    scheme: scheme.to_owned(),
                },
            }),
        }
    }

    /// Sets the password that sentinels ask for (from `SENTINEL_PASSWORD`). Does nothing to URLs without
    /// sentinels.
    #[must_use]
    pub fn with_sentinel_password(mut self, secret: Option<String>) -> MetaUrl {
        if let MetaUrl::Redis(url) = &mut self
            && let RedisHosts::Sentinel { password, .. } = &mut url.hosts
        {
            *password = secret.filter(|text| !text.is_empty());
        }
        self
    }
}

fn parse_sqlite(rest: &str) -> Result<SqliteUrl, UrlError> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    if path.is_empty() || path.ends_with('/') {
        return Err(malformed(
            "sqlite3:// needs the path of a file: sqlite3://PATH",
        ));
    }
    if path == ":memory:" || path.starts_with("file:") {
        return Err(malformed(format!(
            "`{path}` is not the path of a file: write sqlite3://PATH"
        )));
    }
    let mut table_prefix = None;
    for (name, value) in parameters(query) {
        if name == "table_prefix" {
            table_prefix = parse_table_prefix(value)?;
        } else if !SQLITE_IGNORED.contains(&name) {
            return Err(UrlError::UnknownParameter {
                scheme: "sqlite3",
                name: name.to_owned(),
            });
        }
    }
    Ok(SqliteUrl {
        path: PathBuf::from(path),
        table_prefix,
    })
}

/// Names of tables are not quoted everywhere, so a prefix is made of what needs no quotes; empty is none.
fn parse_table_prefix(value: &str) -> Result<Option<String>, UrlError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if !value.bytes().all(plain) {
        return Err(malformed(format!(
            "table prefix `{value}` cannot be used: write letters, digits and _ only"
        )));
    }
    Ok((!value.is_empty()).then(|| value.to_owned()))
}

fn parse_redis(rest: &str, env_password: Option<&str>) -> Result<RedisUrl, UrlError> {
    refuse_fragment(rest)?;
    let (location, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = location.split_once('/').unwrap_or((location, ""));
    let (login, hosts) = split_login(authority)?;
    let hosts = parse_hosts(hosts)?;
    let path_db = match path.trim_matches('/') {
        "" => None,
        number => Some(parse_db(number)?),
    };
    let db = query_db("redis", query)?.or(path_db).unwrap_or(0);
    Ok(login.into_url(hosts, db, env_password))
}

fn parse_unix(rest: &str, env_password: Option<&str>) -> Result<RedisUrl, UrlError> {
    refuse_fragment(rest)?;
    let (location, query) = rest.split_once('?').unwrap_or((rest, ""));
    let expected = "write unix:///PATH/TO/SOCKET?db=N, or unix://:PASSWORD@/PATH/TO/SOCKET?db=N";
    let slash = location
        .find('/')
        .ok_or_else(|| malformed(format!("the socket's path is not absolute: {expected}")))?;
    let (authority, path) = location.split_at(slash);
    let (login, host) = split_login(authority)?;
    if !host.is_empty() {
        return Err(malformed(format!(
            "a Unix socket has no host `{host}`: {expected}"
        )));
    }
    let path =
        percent_decode(path).ok_or_else(|| malformed("bad % escape in the socket's path"))?;
    if path == b"/" || path.contains(&0) {
        return Err(malformed(format!(
            "there is no path of a socket: {expected}"
        )));
    }
    let db = query_db("unix", query)?.unwrap_or(0);
    let hosts = RedisHosts::Single(Address::Unix(PathBuf::from(OsString::from_vec(path))));
    Ok(login.into_url(hosts, db, env_password))
}

/// User and password as the URL has them.
struct Login {
    user: Option<String>,
    password: Option<String>,
}

impl Login {
    fn into_url(self, hosts: RedisHosts, db: u32, env_password: Option<&str>) -> RedisUrl {
        let from_env = || {
            env_password
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
        };
        RedisUrl {
            hosts,
            user: self.user,
            password: self.password.or_else(from_env),
            db,
        }
    }
}

/// Splits `user:password@hosts`. The last `@` counts: passwords may contain it.
fn split_login(authority: &str) -> Result<(Login, &str), UrlError> {
    let Some((login, hosts)) = authority.rsplit_once('@') else {
        return Ok((
            Login {
                user: None,
                password: None,
            },
            authority,
        ));
    };
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let decode = |text: &str| {
        let raw = percent_decode(text)?;
        let text = String::from_utf8(raw).ok()?;
        Some((!text.is_empty()).then_some(text))
    };
    let wrong = "bad % escape in user or password: write %25 for a % sign";
    let user = decode(user).ok_or_else(|| malformed(wrong))?;
    let password = decode(password).ok_or_else(|| malformed(wrong))?;
    Ok((Login { user, password }, hosts))
}

/// `master,sentinel1,sentinel2:port` is Sentinel, `host1:port,host2:port` is Cluster: the order of the first
/// comma and colon tells, as in JuiceFS. The last sentinel's port is that of all who have none.
fn parse_hosts(hosts: &str) -> Result<RedisHosts, UrlError> {
    let Some(comma) = hosts.find(',') else {
        return split_port(hosts, REDIS_PORT).map(RedisHosts::Single);
    };
    let places = |list: &str, port: u16| {
        list.split(',')
            .map(|host| match host {
                "" => Err(malformed("there is an empty host between the commas")),
                host => split_port(host, port),
            })
            .collect::<Result<Vec<Address>, UrlError>>()
    };
    if hosts.find(':').is_some_and(|colon| colon < comma) {
        return places(hosts, REDIS_PORT).map(RedisHosts::Cluster);
    }
    let (master, sentinels) = (&hosts[..comma], &hosts[comma + 1..]);
    if master.is_empty() || sentinels.is_empty() {
        return Err(malformed(
            "write redis://MASTER-NAME,SENTINEL1,SENTINEL2:PORT/DB for a master behind sentinels",
        ));
    }
    let last = sentinels.rsplit(',').next().unwrap_or_default();
    let port = match split_port(last, SENTINEL_PORT)? {
        Address::Tcp(_, port) => port,
        Address::Unix(_) => SENTINEL_PORT,
    };
    Ok(RedisHosts::Sentinel {
        master: master.to_owned(),
        sentinels: places(sentinels, port)?,
        password: None,
    })
}

fn split_port(authority: &str, default: u16) -> Result<Address, UrlError> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest
                .split_once(']')
                .ok_or_else(|| malformed("`[` of an IPv6 address is not closed by `]`"))?;
            match after.strip_prefix(':') {
                Some(port) => (host, port),
                None if after.is_empty() => (host, ""),
                None => return Err(malformed(format!("`{after}` after `]` is not a port"))),
            }
        }
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    if host.contains(char::is_whitespace) {
        return Err(malformed("the host contains white space"));
    }
    let host = if host.is_empty() { "localhost" } else { host };
    let port = match port {
        "" => default,
        // The text is not shown: an `@` forgotten in `user:password@host` would put a password here.
        text => text.parse().map_err(|_| {
            malformed("the port is not a number between 0 and 65535: write redis://HOST:PORT/DB")
        })?,
    };
    Ok(Address::Tcp(host.to_owned(), port))
}

fn parse_db(text: &str) -> Result<u32, UrlError> {
    text.parse()
        .map_err(|_| malformed(format!("database `{text}` is not a number from 0 upwards")))
}

fn query_db(scheme: &'static str, query: &str) -> Result<Option<u32>, UrlError> {
    let mut db = None;
    for (name, value) in parameters(query) {
        if name == "db" {
            db = Some(parse_db(value)?);
        } else if !REDIS_IGNORED.contains(&name.replace('-', "_").as_str()) {
            return Err(UrlError::UnknownParameter {
                scheme,
                name: name.to_owned(),
            });
        }
    }
    Ok(db)
}

fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn refuse_fragment(rest: &str) -> Result<(), UrlError> {
    if rest.contains('#') {
        return Err(malformed("`#` must be written as %23"));
    }
    Ok(())
}

/// `None` if a `%` is not followed by two hexadecimal digits.
fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'%' {
            out.push(byte);
            rest = tail;
            continue;
        }
        let (digits, tail) = tail.split_at_checked(2)?;
        let digit = |at: usize| char::from(digits[at]).to_digit(16);
        out.push(u8::try_from(digit(0)? * 16 + digit(1)?).ok()?);
        rest = tail;
    }
    Some(out)
}

impl fmt::Display for MetaUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetaUrl::Sqlite(url) => {
                write!(f, "sqlite3://{}", url.path.display())?;
                match &url.table_prefix {
                    Some(prefix) => write!(f, "?table_prefix={prefix}"),
                    None => Ok(()),
                }
            }
            MetaUrl::Redis(url) => url.fmt(f),
        }
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_deref().unwrap_or("");
        let login = match &self.password {
            Some(_) => format!("{user}:****@"),
            None if user.is_empty() => String::new(),
            None => format!("{user}@"),
        };
        match &self.hosts {
            RedisHosts::Single(Address::Unix(path)) => {
                write!(f, "unix://{login}{}?db={}", path.display(), self.db)
            }
            hosts => write!(f, "redis://{login}{hosts}/{}", self.db),
        }
    }
}

/// As the URL has them; a Unix socket by its path.
impl fmt::Display for RedisHosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |places: &[Address]| {
            let places: Vec<String> = places.iter().map(Address::to_string).collect();
            places.join(",")
        };
        match self {
            RedisHosts::Single(address) => address.fmt(f),
            RedisHosts::Sentinel {
                master, sentinels, ..
            } => write!(f, "{master},{}", list(sentinels)),
            RedisHosts::Cluster(nodes) => f.write_str(&list(nodes)),
        }
    }
}

impl fmt::Debug for RedisHosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisHosts({self})")
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a URL parses to: its `Display`, user and password; or the start of the refusal.
    fn check(text: &str, env: Option<&str>, expected: Result<(&str, &str, &str), &str>) {
        match (MetaUrl::parse(text, env), expected) {
            (Ok(url), Ok((display, user, password))) => {
                assert_eq!(url.to_string(), display, "{text}");
                if let MetaUrl::Redis(redis) = &url {
                    assert_eq!(redis.user.as_deref().unwrap_or(""), user, "{text}");
                    assert_eq!(redis.password.as_deref().unwrap_or(""), password, "{text}");
                    let debug = format!("{url:?}");
                    assert!(password.is_empty() || !debug.contains(password), "{debug}");
                }
            }
            (Err(error), Err(part)) => {
                let sentence = error.to_string();
                assert!(sentence.contains(part), "{text}: {sentence}");
                assert!(!sentence.contains("secret"), "{text}: {sentence}");
            }
            (got, expected) => panic!("{text}: {got:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn accepted() {
        for (text, env, display, user, password) in [
            ("sqlite3://meta.db", None, "sqlite3://meta.db", "", ""),
            (
                "sqlite3:///var/lib/a%20b.db",
                None,
                "sqlite3:///var/lib/a%20b.db",
                "",
                "",
            ),
            (
                "sqlite3://m.db?cache=shared&_journal=WAL&_timeout=5000",
                None,
                "sqlite3://m.db",
                "",
                "",
            ),
            (
                "sqlite3://m.db?table_prefix=a_1&cache=shared",
                None,
                "sqlite3://m.db?table_prefix=a_1",
                "",
                "",
            ),
            (
                "sqlite3://m.db?table_prefix=",
                None,
                "sqlite3://m.db",
                "",
                "",
            ),
            (
                "redis://localhost",
                None,
                "redis://localhost:6379/0",
                "",
                "",
            ),
            ("redis://", None, "redis://localhost:6379/0", "", ""),
            (
                "redis://localhost:7000/3",
                None,
                "redis://localhost:7000/3",
                "",
                "",
            ),
            ("redis://h/1/", None, "redis://h:6379/1", "", ""),
            ("redis://h?db=4", None, "redis://h:6379/4", "", ""),
            (
                "redis://:secret@h/1",
                None,
                "redis://:****@h:6379/1",
                "",
                "secret",
            ),
            (
                "redis://me:se%3Acret@h/1",
                None,
                "redis://me:****@h:6379/1",
                "me",
                "se:cret",
            ),
            (
                "redis://me:a@b@h/1",
                None,
                "redis://me:****@h:6379/1",
                "me",
                "a@b",
            ),
            (
                "redis://me@h",
                Some("env"),
                "redis://me:****@h:6379/0",
                "me",
                "env",
            ),
            (
                "redis://:url@h",
                Some("env"),
                "redis://:****@h:6379/0",
                "",
                "url",
            ),
            ("redis://h", Some(""), "redis://h:6379/0", "", ""),
            ("redis://[::1]:7000/2", None, "redis://[::1]:7000/2", "", ""),
            ("redis://[::1]", None, "redis://[::1]:6379/0", "", ""),
            (
                "redis://h/1?read-timeout=3s&max_retries=2",
                None,
                "redis://h:6379/1",
                "",
                "",
            ),
            ("h:7000/1", None, "redis://h:7000/1", "", ""),
            ("192.0.2.1/5", None, "redis://192.0.2.1:6379/5", "", ""),
            (":secret@h/1", None, "redis://:****@h:6379/1", "", "secret"),
            (
                "unix:///run/redis.sock?db=1",
                None,
                "unix:///run/redis.sock?db=1",
                "",
                "",
            ),
            (
                "unix:///run/redis.sock",
                None,
                "unix:///run/redis.sock?db=0",
                "",
                "",
            ),
            (
                "unix://:secret@/r.sock?db=2",
                None,
                "unix://:****@/r.sock?db=2",
                "",
                "secret",
            ),
            ("unix:///a%20b.sock", None, "unix:///a b.sock?db=0", "", ""),
            (
                "redis://me:secret@main,s1,[::1],s3:7/1",
                None,
                "redis://me:****@main,s1:7,[::1]:7,s3:7/1",
                "me",
                "secret",
            ),
            (
                "redis://main,s1:8,s2/1",
                None,
                "redis://main,s1:8,s2:26379/1",
                "",
                "",
            ),
            ("redis://main,s1", None, "redis://main,s1:26379/0", "", ""),
            (
                "redis://:secret@h1:7000,h2:7001,h3/2",
                None,
                "redis://:****@h1:7000,h2:7001,h3:6379/2",
                "",
                "secret",
            ),
        ] {
            check(text, env, Ok((display, user, password)));
        }
    }

    #[test]
    fn the_sentinels_have_a_password_of_their_own() {
        for (text, secret, expected) in [
            ("redis://:a@main,s1/1", Some("secret"), Some("secret")),
            ("redis://:a@main,s1/1", Some(""), None),
            ("redis://:a@main,s1/1", None, None),
            ("redis://:a@h1/1", Some("secret"), None),
        ] {
            let url = MetaUrl::parse(text, None).unwrap();
            let url = url.with_sentinel_password(secret.map(str::to_owned));
            let shown = format!("{url} {url:?}");
            assert!(!shown.contains("secret"), "{shown}");
            let MetaUrl::Redis(url) = url else {
                panic!("{url:?}")
            };
            let found = match &url.hosts {
                RedisHosts::Sentinel { password, .. } => password.as_deref(),
                _ => None,
            };
            assert_eq!(found, expected, "{text}");
            assert_eq!(url.password.as_deref(), Some("a"));
        }
    }

    #[test]
    fn refused() {
        for (text, part) in [
            ("", "no scheme"),
            ("/var/lib/meta.db", "sqlite3://PATH"),
            ("sqlite3://", "path of a file"),
            ("sqlite3:///var/lib/", "path of a file"),
            ("sqlite3://:memory:", "not the path of a file"),
            ("sqlite3://m.db?table_prefix=a-b", "table prefix `a-b`"),
            ("sqlite3://m.db?prefix=x", "parameter `prefix`"),
            ("redis://h?colour=red", "parameter `colour`"),
            ("redis://h/x", "database `x`"),
            ("redis://h/-1", "database `-1`"),
            ("redis://h/1/2", "database `1/2`"),
            ("redis://h:port", "port is not a number"),
            ("redis://user:secret/1", "port is not a number"),
            ("redis://:se#cret@h", "%23"),
            ("redis://:secret%zz@h", "bad % escape"),
            ("redis://[::1", "not closed"),
            ("redis://,s1:1/1", "MASTER-NAME"),
            ("redis://master,/1", "MASTER-NAME"),
            ("redis://master,s1,,s2:1/1", "empty host"),
            ("redis://h1:7000,/1", "empty host"),
            ("redis://h1:7000,h2:secret/1", "port is not a number"),
            ("rediss://:secret@h/1", "Redis over TLS is not supported"),
            (
                "mysql://u:secret@(h:3306)/db",
                "MySQL is not supported because its engine is not built",
            ),
            ("postgres://u:secret@h/db", "PostgreSQL is not supported"),
            ("tikv://pd:2379/x", "TiKV is not supported"),
            ("etcd://h:2379/x", "etcd is not supported"),
            ("badger://dir", "Badger is not supported"),
            ("fdb://cluster", "FoundationDB is not supported"),
            ("ftp://h", "`ftp://` is not a metadata URL scheme"),
            ("unix://run/redis.sock", "no host `run`"),
            ("unix://redis.sock", "not absolute"),
            ("unix:///", "no path"),
            ("unix:///r.sock?db=a", "database `a`"),
        ] {
            check(text, None, Err(part));
        }
    }
}
