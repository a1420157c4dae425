//! storm-auth-blocking
