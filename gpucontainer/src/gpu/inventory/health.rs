//! What a GPU says of its own condition.

use serde::{Deserialize, Serialize};

/// Rows of a GPU's memory that were replaced by spare ones.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RemappedRows {
    /// How many because of errors that could be corrected.
    pub correctable: u32,
    /// How many because of errors that could not.
    pub uncorrectable: u32,
    /// Whether more wait for a reset of the GPU.
    pub pending: bool,
    /// Whether a row could not be replaced: the GPU has to be exchanged.
    pub failed: bool,
}

/// Facts about the condition of a GPU; `None` where the model does not say. What to conclude is another matter.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
#[non_exhaustive]
pub struct GpuHealth {
    /// Whether the driver calls it lost: it has fallen off the bus, and nothing but a restart brings it back.
    pub lost: bool,
    /// Errors of its memory that could not be corrected (two or more wrong bits) since the driver was loaded.
    pub uncorrectable_errors: Option<u64>,
    /// The same over its whole life.
    pub lifetime_uncorrectable_errors: Option<u64>,
    /// Pages of its memory that were retired; models before Ampere.
    pub retired_pages: Option<u32>,
    /// Whether pages wait for a reset of the GPU to be retired; models before Ampere.
    pub retirement_pending: Option<bool>,
    /// Rows of its memory that were replaced; Ampere and later models.
    pub remapped_rows: Option<RemappedRows>,
}
