//! Devices of CDI specifications: read, carried out in sandboxes, and written of what a host has.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;

use driver::FakeDriver;
use gpucontainer::gpu::cdi::{Catalogue, Spec, VendorHooks};
use gpucontainer::gpu::{
    DriverCapability, DriverRoot, GpuGrant, ImageFacts, Inventory, NodeAccess, Vendor, grant_from,
};
use gpucontainer::image::{Image, ImageStore};
use gpucontainer::sandbox::{SandboxBuilder, Stdio, UserNamespace};
use gpucontainer::{ErrorKind, GpuRequest, Result, Sandbox};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

fn debian() -> ImageFacts {
    ImageFacts::detect(|path| path == Path::new("/etc/debian_version"))
}

/// The same grant with what has no order in one.
fn sorted(mut grant: GpuGrant) -> GpuGrant {
    grant.mounts.sort_by(|a, b| a.target.cmp(&b.target));
    grant.device_nodes.sort_by(|a, b| a.path.cmp(&b.path));
    grant.links.sort();
    grant.trees.iter_mut().for_each(|tree| tree.files.sort_by(|a, b| a.path.cmp(&b.path)));
    grant
}

#[test]
fn what_is_written_of_a_host_reads_back_as_the_same_grants() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    for machine in ["dgx-a100", "h100-mig", "t4"] {
        let host = FakeDriver::new(machine);
        let root = DriverRoot::new(host.path());
        let inventory = Inventory::discover_with(&root);
        let request = GpuRequest::all().capabilities(DriverCapability::ALL);
        let spec = Spec::of_host(&request, &inventory, &root, &debian()).unwrap();
        assert_eq!(spec.kind, "nvidia.com/gpu");
        assert_eq!(Spec::from_json(&spec.to_json().unwrap()).unwrap(), spec);
        let directory = tempfile::tempdir().unwrap();
        spec.save(&directory.path().join("nvidia.json")).unwrap();
        assert_eq!(directory.path().read_dir().unwrap().count(), 1, "no temporary file is left");
        let catalogue = Catalogue::read_from(&[directory.path()]);
        assert_eq!(catalogue.problems(), Vec::<String>::new());
        let all = grant_from(&request, &inventory, &root, &debian()).unwrap();
        let mut checked = 0;
        for name in catalogue.names() {
            let read = catalogue.grant(std::slice::from_ref(name), VendorHooks::Refuse, &root).unwrap();
            let native = match name.name() {
                "all" => all.clone(),
                text => {
                    let one = GpuRequest::named([text]).unwrap().capabilities(DriverCapability::ALL);
                    grant_from(&one, &inventory, &root, &debian()).unwrap()
                }
            };
            let read = GpuGrant::clone(&read);
            // An index is not an identifier: the name is all that a specification has.
            let by_identifier = name.name().contains('-');
            let (mut read, mut native) = (sorted(read), sorted(native));
            if !by_identifier {
                assert_eq!(read.gpus, [name.to_string()]);
                read.gpus.clear();
                native.gpus.clear();
            }
            assert_eq!(read, native, "{machine}: {name}");
            checked += 1;
        }
        assert_eq!(checked, 2 * all.gpus.len() + 1, "each by two names, and all");
        // Several at once are the same as the host's own grant for them.
        let names: Vec<_> = all.gpus.iter().map(|uuid| format!("nvidia.com/gpu={uuid}").parse().unwrap()).collect();
        let together = catalogue.grant(&names, VendorHooks::Refuse, &root).unwrap();
        assert_eq!(sorted(together), sorted(all), "{machine}");
    }
}

#[test]
fn other_vendors_gpus_are_written_and_read() {
    if !common::tier("root") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let cards: String = (0..2)
        .map(|card| {
            format!(
                "- name: \"{card}\"\n  containerEdits:\n    deviceNodes:\n    - path: /dev/dri/card{card}\n      \
                 hostPath: /dev/null\n      permissions: rw\n    additionalGids: [44, 105]\n"
            )
        })
        .collect();
    let text = format!(
        "# As AMD's tool writes it.\ncdiVersion: 0.7.0\nkind: amd.com/gpu\ncontainerEdits:\n  deviceNodes:\n  \
         - {{path: /dev/kfd, hostPath: /dev/zero, type: c, major: 1, minor: 5, fileMode: 0660, gid: 109}}\ndevices:\n{cards}"
    );
    std::fs::write(directory.path().join("amd.yaml"), text).unwrap();
    let request = GpuRequest::named(["amd.com/gpu=1"]).unwrap().cdi_directories([directory.path()]);
    let root = DriverRoot::new("/no/such/root");
    let grant = gpucontainer::gpu::grant(&request, &root, &debian()).unwrap();
    assert_eq!(grant.gpus, ["amd.com/gpu=1"]);
    assert_eq!(grant.groups, [44, 105]);
    let [kfd, card] = grant.device_nodes.as_slice() else { panic!("{grant:?}") };
    assert_eq!((kfd.major, kfd.minor, kfd.mode, kfd.owner), (1, 5, 0o660, Some((0, 109))));
    assert_eq!((card.path.to_str(), card.major, card.minor), (Some("/dev/dri/card1"), 1, 3));
    let mut read_write = NodeAccess::default();
    read_write.make = false;
    assert_eq!(card.access, read_write);
    let error = gpucontainer::gpu::grant(
        &GpuRequest::named(["amd.com/gpu=7"]).unwrap().cdi_directories([directory.path()]),
        &root,
        &debian(),
    );
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::GpuUnavailable);
    assert_eq!(error.to_string(), "amd.com/gpu=7 asked for: amd.com/gpu has 0, 1");

    // The cards of this host, if they are described as what they are.
    let inventory = Inventory::discover_with(&root);
    for vendor in [Vendor::Amd, Vendor::Intel] {
        let none = Spec::of_host(&GpuRequest::all().vendor(vendor), &inventory, &root, &debian());
        assert_eq!(none.unwrap_err().kind(), ErrorKind::GpuUnavailable);
    }
}

