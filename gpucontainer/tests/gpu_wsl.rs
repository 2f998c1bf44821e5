//! GPUs under WSL: one device for all, and the driver of Windows at its own places.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;
mod gpu_machine;
mod other_hosts;

use driver::FakeDriver;
use gpu_machine::{Fixture, possible, run};
use gpucontainer::gpu::cdi::{Catalogue, Spec, VendorHooks};
use gpucontainer::gpu::{
    Driver, DriverCapability, DriverRoot, GpuGrant, GpuRequest, ImageFacts, Inventory, Vendor, grant, grant_from,
};
use gpucontainer::sandbox::{Stdio, UserNamespace};
use gpucontainer::{ErrorKind, Result};
use other_hosts::{STORE, has_mount, make_windows, windows};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn debian() -> ImageFacts {
    ImageFacts::detect(|path| path == Path::new("/etc/debian_version"))
}

fn ask(host: &FakeDriver, request: &GpuRequest) -> Result<GpuGrant> {
    grant(request, &DriverRoot::new(host.path()), &debian())
}

fn of_store(name: &str) -> String {
    format!("{STORE}/{name}")
}

#[test]
fn the_inventory_comes_from_windows_or_from_the_device() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let host = windows("l40s-pair");
    let inventory = Inventory::discover_with(&DriverRoot::new(host.path()));
    assert_eq!((inventory.unavailable(), inventory.problems()), (None, &[][..]));
    let seen: Vec<(u32, u32, &str)> =
        inventory.gpus().iter().map(|gpu| (gpu.index, gpu.minor, gpu.name.as_str())).collect();
    assert_eq!(seen, [(0, 0, "NVIDIA L40S"), (1, 1, "NVIDIA L40S")], "no node has a number");
    assert!(inventory.gpus().iter().all(|gpu| !gpu.mig_enabled));
    // A library that does not start leaves one entry, which stands for all.
    host.write("usr/lib/wsl/lib/libnvidia-ml.so.1", "garbage");
    let inventory = Inventory::discover_with(&DriverRoot::new(host.path()));
    let [gpu] = inventory.gpus() else { panic!("{inventory:?}") };
    assert_eq!((gpu.vendor, gpu.uuid.as_str(), gpu.index), (Vendor::Nvidia, "GPU-dxg", 0));
    assert_eq!(inventory.unavailable(), None);
    assert!(inventory.problems()[0].contains("libnvidia-ml.so.1 cannot be used"), "{inventory:?}");
    assert!(ask(&host, &GpuRequest::all()).is_ok());
    // Without a driver in Windows there is none.
    std::fs::remove_dir_all(host.path().join("usr/lib/wsl")).unwrap();
    let inventory = Inventory::discover_with(&DriverRoot::new(host.path()));
    assert!(inventory.gpus().is_empty() && inventory.unavailable().is_some(), "{inventory:?}");
}

#[test]
fn all_gpus_are_one_device_and_the_files_keep_their_places() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let host = windows("l40s-pair");
    let granted = ask(&host, &GpuRequest::all()).unwrap();
    assert_eq!(granted.gpus.len(), 2);
    let [node] = granted.device_nodes.as_slice() else { panic!("{:?}", granted.device_nodes) };
    assert_eq!((node.path.as_path(), node.major, node.minor), (Path::new("/dev/dxg"), 240, 63));
    assert_eq!((granted.trees.len(), granted.files.len()), (0, 0), "there is no directory of procfs to mask");
    assert!(granted.left_out.is_empty(), "{:?}", granted.left_out);
    let mut places: Vec<String> =
        granted.mounts.iter().map(|mount| mount.target.to_str().unwrap().to_owned()).collect();
    places.sort();
    let mut expected: Vec<String> = [
        "libcuda.so.1.1",
        "libcuda_loader.so",
        "libnvdxgdmal.so.1",
        "libnvidia-ml.so.1",
        "libnvidia-ml_loader.so",
        "libnvidia-ptxjitcompiler.so.1",
        "libnvrtum64.so",
        "nvcubins.bin",
        "nvidia-smi",
    ]
    .map(of_store)
    .into();
    expected.push("/usr/lib/wsl/lib/libdxcore.so".to_owned());
    assert_eq!(places, expected, "all of the driver store but for video, ray tracing and what is of no use here");
    for mount in &granted.mounts {
        let inside = mount.source.strip_prefix(host.path().canonicalize().unwrap()).unwrap();
        assert_eq!(Path::new("/").join(inside), mount.target);
        assert!(mount.read_only);
    }
    let links: BTreeMap<PathBuf, &Path> =
        granted.links.iter().map(|link| (link.link.clone(), link.target.as_path())).collect();
    let expected = BTreeMap::from([
        ("/usr/bin/nvidia-smi".into(), of_store("nvidia-smi").into()),
        (of_store("libcuda.so").into(), "libcuda.so.1".into()),
        (of_store("libcuda.so.1").into(), PathBuf::from("libcuda_loader.so")),
    ]);
    let expected: BTreeMap<PathBuf, &Path> =
        expected.iter().map(|(link, target): (&PathBuf, &PathBuf)| (link.clone(), target.as_path())).collect();
    assert_eq!(links, expected);
    assert_eq!(granted.library_directories, [Path::new(STORE), Path::new("/usr/lib/wsl/lib")]);
    let with =
        |list: &str| ask(&host, &GpuRequest::all().capabilities(DriverCapability::parse_list(list).unwrap())).unwrap();
    let video = with("video");
    assert!(has_mount(&video, &of_store("libnvidia-encode.so.1")) && has_mount(&video, &of_store("libcuda.so.1.1")));
    let tools = with("utility");
    assert!(!has_mount(&tools, &of_store("libcuda.so.1.1")) && has_mount(&tools, "/usr/lib/wsl/lib/libdxcore.so"));
    assert!(has_mount(&with("ngx"), &of_store("nvngx_dlss.dll")));
    let bare = ask(&host, &GpuRequest::all().capabilities([])).unwrap();
    assert_eq!((bare.device_nodes.len(), bare.mounts.len()), (1, 0));
    let driver_only = ask(&host, &"none".parse().unwrap()).unwrap();
    assert!(driver_only.device_nodes.is_empty() && has_mount(&driver_only, &of_store("libcuda.so.1.1")));
}

