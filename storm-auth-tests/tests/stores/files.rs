//! The file store.

use storm_auth_store::FileStore;
use storm_auth_tests::store_conformance;

#[test]
fn r71_r72_r74_r76_files_keep_to_the_protocol() {
    let folder = std::env::temp_dir().join(format!("storm-auth-{}-conformance", std::process::id()));
    store_conformance::check(|| Box::new(FileStore::new(&folder).unwrap()));
    std::fs::remove_dir_all(folder).unwrap();
}
