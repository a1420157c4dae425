//! The guide: what the manuals of the crates have no room for. Its programs are compiled, and run where they need no server but the
//! emulator; its tables are compared with the code.
//!
//! | page | |
//! |---|---|
//! | [`cookbook`] | how to do a thing: tenants, proxies, serverless, tests, health, alerts, shutdown, Kubernetes |
//! | [`errors`] | every error, its cause and its cure |
//! | [`defaults`] | every number, its reason, and how to change it |
//! | [`migration`] | from a cache of one's own, and from the `oauth2` crate |
//! | [`threats`] | what is protected, from whom, how it is shown, and what is not |

/// Programs for what is done often.
///
#[cfg_attr(doc, doc = include_str!("../docs/cookbook.md"))]
pub mod cookbook {}

/// Every error, its cause and its cure.
///
#[cfg_attr(doc, doc = include_str!("../docs/errors.md"))]
pub mod errors {}

/// Every number, its reason, and how to change it.
///
#[cfg_attr(doc, doc = include_str!("../docs/defaults.md"))]
pub mod defaults {}

/// From another cache to this one.
///
#[cfg_attr(doc, doc = include_str!("../docs/migration.md"))]
pub mod migration {}

/// What is protected, from whom, and what is not.
///
#[cfg_attr(doc, doc = include_str!("../docs/threats.md"))]
pub mod threats {}

#[cfg(test)]
mod tests {
    use core::fmt::Display;

    use crate::error::{AcquireError, Cause, ConfigError, Failure, FailureKind, Field};
    use crate::machine::RecordFault;
    use crate::time::Unix;
    use crate::wire::response::{Class, Diagnostic, Malformed, OAuthError, Refusal, TokenFault};

    const ERRORS: &str = include_str!("../docs/errors.md");

    /// One value of each variant. One that is new does not compile until it stands here.
    macro_rules! every {
        ($kind:ty { $($variant:pat => $value:expr),+ $(,)? }) => {{
            let _ = |value: $kind| match value {
                $($variant => (),)+
            };
            vec![$($value),+]
        }};
    }

    /// Each part of a text stands on the page. What differs from case to case is `…` there.
    #[track_caller]
    fn is_listed(text: &impl Display) {
        let text = text.to_string().replace(&Unix::from_millis(0).to_string(), "…");
        for part in text.split(['…', ';']).map(|part| part.trim_matches([' ', ':', '(', ')'])) {
            assert!(ERRORS.contains(part), "docs/errors.md has no row for {part:?}, of {text:?}");
        }
    }

    fn refusal(class: Class, status: u16, error: Option<&str>) -> Refusal {
        let error = error.map(|error| OAuthError { error: error.to_owned(), description: None, uri: None });
        Refusal { class, status, error, invalid_client: false, problem: None, location: None }
    }

    #[test]
    fn every_setting_stands_on_the_page() {
        let fields = every!(Field {
            Field::TokenUrl => Field::TokenUrl,
            Field::ApiUrl => Field::ApiUrl,
            Field::Target => Field::Target,
            Field::Header => Field::Header,
            Field::Body => Field::Body,
            Field::ClientId => Field::ClientId,
            Field::ClientSecret => Field::ClientSecret,
            Field::ClientSecretFile => Field::ClientSecretFile,
            Field::NextSecret => Field::NextSecret,
            Field::NextSecretFile => Field::NextSecretFile,
            Field::Scope => Field::Scope,
            Field::ApplicationId => Field::ApplicationId,
            Field::ApplicationHeader => Field::ApplicationHeader,
            Field::Tenant => Field::Tenant,
            Field::Budget => Field::Budget,
            Field::Refresh => Field::Refresh,
            Field::Logging => Field::Logging,
            Field::Environment => Field::Environment,
            Field::Egress => Field::Egress,
            Field::Group => Field::Group,
            Field::CallerDeadline => Field::CallerDeadline,
            Field::HttpHosts => Field::HttpHosts,
        });
        fields.iter().for_each(is_listed);
        let errors =
            [ConfigError::missing(Field::ApiUrl), ConfigError::malformed(Field::Header), ConfigError::without_origin()];
        for error in errors {
            let text = error.to_string();
            let (_, problem) = text.split_once(": ").expect("it names the setting first");
            is_listed(&problem);
        }
    }

