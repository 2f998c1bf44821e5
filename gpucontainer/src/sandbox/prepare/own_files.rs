//! Who and where the container is: its names, `/etc/hosts`, `/etc/resolv.conf`.

use super::planner::Planner;
use crate::error::Result;
use crate::rootfs::Writable;
use crate::sandbox::config::Network;
use crate::sandbox::defaults;
use crate::sandbox::plan::Step;
use crate::sandbox::root::Root;
use crate::sys::fs;
use std::path::Path;

impl Planner<'_> {
    /// The files that say who and where the container is. A plain directory is left as it is.
    pub(super) fn own_files(&mut self, root: &Root, shared: Option<usize>) -> Result<()> {
        let builder = self.builder;
        let hostname = match (&builder.hostname, &builder.network) {
            (Some(hostname), _) => hostname.clone(),
            (None, Network::Private(_)) => self.name.to_owned(),
            (None, _) => defaults::HOSTNAME.to_owned(),
        };
        if matches!(root, Root::Image { .. }) {
            let hosts =
                format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n");
            let resolver = match builder.network {
                Network::Host => fs::read_to_string(Path::new("/etc/resolv.conf")).unwrap_or_default(),
                Network::None => "# This sandbox has no network.\n".to_owned(),
                Network::Private(ref network) if !network.leads_out() => {
                    "# This sandbox's network leads nowhere.\n".to_owned()
                }
                Network::Private(_) | Network::Join(_) => crate::net::resolver()?,
                Network::Outbound => crate::net::outbound::resolver()?,
            };
            let own = |path: &str, text: String| Step::OwnFile {
                path: path.to_owned(),
                contents: text.into_bytes(),
                mode: 0o644,
            };
            match shared {
                // All members have the same one, which changes as they come and go.
                Some(source) => self.add(Step::OwnMount { source, path: "/etc/hosts".to_owned() }),
                None => self.add(own("/etc/hosts", hosts)),
            }
            self.add(own("/etc/hostname", format!("{hostname}\n")));
            self.add(own("/etc/resolv.conf", resolver));
        }
        self.add(Step::Hostname { name: hostname });
        if !(builder.network.is_host() || builder.network.is_entered()) {
            self.add(Step::LoopbackUp);
        }
        if builder.read_only || root.writable(builder) == Writable::ReadOnly {
            self.add(Step::ReadOnly { path: "/".to_owned() });
        }
        Ok(())
    }
}
