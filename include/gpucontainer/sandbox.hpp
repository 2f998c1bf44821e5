/* Sandboxes and the processes in them. */
#ifndef GPUCONTAINER_SANDBOX_HPP
#define GPUCONTAINER_SANDBOX_HPP

#include <gpucontainer/gpu.hpp>
#include <gpucontainer/image.hpp>
#include <gpucontainer/network.hpp>

#include <string_view>

namespace gpucontainer {

/* How an application ended: code, or -1 and the signal; whether memory ran out. */
using ExitStatus = gpuc_exit_status_t;

/* Whether it ended with code 0. */
inline bool success(const ExitStatus &status) noexcept { return status.code == 0; }

/* What an application printed, and how it ended. */
class Output : public Handle<gpuc_output_t, gpuc_output_free> {
public:
    using Handle::Handle;

    ExitStatus status() const noexcept { return gpuc_output_status(get()); }
    /* Bytes that live as long as this. */
    std::string_view standard_output() const noexcept { return bytes(1); }
    std::string_view standard_error() const noexcept { return bytes(2); }

private:
    std::string_view bytes(int stream) const noexcept {
        std::size_t length = 0;
        const void *bytes = gpuc_output_bytes(get(), stream, &length);
        return bytes ? std::string_view(static_cast<const char *>(bytes), length) : std::string_view();
    }
};

/* Limits on what a sandbox may use. What is not set is not limited. */
class Limits : public Handle<gpuc_limits_t, gpuc_limits_free> {
public:
    Limits() : Handle(gpuc_limits_new()) {}

    Limits &memory_max(std::uint64_t bytes) { return gpuc_limits_set_memory_max(get(), bytes), *this; }
    Limits &memory_swap_max(std::uint64_t bytes) { return gpuc_limits_set_memory_swap_max(get(), bytes), *this; }
    Limits &memory_high(std::uint64_t bytes) { return gpuc_limits_set_memory_high(get(), bytes), *this; }
    Limits &memory_low(std::uint64_t bytes) { return gpuc_limits_set_memory_low(get(), bytes), *this; }
    Limits &cpus(double cores) { return gpuc_limits_set_cpus(get(), cores), *this; }
    Limits &cpu_weight(std::uint64_t weight) { return gpuc_limits_set_cpu_weight(get(), weight), *this; }
    Limits &cpuset_cpus(const std::string &list) { return gpuc_limits_set_cpuset_cpus(get(), list.c_str()), *this; }
    Limits &cpuset_mems(const std::string &list) { return gpuc_limits_set_cpuset_mems(get(), list.c_str()), *this; }
    Limits &pids_max(std::uint64_t count) { return gpuc_limits_set_pids_max(get(), count), *this; }
    Limits &io_weight(std::uint64_t weight) { return gpuc_limits_set_io_weight(get(), weight), *this; }
    Limits &hugetlb(std::uint64_t page_size, std::uint64_t bytes) {
        return gpuc_limits_set_hugetlb(get(), page_size, bytes), *this;
    }
    /* Bytes and operations a second on a block device; 0 is no limit. */
    Limits &io(std::uint32_t major, std::uint32_t minor, std::uint64_t read_bytes, std::uint64_t write_bytes,
               std::uint64_t read_operations = 0, std::uint64_t write_operations = 0) {
        return gpuc_limits_io(get(), major, minor, read_bytes, write_bytes, read_operations, write_operations), *this;
    }
    /* A file of the control group, as it is. */
    Limits &raw(const std::string &file, const std::string &value) {
        return gpuc_limits_raw(get(), file.c_str(), value.c_str()), *this;
    }
};

namespace detail {

/* What sandboxes and processes in them have in common, by the C functions of each. */
template <class Self, class Object, int (*Pid)(const Object *), int (*Fd)(const Object *),
          int (*Wait)(const Object *, std::int64_t, gpuc_exit_status_t *, gpuc_error_t **),
          int (*Kill)(const Object *, int, gpuc_error_t **), int (*TakeStream)(const Object *, int),
          int (*TakeTerminal)(const Object *),
          gpuc_output_t *(*Communicate)(const Object *, const void *, std::size_t, std::int64_t, gpuc_error_t **)>
class Running {
public:
    /* As the host sees it. */
    int pid() const noexcept { return Pid(object()); }
    /* Readable once it has ended; never closed by the caller. */
    int fd() const noexcept { return Fd(object()); }
    /* None if the time has passed. */
    std::optional<ExitStatus> wait(const Timeout &timeout) const {
        ExitStatus status{};
        const int ended =
            checked([&](gpuc_error_t **e) { return Wait(object(), milliseconds(timeout), &status, e); });
        return ended > 0 ? std::optional<ExitStatus>(status) : std::nullopt;
    }
    ExitStatus wait() const { return *wait(std::nullopt); }
    /* How it ended; none if it has not. */
    std::optional<ExitStatus> poll() const { return wait(std::chrono::milliseconds(0)); }
    void kill(int signal) const {
        checked([&](gpuc_error_t **e) { return Kill(object(), signal, e); });
    }
    /* The host's end of a piped stream, which the caller closes; -1 if there is none, or it was taken. */
    int take_stream(int stream) const noexcept { return TakeStream(object(), stream); }
    /* The master of the terminal, which the caller closes; -1 if there is none, or it was taken. */
    int take_terminal() const noexcept { return TakeTerminal(object()); }
    /* Writes the input, collects what comes from piped streams, and waits for the end. */
    Output communicate(std::string_view input = {}, const Timeout &timeout = std::nullopt) const {
        return Output(checked([&](gpuc_error_t **e) {
            return Communicate(object(), input.data(), input.size(), milliseconds(timeout), e);
        }));
    }

private:
    const Object *object() const noexcept { return static_cast<const Self *>(this)->get(); }
};

} // namespace detail

/* A process beside the application of a sandbox. Destroying it kills it. */
class Process : public Handle<gpuc_process_t, gpuc_process_free>,
                public detail::Running<Process, gpuc_process_t, gpuc_process_pid, gpuc_process_fd, gpuc_process_wait,
                                       gpuc_process_kill, gpuc_process_take_stream, gpuc_process_take_terminal,
                                       gpuc_process_communicate> {
public:
    using Handle::Handle;
};

class Sandbox;

/* What to start beside the application of a sandbox. */
class Exec : public Handle<gpuc_exec_t, gpuc_exec_free> {
public:
    explicit Exec(const Words &arguments) : Handle(gpuc_exec_new(detail::Pointers(arguments).get())) {}

