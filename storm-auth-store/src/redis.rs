//! A store for many machines: Redis, or what speaks its protocol.

#[cfg(feature = "redis-tls")]
mod certificates;
mod link;

use core::fmt;
use core::time::Duration;
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::Instant;
use std::{io, process, thread};

use redis::{FromRedisValue, RedisError, RedisResult, Script, ScriptInvocation};
use storm_auth_core::Unix;
use storm_auth_core::store::{Lease, Record, StoreCommand, StoreFailure, StoreOp, StoreReply, TokenStore};
use zeroize::Zeroizing;

use crate::StoreError;
use link::{Link, Way};

#[cfg(feature = "redis-tls")]
pub use certificates::RedisCertificates;

/// How long one operation may take: the wait for the kept connection, a new one, its handshake and both scripts. Each step gets what
/// the steps before it have left, and the machine gives an operation up after a second. Only what the system does before it
/// connects has its own end: to look up a name, and to try one address of it after the other. In a cluster whose node stands still it takes
/// up to twice as long, since the redis crate looks for the nodes anew with each attempt.
const PATIENCE: Duration = Duration::from_millis(800);

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

/// Shares tokens among the processes of many machines through Redis: one server, alone or the primary of a replicated set, by its
/// address or [by its sentinels](Self::sentinels), over TCP, TLS (feature `redis-tls`) or a Unix socket; or
/// [a cluster](Self::cluster) (feature `redis-cluster`). It has to be version 5 or newer, where a script that asked for the time may
/// write; the tests run on version 7. Valkey has the same commands and scripts, and is not in the tests.
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
    prefix: String,
    step: Script,
    gate: Script,
    /// And the process that made it: a forked child must not use its parent's.
    connection: Mutex<Option<(u32, Link)>>,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("address", &format_args!("{}", self.way))
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
        Way::to(url).map(Self::by)
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
        self.way = self.way.by(urls)?;
        Ok(self)
    }

    /// TLS by these certificates; those of the primary count for the sentinels that speak TLS as well.
    ///
    /// # Errors
    /// The store's URL is not a `rediss://` one, or they cannot be read.
    #[cfg(feature = "redis-tls")]
    pub fn certificates(mut self, certificates: &RedisCertificates) -> Result<Self, StoreError> {
        self.way = self.way.with(&certificates.read()?).map_err(|error| {
            StoreError::new(format!(
                "the certificates for Redis cannot be used: {error}; name a rediss:// URL, and give PEM, and the certificate's own key"
            ))
        })?;
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
        Way::into_cluster(urls).map(Self::by)
    }

    fn by(way: Way) -> Self {
        Self {
            way,
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
    fn run<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>, end: Instant) -> RedisResult<T> {
        let mut kept = self.kept(end)?;
        if let Some((process, parents)) = kept.take_if(|(process, _)| *process != process::id()) {
            // Not dropped: its parent goes on with it, and TLS would say goodbye.
            core::mem::forget((process, parents));
        }
        if let Some((_, mut link)) = kept.take() {
            match link.invoke(script, end) {
                Ok(found) => {
                    *kept = Some((process::id(), link));
                    return Ok(found);
                }
                Err(error) if error.is_timeout() => return Err(error),
                // Broken, or to a server that is no longer the one to write to.
                Err(_) => {}
            }
        }
        let mut link = self.way.connect(end)?;
        let found = link.invoke(script, end)?;
        *kept = Some((process::id(), link));
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
        self.try_perform(op).map_err(|error| StoreFailure::new(format!("Redis at {}: {}", self.way, told(&error))))
    }
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
        "add the authority that issued the server's certificate to those that the system trusts, hand it to RedisStore::certificates, or \
         name a file of all that are to be trusted in SSL_CERT_FILE"
    } else if text.contains("CertificateRequired") {
        "this store has no certificate to show; hand one to RedisStore::certificates, or set tls-auth-clients to no, and let it log in with a password"
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
