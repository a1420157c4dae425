//! A cluster of Redis servers, each with a part of the keys.

use storm_auth_core::store::{Lease, StoreCommand, TokenStore};
use storm_auth_store::RedisStore;
use storm_auth_tests::store_conformance;

use crate::redis::{Server, TlsServer, free_port, works};
use crate::{Folder, lease, op, publish, until};

/// Keys are spread over so many slots.
const SLOTS: usize = 16_384;

fn thirds() -> [Vec<usize>; 3] {
    let third = SLOTS.div_ceil(3);
    [0, 1, 2].map(|part| (part * third..SLOTS.min((part + 1) * third)).collect())
}

fn add(node: &Server, slots: &[usize]) {
    let slots = slots.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(node.say(&[&format!("CLUSTER ADDSLOTS {slots}")]), ["+OK"]);
}

/// Three primaries, with a third of the slots each.
struct Cluster {
    nodes: [Server; 3],
    _folders: [Folder; 3],
}

impl Cluster {
    fn start(name: &str) -> Option<Self> {
        let folders = ["a", "b", "c"].map(|node| Folder::new(&format!("{name}-{node}")));
        let [one, two, three] = folders.each_ref().map(|folder| {
            std::fs::create_dir(&folder.0).unwrap();
            let folder = folder.0.to_str().unwrap();
            let settings = "--cluster-enabled yes --cluster-node-timeout 2000 --cluster-require-full-coverage no --dir";
            let settings = || settings.split(' ').chain([folder]).map(str::to_owned).collect();
            Server::start_at(port_with_another, settings)
        });
        let cluster = Self { nodes: [one?, two?, three?], _folders: folders };
        for (node, slots) in cluster.nodes.iter().zip(thirds()) {
            add(node, &slots);
            assert_eq!(node.say(&[&format!("CLUSTER MEET 127.0.0.1 {}", cluster.nodes[0].port)]), ["+OK"]);
        }
        for node in &cluster.nodes {
            until("all know of all slots", || {
                let info = node.tell("CLUSTER INFO");
                info.contains("cluster_state:ok") && info.contains(&format!("cluster_slots_ok:{SLOTS}"))
            });
        }
        Some(cluster)
    }

    fn store(&self) -> RedisStore {
        RedisStore::cluster(self.nodes.iter().take(2).map(Server::url)).unwrap()
    }

    /// Which node has the record of these tests, and in which slot.
    fn place(&self) -> (usize, usize) {
        let key = format!("storm-auth:{{{}}}:token", op(StoreCommand::Read).record);
        let slot = self.nodes[0].say(&[&format!("CLUSTER KEYSLOT {key}")]);
        let slot = slot[0].strip_prefix(':').unwrap().parse::<usize>().unwrap();
        (slot / SLOTS.div_ceil(3), slot)
    }
}

/// The nodes talk with each other at a port that lies 10,000 higher.
fn port_with_another() -> u16 {
    loop {
        let port = free_port();
        if let Some(higher) = port.checked_add(10_000)
            && std::net::TcpListener::bind(("127.0.0.1", higher)).is_ok()
        {
            return port;
        }
    }
}

#[test]
fn r72_r73_r74_r76_a_cluster_keeps_to_the_protocol() {
    let Some(cluster) = Cluster::start("protocol") else { return };
    store_conformance::check(|| Box::new(cluster.store()));
    let used = cluster.nodes.iter().filter(|node| node.say(&["DBSIZE"]) != [":0"]).count();
    assert!(used > 1, "records and gates lie where their names put them");
}

#[test]
fn a_cluster_wants_two_rights_more() {
    let Some(cluster) = Cluster::start("rights") else { return };
    let urls = cluster.nodes.each_ref().map(|node| node.user("+ping +cluster|slots"));
    works(&RedisStore::cluster(urls).unwrap());
}