    Exec &env(const std::string &name, const std::string &value) {
        return gpuc_exec_env(get(), name.c_str(), value.c_str()), *this;
    }
    Exec &working_dir(const std::string &path) { return gpuc_exec_set_working_dir(get(), path.c_str()), *this; }
    Exec &user(const std::string &user) { return gpuc_exec_set_user(get(), user.c_str()), *this; }
    Exec &stdio(int stream, gpuc_stdio_t kind) {
        return gpuc_exec_set_stdio(get(), stream, static_cast<std::uint32_t>(kind)), *this;
    }
    Exec &stdio_file(int stream, int fd) { return gpuc_exec_set_stdio_file(get(), stream, fd), *this; }
    Exec &terminal(std::uint16_t rows, std::uint16_t columns) {
        return gpuc_exec_set_terminal(get(), rows, columns), *this;
    }
    /* An open file under a number inside, 3 to 511; it stays the caller's. */
    Exec &pass_fd(int number, int fd) { return gpuc_exec_pass_fd(get(), number, fd), *this; }

    Process spawn(const Sandbox &sandbox) const;
};

/* What a sandbox was given of GPUs. */
class GpuGrant : public Handle<gpuc_gpu_grant_t, gpuc_gpu_grant_free> {
public:
    using Handle::Handle;

