//! Gives the stand-in the name that programs ask for; Cargo itself gives shared libraries none.

#![allow(clippy::print_stdout, reason = "this is how build scripts talk to Cargo")]

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libnvidia-ml.so.1");
}
