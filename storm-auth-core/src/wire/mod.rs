//! The wire codec: bytes in, values out. Each module is usable alone.

pub mod challenge;
pub mod request;
pub mod response;
pub mod retry_after;
