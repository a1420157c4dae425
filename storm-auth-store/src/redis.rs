//! A store for many machines: Redis, or what speaks its protocol.

use core::fmt;
use core::time::Duration;
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::Instant;
use std::{io, process, thread};

#[cfg(feature = "redis-cluster")]
use redis::cluster::{ClusterClient, ClusterClientBuilder, ClusterConfig, ClusterConnection};
use redis::{
    Client, Connection, ConnectionAddr, ConnectionInfo, ConnectionLike, IntoConnectionInfo, RedisError, RedisResult,
    Role, Script, ScriptInvocation, Value,
};
#[cfg(feature = "redis-tls")]
use redis::{ClientTlsConfig, TlsCertificates};
use storm_auth_core::Unix;
use storm_auth_core::store::{Lease, Record, StoreCommand, StoreFailure, StoreOp, StoreReply, TokenStore};
use zeroize::Zeroizing;

use crate::StoreError;

/// How long one operation may take: the wait for the kept connection, a new one, its handshake and both scripts. Each step gets what
/// the steps before it have left, and the machine gives an operation up after a second. Only what the system does before it
/// connects has its own end: to look up a name, and to try one address of it after the other. A cluster whose node stands still takes up to
/// twice as long, since its nodes are looked for anew.
const PATIENCE: Duration = Duration::from_millis(800);

/// How often a command is sent to a cluster, whose node may send it on to another. Each attempt gets its part of the time.
#[cfg(feature = "redis-cluster")]
const CLUSTER_ATTEMPTS: u32 = 2;

/// One step on a record, its lease and its note, by the server's own clock. It answers the record, who has the lease, and how often
/// requests have failed.
const STEP: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local command, owner = ARGV[1], ARGV[2]
local holder = redis.call('GET', KEYS[2])
local rests, failures = string.match(redis.call('GET', KEYS[3]) or '', '^(%d+) (%d+)$')
rests, failures = tonumber(rests or 0), failures or '0'
if command == 'lease' then
  if holder == owner or (not holder and rests <= now) then
    redis.call('SET', KEYS[2], owner, 'PX', ARGV[3])
    holder = owner
  end
elseif command == 'publish' then
  local kept = redis.call('GETRANGE', KEYS[1], 0, 44)
  local sent = string.sub(kept, 1, 13) == 'storm-auth 1 ' and tonumber(string.sub(kept, 14, 29), 16)
  local counts = sent and sent <= now + 3600000
  local older = not counts or string.sub(kept, 14) < string.sub(ARGV[3], 14, 45)
  local barred = owner ~= '' and holder and holder ~= owner
  if older and not barred then
    local left = math.max(1, math.min(ARGV[4] - now, 90000000))
    redis.call('SET', KEYS[1], ARGV[3], 'PX', string.format('%.0f', left))
    redis.call('DEL', KEYS[3])
    rests, failures = 0, '0'
  end
  if owner ~= '' and holder == owner then
    redis.call('DEL', KEYS[2])
    holder = false
  end
elseif command == 'release' and holder == owner then
  redis.call('DEL', KEYS[2])
  holder = false
  rests, failures = now + math.min(ARGV[3], 3600000), ARGV[4]
  local note = string.format('%.0f ', rests) .. failures
  redis.call('SET', KEYS[3], note, 'PX', string.format('%.0f', rests - now + 600000))
end
local lease = 'free'
if holder then
  lease = (command == 'lease' and holder == owner) and 'mine' or 'taken'
elseif rests > now then
  lease = string.format('%.0f', rests - now)
end
return { redis.call('GET', KEYS[1]), lease, failures }
";

/// Closes the gate, where an end is given, and answers until when it is closed.
const GATE: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local closed = tonumber(redis.call('GET', KEYS[1]) or '0') or 0
local wanted = math.min(tonumber(ARGV[1]), now + 3600000)
if wanted > closed and wanted > now then
  closed = wanted
  redis.call('SET', KEYS[1], string.format('%.0f', closed), 'PX', string.format('%.0f', closed - now))
end
return string.format('%.0f', closed)
";

