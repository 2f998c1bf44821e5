//! From layers to a root file system that can be mounted.
