//! storm-auth-core