/// Shares tokens among the processes of many machines through Redis or Valkey, version 5 or newer: one server, alone or the primary of
/// a replicated set, by its address or [by its sentinels](Self::sentinels), over TCP, TLS (feature `redis-tls`) or a Unix socket; or
/// [a cluster](Self::cluster) (feature `redis-cluster`).
///
/// Every operation is a script that runs as one step, by the server's clock. One connection is kept, and made anew when it breaks. A
/// server that loses its data, as a replica may that takes over, costs one token request. What lies there, below the prefix
/// `storm-auth:`, is the record until its token expires, the lease for ten seconds, how it rests, and the gate. A user with access to
/// `~storm-auth:*` and the commands `EVAL`, `EVALSHA`, `SCRIPT|LOAD`, `TIME`, `GET`, `GETRANGE`, `SET` and `DEL` is enough; by
/// sentinels also `ROLE`, in a cluster `PING` and `CLUSTER|SLOTS`.
///
/// Over TLS a server is trusted by what the system trusts. An authority of one's own is added to the system's, or the variable
/// `SSL_CERT_FILE` names a PEM file of all that the process is to trust, which counts for reqwest as well; or this store alone is given
/// [certificates](Self::certificates), also one of its own for a server that asks for it (`tls-auth-clients`, on by default in a server of
/// one's own).
///
/// ```no_run
/// use storm_auth_store::RedisStore;
///
/// let store = RedisStore::new("redis://:password@redis.internal:6379/0")?;
/// # drop(store);
/// # Ok::<(), storm_auth_store::StoreError>(())
/// ```
pub struct RedisStore {
    way: Way,
    /// Where it is, for people: without a password.
    address: String,
    prefix: String,
    step: Script,
    gate: Script,
    /// And the process that made it: a forked child must not use its parent's.
    connection: Mutex<Option<(u32, Link)>>,
}

/// How a connection is had.
enum Way {
    Server(Client),
    /// To the primary that the sentinels know by this name.
    Sentinels {
        sentinels: Vec<Client>,
        name: String,
        primary: ConnectionInfo,
    },
    #[cfg(feature = "redis-cluster")]
    Cluster {
        client: ClusterClient,
        /// Those that were named.
        nodes: Vec<ConnectionInfo>,
    },
}

