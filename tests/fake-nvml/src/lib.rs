//! A stand-in for NVIDIA's management library, for tests only.
