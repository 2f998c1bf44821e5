//! The inventory of machines that a stand-in for NVML describes: whole, damaged and hostile.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;

use driver::{FakeDriver, VERSION, failing, library_directory, one_gpu, profile};
use gpucontainer::gpu::{DriverRoot, GpuRequest, ImageFacts, Inventory, Vendor, grant};
use gpucontainer::{ErrorKind, Host};
use serde_json::json;
use std::os::unix::fs::symlink;

const GIB: u64 = 1 << 30;

fn discover(driver: &FakeDriver) -> Inventory {
    Inventory::discover_with(&DriverRoot::new(driver.path()))
}

fn reason(inventory: &Inventory) -> &str {
    assert!(inventory.gpus().is_empty(), "{inventory:?}");
    inventory.unavailable().expect("a reason")
}

#[test]
fn one_gpu_is_described() {
    if !driver::available() {
        return;
    }
    let inventory = discover(&FakeDriver::new("t4"));
    assert_eq!(inventory.unavailable(), None);
    assert_eq!(inventory.problems(), [""; 0]);
    assert_eq!(inventory.driver_version(), Some(VERSION));
    assert_eq!(inventory.cuda_version(), Some((12, 4)));
    let [gpu] = inventory.gpus() else { panic!("{inventory:?}") };
    assert_eq!((gpu.vendor, gpu.index, gpu.minor), (Vendor::Nvidia, 0, 0));
    assert_eq!((gpu.name.as_str(), gpu.pci_bus_id.as_str()), ("NVIDIA T4", "0000:3b:00.0"));
    assert_eq!(gpu.uuid, "GPU-7e4a0001-0000-4000-8000-000000000000");
    let memory = gpu.memory.unwrap();
    assert_eq!((memory.total, memory.free), (16 * GIB, 16 * GIB - (300 << 20)));
    assert_eq!(gpu.compute_capability, Some((7, 5)));
    assert_eq!(gpu.cpu_affinity, (0..16).collect::<Vec<u32>>());
    assert_eq!(gpu.numa_node, Some(0));
    assert!(!gpu.mig_enabled && gpu.mig_devices.is_empty() && gpu.processes.is_empty());
    let text = serde_json::to_string(&inventory).unwrap();
    assert_eq!(serde_json::from_str::<Inventory>(&text).unwrap(), inventory);
}

#[test]
fn a_used_gpu_names_its_processes_and_the_free_one_is_chosen() {
    if !driver::available() {
        return;
    }
    let host = FakeDriver::new("l40s-pair");
    let inventory = discover(&host);
    assert_eq!(inventory.gpus()[0].processes, [977, 4100, 4242]);
    assert_eq!(inventory.gpus()[0].memory.unwrap().free, 17 * GIB - (512 << 20));
    assert!(inventory.gpus()[1].processes.is_empty());
    let root = DriverRoot::new(host.path());
    let granted = |request: &GpuRequest| grant(request, &root, &ImageFacts::default()).map(|grant| grant.gpus);
    assert_eq!(granted(&GpuRequest::count(1)).unwrap(), [inventory.gpus()[1].uuid.clone()]);
    assert_eq!(granted(&GpuRequest::count(2)).unwrap().len(), 2);
    let error = granted(&GpuRequest::count(2).min_free_memory(40 * GIB)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::GpuUnavailable);
    assert!(error.to_string().contains("1 of 2 fit: GPU 0 (NVIDIA L40S) has 16.5 GiB free"), "{error}");
}

#[test]
fn eight_gpus_keep_their_minors_apart_from_their_indices() {
    if !driver::available() {
        return;
    }
    let inventory = discover(&FakeDriver::new("dgx-a100"));
    let minors: Vec<u32> = inventory.gpus().iter().map(|gpu| gpu.minor).collect();
    assert_eq!(minors, [2, 3, 0, 1, 6, 7, 4, 5]);
    let indices: Vec<u32> = inventory.gpus().iter().map(|gpu| gpu.index).collect();
    assert_eq!(indices, (0..8).collect::<Vec<u32>>());
    assert_eq!(inventory.gpus()[7].numa_node, Some(5), "the kernel's word for it");
    assert!(inventory.gpus()[7].cpu_affinity.contains(&80) && inventory.gpus()[7].cpu_affinity.contains(&223));
    assert!(inventory.gpus().iter().all(|gpu| !gpu.mig_enabled));
}

