#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gpucontainer::gpu::fuzz::kernel_files(data));
