//! The way to Redis: to one server, to the primary that sentinels name, or into a cluster; and the connection that is had by it.

use core::fmt;
use core::time::Duration;
use std::io;
use std::time::Instant;

#[cfg(feature = "redis-tls")]
use redis::TlsCertificates;
#[cfg(feature = "redis-cluster")]
use redis::cluster::{ClusterClient, ClusterClientBuilder, ClusterConfig, ClusterConnection};
use redis::{
    Client, Connection, ConnectionAddr, ConnectionInfo, ConnectionLike, FromRedisValue, IntoConnectionInfo,
    RedisResult, Role, ScriptInvocation, Value,
};

use crate::StoreError;

/// How often a command is sent to a cluster, whose node may send it on to another. Each attempt gets its part of the time.
#[cfg(feature = "redis-cluster")]
const CLUSTER_ATTEMPTS: u32 = 2;

/// How a connection is had.
pub(super) enum Way {
    Server(ConnectionInfo),
    /// The host of the primary is the name by which the sentinels know it.
    Sentinels {
        primary: ConnectionInfo,
        sentinels: Vec<ConnectionInfo>,
    },
    #[cfg(feature = "redis-cluster")]
    Cluster {
        client: ClusterClient,
        /// Those that were named.
        nodes: Vec<ConnectionInfo>,
    },
}

/// Where it leads, for people: without a password.
impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(server) => server.addr().fmt(f),
            Self::Sentinels { primary, .. } => write!(f, "{} (by its sentinels)", host(primary.addr())),
            #[cfg(feature = "redis-cluster")]
            Self::Cluster { nodes, .. } => {
                let addresses: Vec<_> = nodes.iter().map(|node| node.addr().to_string()).collect();
                f.write_str(&addresses.join(", "))
            }
        }
    }
}

impl Way {
    pub(super) fn to(url: &str) -> Result<Self, StoreError> {
        read(url).map(Self::Server)
    }

    pub(super) fn by<U: AsRef<str>>(self, sentinels: impl IntoIterator<Item = U>) -> Result<Self, StoreError> {
        let wrong = |what: &str| Err(StoreError::new(what.to_owned()));
        let Self::Server(primary) = self else {
            return wrong("sentinels are named once, and for one primary; leave them out for a cluster");
        };
        if let ConnectionAddr::Unix(_) = primary.addr() {
            return wrong("the Redis URL names a path; where sentinels are asked, name what they know the primary by");
        }
        let sentinels = sentinels.into_iter().map(|url| read(url.as_ref())).collect::<Result<Vec<_>, _>>()?;
        if sentinels.is_empty() {
            return wrong("no sentinel is named; name at least one");
        }
        Ok(Self::Sentinels { primary, sentinels })
    }

    #[cfg(feature = "redis-cluster")]
    pub(super) fn into_cluster<U: AsRef<str>>(urls: impl IntoIterator<Item = U>) -> Result<Self, StoreError> {
        let nodes = urls.into_iter().map(|url| read(url.as_ref())).collect::<Result<Vec<_>, _>>()?;
        let client = cluster(&nodes).build().map_err(|error| {
            StoreError::new(format!("the URLs of the Redis cluster do not go together: {error}; correct them"))
        })?;
        Ok(Self::Cluster { client, nodes })
    }

    /// The same way by these certificates; an error where it is none of TLS.
    #[cfg(feature = "redis-tls")]
    pub(super) fn with(self, certificates: &TlsCertificates) -> RedisResult<Self> {
        let with = |server: ConnectionInfo| -> RedisResult<ConnectionInfo> {
            Ok(Client::build_with_tls(server, certificates.clone())?.get_connection_info().clone())
        };
        Ok(match self {
            Self::Server(server) => Self::Server(with(server)?),
            Self::Sentinels { primary, sentinels } => Self::Sentinels { primary: with(primary)?, sentinels },
            #[cfg(feature = "redis-cluster")]
            Self::Cluster { nodes, .. } => {
                let nodes = nodes.into_iter().map(with).collect::<RedisResult<Vec<_>>>()?;
                Self::Cluster { client: cluster(&nodes).certs(certificates.clone()).build()?, nodes }
            }
        })
    }

