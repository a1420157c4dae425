//! R69: what is sealed is read by holders of the client secret, and by nobody else.

use std::time::Duration;

use storm_auth_core::store::{Lease, Order, Owner, Record, StoreCommand, StoreOp, TokenStore};
use storm_auth_core::{Credentials, HttpHosts, Key, Scope, TokenUrl, Unix, scope};
use storm_auth_store::Sealed;
use storm_auth_tests::memory_store::MemoryStore;
use storm_auth_tests::store_conformance;

const TOKEN: &[u8] = b"eyJhbGciOiJSUzI1NiJ9.t0ken";

fn key(secret: &str) -> Key {
    let url = TokenUrl::parse("https://identity.storm.io/1.0/connect/token", &HttpHosts::default()).unwrap();
    Key::new(url, Credentials::new("shop", secret).unwrap(), Scope::new(scope::LAB).unwrap())
}

fn record() -> Record {
    let order = Order { sent: Unix::from_millis(1_000), id: 5 };
    Record { order, expires_at: Unix::from_millis(u64::MAX / 2), body: TOKEN.to_vec().into() }
}

fn op(secret: &str, command: StoreCommand) -> StoreOp {
    StoreOp::for_key(&key(secret), "", command)
}

#[test]
fn r69_a_sealed_store_keeps_to_the_protocol() {
    let store = MemoryStore::new();
    store.set_time(std::time::SystemTime::now().into());
    store_conformance::check(|| Box::new(Sealed::new(store.clone())));
}

#[test]
fn r69_a_sealed_record_shows_its_reader_nothing_and_is_another_one_each_time() {
    let (store, publish) = (MemoryStore::new(), StoreCommand::Publish { owner: None, record: record() });
    let sealed = Sealed::new(store.clone());
    let op = op("S3cret", publish);
    assert_eq!(sealed.perform(&op).unwrap().record.unwrap().body[..], *TOKEN);
    let first = store.record(op.record).unwrap();
    assert!(!first.to_bytes().windows(8).any(|shown| TOKEN.windows(8).any(|token| token == shown)));
    store.lose_everything();
    sealed.perform(&op).unwrap();
    assert_ne!(store.record(op.record).unwrap().body, first.body);
}

#[test]
fn r69_r70_what_another_secret_sealed_or_somebody_changed_is_a_miss() {
    let store = MemoryStore::new();
    let sealed = Sealed::new(store.clone());
    let ours = op("S3cret", StoreCommand::Publish { owner: None, record: record() });
    sealed.perform(&ours).unwrap();
    let kept = store.record(ours.record).unwrap();

    let mut changed: Vec<Record> = (0..kept.body.len())
        .map(|at| {
            let mut changed = kept.clone();
            changed.body[at] ^= 1;
            changed
        })
        .collect();
    changed.extend(
        (0..kept.body.len()).map(|length| Record { body: kept.body[..length].to_vec().into(), ..kept.clone() }),
    );
    changed.push(Record { expires_at: kept.expires_at + Duration::from_millis(1), ..kept.clone() });
    changed.push(Record { order: Order { id: 6, ..kept.order }, ..kept.clone() });
    for (number, record) in (2_000..).zip(changed) {
        // As a writer without the secret would put it there.
        let order = Order { sent: Unix::from_millis(number), ..record.order };
        let forged = Record { order, ..record };
        store.perform(&op("S3cret", StoreCommand::Publish { owner: None, record: forged })).unwrap();
        assert!(sealed.perform(&op("S3cret", StoreCommand::Read)).unwrap().record.is_none(), "{number}");
    }

    // A key that leads to the same record by another secret there is none; a body of another record is as foreign.
    let theirs = op("0ther", StoreCommand::Publish { owner: None, record: record() });
    assert_ne!(theirs.record, ours.record);
    let moved = StoreCommand::Publish { owner: None, record: kept };
    store.perform(&op("0ther", moved)).unwrap();
    assert!(sealed.perform(&op("0ther", StoreCommand::Read)).unwrap().record.is_none());
}

#[test]
fn r58_a_sealed_store_shows_no_key() {
    let op = op("S3cret", StoreCommand::Lease { owner: Owner(1), ttl: Duration::from_secs(10) });
    assert_eq!(format!("{:?}", op.sealing_key()), "[sealing key]");
    assert!(!format!("{op:?}").contains("S3cret"));
    assert_eq!(Sealed::new(MemoryStore::new()).perform(&op).unwrap().lease, Lease::Mine);
}
