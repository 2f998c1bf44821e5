//! Boards with a GPU in the processor: what their lists name, and nothing else.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;
mod gpu_machine;
mod other_hosts;

use driver::{FakeDriver, VERSION, library_directory, profile};
use gpu_machine::{Fixture, possible, run};
use gpucontainer::gpu::cdi::{Catalogue, Spec, VendorHooks};
use gpucontainer::gpu::{DriverCapability, DriverRoot, GpuGrant, GpuRequest, ImageFacts, Inventory, MountKind, grant};
use gpucontainer::sandbox::UserNamespace;
use gpucontainer::{ErrorKind, Result};
use other_hosts::{LISTS, board, board_directory, has_mount, list, make_board, management};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;

fn with(variables: &[(&str, &str)]) -> ImageFacts {
    let mut facts = ImageFacts::detect(|path| path == Path::new("/etc/debian_version"));
    facts.environment = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    facts
}

fn ask(host: &FakeDriver, request: &GpuRequest) -> Result<GpuGrant> {
    grant(request, &DriverRoot::new(host.path()), &with(&[]))
}

fn nodes(grant: &GpuGrant) -> Vec<&str> {
    grant.device_nodes.iter().map(|node| node.path.to_str().unwrap()).collect()
}

#[test]
fn the_gpu_in_the_processor_is_listed_without_a_management_library() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let host = board();
    let inventory = Inventory::discover_with(&DriverRoot::new(host.path()));
    let [gpu] = inventory.gpus() else { panic!("{inventory:?}") };
    assert_eq!(gpu.name, "NVIDIA Jetson AGX Orin Developer Kit (nvgpu)");
    assert_eq!((gpu.uuid.as_str(), gpu.index, gpu.minor), ("GPU-nvgpu", 0, 2));
    assert_eq!((gpu.compute_capability, gpu.pci_bus_id.as_str()), (Some((8, 7)), ""));
    assert_eq!(gpu.memory.unwrap().total, 30 << 30);
    assert_eq!(inventory.unavailable(), None);
    for text in ["0", "GPU-nvgpu", "all"] {
        assert_eq!(ask(&host, &text.parse().unwrap()).unwrap().gpus, ["GPU-nvgpu"]);
    }
    assert!(ask(&host, &GpuRequest::count(1).min_free_memory(16 << 30)).is_ok());
    assert!(ask(&host, &GpuRequest::count(1).min_free_memory(25 << 30)).is_err());
    assert!(ask(&host, &GpuRequest::count(2)).is_err());
}

/// Newer systems have the library, which knows neither a number nor a place on a bus.
#[test]
fn a_management_library_says_more_of_it() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let host = board();
    let errors =
        json!({ "nvmlDeviceGetMinorNumber": 3, "nvmlDeviceGetPciInfo_v3": 3, "nvmlDeviceGetMemoryInfo_v2": 3 });
    let machine = driver::one_gpu(json!({ "name": "Orin (nvgpu)", "compute_capability": [8, 7], "errors": errors }));
    management(&host, &format!("/{}", library_directory()), machine);
    let inventory = Inventory::discover_with(&DriverRoot::new(host.path()));
    let [gpu] = inventory.gpus() else { panic!("{inventory:?}") };
    assert_eq!((gpu.name.as_str(), gpu.minor, gpu.pci_bus_id.as_str()), ("Orin (nvgpu)", 2, ""));
    assert!(gpu.uuid.starts_with("GPU-7e4a") && inventory.driver_version() == Some(VERSION), "{inventory:?}");
    assert_eq!(gpu.memory.unwrap().total, 30 << 30, "that of the system");
    let granted = ask(&host, &GpuRequest::count(1)).unwrap();
    assert_eq!(nodes(&granted).len(), 4);
    assert!(has_mount(&granted, &format!("{}/libcuda.so.1.1", board_directory())));
    assert_eq!(granted.driver_version.as_deref(), Some(VERSION));
}

