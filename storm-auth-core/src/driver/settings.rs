//! The settings' methods on a driver's builder, written once: so the builders of all drivers have the same ones.

/// Gives a builder with a field `settings: Settings` the methods of [`Settings`](crate::Settings).
///
/// ```
/// use storm_auth_core::{Environment, Settings};
///
/// #[derive(Default)]
/// struct Builder {
///     settings: Settings,
/// }
///
/// impl Builder {
///     storm_auth_core::forward_settings!();
/// }
///
/// let builder = Builder::default().environment(Environment::storm_lab()).application_id(1042);
/// assert!(builder.settings.check().is_err(), "it has no credentials yet");
/// ```
#[macro_export]
macro_rules! forward_settings {
    () => {
        /// A preset for token URL, API base and scope; each can be set alone as well, which then counts.
        pub fn environment(self, environment: $crate::Environment) -> Self {
            self.map_settings(|settings| settings.environment(environment))
        }

        /// The URL of the token endpoint.
        pub fn token_url(self, url: impl Into<String>) -> Self {
            self.map_settings(|settings| settings.token_url(url))
        }

        /// The base URL of the API. Each further one is an origin that may get the bearer too.
        pub fn api_url(self, url: impl Into<String>) -> Self {
            self.map_settings(|settings| settings.api_url(url))
        }

        /// The scope of the token requests.
        pub fn scope(self, scope: $crate::Scope) -> Self {
            self.map_settings(|settings| settings.scope(scope))
        }

        /// The application id that API calls carry, unless a request has one of its own.
        pub fn application_id(self, id: u64) -> Self {
            self.map_settings(|settings| settings.application_id(id))
        }

        /// The header that carries the application id. Default: `ApplicationId`; newer endpoints document `application-id`.
        pub fn application_header(self, name: impl Into<String>) -> Self {
            self.map_settings(|settings| settings.application_header(name))
        }

        /// Takes plain http for this host, so that the secret and the tokens cross that network readable. For an emulator in
        /// a container; loopback is allowed without it.
        pub fn danger_allow_http(self, host: impl Into<String>) -> Self {
            self.map_settings(|settings| settings.danger_allow_http(host))
        }

        /// How the machine behaves.
        pub fn policy(self, policy: $crate::Policy) -> Self {
            self.map_settings(|settings| settings.policy(policy))
        }

        /// What may be sent to the token endpoint. Default: 3 requests a minute with a burst of 20 more.
        pub fn budget(self, budget: $crate::Budget) -> Self {
            self.map_settings(|settings| settings.budget(budget))
        }

        /// How long a call waits for a token. Default: 30 s.
        pub fn caller_deadline(self, span: ::core::time::Duration) -> Self {
            self.map_settings(|settings| settings.caller_deadline(span))
        }

        /// Which address token requests leave by, as a label of one's own choice: those who share a store share a gate for each.
        pub fn egress(self, label: impl Into<String>) -> Self {
            self.map_settings(|settings| settings.egress(label))
        }

        /// The name of this limiter group in logs and metrics, where a process has several: spans, events and metrics have it as
        /// `group`. Default: one with a number, another for each group that the process builds; a process that builds many should name
        /// them, since each name is another series of each metric.
        pub fn group(self, name: impl Into<String>) -> Self {
            self.map_settings(|settings| settings.group(name))
        }

        fn map_settings(mut self, set: impl FnOnce($crate::Settings) -> $crate::Settings) -> Self {
            self.settings = set(self.settings);
            self
        }
    };
}
