//! The arguments. None of them is a secret.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use http::{HeaderName, HeaderValue, Method};
use storm_auth_blocking::core::Settings;

use crate::voice::Voice;

/// Tokens and authorised calls of Norce Commerce (Storm) from a shell.
///
/// Processes of one user share one token through a folder, so a loop costs one token request per lifetime.
#[derive(Parser, Debug)]
#[command(name = "storm-token", version, after_long_help = AFTER)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER: &str = "\
Examples:
  storm-token call GET /commerce/product/1.1/Products
  storm-token get --header | curl -H @- https://…
  storm-token doctor

Settings, each from its variable, or else from its key in a configuration file:
  STORM_TOKEN_URL                token_url                the token endpoint
  STORM_API_URL                  api_url                  the API's base URL
  STORM_SCOPE                    scope                    the scope
  STORM_CLIENT_ID                client_id                the client id
  STORM_CLIENT_SECRET                                     the secret
  STORM_CLIENT_SECRET_FILE       client_secret_file       a file that holds it
  STORM_CLIENT_SECRET_NEXT                                a second secret
  STORM_CLIENT_SECRET_NEXT_FILE  client_secret_next_file  a file that holds it
  STORM_APPLICATION_ID           application_id           the application id

  Only `call` needs the API's URL. The second secret is for the time in which
  one takes the other's place: it is tried where the first is refused. A secret
  that is set nowhere is asked for, on a terminal only.

Keys of the configuration file alone:
  norce        a tenant's token_url, api_url and scope:
               { tenant = \"acme\", region = \"se\", stage = \"playground\" }
  environment  Storm's: \"storm-lab\", \"storm-qa\" or \"storm-production\"
  application_header, egress, group, budget, caller_deadline,
  danger_allow_http

  The file is TOML: that of --config, or of STORM_CONFIG, or config.toml in the
  folder storm-auth of the user's configuration ($XDG_CONFIG_HOME or ~/.config;
  ~/Library/Application Support on macOS; %APPDATA% on Windows). A path in it is
  relative to its folder.

Other variables:
  STORM_CACHE_DIR  the folder of the tokens; without it, storm-auth in
                   $XDG_RUNTIME_DIR, $XDG_STATE_HOME or ~/.local/state
  NO_COLOR         turns colours off; without a terminal there are none

  A variable that tools set to nothing counts as not set where it is
  STORM_CONFIG, STORM_CACHE_DIR or one of the secrets'.

Exit status:
  0    done
  2    a flag, a variable, a file or a key is missing or wrong: the message
       names it
  3    the token endpoint refused the credentials or the scope, or moved
  4    throttled: the message says when to come back
  5    the API answered another status than 2xx, or not at all
  6    no token for another reason, such as an endpoint that cannot be reached;
       or the output cannot be written
  101  a bug

With --json, standard output is one JSON value, and a failure is
{\"error\": {\"kind\", \"message\", \"retry_at\"}} there; kind is usage,
configuration, refused, rate_limited, api, unavailable or output, and retry_at
is null or a time.";

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Options of all commands")]
pub(crate) struct Common {
    /// The configuration file, in place of STORM_CONFIG and of the user's own.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Shares no token with other processes: neither reads nor writes the folder.
    #[arg(long, global = true)]
    pub(crate) no_cache: bool,
    /// How long to wait for a token, in seconds [default: caller_deadline, or 30]. A request that is under way then gets five more.
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) deadline: Option<Duration>,
    /// Prints JSON, failures too.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Tells on standard error what happens.
    #[arg(long, short, global = true)]
    pub(crate) verbose: bool,
    #[arg(skip)]
    pub(crate) voice: Voice,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Prints a valid token.
    #[command(after_help = "Examples:\n  storm-token get\n  storm-token get --header | curl -H @- https://…\n  \
                            storm-token get --json | jq -r .expires_at")]
    Get(Get),
    /// Makes an authorised API call, and prints the body of its answer as it is.
    ///
    /// A token that the API rejects is replaced once, and the call is sent again.
    #[command(after_help = "Examples:\n  storm-token call GET /commerce/product/1.1/Products\n  \
                            storm-token call POST /commerce/order/1.1/Orders --body-file order.json \\\n    \
                            --header 'Content-Type: application/json'\n  \
                            echo '{}' | storm-token call PUT /… --body-file - --include")]
    Call(Call),
    /// Shows what a token says, decoded and not verified.
    #[command(after_help = "Examples:\n  storm-token inspect\n  storm-token get | storm-token inspect -")]
    Inspect(Inspect),
    /// Shows the shared token's times, the gate and the budget. Requests no token.
    Status,
    /// Checks each setting, and asks the token endpoint for one token.
    ///
    /// Each failure is explained. That is one token request at most, or two where there is a second secret and the first is refused;
    /// none while a valid token is shared. The API is asked once, without a token.
    Doctor,
    /// Prints a script of completions for a shell.
    #[command(after_help = "Examples:\n  source <(storm-token completions bash)\n  \
                      storm-token completions fish > ~/.config/fish/completions/storm-token.fish")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(clap::Args, Debug)]
pub(crate) struct Get {
    /// Prints `Authorization: Bearer …`, for `curl -H @-`.
    #[arg(long, conflicts_with = "json")]
    pub(crate) header: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Call {
    /// GET, POST, PUT, PATCH, DELETE or another one; in small letters too.
    #[arg(value_parser = method)]
    pub(crate) method: Method,
    /// A path below the API's base URL, or a whole URL of a configured API.
    #[arg(value_name = "URL-OR-PATH")]
    pub(crate) target: String,
    /// The file that holds the body; - for standard input. It is read whole, so that it can be sent again.
    #[arg(long, value_name = "FILE")]
    pub(crate) body_file: Option<PathBuf>,
    /// A header, such as 'Accept: application/json'; may be given several times.
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE", value_parser = header)]
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// The application id of this call.
    #[arg(long, value_name = "NUMBER", value_parser = application_id)]
    pub(crate) application_id: Option<u64>,
    /// Prints status and headers before the body.
    #[arg(long, short, conflicts_with = "json")]
    pub(crate) include: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Inspect {
    /// - to read the token from standard input.
    #[arg(value_name = "-")]
    pub(crate) stdin: Option<String>,
}

fn seconds(text: &str) -> Result<Duration, &'static str> {
    let span = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    span.filter(|span| !span.is_zero()).ok_or("not a number of seconds above zero; give one like 30")
}

fn method(text: &str) -> Result<Method, &'static str> {
    Method::from_bytes(text.to_ascii_uppercase().as_bytes()).map_err(|_| "not a method; give one like GET")
}

fn application_id(text: &str) -> Result<u64, &'static str> {
    Settings::parse_application_id(text).map_err(|error| error.problem())
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), &'static str> {
    let malformed = "not a header; give one like 'Accept: application/json'";
    let (name, value) = text.split_once(':').ok_or(malformed)?;
    let name = HeaderName::try_from(name.trim()).map_err(|_| malformed)?;
    let value = HeaderValue::try_from(value.trim()).map_err(|_| malformed)?;
    if name == http::header::AUTHORIZATION {
        return Err("Authorization is what this program sets; leave it out");
    }
    Ok((name, value))
}
