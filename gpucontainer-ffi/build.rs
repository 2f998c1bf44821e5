//! Gives the shared library the name that programs linked to it ask for: Cargo sets none.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let major = std::env::var("CARGO_PKG_VERSION_MAJOR").unwrap_or_default();
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libgpucontainer.so.{major}");
}
