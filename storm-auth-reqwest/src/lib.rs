//! storm-auth-reqwest