    pub(super) fn connect(&self, end: Instant) -> RedisResult<Link> {
        match self {
            Self::Server(server) => connect(server, end).map(Link::Server),
            Self::Sentinels { primary, sentinels } => {
                let mut found = Err(io::Error::from(io::ErrorKind::NotFound).into());
                for (asked, sentinel) in sentinels.iter().enumerate() {
                    // One that is silent, or names a server that is, leaves time for the others.
                    let end = Instant::now() + part(left(end)?, sentinels.len() - asked);
                    found = primary_by(sentinel, primary, end);
                    if found.is_ok() {
                        break;
                    }
                }
                found
            }
            #[cfg(feature = "redis-cluster")]
            Self::Cluster { client, nodes } => {
                nodes.iter().for_each(|node| choose_provider(node.addr()));
                let left = left(end)?;
                // Any of those that are named may be silent.
                let config = ClusterConfig::new()
                    .set_connection_timeout(part(left, nodes.len() + 1))
                    .set_response_timeout(left / CLUSTER_ATTEMPTS);
                client.get_connection_with_config(config).map(|connection| Link::Cluster(Box::new(connection)))
            }
        }
    }
}

/// A connection, or those to the nodes of a cluster.
pub(super) enum Link {
    Server(Connection),
    #[cfg(feature = "redis-cluster")]
    Cluster(Box<ClusterConnection>),
}

impl Link {
    pub(super) fn invoke<T: FromRedisValue>(&mut self, script: &ScriptInvocation<'_>, end: Instant) -> RedisResult<T> {
        script.invoke(&mut Timed { link: self, end })
    }

    fn ask<T: FromRedisValue>(&mut self, command: &[&str], end: Instant) -> RedisResult<T> {
        let mut words = redis::Cmd::new();
        words.arg(command);
        words.query(&mut Timed { link: self, end })
    }

    fn patience(&self, left: Duration) -> RedisResult<()> {
        match self {
            Self::Server(connection) => {
                connection.set_read_timeout(Some(left))?;
                connection.set_write_timeout(Some(left))
            }
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(connection) => {
                connection.set_read_timeout(Some(left / CLUSTER_ATTEMPTS))?;
                connection.set_write_timeout(Some(left / CLUSTER_ATTEMPTS))
            }
        }
    }

    fn raw(&self) -> &dyn ConnectionLike {
        match self {
            Self::Server(connection) => connection,
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(connection) => &**connection,
        }
    }

    fn raw_mut(&mut self) -> &mut dyn ConnectionLike {
        match self {
            Self::Server(connection) => connection,
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(connection) => &mut **connection,
        }
    }
}

/// A connection on which each command gets what is left of its operation's time.
struct Timed<'a> {
    link: &'a mut Link,
    end: Instant,
}

impl Timed<'_> {
    fn in_time(&mut self) -> RedisResult<&mut dyn ConnectionLike> {
        self.link.patience(left(self.end)?)?;
        Ok(self.link.raw_mut())
    }
}

impl ConnectionLike for Timed<'_> {
    fn req_packed_command(&mut self, cmd: &[u8]) -> RedisResult<Value> {
        self.in_time()?.req_packed_command(cmd)
    }

    fn req_packed_commands(&mut self, cmd: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        self.in_time()?.req_packed_commands(cmd, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.link.raw().get_db()
    }

    fn check_connection(&mut self) -> bool {
        self.in_time().is_ok_and(ConnectionLike::check_connection)
    }

    fn is_open(&self) -> bool {
        self.link.raw().is_open()
    }
}