#[test]
fn slices_of_a_split_gpu_are_listed_with_their_instances() {
    if !driver::available() {
        return;
    }
    let inventory = discover(&FakeDriver::new("h100-mig"));
    let split = &inventory.gpus()[0];
    assert!(split.mig_enabled && !inventory.gpus()[1].mig_enabled);
    let slices: Vec<_> = split.mig_devices.iter().collect();
    let seen: Vec<_> = slices.iter().map(|slice| (slice.index, slice.gpu_instance, slice.profile.as_str())).collect();
    assert_eq!(seen, [(0, 1, "3g.40gb"), (2, 3, "2g.20gb"), (3, 9, "1g.10gb")], "place 1 is empty");
    assert_eq!(slices[1].processes, [31337]);
    assert_eq!(split.processes, [31337], "the GPU is used if a slice is");
    assert_eq!(slices[2].memory.unwrap().total, 10 * GIB);
}

#[test]
fn a_driver_without_gpus_is_a_reason() {
    if !driver::available() {
        return;
    }
    let host = FakeDriver::new("none");
    let inventory = discover(&host);
    assert!(reason(&inventory).contains("it finds no GPU"), "{inventory:?}");
    assert_eq!(inventory.driver_version(), Some(VERSION));
    let root = DriverRoot::new(host.path());
    let error = grant(&GpuRequest::all(), &root, &ImageFacts::default()).unwrap_err();
    assert!(error.to_string().contains("every GPU asked for: the NVIDIA driver is there"), "{error}");
}

#[test]
fn a_missing_driver_is_a_reason() {
    let directory = tempfile::tempdir().unwrap();
    let root = DriverRoot::new(directory.path());
    let inventory = Inventory::discover_with(&root);
    assert!(reason(&inventory).starts_with("no NVIDIA driver is installed"), "{inventory:?}");
    std::fs::create_dir_all(directory.path().join("proc/driver/nvidia")).unwrap();
    std::fs::write(directory.path().join("proc/driver/nvidia/version"), "NVRM version: x 550.163.01\n").unwrap();
    let inventory = Inventory::discover_with(&root);
    assert!(reason(&inventory).contains("its user space is missing"), "{inventory:?}");
    let missing = DriverRoot::new("/no/such/directory");
    assert!(reason(&Inventory::discover_with(&missing)).contains("/no/such/directory"));
}

#[test]
fn errors_at_the_start_of_the_library_say_what_to_do() {
    if !driver::available() {
        return;
    }
    let table = [
        (9, "its kernel module nvidia is not loaded"),
        (18, "of different versions"),
        (4, "refuses this user access"),
        (999, "does not start: nvmlInit"),
        (77, "does not start: nvmlInit"),
    ];
    for (code, words) in table {
        let inventory = discover(&FakeDriver::with_profile(failing("nvmlInit_v2", code)));
        assert!(reason(&inventory).contains(words), "{code}: {inventory:?}");
    }
    let inventory = discover(&FakeDriver::with_profile(failing("nvmlDeviceGetCount_v2", 999)));
    assert!(reason(&inventory).contains("does not count its GPUs"), "{inventory:?}");
    let inventory = discover(&FakeDriver::with_profile(failing("nvmlShutdown", 999)));
    assert_eq!(inventory.gpus().len(), 1);
    assert!(inventory.problems()[0].starts_with("nvmlShutdown"), "{inventory:?}");
}

