// The C++ layer: objects that own, errors that are thrown, callbacks that may throw.
#include "../c/check.h"
#include <csignal>
#include <filesystem>
#include <gpucontainer.hpp>
#include <type_traits>
#include <unistd.h>

namespace gpuc = gpucontainer;
using namespace std::chrono_literals;

static_assert(std::is_nothrow_move_constructible_v<gpuc::Sandbox> && !std::is_copy_constructible_v<gpuc::Sandbox>);
static_assert(std::is_nothrow_destructible_v<gpuc::Sandbox> && std::is_base_of_v<std::runtime_error, gpuc::Error>);

template <class Call> static gpuc::Error failure(Call &&call) {
    try {
        call();
    } catch (const gpuc::Error &error) {
        return error;
    }
    fprintf(stderr, "nothing was thrown\n");
    exit(1);
}

static gpuc::Image build(const gpuc::ImageStore &store) {
    return gpuc::ImageBuilder(store)
        .copy_following_links("/bin/busybox", "/bin/busybox")
        .symlink("busybox", "/bin/sh")
        .file("/greeting", "hello\n")
        .env("WHERE", "inside")
        .command({"/bin/sh", "-c", "cat /greeting; echo $WHERE; cat >&2; exit 3"})
        .commit("layer");
}

static void images(const gpuc::ImageStore &store) {
    const gpuc::Image image = store.image("layer");
    CHECK(store.images().size() == 1 && store.images()[0].id == image.id());
    CHECK(image.config_json().find("WHERE=inside") != std::string::npos);
    CHECK(store.tag(image, "again").id() == image.id());
    store.remove("again");
    const gpuc::Error error = failure([&] { store.image("again"); });
    CHECK(error.kind() == GPUC_ERROR_IMAGE_NOT_FOUND);
    CHECK(std::string(error.what()).find("again") != std::string::npos);
    store.collect_garbage();
    store.collect_abandoned();

    const std::string nowhere = store.path() + "/nowhere.tar";
    const gpuc::Error missing = failure([&] { store.import(nowhere); });
    CHECK(missing.kind() == GPUC_ERROR_NOT_FOUND && missing.error_number() == ENOENT && missing.path() == nowhere);
}

static void sandboxes(const gpuc::ImageStore &store) {
    const gpuc::Image image = store.image("layer");
    gpuc::SandboxBuilder builder(image);
    builder.store(store).memory_max(64 << 20).pids_max(32);
    for (int stream = 0; stream < 3; stream++) builder.stdio(stream, GPUC_STDIO_PIPED);
    CHECK(builder.explain().find("/bin/sh") != std::string::npos);

    gpuc::Sandbox first = builder.spawn();
    gpuc::Sandbox sandbox = std::move(first);
    const gpuc::Output output = sandbox.communicate("to the end\n", 60s);
    CHECK(output.status().code == 3 && !gpuc::success(output.status()) && !output.status().oom_killed);
    CHECK(output.standard_output() == "hello\ninside\n" && output.standard_error() == "to the end\n");
    std::move(sandbox).close();

    builder.command({"/bin/sh", "-c", "sleep 1000 & wait"});
    gpuc::Sandbox running = builder.spawn();
    CHECK(running.pid() > 0 && running.fd() >= 0 && !running.poll() && !running.wait(1ms));
    gpuc::Exec said({"/bin/sh", "-c", "echo $A in $PWD"});
    said.env("A", "b").working_dir("/bin").stdio(1, GPUC_STDIO_PIPED);
    CHECK(running.exec(said).communicate().standard_output() == "b in /bin\n");
    running.update(gpuc::Limits().memory_max(80 << 20));
    CHECK(running.stats_json().find("memory") != std::string::npos);
    CHECK(!running.gpu_lease() && !running.granted(0));
    const std::uint16_t port = running.publish(80);
    CHECK(port != 0 && running.host_port(80) == port && !running.host_port(81));
    CHECK(failure([&] { running.publish(81, port); }).kind() == GPUC_ERROR_PORT_IN_USE);
    running.unpublish(port);
    CHECK(failure([&] { running.dial(80, 1s); }).error_number() == ECONNREFUSED);
    CHECK(failure([&] { running.wait_ready(80, 1ms); }).kind() == GPUC_ERROR_TIMED_OUT);
    running.kill(SIGKILL);
    CHECK(failure([&] { running.wait_ready(80); }).kind() == GPUC_ERROR_CLOSED);
    CHECK(running.wait().signal == SIGKILL);

    const gpuc::Error error = failure([&] { gpuc::SandboxBuilder(image).store(store).command({"/nothing"}).spawn(); });
    CHECK(error.kind() == GPUC_ERROR_COMMAND_NOT_FOUND);
}

// What a progress function throws ends the transfer and comes out of it.
static void progress(const gpuc::ImageStore &store, const std::string &archive) {
    struct Mine {};
    bool thrown = false;
    try {
        store.import(archive, gpuc::Transfer().reference("archive").progress(
                                  [](std::string_view, gpuc_phase_t, std::uint64_t, std::uint64_t) { throw Mine(); }));
    } catch (const Mine &) {
        thrown = true;
    }
    CHECK(thrown);
    int told = 0;
    const gpuc::Image image = store.import(
        archive, gpuc::Transfer().reference("archive").progress(
                     [&](std::string_view, gpuc_phase_t, std::uint64_t, std::uint64_t) { told++; }));
    CHECK(told > 0 && image.reference().find("archive") != std::string::npos);
}

// On a machine with GPUs, which is a stand-in here.
static void gpus(const std::string &directory) {
    const gpuc::Host host = gpuc::Host::probe();
    CHECK(!host.text().empty() && !host.json().empty());
    gpuc::GpuAllocator allocator = gpuc::GpuAllocator::open_at(directory + "/leases");
    if (host.gpu_count() == 0) {
        CHECK(failure([&] { allocator.acquire(gpuc::GpuRequest::count(1), 0ms); }).kind() == GPUC_ERROR_GPU_UNAVAILABLE);
        return;
    }
    allocator.respect_outer(false);
    gpuc::GpuLease lease = allocator.acquire(gpuc::GpuRequest::all().foreign_processes("ignore"), 0ms);
    CHECK(lease.gpus().size() == host.gpu_count() && !lease.mps_json());
    CHECK(allocator.status_json().find(lease.id()) != std::string::npos);
    gpuc::GpuTicket ticket = allocator.enqueue(gpuc::GpuRequest::count(1).foreign_processes("ignore"));
    CHECK(!ticket.wait(0ms) && !ticket.reason().empty());
    std::move(lease).release();
    CHECK(ticket.wait(60s)->gpus().size() == 1);
    CHECK(host.topology().find("GPU") != std::string::npos);
}

int main(int argc, char **argv) {
    const int before = open_descriptors();
    CHECK(gpuc::version() == gpuc_version());
    std::string directory = (std::filesystem::temp_directory_path() / "gpuc-layer.XXXXXX").string();
    CHECK(mkdtemp(directory.data()) != nullptr);
    {
        const gpuc::ImageStore store = gpuc::ImageStore::open(directory + "/store");
        CHECK(build(store).reference().find("layer") != std::string::npos);
        images(store);
        if (geteuid() == 0) sandboxes(store);
        if (argc > 1) progress(store, argv[1]);
        gpus(directory);
    }
    std::filesystem::remove_all(directory);
    CHECK(open_descriptors() == before);
    return 0;
}
