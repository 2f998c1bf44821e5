//! The C face of gpucontainer.