#[test]
fn what_the_host_does_not_have_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let ask = |edits: &str| {
        let text = format!(
            r#"{{"cdiVersion": "1.1.0", "kind": "v.com/c", "devices": [{{"name": "d", "containerEdits": {edits}}}]}}"#
        );
        std::fs::write(directory.path().join("v.json"), text).unwrap();
        let request: GpuRequest = "v.com/c=d".parse().unwrap();
        let grant =
            gpucontainer::gpu::grant(&request.cdi_directories([directory.path()]), &DriverRoot::default(), &debian());
        grant.unwrap_err()
    };
    let table = [
        (r#"{"deviceNodes": [{"path": "/dev/no-such"}]}"#, ErrorKind::GpuUnavailable, "its numbers are not described"),
        (r#"{"deviceNodes": [{"path": "/etc/passwd"}]}"#, ErrorKind::GpuUnavailable, "no device node"),
        (
            r#"{"deviceNodes": [{"path": "/dev/null", "major": 1, "minor": 5}]}"#,
            ErrorKind::GpuUnavailable,
            "it is device 1:3",
        ),
        (r#"{"deviceNodes": [{"path": "/dev/null", "type": "b"}]}"#, ErrorKind::GpuUnavailable, "not the kind"),
        (r#"{"deviceNodes": [{"path": "/dev/x", "type": "p"}]}"#, ErrorKind::Unsupported, "FIFO"),
        (r#"{"mounts": [{"hostPath": "/no/such", "containerPath": "/a"}]}"#, ErrorKind::GpuUnavailable, "/no/such"),
        (r#"{"mounts": [{"hostPath": "/dev/null", "containerPath": "/a"}]}"#, ErrorKind::Unsupported, "no file"),
        (
            r#"{"mounts": [{"hostPath": "/etc", "containerPath": "/a", "type": "tmpfs"}]}"#,
            ErrorKind::Unsupported,
            "tmpfs",
        ),
        (
            r#"{"mounts": [{"hostPath": "/etc", "containerPath": "/a", "options": ["x"]}]}"#,
            ErrorKind::Unsupported,
            "option",
        ),
        (r#"{"netDevices": [{"hostInterfaceName": "ib0", "name": "ib0"}]}"#, ErrorKind::Unsupported, "ib0"),
        (r#"{"intelRdt": {"closID": "a"}}"#, ErrorKind::Unsupported, "intelRdt"),
        (r#"{"hooks": [{"hookName": "createRuntime", "path": "/bin/true"}]}"#, ErrorKind::Unsupported, "/bin/true"),
    ];
    for (edits, kind, words) in table {
        let error = ask(edits);
        assert_eq!(error.kind(), kind, "{edits}: {error}");
        assert!(error.to_string().contains(words), "{edits}: {error}");
    }
}

/// A sandbox of a small image with a device that `edits` describe.
struct Fixture {
    directory: tempfile::TempDir,
    image: Image,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path().join("store")).unwrap();
        let busybox = common::which("busybox").unwrap();
        let mut builder = store.build().copy_following_links(busybox, "/bin/busybox").directory("/tmp", 0o1777);
        for name in ["sh", "ls", "cat", "stat", "id"] {
            builder = builder.symlink("busybox", format!("/bin/{name}"));
        }
        let image = builder.commit("cdi:1").unwrap();
        Self { directory, image }
    }

    fn describe(&self, edits: &str) {
        let specs = self.directory.path().join("cdi");
        std::fs::create_dir_all(&specs).unwrap();
        let text = format!(
            r#"{{"cdiVersion": "0.7.0", "kind": "v.com/c", "devices": [{{"name": "d", "containerEdits": {edits}}}]}}"#
        );
        std::fs::write(specs.join("v.json"), text).unwrap();
    }

    fn sandbox(&self, hooks: VendorHooks, script: &str) -> SandboxBuilder {
        let request = GpuRequest::named(["v.com/c=d"]).unwrap().cdi_directories([self.directory.path().join("cdi")]);
        Sandbox::from_image(&self.image)
            .store(&ImageStore::open(self.directory.path().join("store")).unwrap())
            .gpus(request.vendor_hooks(hooks))
            .command(["sh", "-c", script])
            .stdin(Stdio::Null)
            .stdout(Stdio::Piped)
            .stderr(Stdio::Piped)
    }
}

fn run(builder: SandboxBuilder) -> Result<String> {
    let sandbox = builder.spawn()?;
    let output = sandbox.communicate(b"", Some(Duration::from_secs(60)))?;
    sandbox.close()?;
    Ok([output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat())
}

fn possible() -> bool {
    let tier = if common::is_root() { "root" } else { "rootless" };
    common::tier(tier) && common::tools(tier, &["busybox"])
}

#[test]
fn a_device_of_any_class_is_given_to_a_sandbox() {
    if !possible() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let data = fixture.directory.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("file"), "of the vendor\n").unwrap();
    fixture.describe(&format!(
        r#"{{"env": ["CARD=d", "CARD=e"],
            "deviceNodes": [{{"path": "/dev/cards/null", "hostPath": "/dev/null", "permissions": "r", "fileMode": 416}},
                            {{"path": "/dev/cards/zero", "hostPath": "/dev/zero", "uid": 7, "gid": 8}}],
            "mounts": [{{"hostPath": "{0}/file", "containerPath": "/opt/vendor/nested/file", "options": ["ro"]}},
                       {{"hostPath": "{0}", "containerPath": "/opt/vendor", "options": ["rbind", "ro", "noexec"]}}],
            "additionalGids": [0, 44]}}"#,
        data.display()
    ));
    std::fs::create_dir(data.join("nested")).unwrap();
    std::fs::write(data.join("nested/file"), "").unwrap();
    let script = "echo $CARD; cat /opt/vendor/file; cat /dev/cards/null; stat -c '%a %u:%g' /dev/cards/*; \
                  cat /opt/vendor/nested/file; (echo >/opt/vendor/x) || echo refused; id -G";
    let said = run(fixture.sandbox(VendorHooks::Refuse, script)).unwrap();
    assert!(said.starts_with("e\nof the vendor\n"), "{said}");
    assert_eq!(said.matches("of the vendor").count(), 2, "the deeper mount is on top: {said}");
    assert!(said.contains("refused"), "{said}");
    if common::is_root() {
        assert!(said.contains("640 0:0\n666 7:8\n"), "{said}");
        assert!(said.lines().any(|line| line == "0 44"), "{said}");
        let user = fixture.sandbox(VendorHooks::Refuse, "stat -c '%a %u:%g' /dev/cards/*; id -G").user("5:6");
        let said = run(user).unwrap();
        assert!(said.starts_with("640 5:6\n666 7:8\n6 44\n"), "a node is the application's own: {said}");
        let users = UserNamespace::Shifted { first: 200_000, count: 65_536 };
        let said = run(fixture.sandbox(VendorHooks::Refuse, script).user_namespace(users)).unwrap();
        assert!(said.starts_with("e\nof the vendor\n"), "{said}");
    }
}

#[test]
fn a_vendor_s_program_prepares_the_container_if_the_caller_allows_it() {
    if !possible() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let (program, log) = (fixture.directory.path().join("hook"), fixture.directory.path().join("log"));
    let script = format!(
        "#!/bin/sh\nread -r state\npid=${{state##*\\\"pid\\\":}}\npid=${{pid%%,*}}\necho \"$1 $OWN $HOME\" >>{}\n\
         [ \"$1\" != fail ] || {{ echo no card >&2; exit 3; }}\n[ \"$1\" != early ] || echo made by the vendor >/proc/$pid/root/tmp/made\n",
        log.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let hook = |moment: &str, word: &str| {
        let env = r#""env": ["OWN=value", "PATH=/usr/bin:/bin"]"#;
        format!(
            r#"{{"hookName": "{moment}", "path": "{}", "args": ["hook", "{word}"], {env}, "timeout": 20}}"#,
            program.display()
        )
    };
    fixture.describe(&format!(r#"{{"hooks": [{}, {}]}}"#, hook("createRuntime", "early"), hook("poststart", "late")));
    let error = run(fixture.sandbox(VendorHooks::Refuse, "true")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(!log.exists(), "nothing ran without the caller's word");
    let said = run(fixture.sandbox(VendorHooks::Run, "cat /tmp/made; echo $OWN")).unwrap();
    assert_eq!(said, "made by the vendor\n\n", "before the application, and not in its environment");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "early value \nlate value \n");
    let said = run(fixture.sandbox(VendorHooks::Skip, "ls /tmp; echo done"));
    // Without its program the device is nothing, which is no error of the sandbox.
    assert_eq!(said.unwrap(), "done\n");
    fixture.describe(&format!(r#"{{"hooks": [{}]}}"#, hook("prestart", "fail")));
    let error = run(fixture.sandbox(VendorHooks::Run, "true")).unwrap_err();
    assert!(error.to_string().contains("exit status: 3: no card"), "{error}");
}