    #[test]
    fn every_reason_for_no_token_stands_on_the_page() {
        let retry_at = Unix::from_millis(0);
        let refused = Box::new(refusal(Class::Configuration, 400, Some("invalid_client")));
        let kinds = every!(FailureKind {
            FailureKind::Connect => FailureKind::Connect,
            FailureKind::Timeout => FailureKind::Timeout,
            FailureKind::Io => FailureKind::Io,
            FailureKind::Aborted => FailureKind::Aborted,
        });
        let mut causes = every!(Cause {
            Cause::Failed(_) => Cause::Failed(Failure::new(FailureKind::Io, "")),
            Cause::Refused(_) => Cause::Refused(Box::new(refusal(Class::Transient, 502, None))),
            Cause::ExpiredOnArrival => Cause::ExpiredOnArrival,
            Cause::AlreadyRejected => Cause::AlreadyRejected,
            Cause::NoLifetime => Cause::NoLifetime,
            Cause::FailedElsewhere => Cause::FailedElsewhere,
            Cause::RefusedElsewhere => Cause::RefusedElsewhere,
        });
        causes.extend(kinds.into_iter().map(|kind| Cause::Failed(Failure::new(kind, "…"))));
        for cause in causes {
            is_listed(&AcquireError::Unavailable { cause, retry_at });
        }
        let errors = every!(AcquireError {
            AcquireError::Configuration { .. } => AcquireError::Configuration { refusal: refused.clone(), retry_at },
            AcquireError::RateLimited { .. } => AcquireError::RateLimited { retry_at, before: None },
            AcquireError::Unavailable { .. } => AcquireError::Unavailable { cause: Cause::NoLifetime, retry_at },
            AcquireError::TokensRejected { .. } => AcquireError::TokensRejected { retry_at },
            AcquireError::DeadlineExceeded => AcquireError::DeadlineExceeded,
            AcquireError::HeldElsewhere => AcquireError::HeldElsewhere,
            AcquireError::Closed => AcquireError::Closed,
            AcquireError::StillBusy => AcquireError::StillBusy,
            AcquireError::UnknownKey => AcquireError::UnknownKey,
        });
        errors.iter().for_each(is_listed);
        let hidden = AcquireError::RateLimited { retry_at, before: Some(refused.clone()) };
        is_listed(&hidden.to_string().replace(&refused.to_string(), "…"));
    }

    #[test]
    fn whatever_the_endpoint_answers_stands_on_the_page() {
        let of = |class, status| move |error| refusal(class, status, error);
        let (configuration, transient) = (of(Class::Configuration, 400), of(Class::Transient, 502));
        let mut refusals = every!(Class {
            Class::Throttled => refusal(Class::Throttled, 429, None),
            Class::Configuration => configuration(None),
            Class::Transient => transient(None),
        });
        refusals.push(refusal(Class::Throttled, 503, None));
        refusals.push(refusal(Class::Configuration, 404, None));
        let moved = Refusal { location: Some("…".to_owned()), ..refusal(Class::Configuration, 301, None) };
        refusals.push(moved);
        let named =
            ["invalid_client", "unauthorized_client", "invalid_scope", "unsupported_grant_type", "invalid_request"];
        refusals.extend(named.map(|error| configuration(Some(error))));
        refusals.iter().for_each(is_listed);
        assert!(configuration(Some("odd")).to_string().ends_with("check the client's registration"));
        is_listed(&"check the client's registration");

        let faults = every!(TokenFault {
            TokenFault::Absent => TokenFault::Absent,
            TokenFault::NotAString => TokenFault::NotAString,
            TokenFault::Empty => TokenFault::Empty,
            TokenFault::TooLong => TokenFault::TooLong,
            TokenFault::Character => TokenFault::Character,
        });
        let mut malformed = every!(Malformed {
            Malformed::TooLarge => Malformed::TooLarge,
            Malformed::Encoded => Malformed::Encoded,
            Malformed::Empty => Malformed::Empty,
            Malformed::NotUtf8 => Malformed::NotUtf8,
            Malformed::NotJson => Malformed::NotJson,
            Malformed::NotAnObject => Malformed::NotAnObject,
            Malformed::DuplicateMember(_) => Malformed::DuplicateMember("…"),
            Malformed::AccessToken(_) => Malformed::AccessToken(TokenFault::Absent),
            Malformed::TokenType => Malformed::TokenType,
        });
        malformed.extend(faults.into_iter().map(Malformed::AccessToken));
        malformed.iter().for_each(is_listed);
    }

    #[test]
    fn what_is_odd_and_does_no_harm_stands_on_the_page() {
        let diagnostics = every!(Diagnostic {
            Diagnostic::TokenTypeMissing => Diagnostic::TokenTypeMissing,
            Diagnostic::ExpiresInMissing => Diagnostic::ExpiresInMissing,
            Diagnostic::ExpiresInUnusable => Diagnostic::ExpiresInUnusable,
            Diagnostic::LifetimeCapped => Diagnostic::LifetimeCapped,
            Diagnostic::ScopeUnreadable => Diagnostic::ScopeUnreadable,
            Diagnostic::RetryAfterUnreadable => Diagnostic::RetryAfterUnreadable,
        });
        diagnostics.iter().for_each(is_listed);
        let faults = every!(RecordFault {
            RecordFault::Unreadable => RecordFault::Unreadable,
            RecordFault::FromTheFuture => RecordFault::FromTheFuture,
        });
        faults.iter().for_each(is_listed);
    }
}