/// A connection, or those to the nodes of a cluster.
enum Link {
    Server(Connection),
    #[cfg(feature = "redis-cluster")]
    Cluster(Box<ClusterConnection>),
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("address", &self.address)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl RedisStore {
    /// A store at this URL: `redis://[user][:password@]host[:port][/database]`, `rediss://…` over TLS, or `unix:///path`. Nothing
    /// is connected yet, so a server that is down does not stop anything.
    ///
    /// # Errors
    /// The URL is none of these; the error does not show it, since it may hold a password.
    pub fn new(url: &str) -> Result<Self, StoreError> {
        let info = read(url)?;
        let address = info.addr().to_string();
        Ok(Self::at(Way::Server(open(info)?), address))
    }

    /// By way of its sentinels, which know who is the primary now, and who is after a failover. The host of the store's own URL is then
    /// the name by which they know it, without a port; its user, password, database and TLS are the primary's. Each sentinel is named
    /// as a server is. They are asked one after the other when a connection is made, and whoever they name must say itself that it is
    /// a primary. Over TLS they have to name it by what stands in its certificate.
    ///
    /// ```no_run
    /// use storm_auth_store::RedisStore;
    ///
    /// let store = RedisStore::new("redis://:password@shop-primary/0")?
    ///     .sentinels(["redis://sentinel-1:26379", "redis://sentinel-2:26379", "redis://sentinel-3:26379"])?;
    /// # drop(store);
    /// # Ok::<(), storm_auth_store::StoreError>(())
    /// ```
    ///
    /// # Errors
    /// A URL cannot be read, there is none, or the store's own is a path's or a cluster's.
    pub fn sentinels<U: AsRef<str>>(mut self, urls: impl IntoIterator<Item = U>) -> Result<Self, StoreError> {
        let Way::Server(client) = self.way else {
            return Err(StoreError::new(
                "sentinels are named once, and for one primary; leave them out for a cluster".to_owned(),
            ));
        };
        let primary = client.get_connection_info().clone();
        let (ConnectionAddr::Tcp(name, _) | ConnectionAddr::TcpTls { host: name, .. }) = primary.addr() else {
            let path = "the Redis URL names a path; where sentinels are asked, name what they know the primary by";
            return Err(StoreError::new(path.to_owned()));
        };
        let name = name.clone();
        // By the certificates that the primary may have been given already.
        let sentinels = urls.into_iter().map(|url| open(alike(read(url.as_ref())?, primary.addr())));
        let sentinels = sentinels.collect::<Result<Vec<_>, _>>()?;
        if sentinels.is_empty() {
            return Err(StoreError::new("no sentinel is named; name at least one".to_owned()));
        }
        self.address = format!("{name} (by its sentinels)");
        self.way = Way::Sentinels { sentinels, name, primary };
        Ok(self)
    }

    /// TLS by these certificates; those of the primary count for the sentinels that speak TLS as well.
    ///
    /// # Errors
    /// The store's URL is not a `rediss://` one, or they cannot be read.
    #[cfg(feature = "redis-tls")]
    pub fn certificates(mut self, certificates: &RedisCertificates) -> Result<Self, StoreError> {
        certificates.check()?;
        let unusable = |error: RedisError| {
            StoreError::new(format!(
                "the certificates for Redis cannot be used: {error}; name a rediss:// URL, and give PEM, and the certificate's own key"
            ))
        };
        let with = |info: &ConnectionInfo| Client::build_with_tls(info.clone(), certificates.taken()).map_err(unusable);
        match &mut self.way {
            Way::Server(client) => *client = with(client.get_connection_info())?,
            Way::Sentinels { sentinels, primary, .. } => {
                *primary = with(primary)?.get_connection_info().clone();
                for sentinel in
                    sentinels.iter_mut().filter(|sentinel| speaks_tls(sentinel.get_connection_info().addr()))
                {
                    *sentinel = with(sentinel.get_connection_info())?;
                }
            }
            #[cfg(feature = "redis-cluster")]
            Way::Cluster { client, nodes } => {
                nodes.iter().try_for_each(|node| with(node).map(drop))?;
                *client = over(nodes).certs(certificates.taken()).build().map_err(unusable)?;
            }
        }
        Ok(self)
    }

    /// A cluster, by some of its nodes, each named as a server is; the others are found through them. User and password are the same
    /// for all. The first one that answers is asked for the rest, so name more than one.
    ///
    /// ```no_run
    /// use storm_auth_store::RedisStore;
    ///
    /// let store = RedisStore::cluster(["redis://:password@node-1:6379", "redis://:password@node-2:6379"])?;
    /// # drop(store);
    /// # Ok::<(), storm_auth_store::StoreError>(())
    /// ```
    ///
    /// # Errors
    /// A URL cannot be read, there is none, or they differ in user, password or TLS, or name a path.
    #[cfg(feature = "redis-cluster")]
    pub fn cluster<U: AsRef<str>>(urls: impl IntoIterator<Item = U>) -> Result<Self, StoreError> {
        let nodes = urls.into_iter().map(|url| read(url.as_ref())).collect::<Result<Vec<_>, _>>()?;
        let addresses: Vec<_> = nodes.iter().map(|node| node.addr().to_string()).collect();
        let client = over(&nodes).build().map_err(|error| {
            StoreError::new(format!("the URLs of the Redis cluster do not go together: {error}; correct them"))
        })?;
        Ok(Self::at(Way::Cluster { client, nodes }, addresses.join(", ")))
    }

    fn at(way: Way, address: String) -> Self {
        Self {
            way,
            address,
            prefix: "storm-auth:".to_owned(),
            step: Script::new(STEP),
            gate: Script::new(GATE),
            connection: Mutex::new(None),
        }
    }

    /// What all keys begin with, in place of `storm-auth:`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Runs a script, on a new connection where the kept one has broken since: each of them may run twice.
    fn run<T: redis::FromRedisValue>(&self, script: &ScriptInvocation<'_>, end: Instant) -> RedisResult<T> {
        let mut kept = self.kept(end)?;
        if let Some((process, parents)) = kept.take_if(|(process, _)| *process != process::id()) {
            // Not dropped: its parent goes on with it, and TLS would say goodbye.
            core::mem::forget((process, parents));
        }
        if let Some((_, mut connection)) = kept.take() {
            match script.invoke(&mut Timed { link: &mut connection, end }) {
                Ok(found) => {
                    *kept = Some((process::id(), connection));
                    return Ok(found);
                }
                Err(error) if error.is_timeout() => return Err(error),
                // Broken, or to a server that is no longer the one to write to.
                Err(_) => {}
            }
        }
        let mut connection = self.way.connect(end)?;
        let found = script.invoke(&mut Timed { link: &mut connection, end })?;
        *kept = Some((process::id(), connection));
        Ok(found)
    }

    /// The kept connection, waited for with an end: in a forked child, the thread that used it may not be there.
    fn kept(&self, end: Instant) -> RedisResult<MutexGuard<'_, Option<(u32, Link)>>> {
        loop {
            match self.connection.try_lock() {
                Ok(kept) => return Ok(kept),
                Err(TryLockError::Poisoned(kept)) => return Ok(kept.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(Duration::from_millis(1)),
                Err(TryLockError::WouldBlock) => {
                    let problem = "another thread of this process is using it";
                    return Err(io::Error::new(io::ErrorKind::ResourceBusy, problem).into());
                }
            }
        }
    }

    fn try_perform(&self, op: &StoreOp) -> RedisResult<StoreReply> {
        let end = Instant::now() + PATIENCE;
        // In braces, so that a cluster keeps what belongs together in one place.
        let key = |part: &str| format!("{}{{{}}}:{part}", self.prefix, op.record);
        let mut step = self.step.key(key("token"));
        step.key(key("lease")).key(key("note"));
        let mut close = 0;
        match &op.command {
            StoreCommand::Read => step.arg("read").arg(""),
            StoreCommand::CloseGate { until } => {
                close = until.as_millis().min(MOST);
                step.arg("read").arg("")
            }
            StoreCommand::Lease { owner, ttl } => step.arg("lease").arg(owner.to_string()).arg(millis(*ttl).max(1)),
            StoreCommand::Publish { owner, record } => step
                .arg("publish")
                .arg(owner.map_or_else(String::new, |owner| owner.to_string()))
                .arg(&record.to_bytes()[..])
                .arg(record.expires_at.as_millis().min(MOST)),
            StoreCommand::Release { owner, rest, failures } => {
                step.arg("release").arg(owner.to_string()).arg(millis(*rest)).arg(*failures)
            }
        };
        let (record, lease, failures): (Option<Vec<u8>>, String, String) = self.run(&step, end)?;
        let mut gate = self.gate.key(format!("{}{{{}}}:gate", self.prefix, op.gate));
        let gate: String = self.run(gate.arg(close), end)?;
        Ok(StoreReply {
            record: record.map(Zeroizing::new).and_then(|bytes| Record::from_bytes(&bytes)),
            gate: gate.parse().ok().filter(|until| *until > 0).map(Unix::from_millis),
            lease: match lease.as_str() {
                "free" => Lease::Free,
                "mine" => Lease::Mine,
                rest => rest.parse().map_or(Lease::Taken, |rest| Lease::Resting(Duration::from_millis(rest))),
            },
            failures: failures.parse().unwrap_or(u32::MAX),
        })
    }
}

impl TokenStore for RedisStore {
    fn perform(&self, op: &StoreOp) -> Result<StoreReply, StoreFailure> {
        self.try_perform(op).map_err(|error| StoreFailure::new(format!("Redis at {}: {}", self.address, told(&error))))
    }
}

/// Certificates of one's own for TLS to Redis, in PEM.
///
/// ```no_run
/// use std::fs;
/// use storm_auth_store::{RedisCertificates, RedisStore};
///
/// let certificates = RedisCertificates::new()
///     .authorities(fs::read("/etc/redis/ca.pem")?)
///     .client(fs::read("/etc/redis/client.pem")?, fs::read("/etc/redis/client.key")?);
/// let store = RedisStore::new("rediss://redis.internal")?.certificates(&certificates)?;
/// # drop(store);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[cfg(feature = "redis-tls")]
#[derive(Clone, Default)]
pub struct RedisCertificates {
    authorities: Option<Vec<u8>>,
    client: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
}

#[cfg(feature = "redis-tls")]
impl fmt::Debug for RedisCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { authorities, client } = self;
        f.debug_struct("RedisCertificates")
            .field("authorities", &authorities.is_some())
            .field("client", &client.is_some())
            .finish()
    }
}