    std::string json() const {
        return detail::taken(detail::checked([&](gpuc_error_t **e) { return gpuc_gpu_grant_json(get(), e); }));
    }
};

/* A running sandbox. Destroying it kills everything inside and gives everything back. */
class Sandbox : public Handle<gpuc_sandbox_t, gpuc_sandbox_free>,
                public detail::Running<Sandbox, gpuc_sandbox_t, gpuc_sandbox_pid, gpuc_sandbox_fd, gpuc_sandbox_wait,
                                       gpuc_sandbox_kill, gpuc_sandbox_take_stream, gpuc_sandbox_take_terminal,
                                       gpuc_sandbox_communicate> {
public:
    using Handle::Handle;

    std::string name() const { return detail::copied(gpuc_sandbox_name(get())); }
    Process exec(const Exec &exec) const { return exec.spawn(*this); }

    /* The host's port that leads to a published port; none if it is not published. */
    std::optional<std::uint16_t> host_port(std::uint16_t container_port) const noexcept {
        const std::uint16_t port = gpuc_sandbox_host_port(get(), container_port);
        return port ? std::optional<std::uint16_t>(port) : std::nullopt;
    }
    /* Publishes a TCP port; host port 0 is any free one. */
    std::uint16_t publish(std::uint16_t container_port, std::uint16_t host_port = 0,
                          const std::string &address = "127.0.0.1") const {
        return detail::checked([&](gpuc_error_t **e) {
            return gpuc_sandbox_publish(get(), address.c_str(), container_port, host_port, e);
        });
    }
    /* In all detail; the host's port, the first of a range. */
    std::uint16_t publish(const PortMapping &mapping) const {
        return detail::checked([&](gpuc_error_t **e) { return gpuc_sandbox_publish_mapping(get(), mapping.get(), e); });
    }
    /* Leads the clients of a listening TCP socket, which stays the caller's, to a port inside; the host's port. */
    std::uint16_t publish_socket(int socket, std::uint16_t container_port) const {
        return detail::checked(
            [&](gpuc_error_t **e) { return gpuc_sandbox_publish_socket(get(), socket, container_port, e); });
    }
    /* What was reserved before; the host's port, the first of all. */
    std::uint16_t publish(Reservation &&reservation) const {
        gpuc_reservation_t *reserved = reservation.release_handle();
        return detail::checked([&](gpuc_error_t **e) { return gpuc_sandbox_publish_reserved(get(), reserved, e); });
    }
    /* Its network, for ports and services that are not the sandbox's own. */
    NetworkNamespace network_namespace() const {
        return NetworkNamespace(
            detail::checked([&](gpuc_error_t **e) { return gpuc_sandbox_network_namespace(get(), e); }));
    }
    void unpublish(std::uint16_t host_port, const std::string &address = "127.0.0.1") const {
        detail::checked([&](gpuc_error_t **e) { return gpuc_sandbox_unpublish(get(), address.c_str(), host_port, e); });
    }
    /* A connected socket to a TCP port inside, published or not; the caller closes it. */
    int dial(std::uint16_t port, const Timeout &timeout = std::nullopt) const {
        return detail::checked(
            [&](gpuc_error_t **e) { return gpuc_sandbox_dial(get(), port, detail::milliseconds(timeout), e); });
    }

    /* Waits until something accepts connections at a TCP port inside; throws when the application ends before. */
    void wait_ready(std::uint16_t port, const Timeout &timeout = std::nullopt) const {
        detail::checked(
            [&](gpuc_error_t **e) { return gpuc_sandbox_wait_ready(get(), port, detail::milliseconds(timeout), e); });
    }

    /* Makes a service of the host reachable inside; the port there. */
    std::uint16_t expose_host(const HostService &service) const {
        return detail::checked(
            [&](gpuc_error_t **e) { return gpuc_sandbox_expose_host(get(), service.get(), e); });
    }
    void withdraw_host(std::uint16_t port, gpuc_protocol_t protocol = GPUC_PROTOCOL_TCP) const {
        detail::checked([&](gpuc_error_t **e) {
            return gpuc_sandbox_withdraw_host(get(), static_cast<std::uint32_t>(protocol), port, e);
        });
    }

    std::string json() const {
        return detail::taken(detail::checked([&](gpuc_error_t **e) { return gpuc_sandbox_json(get(), e); }));
    }
    std::string stats_json() const {
        return detail::taken(detail::checked([&](gpuc_error_t **e) { return gpuc_sandbox_stats_json(get(), e); }));
    }
    void pause() const {
        detail::checked([&](gpuc_error_t **e) { return gpuc_sandbox_pause(get(), e); });
    }
    void resume() const {
        detail::checked([&](gpuc_error_t **e) { return gpuc_sandbox_resume(get(), e); });
    }
    /* Limits that are not set stay. */
    void update(const Limits &limits) const {
        detail::checked([&](gpuc_error_t **e) { return gpuc_sandbox_update(get(), limits.get(), e); });
    }

    /* The lease of that number: of the start, if there is one, then of what was attached; none beyond the last. */
    std::optional<GpuLease> gpu_lease(std::size_t number = 0) const {
        gpuc_gpu_lease_t *lease =
            detail::checked([&](gpuc_error_t **e) { return gpuc_sandbox_gpu_lease_at(get(), number, e); });
        return lease ? std::optional<GpuLease>(GpuLease(lease)) : std::nullopt;
    }
    /* Leases GPUs and gives them to the running sandbox. */
    GpuGrant attach_gpus(const GpuRequest &request, const Timeout &timeout = std::nullopt,
                         const Cancel *cancel = nullptr) const {
        return GpuGrant(detail::checked([&](gpuc_error_t **e) {
            return gpuc_sandbox_attach_gpus(get(), request.get(), detail::milliseconds(timeout), detail::pointer(cancel), e);
        }));
    }
    GpuGrant attach_lease(const GpuLease &lease) const {
        return GpuGrant(
            detail::checked([&](gpuc_error_t **e) { return gpuc_sandbox_attach_lease(get(), lease.get(), e); }));
    }
    GpuGrant attach_gpus_unleased(const GpuRequest &request) const {
        return GpuGrant(detail::checked(
            [&](gpuc_error_t **e) { return gpuc_sandbox_attach_gpus_unleased(get(), request.get(), e); }));
    }
    void detach_gpus(const GpuGrant &grant, bool force = false) const {
        detail::checked([&](gpuc_error_t **e) { return gpuc_sandbox_detach_gpus(get(), grant.get(), force, e); });
    }
    /* What it has of GPUs; none beyond the last. */
    std::optional<GpuGrant> granted(std::size_t number) const {
        gpuc_gpu_grant_t *grant =
            detail::checked([&](gpuc_error_t **e) { return gpuc_sandbox_granted(get(), number, e); });
        return grant ? std::optional<GpuGrant>(GpuGrant(grant)) : std::nullopt;
    }

    /* Lets the application live on when this object and this process are gone. */
    void detach() && {
        detail::checked([&](gpuc_error_t **e) { return gpuc_sandbox_detach(release_handle(), e); });
    }
    /* As destroying it, and says what went wrong. */
    void close() && {
        detail::checked([&](gpuc_error_t **e) { return gpuc_sandbox_close(release_handle(), e); });
    }
};

inline Process Exec::spawn(const Sandbox &sandbox) const {
    return Process(detail::checked([&](gpuc_error_t **e) { return gpuc_exec_spawn(get(), sandbox.get(), e); }));
}

/* What to start. It can be started several times. */
class SandboxBuilder : public Handle<gpuc_config_t, gpuc_config_free> {
public:
    /* Of an image by its reference; one that is not in the store is pulled at the start. */
    explicit SandboxBuilder(const std::string &reference)
        : Handle(detail::checked([&](gpuc_error_t **e) { return gpuc_config_new(reference.c_str(), e); })) {}
    explicit SandboxBuilder(const Image &image)
        : Handle(detail::checked([&](gpuc_error_t **e) { return gpuc_config_new_from_image(image.get(), e); })) {}
    /* Of a directory of the host as the root file system. */
    static SandboxBuilder from_directory(const std::string &path) {
        return SandboxBuilder(
            detail::checked([&](gpuc_error_t **e) { return gpuc_config_new_from_directory(path.c_str(), e); }));
    }

