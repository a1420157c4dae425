#!/bin/sh
# What storm-auth adds to a program that has reqwest or ureq anyway: crates, the processor time of a first release build, and bytes of
# the stripped program. It builds four small programs in a temporary folder; crates that are not there yet are downloaded before.
#
#     sh storm-auth-tests/benches/footprint.sh           # both; or one of them: reqwest, ureq
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
host=$(rustc -vV | sed -n 's/^host: //p')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
unset CARGO_TARGET_DIR CARGO_INCREMENTAL

# package NAME DEPENDENCIES < main.rs
package() {
    mkdir -p "$work/$1/src"
    cat > "$work/$1/src/main.rs"
    # The same versions in both programs of a pair: those that this workspace is tested with.
    cp "$root/Cargo.lock" "$work/$1/Cargo.lock"
    cat > "$work/$1/Cargo.toml" <<TOML
[package]
name = "$1"
edition = "2024"

[dependencies]
$2

[profile.release]
strip = true

[workspace]
TOML
}

# The processor time of what this script has run so far, in seconds: who else uses the machine does not change it.
spent() {
    awk 'NR == 2 { gsub("s", ""); split($1, user, "m"); split($2, kernel, "m")
                   print int(60 * (user[1] + kernel[1]) + user[2] + kernel[2]) }' "$work/times"
}

# measure NAME: sets crates, seconds and bytes.
measure() {
    cd "$work/$1"
    cargo fetch --quiet --target "$host"
    crates=$(cargo tree --edges normal --prefix none --format '{p}' | grep -v "^$1 " | sed 's/ (.*//' | sort -u | wc -l)
    times > "$work/times"
    begun=$(spent)
    cargo build --release --quiet --offline
    times > "$work/times"
    seconds=$(($(spent) - begun))
    bytes=$(wc -c < "target/release/$1")
    rm -rf target
}

# compare BARE AUTHORISED
compare() {
    measure "$1"
    bare_crates=$crates bare_seconds=$seconds bare_bytes=$bytes
    measure "$2"
    printf '%-8s %7s %8s %10s\n' '' crates 'build, s' bytes
    printf '%-8s %7d %8d %10d\n' bare "$bare_crates" "$bare_seconds" "$bare_bytes"
    printf '%-8s %+7d %+8d %+10d\n\n' added $((crates - bare_crates)) $((seconds - bare_seconds)) $((bytes - bare_bytes))
}

tokio='tokio = { version = "1", features = ["macros", "rt-multi-thread"] }'

package bare-reqwest "reqwest = { version = \"0.13\", features = [\"json\", \"query\"] }
$tokio" <<'RUST'
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).unwrap_or_default();
    println!("{}", reqwest::Client::new().get(url).send().await?.text().await?);
    Ok(())
}
RUST

package storm-reqwest "storm-auth-reqwest = { path = \"$root/storm-auth-reqwest\" }
$tokio" <<'RUST'
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let storm = storm_auth_reqwest::env::builder()?.build()?;
    let path = std::env::args().nth(1).unwrap_or_default();
    println!("{}", storm.get(path).send().await?.text().await?);
    Ok(())
}
RUST

# storm-auth-blocking turns compression on for those alone who ask for it.
package bare-ureq 'ureq = { version = "3", default-features = false, features = ["rustls", "json"] }' <<'RUST'
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).unwrap_or_default();
    println!("{}", ureq::get(url).call()?.body_mut().read_to_string()?);
    Ok(())
}
RUST

package storm-ureq "storm-auth-blocking = { path = \"$root/storm-auth-blocking\" }" <<'RUST'
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let storm = storm_auth_blocking::env::builder()?.build()?;
    let path = std::env::args().nth(1).unwrap_or_default();
    println!("{}", storm.get(path).call()?.body_mut().read_to_string()?);
    Ok(())
}
RUST

for client in ${1:-reqwest ureq}; do
    echo "a program with $client"
    compare "bare-$client" "storm-$client"
done
