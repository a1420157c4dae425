//! The tests of the example for users. They stand here too, since an example that cargo builds as a test is not built as the program that
//! it is.

#[path = "../examples/shop.rs"]
#[allow(dead_code, reason = "the program stays off")]
mod shop;
