//! The stores on real parts: files, processes, and a Redis server.

#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

mod files;
mod redis;
mod sealed;
