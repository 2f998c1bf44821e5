//! Who gets what: from a request and what is known of the host to devices, or to the reason why not now.
//!
//! ```text
//! candidates   what the host has that suits, whoever uses it now      outer: what we may have at all
//! decide       which of them are free for this request at its turn    described: by specifications
//! placement    which of these lie best, and leave the best            wishes: what is asked of them
//! ```

pub(in crate::gpu) mod candidates;
pub(in crate::gpu) mod decide;
pub(super) mod described;
pub(in crate::gpu) mod outer;
mod placement;
pub(super) mod wishes;
