/*
 * gpucontainer for C++17: the functions of gpucontainer.h as objects that own what they hold and throw what fails.
 *
 *     #include <gpucontainer.hpp>
 *
 *     gpucontainer::Sandbox sandbox = gpucontainer::SandboxBuilder("docker.io/library/alpine:3.22")
 *                                         .command({"echo", "hello"})
 *                                         .stdio(1, GPUC_STDIO_PIPED)
 *                                         .spawn();
 *     gpucontainer::Output output = sandbox.communicate();
 *
 * - Headers alone: a program links the C library and nothing else.
 * - What fails throws gpucontainer::Error. Destructors throw nothing; where an end can fail in a way worth knowing, there
 *   is a function for it (close, release).
 * - Objects can be moved and not copied. One that was moved from may be assigned to and destroyed, nothing else.
 * - Waits take a std::optional of milliseconds; none is for ever.
 * - The comments here are short: gpucontainer.h says at the function of the same name what is wanted and what can fail.
 */
#ifndef GPUCONTAINER_HPP
#define GPUCONTAINER_HPP

#include <gpucontainer/gpu.hpp>
#include <gpucontainer/handle.hpp>
#include <gpucontainer/image.hpp>
#include <gpucontainer/network.hpp>
#include <gpucontainer/sandbox.hpp>

#endif