#[test]
fn what_the_lists_name_is_granted_and_nothing_else() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let host = board();
    let granted = ask(&host, &GpuRequest::count(1)).unwrap();
    assert_eq!(nodes(&granted), ["/dev/nvhost-ctrl", "/dev/nvhost-gpu", "/dev/nvidia2", "/dev/nvmap"]);
    assert!(granted.device_nodes.iter().all(|node| node.host_path.is_some()));
    let directory = board_directory();
    let expected: BTreeSet<String> = [
        format!("{directory}/libcuda.so.1.1"),
        format!("{directory}/libnvrm_gpu.so"),
        format!("{directory}/libnvidia-ptxjitcompiler.so.35.4.1"),
        format!("{directory}/libnvbufsurface.so.1.0.0"),
        "/lib/firmware/tegra234".to_owned(),
        "/usr/share/glvnd/egl_vendor.d/10_nvidia.json".to_owned(),
        "/etc/nv_tegra_release".to_owned(),
    ]
    .into();
    let places: BTreeSet<String> = granted.mounts.iter().map(|mount| mount.target.display().to_string()).collect();
    assert_eq!(places, expected);
    assert_eq!(places.len(), granted.mounts.len());
    for mount in &granted.mounts {
        assert!(mount.read_only && mount.source.starts_with(host.path().canonicalize().unwrap()), "{mount:?}");
        assert_eq!(mount.kind == MountKind::Directory, mount.target.ends_with("tegra234"));
    }
    let links: BTreeSet<(String, String)> =
        granted.links.iter().map(|link| (link.link.display().to_string(), link.target.display().to_string())).collect();
    let pair = |link: String, target: &str| (link, target.to_owned());
    let expected = BTreeSet::from([
        pair(format!("/{}/libcuda.so", library_directory()), "tegra/libcuda.so"),
        pair(format!("{directory}/libcuda.so"), "libcuda.so.1.1"),
        pair(format!("{directory}/libcuda.so.1"), "libcuda.so.1.1"),
        pair(format!("{directory}/libnvbufsurface.so"), "libnvbufsurface.so.1.0.0"),
        pair(format!("{directory}/libnvidia-ptxjitcompiler.so.1"), "libnvidia-ptxjitcompiler.so.35.4.1"),
    ]);
    assert_eq!(links, expected);
    assert_eq!(granted.library_directories, [Path::new(&directory)]);
    let bare = ask(&host, &GpuRequest::count(1).capabilities([])).unwrap();
    assert_eq!((bare.device_nodes.len(), bare.mounts.len(), bare.links.len()), (4, 0, 0));
    let driver_only = ask(&host, &"none".parse().unwrap()).unwrap();
    assert!(driver_only.device_nodes.is_empty() && driver_only.mounts == granted.mounts);
}

#[test]
fn an_image_that_brings_nothing_says_so() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let host = board();
    let samples = "/usr/src/jetson_multimedia_api";
    for (variables, expected) in [
        (&[][..], false),
        (&[("NVIDIA_REQUIRE_JETPACK", "csv-mounts=all")][..], true),
        (&[("NVIDIA_REQUIRE_JETPACK", "csv-mounts=base")], false),
        (&[("NVIDIA_REQUIRE_JETPACK", "csv-mounts=all"), ("NVIDIA_REQUIRE_JETPACK", "")], false),
        (&[("NVIDIA_REQUIRE_JETPACK_HOST_MOUNTS", "csv-mounts=all")], false),
    ] {
        let granted = grant(&GpuRequest::count(1), &DriverRoot::new(host.path()), &with(variables)).unwrap();
        assert_eq!(has_mount(&granted, samples), expected, "{variables:?}");
    }
    let root = DriverRoot::new(host.path());
    let error = grant(&GpuRequest::count(1), &root, &with(&[("NVIDIA_REQUIRE_ARCH", "arch>=9.0")])).unwrap_err();
    assert!(error.to_string().contains("arch>=9.0 (it is 8.7)"), "{error}");
}

#[test]
fn malformed_lists_are_refused_by_file_and_line() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let table = [
        ("devices", "dev, /dev/nvmap\nnode, /dev/x\n", "devices.csv, line 2: \"node, /dev/x\": its kind \"node\""),
        ("drivers", "lib /usr/lib/x.so", "drivers.csv, line 1: \"lib /usr/lib/x.so\": it is not KIND, PATH"),
        ("l4t", "\n\nsym, relative\n", "l4t.csv, line 3: \"sym, relative\": its path is not absolute"),
        ("l4t", "dir, /usr/../../etc\n", "l4t.csv, line 1"),
        ("l4t", "lib, /usr/lib/[a\n", "its [ has no ]"),
    ];
    for (name, text, words) in table {
        let host = board();
        list(&host, name, text);
        let error = ask(&host, &GpuRequest::count(1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::GpuUnavailable);
        assert!(error.to_string().contains(words), "{error}");
    }
    let host = board();
    list(&host, "samples", "malformed");
    assert!(ask(&host, &GpuRequest::count(1)).is_ok(), "a list that nobody asked for is not read");
    list(&host, "drivers", "");
    let by_link = ask(&host, &GpuRequest::count(1)).unwrap();
    assert!(has_mount(&by_link, &format!("{}/libcuda.so.1.1", board_directory())), "another list's link leads to it");
}

