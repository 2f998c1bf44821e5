//! Sandboxes: from a configuration to a running application.
