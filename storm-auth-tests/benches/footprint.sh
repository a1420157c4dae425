#!/bin/sh
# What storm-auth, and others for the same purpose, add to a program that has an HTTP client anyway: third-party crates, the processor
# time of a first release build, and bytes of the stripped program. Each is measured beside a bare program with the same client and the
# same features of it. The programs lie in a temporary folder; crates that are not there yet are downloaded.
#
#     sh storm-auth-tests/benches/footprint.sh              # all; or some: storm-reqwest storm-ureq oauth2 middle huskarl
#     sh storm-auth-tests/benches/footprint.sh --crates     # the crates alone, named, without a build
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

# crates NAME: the third-party crates below it, one in a line.
crates() {
    (cd "$work/$1" && cargo tree --edges normal --prefix none --format '{p}') | grep -v "^$1 \|^storm-auth-" | sed 's/ (.*//' | sort -u
}

# measure NAME: sets seconds and bytes.
measure() {
    cd "$work/$1"
    cargo fetch --quiet --target "$host"
    times > "$work/times"
    begun=$(spent)
    cargo build --release --quiet --offline
    times > "$work/times"
    seconds=$(($(spent) - begun))
    bytes=$(wc -c < "target/release/$1")
    rm -rf target
}

# compare BARE NAME
compare() {
    crates "$1" > "$work/bare-crates"
    crates "$2" > "$work/crates"
    added=$(comm -13 "$work/bare-crates" "$work/crates")
    printf '%-16s %3d crates' "$2" "$(echo "$added" | wc -l)"
    if [ -n "$counting" ]; then
        printf ': %s\n' "$(echo "$added" | sed 's/ .*//' | tr '\n' ' ')"
        return
    fi
    # Those that share a bare program share its measurement.
    if ! [ -f "$work/$1.measured" ]; then
        measure "$1"
        echo "$seconds $bytes" > "$work/$1.measured"
    fi
    read -r bare_seconds bare_bytes < "$work/$1.measured"
    measure "$2"
    printf '  %+4d s of %3d  %+8d bytes of %d\n' $((seconds - bare_seconds)) "$bare_seconds" $((bytes - bare_bytes)) "$bare_bytes"
}

tokio='tokio = { version = "1", features = ["macros", "rt-multi-thread"] }'

async_main='#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).unwrap_or_default();'

package bare-reqwest "reqwest = { version = \"0.13\", features = [\"json\", \"query\"] }
$tokio" <<RUST
$async_main
    println!("{}", reqwest::Client::new().get(url).send().await?.text().await?);
    Ok(())
}
RUST

package storm-reqwest "storm-auth-reqwest = { path = \"$root/storm-auth-reqwest\" }
$tokio" <<RUST
$async_main
    let storm = storm_auth_reqwest::env::builder()?.build()?;
    println!("{}", storm.get(url).send().await?.text().await?);
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
    let url = std::env::args().nth(1).unwrap_or_default();
    let storm = storm_auth_blocking::env::builder()?.build()?;
    println!("{}", storm.get(url).call()?.body_mut().read_to_string()?);
    Ok(())
}
RUST

# `oauth2` and `middle` speak reqwest 0.12. Neither keeps a token and replaces it after a 401.
reqwest_12='reqwest = { version = "0.12", default-features = false, features = ["json", "rustls-tls"] }'

package bare-reqwest-12 "$reqwest_12
$tokio" <<RUST
$async_main
    println!("{}", reqwest::Client::new().get(url).send().await?.text().await?);
    Ok(())
}
RUST

package oauth2 "oauth2 = \"5\"
$reqwest_12
$tokio" <<RUST
use oauth2::{ClientId, ClientSecret, TokenResponse as _, TokenUrl, basic::BasicClient};

$async_main
    let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
    let client = BasicClient::new(ClientId::new(std::env::var("STORM_CLIENT_ID")?))
        .set_client_secret(ClientSecret::new(std::env::var("STORM_CLIENT_SECRET")?))
        .set_auth_type(oauth2::AuthType::RequestBody)
        .set_token_uri(TokenUrl::new(std::env::var("STORM_TOKEN_URL")?)?);
    let token = client.exchange_client_credentials().request_async(&http).await?;
    println!("{}", http.get(url).bearer_auth(token.access_token().secret()).send().await?.text().await?);
    Ok(())
}
RUST

package middle "middle = { version = \"0.5\", default-features = false, features = [\"client-credentials\", \"runtime-tokio\"] }
$reqwest_12
$tokio" <<RUST
use middle::Authorizer as _;

$async_main
    let (id, secret) = (std::env::var("STORM_CLIENT_ID")?, std::env::var("STORM_CLIENT_SECRET")?);
    let endpoint = std::env::var("STORM_TOKEN_URL")?.parse()?;
    let tokens = middle::BasicClientCredentialAuthorizer::basic_builder(&id, &secret, endpoint).build().await?;
    let bearer = std::sync::Arc::unwrap_or_clone(tokens.authorization_header()?);
    println!("{}", reqwest::Client::new().get(url).header("authorization", bearer).send().await?.text().await?);
    Ok(())
}
RUST

package huskarl "huskarl = \"0.11\"
huskarl-reqwest = \"0.9\"
reqwest = { version = \"0.13\", features = [\"json\", \"query\"] }
$tokio" <<RUST
use huskarl::cache::{GrantTokenSource, InMemoryRefreshTokenStore, InMemoryTokenCache, TokenSource as _};
use huskarl::core::client_auth::ClientSecret;
use huskarl::core::secrets::{ProvidedSecret, SecretString};
use huskarl::grant::client_credentials::{ClientCredentialsGrant, ClientCredentialsGrantParameters};

$async_main
    let (id, secret) = (std::env::var("STORM_CLIENT_ID")?, std::env::var("STORM_CLIENT_SECRET")?);
    let grant = ClientCredentialsGrant::builder()
        .client_id(id)
        .http_client(huskarl_reqwest::ReqwestClient::builder().build().await?)
        .client_auth(ClientSecret::new(ProvidedSecret::new(SecretString::new(secret))))
        .token_endpoint(std::env::var("STORM_TOKEN_URL")?.parse()?)
        .build();
    let source = GrantTokenSource::builder()
        .grant(grant)
        .grant_parameters(ClientCredentialsGrantParameters::new())
        .refresh_store(InMemoryRefreshTokenStore::default())
        .build();
    let bearer = InMemoryTokenCache::builder().source(source).build().token().await?.access_token().expose_header_value()?;
    println!("{}", reqwest::Client::new().get(url).header("authorization", bearer).send().await?.text().await?);
    Ok(())
}
RUST

counting=
[ "${1:-}" = --crates ] && counting=yes && shift
[ $# -gt 0 ] || set -- storm-reqwest storm-ureq oauth2 middle huskarl
for name in "$@"; do
    case $name in
        storm-reqwest | huskarl) compare bare-reqwest "$name" ;;
        storm-ureq) compare bare-ureq "$name" ;;
        oauth2 | middle) compare bare-reqwest-12 "$name" ;;
        *) echo "unknown: $name; one of storm-reqwest, storm-ureq, oauth2, middle, huskarl" >&2 && exit 2 ;;
    esac
done
