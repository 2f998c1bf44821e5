//! What the benchmarks share: contenders that are run in turn, the machine that they run on, figures.
//!
//! Nothing here is compared with a stored number. All contenders of a row run interleaved, one after the
//! other and again, on the same machine in the same minutes, and the report gives ratios.

pub mod bundle;
pub mod contender;
pub mod floor;
pub mod forwarders;
pub mod machine;
pub mod measure;
pub mod ours;
pub mod peers;
pub mod report;
pub mod rows;
pub mod system;
pub mod worker;

/// A failure in words; a benchmark has nobody who would act on more.
pub type Result<T> = std::result::Result<T, String>;