    SandboxBuilder &store(const ImageStore &store) { return gpuc_config_set_store(get(), store.get()), *this; }
    SandboxBuilder &name(const std::string &name) { return gpuc_config_set_name(get(), name.c_str()), *this; }
    SandboxBuilder &command(const Words &arguments) {
        return gpuc_config_set_command(get(), detail::Pointers(arguments).get()), *this;
    }
    SandboxBuilder &entrypoint(const Words &arguments) {
        return gpuc_config_set_entrypoint(get(), detail::Pointers(arguments).get()), *this;
    }
    SandboxBuilder &env(const std::string &name, const std::string &value) {
        return gpuc_config_env(get(), name.c_str(), value.c_str()), *this;
    }
    SandboxBuilder &working_dir(const std::string &path) {
        return gpuc_config_set_working_dir(get(), path.c_str()), *this;
    }
    SandboxBuilder &user(const std::string &user) { return gpuc_config_set_user(get(), user.c_str()), *this; }
    SandboxBuilder &hostname(const std::string &name) { return gpuc_config_set_hostname(get(), name.c_str()), *this; }
    SandboxBuilder &init(bool init) { return gpuc_config_set_init(get(), init), *this; }
    SandboxBuilder &read_only(bool read_only) { return gpuc_config_set_read_only(get(), read_only), *this; }
    SandboxBuilder &writable_memory(std::uint64_t bytes) { return gpuc_config_set_writable_memory(get(), bytes), *this; }