#[test]
fn a_part_of_the_gpus_cannot_be_had() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let host = windows("l40s-pair");
    for request in ["0", "1", "GPU-"].map(|text| match text {
        "GPU-" => GpuRequest::count(1),
        index => index.parse().unwrap(),
    }) {
        let error = ask(&host, &request).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::GpuUnavailable);
        let words = error.to_string();
        assert!(words.contains("under WSL one device, /dev/dxg, is all GPUs"), "{words}");
        assert!(words.contains("only all of them can be granted"), "{words}");
    }
    assert!(ask(&host, &GpuRequest::count(2)).is_ok(), "which are all");
    assert!(ask(&host, &"1,0".parse().unwrap()).is_ok());
    assert!(ask(&host, &"0:0".parse().unwrap()).unwrap_err().to_string().contains("0 MIG devices"));
    let one = windows("t4");
    assert!(ask(&one, &GpuRequest::count(1)).is_ok(), "the only one is all");
}

#[test]
fn what_windows_lacks_is_named() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let host = windows("t4");
    let remove = |path: &str| std::fs::remove_file(host.path().join(&path[1..])).unwrap();
    remove(&of_store("libnvdxgdmal.so.1"));
    remove(&of_store("nvcubins.bin"));
    let granted = ask(&host, &GpuRequest::all()).unwrap();
    assert_eq!(granted.left_out.len(), 2, "{:?}", granted.left_out);
    assert!(granted.left_out[0].contains("libnvdxgdmal.so.1 is not in the driver store"), "{:?}", granted.left_out);
    let tools = GpuRequest::all().capabilities([DriverCapability::Utility]);
    assert!(ask(&host, &tools).unwrap().left_out.is_empty(), "which needs neither");
    host.write(&of_store("libcuda.so.1.1")[1..], "garbage");
    let error = ask(&host, &GpuRequest::all()).unwrap_err();
    assert!(error.to_string().contains("libcuda.so.1.1 is not in the driver store, or cannot be used"), "{error}");
    assert!(ask(&host, &tools).is_ok());
    remove("/usr/lib/wsl/lib/libdxcore.so");
    let error = ask(&host, &tools).unwrap_err();
    assert!(error.to_string().contains("/usr/lib/wsl/lib/libdxcore.so is missing"), "{error}");
    // A device that is none, and one that leads elsewhere.
    let host = windows("t4");
    std::fs::remove_file(host.path().join("dev/dxg")).unwrap();
    host.write("dev/dxg", "no device");
    assert!(ask(&host, &GpuRequest::all()).unwrap_err().to_string().contains("no character device"));
    // A kernel module of NVIDIA's makes it an ordinary host.
    host.write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.163.01  x\n");
    assert!(Driver::discover(&DriverRoot::new(host.path())).is_err());
}