#[cfg(feature = "redis-tls")]
impl RedisCertificates {
    /// None: as if there were no such thing.
    pub fn new() -> Self {
        Self::default()
    }

    /// A server is trusted by these, in place of those that the system trusts.
    pub fn authorities(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.authorities = Some(pem.into());
        self
    }

    /// What is shown to a server that asks for a certificate, with those that lead from it to an authority, and its key. The key is wiped
    /// here when it goes; what the redis crate and rustls have of it is not.
    pub fn client(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.client = Some((certificate.into(), Zeroizing::new(key.into())));
        self
    }

    /// What is no certificate is skipped when it is read.
    fn check(&self) -> Result<(), StoreError> {
        let given = [self.authorities.as_ref(), self.client.as_ref().map(|(certificate, _)| certificate)];
        let begins = b"-----BEGIN CERTIFICATE-----";
        match given.into_iter().flatten().all(|pem| pem.windows(begins.len()).any(|part| part == begins)) {
            true => Ok(()),
            false => {
                Err(StoreError::new("there is no certificate in what was given as such; give it in PEM".to_owned()))
            }
        }
    }

    fn taken(&self) -> TlsCertificates {
        let client = self.client.clone();
        let client_tls = client.map(|(client_cert, client_key)| ClientTlsConfig {
            client_cert,
            client_key: client_key.as_slice().to_owned(),
        });
        TlsCertificates { client_tls, root_cert: self.authorities.clone() }
    }
}

