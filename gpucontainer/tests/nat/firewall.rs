//! Firewalls that forget all that they did not make.

use crate::common::{self, Leaks, until};
use crate::world::{HOST, LONG, OUTSIDE, ask, on_a_host, run, serve, within};
use crate::{at, member, port, status, translate};
use gpucontainer::net::{PortMapping, PortMode};
use std::path::Path;
use std::process::{Child, Command, Stdio};

#[test]
fn a_flush_of_all_rules_leaves_published_ports() {
    let leaks = Leaks::watch();
    on_a_host(|world| {
        let web = member("web");
        let server = within(&web, || serve([0; 4]));
        let published = translate(PortMapping::tcp(server.port(), 0).all_interfaces(), web.namespace().unwrap());
        let to = at(HOST, port(&published));
        run("nft flush ruleset");
        assert_eq!(world.outside(move || ask(to, LONG)).unwrap(), OUTSIDE);
        let tables = run("nft list tables");
        let table = tables.lines().find(|line| line.contains("gpuc-ports")).unwrap().to_owned();
        // Nor can somebody else take it away by name.
        let mut words = vec!["delete"];
        words.extend(table.split(' '));
        let deleted = Command::new("nft").args(words).stderr(Stdio::null()).status().unwrap();
        assert!(!deleted.success());
        assert_eq!(world.outside(move || ask(to, LONG)).unwrap(), OUTSIDE);
        assert_eq!(status(&published).mode, PortMode::Nat);
    });
    leaks.check();
}

/// The firewall with a message bus of its own, in the network namespace of the caller.
struct Firewall {
    bus: Child,
    firewall: Child,
    address: String,
}

impl Firewall {
    fn start(directory: &Path) -> Self {
        let address = format!("unix:path={}", directory.join("bus").display());
        let configuration = format!(
            "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \
             \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\"><busconfig><type>system</type>\
             <listen>{address}</listen><auth>EXTERNAL</auth><policy context=\"default\"><allow send_destination=\"*\"/>\
             <allow own=\"*\"/><allow eavesdrop=\"true\"/></policy></busconfig>"
        );
        let file = directory.join("bus.conf");
        std::fs::write(&file, configuration).unwrap();
        let quiet = |command: &mut Command| command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut bus = Command::new("dbus-daemon");
        let bus = quiet(bus.arg("--nofork").arg(format!("--config-file={}", file.display())));
        until("the message bus is there", LONG, || directory.join("bus").exists());
        let mut firewall = Command::new("firewalld");
        firewall.args(["--nofork", "--nopid"]).env("DBUS_SYSTEM_BUS_ADDRESS", &address);
        let started = Self { bus, firewall: quiet(&mut firewall), address };
        until("the firewall runs", LONG, || started.ask("--state"));
        started
    }

    fn ask(&self, what: &str) -> bool {
        let mut command = Command::new("firewall-cmd");
        command.arg(what).env("DBUS_SYSTEM_BUS_ADDRESS", &self.address).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap().success()
    }
}

impl Drop for Firewall {
    fn drop(&mut self) {
        for child in [&mut self.firewall, &mut self.bus] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

#[test]
fn a_firewall_that_starts_anew_leaves_published_ports() {
    if !common::tools("firewalld", &["firewalld", "firewall-cmd", "dbus-daemon"]) {
        return;
    }
    let leaks = Leaks::watch();
    on_a_host(|world| {
        let directory = tempfile::Builder::new().prefix("gpuc-firewall-").tempdir().unwrap();
        let web = member("web");
        let server = within(&web, || serve([0; 4]));
        let published = translate(PortMapping::tcp(server.port(), 0).all_interfaces(), web.namespace().unwrap());
        let to = at(HOST, port(&published));
        let firewall = Firewall::start(directory.path());
        assert!(run("nft list tables").contains("table inet firewalld"));
        assert_eq!(world.outside(move || ask(to, LONG)).unwrap(), OUTSIDE);
        for how in ["--reload", "--complete-reload"] {
            assert!(firewall.ask(how), "{how}");
            assert_eq!(world.outside(move || ask(to, LONG)).unwrap(), OUTSIDE, "after {how}");
        }
        drop(firewall);
    });
    leaks.check();
}
