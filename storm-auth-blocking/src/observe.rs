//! What happens, told to `tracing` (target `storm_auth`) and to `metrics`, where these features are on.

storm_auth_core::observe!("blocking");