/// The primary, by one sentinel's word and its own. These lines are ours, as the redis crate's would wait for a silent sentinel as long
/// as the system does.
fn primary_by(sentinel: &ConnectionInfo, primary: &ConnectionInfo, end: Instant) -> RedisResult<Link> {
    let asked_until = Instant::now() + part(left(end)?, 2);
    let mut sentinel = Link::Server(connect(&trusting_as(sentinel, primary), asked_until)?);
    let name = host(primary.addr());
    let named = sentinel.ask::<Option<(String, u16)>>(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", name], asked_until)?;
    let Some((host, port)) = named else {
        let unknown = format!("the sentinels know no primary by the name {name}; correct the name, or add it there");
        return Err(io::Error::new(io::ErrorKind::NotFound, unknown).into());
    };
    let addr = match primary.addr().clone() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure, tls_params }
        }
        _ => ConnectionAddr::Tcp(host, port),
    };
    let mut link = Link::Server(connect(&primary.clone().set_addr(addr), end)?);
    match link.ask(&["ROLE"], end)? {
        Role::Primary { .. } => Ok(link),
        _ => {
            let demoted = "a sentinel names a server that is no primary; it may be in the midst of a failover";
            Err(io::Error::other(demoted).into())
        }
    }
}

/// A sentinel by the certificates of its primary, where both speak TLS.
fn trusting_as(sentinel: &ConnectionInfo, primary: &ConnectionInfo) -> ConnectionInfo {
    match (sentinel.addr().clone(), primary.addr()) {
        (ConnectionAddr::TcpTls { host, port, insecure, .. }, ConnectionAddr::TcpTls { tls_params, .. }) => {
            let tls_params = tls_params.clone();
            sentinel.clone().set_addr(ConnectionAddr::TcpTls { host, port, insecure, tls_params })
        }
        _ => sentinel.clone(),
    }
}

fn connect(server: &ConnectionInfo, end: Instant) -> RedisResult<Connection> {
    choose_provider(server.addr());
    Client::open(server.clone())?.get_connection_with_timeout(left(end)?)
}

#[cfg(feature = "redis-cluster")]
fn cluster(nodes: &[ConnectionInfo]) -> ClusterClientBuilder {
    ClusterClient::builder(nodes.to_owned()).retries(CLUSTER_ATTEMPTS - 1).min_retry_wait(20).max_retry_wait(100)
}

/// What a URL names. The error does not show it, since it may hold a password.
fn read(url: &str) -> Result<ConnectionInfo, StoreError> {
    if url.starts_with("rediss:") && cfg!(not(feature = "redis-tls")) {
        return Err(StoreError::new("a rediss:// URL needs the feature redis-tls; switch it on".to_owned()));
    }
    let info = url.into_connection_info().map_err(|_| {
        let forms = if cfg!(feature = "redis-tls") { "redis://, rediss:// or unix://" } else { "redis:// or unix://" };
        StoreError::new(format!("the Redis URL cannot be read; write it as {forms}, with %-escapes in the password"))
    })?;
    match info.addr() {
        ConnectionAddr::TcpTls { insecure: true, .. } => {
            let unchecked = "the Redis URL asks for TLS without checking the server; leave #insecure out";
            Err(StoreError::new(unchecked.to_owned()))
        }
        _ => Ok(info),
    }
}

fn host(addr: &ConnectionAddr) -> &str {
    match addr {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host,
        _ => "", // a path has none, and no sentinel is asked for one
    }
}

/// What is left until then, of which there has to be something.
fn left(end: Instant) -> io::Result<Duration> {
    // A socket that is given no time at all would wait for ever.
    let left = end.saturating_duration_since(Instant::now());
    if left < Duration::from_millis(1) { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// What one of so many may take, and leave as much for each other one.
fn part(left: Duration, of: usize) -> Duration {
    left / u32::try_from(of).unwrap_or(u32::MAX)
}

/// rustls wants to know whose cryptography to use where more than one is linked, as beside reqwest and ureq, and redis cannot be told
/// for itself. A process that has chosen already is left alone; one that wants another choice makes it before its first call.
#[cfg(feature = "redis-tls")]
fn choose_provider(to: &ConnectionAddr) {
    let over_tls = matches!(to, ConnectionAddr::TcpTls { .. });
    if over_tls && rustls::crypto::CryptoProvider::get_default().is_none() {
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

#[cfg(not(feature = "redis-tls"))]
fn choose_provider(_: &ConnectionAddr) {}
