//! storm-auth-tests