#[test]
fn damaged_libraries_are_a_reason() {
    if !driver::available() {
        return;
    }
    let whole = std::fs::read(driver::fake_nvml()).unwrap();
    let empty = driver::compile("libnvidia-ml.so.1", "int fake_version(void) { return 550; }\n");
    let no_end = driver::compile("libnvidia-ml.so.1", "int nvmlInit_v2(void) { return 0; }\n");
    let table: [(&str, Vec<u8>); 6] = [
        ("empty", Vec::new()),
        ("a script", b"#!/bin/sh\n".to_vec()),
        ("cut in its headers", whole[..70].to_vec()),
        // All headers are there, and the loader would map pages that the file does not have.
        ("cut in its code", whole[..8192].to_vec()),
        ("without any function", std::fs::read(empty).unwrap()),
        ("without an end", std::fs::read(no_end).unwrap()),
    ];
    for (what, bytes) in table {
        let host = FakeDriver::new("t4");
        host.write(&format!("{}/libnvidia-ml.so.{VERSION}", library_directory()), bytes);
        let inventory = discover(&host);
        assert!(!reason(&inventory).is_empty(), "{what}");
        if what != "without an end" {
            assert!(reason(&inventory).contains("libnvidia-ml.so"), "{what}: {inventory:?}");
        }
        let error = grant(&GpuRequest::count(1), &DriverRoot::new(host.path()), &ImageFacts::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::GpuUnavailable, "{what}");
    }
    // A link that leads nowhere, and one that leads out of the driver root.
    for target in ["libnvidia-ml.so.0", "/etc/passwd"] {
        let host = FakeDriver::new("t4");
        let link = host.path().join(library_directory()).join("libnvidia-ml.so.1");
        std::fs::remove_file(&link).unwrap();
        symlink(target, &link).unwrap();
        assert!(reason(&discover(&host)).contains("libnvidia-ml.so.1 is not in"), "{target}");
    }
}

#[test]
fn a_gpu_that_fell_off_the_bus_leaves_the_others() {
    if !driver::available() {
        return;
    }
    let mut machine = profile("dgx-a100");
    machine["gpus"][3]["errors"] = json!({ "nvmlDeviceGetUUID": 15 });
    machine["gpus"][5]["errors"] = json!({ "nvmlDeviceGetHandleByIndex_v2": 15 });
    let inventory = discover(&FakeDriver::with_profile(machine));
    let indices: Vec<u32> = inventory.gpus().iter().map(|gpu| gpu.index).collect();
    assert_eq!(indices, [0, 1, 2, 4, 6, 7], "the others keep their indices");
    assert_eq!(inventory.problems().len(), 2, "{inventory:?}");
    assert!(inventory.problems()[0].starts_with("GPU 3: nvmlDeviceGetUUID"), "{inventory:?}");
    let lost = json!({ "errors": { "nvmlDeviceGetUUID": 15 } });
    let inventory = discover(&FakeDriver::with_profile(one_gpu(lost)));
    assert!(reason(&inventory).contains("none of 1 GPUs can be used: GPU 0: nvmlDeviceGetUUID"), "{inventory:?}");
}

#[test]
fn what_a_gpu_does_not_support_is_no_problem() {
    if !driver::available() {
        return;
    }
    let calls = [
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetCudaComputeCapability",
        "nvmlDeviceGetCpuAffinity",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetGraphicsRunningProcesses_v3",
    ];
    let errors: serde_json::Map<_, _> = calls.into_iter().map(|call| (call.to_owned(), json!(3))).collect();
    let host = FakeDriver::with_profile(one_gpu(json!({ "errors": errors })));
    let inventory = discover(&host);
    assert_eq!(inventory.problems(), [""; 0]);
    assert_eq!(inventory.gpus()[0].memory, None);
    assert_eq!(inventory.gpus()[0].compute_capability, None);
    let root = DriverRoot::new(host.path());
    let error = grant(&GpuRequest::count(1).min_free_memory(1), &root, &ImageFacts::default()).unwrap_err();
    assert!(error.to_string().contains("does not say how much memory is free"), "{error}");
}

