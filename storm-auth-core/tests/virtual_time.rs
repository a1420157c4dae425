//! The tests that the example in virtual time has to show. They stand here too, since an example that cargo builds as a test is not built
//! as the program that it is.

#[path = "../examples/custom_runtime_virtual.rs"]
#[allow(dead_code, reason = "the show stays off")]
mod custom_runtime_virtual;