#[test]
fn lists_lead_nowhere_outside_of_the_driver_root() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let host = board();
    let victim = tempfile::tempdir().unwrap();
    std::fs::write(victim.path().join("libvictim.so"), "of the host").unwrap();
    let inside = host.path().join(&board_directory()[1..]);
    let outside = victim.path().join("libvictim.so");
    std::os::unix::fs::symlink(&outside, inside.join("libout.so")).unwrap();
    let up = format!("{}{}", "../".repeat(40), outside.display());
    std::os::unix::fs::symlink(up, inside.join("libup.so")).unwrap();
    std::os::unix::fs::symlink("liba.so", inside.join("libb.so")).unwrap();
    std::os::unix::fs::symlink("libb.so", inside.join("liba.so")).unwrap();
    std::os::unix::fs::symlink(victim.path(), inside.join("directory")).unwrap();
    let directory = board_directory();
    let text = format!(
        "lib, {directory}/lib*.so*\nsym, {directory}/lib*\nlib, {directory}/directory/*\ndir, {directory}/directory\n"
    );
    list(&host, "l4t", &text);
    let granted = ask(&host, &GpuRequest::count(1)).unwrap();
    let root = host.path().canonicalize().unwrap();
    assert!(granted.mounts.iter().all(|mount| mount.source.starts_with(&root)), "{:?}", granted.mounts);
    for name in ["libout", "libup", "liba", "libb"] {
        assert!(!granted.links.iter().any(|link| link.link.to_string_lossy().contains(name)), "{:?}", granted.links);
    }
    // A file in place of a device.
    std::fs::remove_file(host.path().join("dev/nvmap")).unwrap();
    host.write("dev/nvmap", "no device");
    let error = ask(&host, &GpuRequest::count(1)).unwrap_err();
    assert!(error.to_string().contains("/dev/nvmap: it is no character device"), "{error}");
    list(&host, "devices", "dev, /dev/not-there\n");
    let error = ask(&host, &GpuRequest::count(1)).unwrap_err();
    assert!(error.to_string().contains("none of the devices in the board's lists"), "{error}");
    for path in ["l4t.csv", "drivers.csv"] {
        std::fs::remove_file(host.path().join(&LISTS[1..]).join(path)).unwrap();
    }
    let compute = ask(&board_without_cuda(), &GpuRequest::count(1)).unwrap_err();
    assert!(compute.to_string().contains("libcuda.so.* is in none of the board's lists"), "{compute}");
}

fn board_without_cuda() -> FakeDriver {
    let host = board();
    list(&host, "drivers", "");
    list(&host, "l4t", "");
    host
}

#[test]
fn a_gpu_in_a_slot_beside_it_is_granted_by_itself() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let mut machine = profile("l40s-pair");
    machine["gpus"][0]["minor"] = json!(0);
    machine["gpus"][1]["minor"] = json!(9);
    machine["gpus"][1]["name"] = json!("Orin (nvgpu)");
    machine["gpus"][1]["errors"] = json!({ "nvmlDeviceGetMinorNumber": 3, "nvmlDeviceGetPciInfo_v3": 3 });
    let host = FakeDriver::with_profile(machine);
    host.write("etc/nv_tegra_release", "# R36\n");
    let cuda = format!("/{}/tegra/libcuda.so.1.1", library_directory());
    let object = driver::compile("libcuda.so.1", "int fake_version(void) { return 354; }\n");
    host.write(&cuda[1..], std::fs::read(object).unwrap());
    list(&host, "devices", "dev, /dev/nvidia*\ndev, /dev/nvmap\n");
    list(&host, "drivers", &format!("lib, {cuda}\n"));
    host.node("dev/nvmap", 243, 0);
    let inventory = Inventory::discover_with(&DriverRoot::new(host.path()));
    let names: Vec<(u32, &str)> = inventory.gpus().iter().map(|gpu| (gpu.minor, gpu.name.as_str())).collect();
    assert_eq!(names, [(0, "NVIDIA L40S"), (9, "Orin (nvgpu)")]);
    let slot = ask(&host, &"0".parse().unwrap()).unwrap();
    assert_eq!(nodes(&slot), ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia0"]);
    assert!(!has_mount(&slot, &cuda) && slot.driver_version.as_deref() == Some(VERSION));
    let processor = ask(&host, &"1".parse().unwrap()).unwrap();
    assert!(!nodes(&processor).contains(&"/dev/nvidia0"), "{:?}", nodes(&processor));
    assert!(nodes(&processor).contains(&"/dev/nvmap") && nodes(&processor).contains(&"/dev/nvidia9"));
    assert!(has_mount(&processor, &cuda));
    let both = ask(&host, &GpuRequest::all()).unwrap();
    assert!(nodes(&both).contains(&"/dev/nvidia0") && nodes(&both).contains(&"/dev/nvmap"));
    assert_eq!(nodes(&both).iter().collect::<BTreeSet<_>>().len(), both.device_nodes.len());
    assert!(has_mount(&both, &cuda));
}

