//! What the tests of several kinds need.

use std::future::Future;

use super::Instance;

/// Runs it as the monitor would: on one thread.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

/// Server "a" of service "web".
pub(crate) fn instance(address: &str) -> Instance {
    Instance::new("web", "a", address.parse().expect("an address"))
}