#[cfg(feature = "redis-cluster")]
fn over(nodes: &[ConnectionInfo]) -> ClusterClientBuilder {
    let again = CLUSTER_ATTEMPTS - 1;
    ClusterClient::builder(nodes.to_owned()).retries(again).min_retry_wait(20).max_retry_wait(100)
}

impl Way {
    fn connect(&self, end: Instant) -> RedisResult<Link> {
        match self {
            Self::Server(client) => connect(client, end).map(Link::Server),
            Self::Sentinels { sentinels, name, primary } => {
                let mut problem = None;
                for (asked, sentinel) in sentinels.iter().enumerate() {
                    // One that is silent, or names a server that is, leaves time for the others.
                    let end = Instant::now() + part(left(end)?, sentinels.len() - asked);
                    match primary_by(sentinel, name, primary, end) {
                        Ok(connection) => return Ok(Link::Server(connection)),
                        Err(error) => problem = Some(error),
                    }
                }
                Err(problem.unwrap_or_else(|| io::Error::from(io::ErrorKind::NotFound).into()))
            }
            #[cfg(feature = "redis-cluster")]
            Self::Cluster { client, nodes } => {
                nodes.iter().for_each(|node| choose_provider(node.addr()));
                let left = left(end)?;
                // Any of those that are named may be silent.
                let config =
                    ClusterConfig::new().set_connection_timeout(part(left, nodes.len() + 1)).set_response_timeout(left);
                client.get_connection_with_config(config).map(|connection| Link::Cluster(Box::new(connection)))
            }
        }
    }
}

/// The primary of this name, by one sentinel's word and its own. Asked by our own few lines, as the redis crate's would wait for a
/// silent sentinel as long as the system does.
fn primary_by(sentinel: &Client, name: &str, primary: &ConnectionInfo, end: Instant) -> RedisResult<Connection> {
    let asked_until = Instant::now() + part(left(end)?, 2);
    let mut sentinel = Link::Server(connect(sentinel, asked_until)?);
    let mut timed = Timed { link: &mut sentinel, end: asked_until };
    let named =
        redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(name).query::<Option<(String, u16)>>(&mut timed)?;
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
    let mut link = Link::Server(connect(&Client::open(primary.clone().set_addr(addr))?, end)?);
    let role = redis::cmd("ROLE").query::<Role>(&mut Timed { link: &mut link, end })?;
    match (link, role) {
        (Link::Server(connection), Role::Primary { .. }) => Ok(connection),
        _ => {
            let demoted = "a sentinel names a server that is no primary; it may be in the midst of a failover";
            Err(io::Error::other(demoted).into())
        }
    }
}

