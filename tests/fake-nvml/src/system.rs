//! Starting and ending, versions, error texts.

use crate::abi::{self, Return, put, put_text};

use std::ffi::{c_char, c_int, c_uint};

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> Return {
    abi::start("nvmlInit_v2")
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> Return {
    abi::start("nvmlInitWithFlags")
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> Return {
    abi::stop()
}

#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(code: Return) -> *const c_char {
    let text = match code {
        abi::SUCCESS => c"Success",
        abi::UNINITIALIZED => c"Uninitialized",
        abi::INVALID_ARGUMENT => c"Invalid Argument",
        abi::NOT_SUPPORTED => c"Not Supported",
        abi::NOT_FOUND => c"Not Found",
        abi::INSUFFICIENT_SIZE => c"Insufficient Size",
        abi::TIMEOUT => c"Timeout",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> Return {
    abi::machine("nvmlSystemGetDriverVersion", |machine| put_text(version, length, machine.driver_version.as_bytes()))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) -> Return {
    abi::machine("nvmlSystemGetNVMLVersion", |machine| put_text(version, length, machine.nvml_version.as_bytes()))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) -> Return {
    abi::machine("nvmlSystemGetCudaDriverVersion_v2", |machine| put(version, machine.cuda_version))
}

/// The first form, which counts what this process could load; NVIDIA's own Python package still asks it.
#[unsafe(no_mangle)]
extern "C" fn nvmlSystemGetCudaDriverVersion(version: *mut c_int) -> Return {
    nvmlSystemGetCudaDriverVersion_v2(version)
}