    SandboxBuilder &limits(const Limits &limits) { return gpuc_config_set_limits(get(), limits.get()), *this; }
    SandboxBuilder &memory_max(std::uint64_t bytes) { return gpuc_config_set_memory_max(get(), bytes), *this; }
    SandboxBuilder &cpus(double cores) { return gpuc_config_set_cpus(get(), cores), *this; }
    SandboxBuilder &pids_max(std::uint64_t count) { return gpuc_config_set_pids_max(get(), count), *this; }
    SandboxBuilder &cgroup(bool cgroup) { return gpuc_config_set_cgroup(get(), cgroup), *this; }
    SandboxBuilder &cgroup_view(bool view) { return gpuc_config_set_cgroup_view(get(), view), *this; }

    SandboxBuilder &unfiltered() { return gpuc_config_set_unfiltered(get()), *this; }
    SandboxBuilder &seccomp_json(const std::string &json) {
        return gpuc_config_set_seccomp_json(get(), json.c_str()), *this;
    }
    SandboxBuilder &seccomp_file(const std::string &path) {
        return gpuc_config_set_seccomp_file(get(), path.c_str()), *this;
    }
    SandboxBuilder &add_capability(const std::string &name) {
        return gpuc_config_add_capability(get(), name.c_str()), *this;
    }
    SandboxBuilder &drop_capability(const std::string &name) {
        return gpuc_config_drop_capability(get(), name.c_str()), *this;
    }
    SandboxBuilder &new_privileges(bool allow) { return gpuc_config_set_new_privileges(get(), allow), *this; }
    SandboxBuilder &no_user_namespace() { return gpuc_config_set_no_user_namespace(get()), *this; }
    SandboxBuilder &user_namespace_oneself() { return gpuc_config_set_user_namespace_oneself(get()), *this; }
    SandboxBuilder &user_namespace_subordinate() { return gpuc_config_set_user_namespace_subordinate(get()), *this; }
    SandboxBuilder &user_namespace_shifted(std::uint32_t first, std::uint32_t count) {
        return gpuc_config_set_user_namespace_shifted(get(), first, count), *this;
    }
    SandboxBuilder &time_offsets(std::chrono::nanoseconds monotonic, std::chrono::nanoseconds boottime) {
        return gpuc_config_set_time_offsets(get(), monotonic.count(), boottime.count()), *this;
    }
    /* RLIMIT_… of setrlimit(2). */
    SandboxBuilder &resource_limit(const std::string &name, std::uint64_t soft, std::uint64_t hard) {
        return gpuc_config_resource_limit(get(), name.c_str(), soft, hard), *this;
    }
    SandboxBuilder &sysctl(const std::string &name, const std::string &value) {
        return gpuc_config_sysctl(get(), name.c_str(), value.c_str()), *this;
    }
    SandboxBuilder &oom_score(std::int32_t adjustment) { return gpuc_config_set_oom_score(get(), adjustment), *this; }
    SandboxBuilder &application_pid(std::uint32_t pid) { return gpuc_config_set_application_pid(get(), pid), *this; }
    SandboxBuilder &umask(std::uint32_t mask) { return gpuc_config_set_umask(get(), mask), *this; }
    SandboxBuilder &shm_size(std::uint64_t bytes) { return gpuc_config_set_shm_size(get(), bytes), *this; }