#[test]
fn a_specification_says_the_same() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let host = board();
    let root = DriverRoot::new(host.path());
    let (inventory, request) = (Inventory::discover_with(&root), GpuRequest::all().capabilities(DriverCapability::ALL));
    let spec = Spec::of_host(&request, &inventory, &root, &with(&[])).unwrap();
    let directory = tempfile::tempdir().unwrap();
    spec.save(&directory.path().join("nvidia.json")).unwrap();
    let catalogue = Catalogue::read_from(&[directory.path()]);
    assert_eq!(catalogue.problems(), Vec::<String>::new());
    let names: BTreeSet<String> = catalogue.names().map(ToString::to_string).collect();
    let expected = ["0", "GPU-nvgpu", "all"].map(|name| format!("nvidia.com/gpu={name}"));
    assert_eq!(names, expected.into());
    for name in ["0", "all", "GPU-nvgpu"] {
        let name = format!("nvidia.com/gpu={name}").parse().unwrap();
        let mut read = catalogue.grant(&[name], VendorHooks::Refuse, &root).unwrap();
        let mut native = grant(&request, &root, &with(&[])).unwrap();
        for grant in [&mut read, &mut native] {
            grant.gpus.clear();
            grant.mounts.sort_by(|a, b| a.target.cmp(&b.target));
            grant.device_nodes.sort_by(|a, b| a.path.cmp(&b.path));
        }
        assert_eq!(read, native);
    }
}

#[test]
fn programs_find_the_board_s_libraries() {
    if !possible(if common::is_root() { "root" } else { "rootless" }) {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("none");
    make_board(&fixture.driver);
    let before = fixture.host();
    let image = fixture.commit(fixture.debian());
    let script = "loader libcuda.so.1 libcuda.so libnvrm_gpu.so libnvidia-ptxjitcompiler.so.1 libunlisted.so.1; \
        cat /etc/nv_tegra_release /lib/firmware/tegra234/nvdec.bin; ls -1 -d /dev/nv*; cat /dev/nvmap; \
        touch /lib/firmware/tegra234/x";
    let sandbox = |gpus: &str| fixture.sandbox(&image, gpus, script);
    // An ordinary user can make no nodes for the stand-in, so it is the libraries alone there.
    let mut kinds = vec![(sandbox("none"), false), (sandbox("none").read_only(true), false)];
    if common::is_root() {
        kinds.extend([(sandbox("0"), true), (sandbox("all").read_only(true), true)]);
        let shifted = UserNamespace::Shifted { first: 200_000, count: 65_536 };
        kinds.extend([UserNamespace::Oneself, shifted].map(|users| (sandbox("0").user_namespace(users), true)));
    }
    for (builder, gpus) in kinds {
        let said = run(builder).unwrap();
        let found = "libcuda.so.1 354\nlibcuda.so 354\nlibnvrm_gpu.so 354\nlibnvidia-ptxjitcompiler.so.1 354\n";
        assert!(said.starts_with(found), "{said}");
        assert!(said.contains("libunlisted.so.1: cannot open shared object file"), "{said}");
        assert!(said.contains("# R35 (release), REVISION: 4.1\nfirmware"), "{said}");
        assert_eq!(said.contains("/dev/nvhost-ctrl\n/dev/nvhost-gpu\n/dev/nvidia2\n/dev/nvmap\n"), gpus, "{said}");
        let seen = if gpus { "No such device or address" } else { "nvmap': No such file" };
        assert!(said.contains(seen), "the device filter lets the devices through, if there are any: {said}");
        assert!(said.contains("x: Read-only file system"), "{said}");
    }
    fixture.check(&before, "the host");
}

#[test]
fn links_in_an_image_lead_nowhere_outside() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("none");
    make_board(&fixture.driver);
    let directory = board_directory();
    let places = [
        format!("/{}", library_directory()),
        directory.clone(),
        format!("{directory}/libcuda.so.1.1"),
        format!("{directory}/libcuda.so.1"),
        format!("/{}/libcuda.so", library_directory()),
        "/lib/firmware".to_owned(),
        "/lib/firmware/tegra234".to_owned(),
        "/etc/nv_tegra_release".to_owned(),
        "/usr/share/glvnd".to_owned(),
        "/dev/nvmap".to_owned(),
        "/etc/ld.so.cache".to_owned(),
    ];
    other_hosts::attack(&fixture, &"0".parse().unwrap(), "/etc/debian_version", &places);
}
