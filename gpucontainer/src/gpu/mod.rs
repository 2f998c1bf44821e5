//! GPUs: what is there, and what a container needs to use it.
