//! Sandboxes: from a configuration to a running application.

mod compile;
mod identity;
mod launch;
mod plan;
mod tree;

pub use plan::{Namespace, Plan};