    SandboxBuilder &host_network(bool host) { return gpuc_config_set_host_network(get(), host), *this; }
    SandboxBuilder &network(const PrivateNetwork &network) {
        return gpuc_config_set_private_network(get(), network.get()), *this;
    }
    /* That of another sandbox. */
    SandboxBuilder &network(const Sandbox &sandbox) { return gpuc_config_join_network(get(), sandbox.get()), *this; }
    /* A descriptor of a network namespace, which stays the caller's. */
    SandboxBuilder &network_namespace(int fd) { return gpuc_config_set_network_namespace(get(), fd), *this; }
    /* A way out for ordinary users, by pasta. */
    SandboxBuilder &outbound_network() { return gpuc_config_set_outbound_network(get()), *this; }
    SandboxBuilder &injectable_ports(bool injectable) {
        return gpuc_config_set_injectable_ports(get(), injectable), *this;
    }
    SandboxBuilder &publish(const PortMapping &mapping) {
        return gpuc_config_publish_mapping(get(), mapping.get()), *this;
    }
    /* A service of the host that can be reached inside from the start on. */
    SandboxBuilder &expose_host(const HostService &service) {
        return gpuc_config_expose_host(get(), service.get()), *this;
    }
    /* A TCP port; host port 0 is any free one. */
    SandboxBuilder &publish(std::uint16_t container_port, std::uint16_t host_port = 0,
                            const std::string &address = "127.0.0.1") {
        return gpuc_config_publish_at(get(), address.c_str(), container_port, host_port), *this;
    }

    /* Flags are those of gpuc_mount_t. */
    SandboxBuilder &bind(const std::string &source, const std::string &target, std::uint32_t flags = 0) {
        return gpuc_config_bind(get(), source.c_str(), target.c_str(), flags), *this;
    }
    SandboxBuilder &volume(const std::string &name, const std::string &target, std::uint32_t flags = 0) {
        return gpuc_config_volume(get(), name.c_str(), target.c_str(), flags), *this;
    }
    SandboxBuilder &tmpfs(const std::string &target, std::uint64_t bytes, std::uint32_t flags = 0) {
        return gpuc_config_tmpfs(get(), target.c_str(), bytes, flags), *this;
    }

    SandboxBuilder &stdio(int stream, gpuc_stdio_t kind) {
        return gpuc_config_set_stdio(get(), stream, static_cast<std::uint32_t>(kind)), *this;
    }
    SandboxBuilder &stdio_file(int stream, int fd) { return gpuc_config_set_stdio_file(get(), stream, fd), *this; }
    SandboxBuilder &terminal(std::uint16_t rows, std::uint16_t columns) {
        return gpuc_config_set_terminal(get(), rows, columns), *this;
    }
    /* An open file under a number inside, 3 to 511; it stays the caller's. */
    SandboxBuilder &pass_fd(int number, int fd) { return gpuc_config_pass_fd(get(), number, fd), *this; }

    SandboxBuilder &gpus(const GpuRequest &request) { return gpuc_config_set_gpu_request(get(), request.get()), *this; }
    SandboxBuilder &gpus_unleased(const GpuRequest &request) {
        return gpuc_config_set_gpus_unleased(get(), request.get()), *this;
    }
    SandboxBuilder &gpu_lease(const GpuLease &lease) { return gpuc_config_set_gpu_lease(get(), lease.get()), *this; }
    SandboxBuilder &gpu_allocator(const GpuAllocator &allocator) {
        return gpuc_config_set_gpu_allocator(get(), allocator.get()), *this;
    }
    /* How long a start waits for GPUs. */
    SandboxBuilder &gpu_wait(const Timeout &timeout, const Cancel *cancel = nullptr) {
        return gpuc_config_set_gpu_wait(get(), detail::milliseconds(timeout), detail::pointer(cancel)), *this;
    }
    SandboxBuilder &driver_root(const std::string &path) {
        return gpuc_config_set_driver_root(get(), path.c_str()), *this;
    }

    Sandbox spawn() const {
        return Sandbox(detail::checked([&](gpuc_error_t **e) { return gpuc_sandbox_spawn(get(), e); }));
    }
    /* Turns the calling process, which must have one thread, into the sandbox; see gpuc_enter. No destructor is run. */
    [[noreturn]] void enter() const {
        gpuc_error_t *error = nullptr;
        gpuc_enter(get(), &error);
        throw Error(error);
    }
    /* What a start would do, a line a step. */
    std::string explain() const {
        return detail::taken(detail::checked([&](gpuc_error_t **e) { return gpuc_config_explain(get(), e); }));
    }

private:
    using Handle::Handle;
};

} // namespace gpucontainer

#endif
