//! The drivers of the examples, by the suite for drivers.

#![allow(clippy::duplicate_mod, reason = "each example is a program of its own, with modules that they share")]

use storm_auth_tests::driver_conformance::check;

/// An example's driver, without the show.
macro_rules! driver {
    ($name:ident in $file:literal) => {
        #[path = $file]
        #[allow(dead_code, reason = "the show stays off")]
        mod $name;

        #[test]
        fn $name() {
            check::<$name::Tokens>();
        }
    };
}

driver!(custom_runtime in "../examples/custom_runtime.rs");
driver!(custom_runtime_mio in "../examples/custom_runtime_mio.rs");
driver!(custom_runtime_smol in "../examples/custom_runtime_smol.rs");
