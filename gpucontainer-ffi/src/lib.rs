//! The C face of gpucontainer: conversions alone, no behaviour.
//!
//! Ownership is in the signatures: `Option<Box<T>>` is a pointer that is given away, `Option<&T>`
//! one that is lent, and both may be `NULL`. The header `include/gpucontainer.h` is made from
//! these files by this crate's tests.

#![allow(
    clippy::missing_safety_doc,
    reason = "the comments of these functions are those of the C header, which says in prose what pointers must be"
)]

mod boundary;
mod counters;

// The groups keep the order of the header.

pub mod version;

pub mod error;

pub mod log;

pub mod host;

pub mod transfer;

pub mod image;

pub mod builder;

pub mod limits;

pub mod stdio;

pub mod config;

pub mod mount;

pub mod gpu;

pub mod allocator;

pub mod ticket;

pub mod mig;

pub mod xid;

pub mod output;

pub mod sandbox;

pub mod process;

pub mod grant;

pub mod network;

pub mod cdi;

pub mod port;

pub mod service;

pub mod mapper;