/// What one of so many may take, and leave as much for each other one.
fn part(left: Duration, of: usize) -> Duration {
    left / u32::try_from(of).unwrap_or(u32::MAX)
}

fn connect(client: &Client, end: Instant) -> RedisResult<Connection> {
    choose_provider(client.get_connection_info().addr());
    client.get_connection_with_timeout(left(end)?)
}

impl Link {
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

/// What a URL names. The error does not show it, since it may hold a password.
fn read(url: &str) -> Result<ConnectionInfo, StoreError> {
    if url.starts_with("rediss:") && cfg!(not(feature = "redis-tls")) {
        return Err(StoreError::new("a rediss:// URL needs the feature redis-tls; switch it on".to_owned()));
    }
    let info = url.into_connection_info().map_err(|_| unreadable())?;
    match info.addr() {
        ConnectionAddr::TcpTls { insecure: true, .. } => {
            let unchecked = "the Redis URL asks for TLS without checking the server; leave #insecure out";
            Err(StoreError::new(unchecked.to_owned()))
        }
        _ => Ok(info),
    }
}

/// With the certificates of the other one, where both speak TLS.
fn alike(info: ConnectionInfo, other: &ConnectionAddr) -> ConnectionInfo {
    match (info.addr().clone(), other) {
        (ConnectionAddr::TcpTls { host, port, insecure, .. }, ConnectionAddr::TcpTls { tls_params, .. }) => {
            info.set_addr(ConnectionAddr::TcpTls { host, port, insecure, tls_params: tls_params.clone() })
        }
        _ => info,
    }
}

#[cfg(feature = "redis-tls")]
fn speaks_tls(to: &ConnectionAddr) -> bool {
    matches!(to, ConnectionAddr::TcpTls { .. })
}

fn open(info: ConnectionInfo) -> Result<Client, StoreError> {
    Client::open(info).map_err(|_| unreadable())
}

fn unreadable() -> StoreError {
    let forms = if cfg!(feature = "redis-tls") { "redis://, rediss:// or unix://" } else { "redis:// or unix://" };
    StoreError::new(format!("the Redis URL cannot be read; write it as {forms}, with %-escapes in the password"))
}

/// What is left until then, of which there has to be something.
fn left(end: Instant) -> io::Result<Duration> {
    // A socket that is given no time at all would wait for ever.
    let left = end.saturating_duration_since(Instant::now());
    if left < Duration::from_millis(1) { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// What an error says, and what to change where that is known and the error does not tell.
fn told(error: &RedisError) -> String {
    if error.is_timeout() {
        // The system's own words are that a resource is temporarily unavailable.
        return "it did not answer in time; look at its load and the way there, and whether both ends speak TLS, or neither"
            .to_owned();
    }
    let text = error.to_string();
    let change = if text.contains("read only replica") {
        "name the primary, or promote this replica"
    } else if text.contains("UnknownIssuer") {
        "add the authority that issued the server's certificate to those that the system trusts, give it to the store as a certificate, or \
         name a file of all that are to be trusted in SSL_CERT_FILE"
    } else if text.contains("CertificateRequired") {
        "this store has no certificate to show; give it one, or set tls-auth-clients to no, and let it log in with a password"
    } else {
        return text;
    };
    format!("{text}; {change}")
}

/// The most milliseconds that a script's floating-point numbers hold exactly.
const MOST: u64 = 1 << 52;

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX).min(MOST)
}

/// rustls wants to know whose cryptography to use where more than one is linked, as beside reqwest and ureq, and redis cannot be told
/// for itself. A process that has chosen already is left alone; one that wants another choice makes it before its first call.
#[cfg(feature = "redis-tls")]
fn choose_provider(to: &ConnectionAddr) {
    if speaks_tls(to) && rustls::crypto::CryptoProvider::get_default().is_none() {
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

#[cfg(not(feature = "redis-tls"))]
fn choose_provider(_: &ConnectionAddr) {}