#[test]
fn a_specification_has_one_device() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    for machine in ["t4", "l40s-pair"] {
        let host = windows(machine);
        let root = DriverRoot::new(host.path());
        let inventory = Inventory::discover_with(&root);
        let request = GpuRequest::all().capabilities(DriverCapability::ALL);
        let spec = Spec::of_host(&request, &inventory, &root, &debian()).unwrap();
        assert_eq!(Spec::from_json(&spec.to_json().unwrap()).unwrap(), spec);
        let text = spec.to_json().unwrap();
        assert!(!text.contains("enable-cuda-compat") && !text.contains("disable-device-node"), "{text}");
        let directory = tempfile::tempdir().unwrap();
        spec.save(&directory.path().join("nvidia.json")).unwrap();
        let catalogue = Catalogue::read_from(&[directory.path()]);
        let names: Vec<String> = catalogue.names().map(ToString::to_string).collect();
        assert_eq!(names, ["nvidia.com/gpu=all"]);
        let mut read = catalogue.grant(&["nvidia.com/gpu=all".parse().unwrap()], VendorHooks::Refuse, &root).unwrap();
        let mut native = grant_from(&request, &inventory, &root, &debian()).unwrap();
        for grant in [&mut read, &mut native] {
            grant.gpus.clear();
            grant.driver_version = None;
            grant.mounts.sort_by(|a, b| a.target.cmp(&b.target));
        }
        assert_eq!(read, native);
        assert!(Spec::of_host(&GpuRequest::count(1), &inventory, &root, &debian()).is_ok() == (machine == "t4"));
    }
}

#[test]
fn programs_find_the_driver_of_windows() {
    if !possible(if common::is_root() { "root" } else { "rootless" }) {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("l40s-pair");
    make_windows(&fixture.driver, driver::profile("l40s-pair"));
    let before = fixture.host();
    // A library for newer versions of CUDA, which has no kernel here to work on.
    let newer = driver::compile("libcuda.so.1", "int fake_version(void) { return 999; }\n");
    let image = fixture.commit(fixture.debian().copy(newer, "/usr/local/cuda/compat/libcuda.so.999.1.1"));
    let script = "loader libcuda.so.1 libcuda.so libnvidia-ml.so.1 libdxcore.so libnvdxgdmal.so.1; nvidia-smi; \
        ls -d /dev/nvidia*; cat /dev/dxg";
    let sandbox = |gpus: &str| fixture.sandbox(&image, gpus, script);
    // An ordinary user can make no nodes for the stand-in, so it is the driver alone there.
    let mut kinds = vec![(sandbox("none"), false), (sandbox("none").read_only(true), false)];
    if common::is_root() {
        kinds.extend([(sandbox("all"), true), (sandbox("all").read_only(true), true)]);
        let shifted = UserNamespace::Shifted { first: 200_000, count: 65_536 };
        kinds.extend([UserNamespace::Oneself, shifted].map(|users| (sandbox("all").user_namespace(users), true)));
    }
    for (builder, gpus) in kinds {
        let said = run(builder).unwrap();
        let expected = "libcuda.so.1 552\nlibcuda.so 552\nlibnvidia-ml.so.1 554\nlibdxcore.so 10\nlibnvdxgdmal.so.1 556\n\
            nvidia-smi of Windows\n";
        assert!(said.starts_with(expected), "{said}");
        assert!(said.contains("/dev/nvidia*: No such file"), "{said}");
        let seen = if gpus { "No such device or address" } else { "dxg': No such file" };
        assert!(said.contains(seen), "the device filter lets the device through, if there is one: {said}");
    }
    fixture.check(&before, "the host");
}

#[test]
fn a_lease_is_of_all_gpus() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("l40s-pair");
    make_windows(&fixture.driver, driver::profile("l40s-pair"));
    let image = fixture.commit(fixture.debian());
    let error = fixture.sandbox(&image, "0", "true").spawn().map(drop).unwrap_err();
    assert!(error.to_string().contains("under WSL one device"), "{error}");
    let holder = fixture.sandbox(&image, "all", "while :; do read -r line; done").stdin(Stdio::Piped).spawn().unwrap();
    let error = fixture.sandbox(&image, "all", "true").spawn().map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::GpuUnavailable, "{error}");
    holder.close().unwrap();
    run(fixture.sandbox(&image, "all", "true")).unwrap();
}

#[test]
fn links_in_an_image_lead_nowhere_outside() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    make_windows(&fixture.driver, driver::profile("t4"));
    let mut places: Vec<String> = [
        "/usr/lib/wsl",
        "/usr/lib/wsl/lib",
        "/usr/lib/wsl/drivers",
        STORE,
        "/usr/lib/wsl/lib/libdxcore.so",
        "/usr/bin/nvidia-smi",
        "/dev/dxg",
        "/etc/ld.so.cache",
    ]
    .map(str::to_owned)
    .into();
    places.extend(["libcuda.so.1.1", "libcuda.so.1", "nvcubins.bin"].map(of_store));
    other_hosts::attack(&fixture, &"all".parse().unwrap(), "/etc/debian_version", &places);
}
