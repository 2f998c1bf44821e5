//! The Python face of gpucontainer.