#[test]
fn hostile_answers_are_refused_or_cut() {
    if !driver::available() {
        return;
    }
    let most = u32::MAX;
    // What the GPU says, and the problem that must be named; none if the answer is cut to something sound.
    let table = [
        (json!({ "uuid": "" }), Some("nvmlDeviceGetUUID")),
        (json!({ "uuid": "../../etc/passwd" }), Some("nvmlDeviceGetUUID")),
        (json!({ "uuid": "GPU-\n--privileged" }), Some("nvmlDeviceGetUUID")),
        (json!({ "uuid": "G".repeat(300) }), Some("nvmlDeviceGetUUID")),
        (json!({ "pci_bus_id": "../../../etc" }), Some("nvmlDeviceGetPciInfo")),
        (json!({ "minor": 254 }), Some("nvmlDeviceGetMinorNumber: \"254\" is no minor number of a GPU")),
        (json!({ "minor": 255 }), Some("nvmlDeviceGetMinorNumber")),
        (json!({ "minor": most }), Some("nvmlDeviceGetMinorNumber")),
        (json!({ "name_bytes": [255, 254, 65] }), Some("nvmlDeviceGetName")),
        (json!({ "process_count": most }), Some("nvmlDeviceGetComputeRunningProcesses")),
        (json!({ "compute_capability": [-1, -1] }), None),
        (json!({ "memory": { "total": 10, "free": u64::MAX } }), None),
        (json!({ "mig": { "enabled": true, "places": most, "devices": [] } }), None),
        (
            json!({ "mig": { "enabled": true, "places": 7, "devices": [{ "uuid": "../x" }] } }),
            Some("MIG device 0: nvmlDeviceGetUUID: \"../x\" is no identifier"),
        ),
    ];
    for (changes, problem) in table {
        let inventory = discover(&FakeDriver::with_profile(one_gpu(changes.clone())));
        let named = inventory.problems().iter().any(|text| problem.is_some_and(|call| text.contains(call)));
        assert_eq!(named, problem.is_some(), "{changes}: {inventory:?}");
        assert_eq!(inventory.problems().len(), usize::from(problem.is_some()), "{changes}: {inventory:?}");
        for gpu in inventory.gpus() {
            assert!(gpu.memory.is_none_or(|memory| memory.free <= memory.total), "{changes}");
        }
    }
    let mut machine = profile("t4");
    machine["gpu_count"] = json!(most);
    assert!(reason(&discover(&FakeDriver::with_profile(machine))).contains("claims to have 4294967295 GPUs"));
    let mut machine = profile("l40s-pair");
    machine["gpus"][1]["minor"] = json!(1);
    let inventory = discover(&FakeDriver::with_profile(machine));
    assert_eq!(inventory.gpus().len(), 1, "one node cannot be two GPUs");
    assert!(inventory.problems()[0].starts_with("GPU 1"), "{inventory:?}");
    let mut machine = profile("t4");
    machine["driver_version"] = json!("../../550");
    assert_eq!(discover(&FakeDriver::with_profile(machine)).driver_version(), None);
}

#[test]
fn nothing_of_the_library_stays() {
    if !driver::available() {
        return;
    }
    let host = FakeDriver::new("dgx-a100");
    let held = || std::fs::read_to_string("/proc/self/maps").unwrap().contains(host.path().to_str().unwrap());
    for _ in 0..20 {
        assert_eq!(discover(&host).gpus().len(), 8);
        assert!(!held(), "the library is unloaded after each use");
    }
    let threads: Vec<_> = std::thread::scope(|scope| {
        let work = || discover(&host).gpus().len();
        let handles: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    assert_eq!(threads, [8; 4], "several threads at once");
    assert!(!held());
}

/// The variable belongs to the whole process, so another process is asked.
#[test]
fn the_driver_root_of_the_environment_is_used() {
    if !driver::available() {
        return;
    }
    if let Some(place) = std::env::var_os("GPUC_TEST_PROBE") {
        std::fs::write(place, serde_json::to_string(&Host::probe()).unwrap()).unwrap();
        return;
    }
    let host = FakeDriver::new("h100-mig");
    let answer = host.path().join("answer.json");
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_driver_root_of_the_environment_is_used"])
        .env("GPUC_TEST_PROBE", &answer)
        .env("GPUCONTAINER_DRIVER_ROOT", host.path())
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let probed: Host = serde_json::from_str(&std::fs::read_to_string(answer).unwrap()).unwrap();
    assert!(probed.has("nvidia-driver") && probed.has("gpus"), "{probed}");
    assert_eq!(probed.capability("nvidia-driver").unwrap().detail, "550.163.01, CUDA 12.4");
    let table = probed.to_string();
    assert!(table.contains("NVIDIA GPU 1: NVIDIA H100 80GB HBM3") && table.contains("0:2: 2g.20gb"), "{table}");
}