#[test]
fn r72_a_cluster_may_speak_tls_by_certificates_of_ones_own() {
    let folder = Folder::new("tls-node");
    std::fs::create_dir(&folder.0).unwrap();
    let settings = "--cluster-enabled yes --tls-cluster yes --tls-auth-clients yes --dir";
    let settings: Vec<_> = settings.split(' ').chain(folder.0.to_str()).collect();
    let Some(node) = TlsServer::start("tls-cluster", &settings) else { return };
    thirds().iter().for_each(|slots| add(&node.server, slots));
    until("it has all slots", || node.server.tell("CLUSTER INFO").contains("cluster_state:ok"));
    works(&RedisStore::cluster([node.url()]).unwrap().certificates(&node.certificates()).unwrap());
}

#[test]
fn r75_a_slot_that_moved_to_another_node_is_followed() {
    let Some(cluster) = Cluster::start("moved") else { return };
    let store = cluster.store();
    assert_eq!(store.perform(&lease(1, 10_000)).unwrap().lease, Lease::Mine);
    let (from, slot) = cluster.place();
    let (from, to) = (&cluster.nodes[from], &cluster.nodes[(from + 1) % 3]);
    assert_eq!(from.say(&["FLUSHALL"]), ["+OK"]);
    let moves = format!("CLUSTER SETSLOT {slot} NODE {}", to.tell("CLUSTER MYID"));
    for node in [to, from] {
        assert_eq!(node.say(&[&moves]), ["+OK"]);
    }
    assert_eq!(store.perform(&lease(2, 10_000)).unwrap().lease, Lease::Mine);
    assert!(store.perform(&publish(Some(2), 1)).unwrap().record.is_some());
    assert_ne!(to.say(&["DBSIZE"]), [":0"]);
}

#[test]
fn r75_a_node_that_is_gone_or_stands_still_is_told_and_used_again_when_it_is_back() {
    let Some(mut cluster) = Cluster::start("gone") else { return };
    let (node, _) = cluster.place();
    let store = cluster.store();
    store.perform(&op(StoreCommand::Read)).unwrap();
    #[cfg(unix)]
    {
        cluster.nodes[node].signal("STOP");
        let failure = store.perform(&op(StoreCommand::Read)).unwrap_err();
        assert!(failure.detail.contains("did not answer in time"), "{failure}");
        cluster.nodes[node].signal("CONT");
        until("it is used again", || store.perform(&op(StoreCommand::Read)).is_ok());
    }
    cluster.nodes[node].stop();
    let failure = store.perform(&op(StoreCommand::Read)).unwrap_err();
    assert!(failure.detail.contains("Redis at 127.0.0.1:"), "{failure}");
    cluster.nodes[node].restart();
    until("it is used again", || store.perform(&op(StoreCommand::Read)).is_ok());
}

#[test]
fn r58_r75_a_clusters_password_is_for_each_node_and_is_not_shown() {
    let nowhere = RedisStore::cluster([format!("redis://:pa55word@127.0.0.1:{}", free_port())]).unwrap();
    let failure = nowhere.perform(&op(StoreCommand::Read)).unwrap_err();
    assert!(!format!("{nowhere:?} {failure} {failure:?}").contains("pa55word"), "{failure}");
    for urls in [
        vec![],
        vec!["redis://:pa55word@a", "redis://:0ther@b"],
        vec!["unix:///run/redis"],
        vec!["redis://:pa55word@a:b"],
    ] {
        let error = RedisStore::cluster(&urls).expect_err(&format!("{urls:?}")).to_string();
        assert!(error.contains("URL") && !error.contains("pa55word"), "{error}");
    }
}

#[test]
fn sentinels_of_a_cluster_are_refused() {
    let cluster = RedisStore::cluster(["redis://node-1"]).unwrap();
    let error = cluster.sentinels(["redis://sentinel"]).unwrap_err().to_string();
    assert!(error.contains("leave them out for a cluster"), "{error}");
}
