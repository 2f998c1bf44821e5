//! Images to be pushed, and registries that misbehave when they are.

use super::front::{Front, Request, forward};
use super::{Place, Registry, noise, run};
use gpucontainer::image::{Credentials, Image, ImageStore, PullOptions, PushOptions};
use std::net::TcpStream;
use std::process::Command;

pub(crate) fn pull() -> PullOptions<'static> {
    // The user's own credentials have no place in a test.
    PullOptions::new().credentials(Credentials::anonymous())
}

pub(crate) fn push() -> PushOptions<'static> {
    PushOptions::new().credentials(Credentials::anonymous())
}

/// An image with `bytes` that do not compress well, and more than files in it.
pub(crate) fn built(place: &Place, bytes: usize) -> Image {
    let builder = place.store.build().file("/data/noise", noise(bytes, 1), 0o640);
    let builder = builder.symlink("data/noise", "/link").directory("/empty", 0o1777).env("A", "1");
    builder.command(["/bin/sh"]).label("maker", "test").commit("built:1").unwrap()
}

/// Pulls into a store that has nothing.
pub(crate) fn pulled(place: &Place, name: &str) -> Image {
    let fresh = tempfile::tempdir_in(place.path("")).unwrap().keep();
    ImageStore::open(fresh).unwrap().pull(name, pull()).unwrap()
}

/// The manifest as another tool gets it.
pub(crate) fn raw_manifest(name: &str) -> String {
    run(Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false"]).arg(format!("docker://{name}")))
}

/// A registry behind a front that passes on all but what `instead` answers itself.
pub(crate) fn behind(
    place: &Place,
    instead: impl Fn(u16, &Request, &mut TcpStream) -> bool + Send + Sync + 'static,
) -> (Registry, Front) {
    let registry = Registry::start(&place.path("registry"), "", "");
    let port = registry.port;
    let front = Front::start(move |request, stream| {
        if !instead(port, request, stream) {
            forward(port, request, stream, u64::MAX);
        }
    });
    (registry, front)
}

pub(crate) fn requests(front: &Front, method: &str) -> Vec<Request> {
    front.seen().into_iter().filter(|request| request.method == method).collect()
}
