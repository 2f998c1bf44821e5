/* GPUs: requests, leases, the queue, MIG devices, XIDs, specifications of CDI. */
#ifndef GPUCONTAINER_GPU_HPP
#define GPUCONTAINER_GPU_HPP

#include <gpucontainer/handle.hpp>

namespace gpucontainer {

/* Which GPUs are wanted, and how. */
class GpuRequest : public Handle<gpuc_gpu_request_t, gpuc_gpu_request_free> {
public:
    /* In the words that other engines use: "all", "count:2", "0,1", identifiers, "vendor.com/class=name", "image". */
    explicit GpuRequest(const std::string &gpus) : Handle(gpuc_gpu_request_new(gpus.c_str())) {}

    static GpuRequest all() { return GpuRequest("all"); }
    static GpuRequest count(unsigned count) { return GpuRequest("count:" + std::to_string(count)); }

    /* Bytes that must be free, or must be there in all, on each. */
    GpuRequest &min_free_memory(std::uint64_t bytes) { return gpuc_gpu_request_set_min_free_memory(get(), bytes), *this; }
    GpuRequest &min_total_memory(std::uint64_t bytes) { return gpuc_gpu_request_set_min_total_memory(get(), bytes), *this; }
    GpuRequest &min_compute_capability(std::uint32_t major, std::uint32_t minor) {
        return gpuc_gpu_request_set_min_compute_capability(get(), major, minor), *this;
    }
    GpuRequest &model(const std::string &pattern) { return gpuc_gpu_request_set_model(get(), pattern.c_str()), *this; }
    GpuRequest &vendor(const std::string &vendor) { return gpuc_gpu_request_set_vendor(get(), vendor.c_str()), *this; }
    GpuRequest &mig_profile(const std::string &profile) {
        return gpuc_gpu_request_set_mig_profile(get(), profile.c_str()), *this;
    }
    /* Whether MIG devices that are missing are made. Yes by default. */
    GpuRequest &make_mig_devices(bool made) { return gpuc_gpu_request_set_make_mig_devices(get(), made), *this; }
    /* Lets so many leases have the same GPUs. */
    GpuRequest &shared(std::uint32_t leases) { return gpuc_gpu_request_set_shared(get(), leases), *this; }
    /* Shares each with others who say how many bytes of its memory they take. */
    GpuRequest &fraction(std::uint64_t bytes) { return gpuc_gpu_request_set_fraction(get(), bytes), *this; }
    GpuRequest &placement(const std::string &placement) {
        return gpuc_gpu_request_set_placement(get(), placement.c_str()), *this;
    }
    GpuRequest &foreign_processes(const std::string &policy) {
        return gpuc_gpu_request_set_foreign_processes(get(), policy.c_str()), *this;
    }
    GpuRequest &priority(std::int32_t priority) { return gpuc_gpu_request_set_priority(get(), priority), *this; }
    /* Parts of the driver, as in NVIDIA_DRIVER_CAPABILITIES. */
    GpuRequest &capabilities(const Words &names) {
        return gpuc_gpu_request_set_capabilities(get(), detail::Pointers(names).get()), *this;
    }
    GpuRequest &extras(const Words &names) {
        return gpuc_gpu_request_set_extras(get(), detail::Pointers(names).get()), *this;
    }
    GpuRequest &imex_channels(const std::vector<std::uint32_t> &channels) {
        return gpuc_gpu_request_set_imex_channels(get(), channels.data(), channels.size()), *this;
    }
    GpuRequest &cdi_directories(const Words &directories) {
        return gpuc_gpu_request_set_cdi_directories(get(), detail::Pointers(directories).get()), *this;
    }
    GpuRequest &vendor_hooks(const std::string &policy) {
        return gpuc_gpu_request_set_vendor_hooks(get(), policy.c_str()), *this;
    }
    /* A daemon of NVIDIA's Multi-Process Service; percent of threads and bytes of memory for each client, 0 is no limit. */
    GpuRequest &mps(std::uint32_t active_threads = 0, std::uint64_t device_memory = 0) {
        return gpuc_gpu_request_set_mps(get(), active_threads, device_memory), *this;
    }
    /* Shares the daemon of that service that the host runs. */
    GpuRequest &multi_process_service(bool shared) {
        return gpuc_gpu_request_set_multi_process_service(get(), shared), *this;
    }
};

/* GPUs that are the holder's until this is gone, and every sandbox that was started with it. */
class GpuLease : public Handle<gpuc_gpu_lease_t, gpuc_gpu_lease_free> {
public:
    using Handle::Handle;

    std::string id() const { return detail::copied(gpuc_gpu_lease_id(get())); }
    Words gpus() const {
        Words gpus;
        for (std::size_t number = 0; number < gpuc_gpu_lease_count(get()); number++)
            gpus.emplace_back(gpuc_gpu_lease_gpu(get(), number));
        return gpus;
    }
    /* What was chosen, and what connects it. */
    std::string description() const { return detail::copied(gpuc_gpu_lease_description(get())); }
    std::string json() const {
        return detail::taken(detail::checked([&](gpuc_error_t **e) { return gpuc_gpu_lease_json(get(), e); }));
    }
    /* The MPS daemon of the lease; none if it asked for none. */
    std::optional<std::string> mps_json() const {
        char *text = detail::checked([&](gpuc_error_t **e) { return gpuc_gpu_lease_mps_json(get(), e); });
        return text ? std::optional<std::string>(detail::taken(text)) : std::nullopt;
    }
    /* Gives the GPUs up now, whoever else holds the lease, and says what went wrong with that. */
    void release() && {
        detail::checked([&](gpuc_error_t **e) { return gpuc_gpu_lease_release(release_handle(), e); });
    }
    /* A descriptor that holds the lease from now on; the caller closes it. */
    int into_fd() && {
        return detail::checked([&](gpuc_error_t **e) { return gpuc_gpu_lease_into_fd(release_handle(), e); });
    }
};

/* A place in the queue for GPUs. Destroying it gives the place up. */
class GpuTicket : public Handle<gpuc_gpu_ticket_t, gpuc_gpu_ticket_free> {
public:
    using Handle::Handle;

    /* The lease; none when the time has passed, and then the place is kept. */
    std::optional<GpuLease> wait(const Timeout &timeout = std::nullopt) {
        gpuc_gpu_lease_t *lease = nullptr;
        detail::checked(
            [&](gpuc_error_t **e) { return gpuc_gpu_ticket_wait(get(), detail::milliseconds(timeout), &lease, e); });
        return lease ? std::optional<GpuLease>(GpuLease(lease)) : std::nullopt;
    }
    /* To poll: readable when it is time to wait with a timeout of 0. It belongs to the ticket. */
    int fd() {
        return detail::checked([&](gpuc_error_t **e) { return gpuc_gpu_ticket_fd(get(), e); });
    }
    /* Why it waits. */
    std::string reason() const { return detail::copied(gpuc_gpu_ticket_reason(get())); }
};

/* What the kernel's log says of a GPU. */
class XidEvent : public Handle<gpuc_xid_event_t, gpuc_xid_event_free> {
public:
    using Handle::Handle;

    std::string gpu() const { return detail::copied(gpuc_xid_event_gpu(get())); }
    std::uint64_t number() const noexcept { return gpuc_xid_event_number(get()); }
    /* What NVIDIA's catalogue advises. */
    std::string action() const { return detail::copied(gpuc_xid_event_action(get())); }
    bool quarantines() const noexcept { return gpuc_xid_event_quarantines(get()); }
    /* GPU instance and compute instance, if it is about a slice. */
    std::optional<std::pair<std::uint32_t, std::uint32_t>> slice() const {
        std::pair<std::uint32_t, std::uint32_t> slice;
        if (!gpuc_xid_event_slice(get(), &slice.first, &slice.second)) return std::nullopt;
        return slice;
    }
};

/* Waits for XIDs of GPUs. */
class XidWatch : public Handle<gpuc_xid_watch_t, gpuc_xid_watch_free> {
public:
    /* Of these GPUs, or of all if there are none; a driver root of none is the host's. */
    explicit XidWatch(const Words &gpus = {}, const std::optional<std::string> &driver_root = std::nullopt)
        : Handle(detail::checked([&](gpuc_error_t **e) {
              const detail::Pointers pointers(gpus);
              return gpuc_xid_watch_open(driver_root ? driver_root->c_str() : nullptr, gpus.empty() ? nullptr : pointers.get(), e);
          })) {}

    /* Can be read as long as next() has something to say at once; belongs to the watch, which has a thread from then on. */
    int fd() {
        return detail::checked([&](gpuc_error_t **e) { return gpuc_xid_watch_fd(get(), e); });
    }
    std::optional<XidEvent> next(const Timeout &timeout = std::nullopt) {
        gpuc_xid_event_t *event = nullptr;
        detail::checked(
            [&](gpuc_error_t **e) { return gpuc_xid_watch_next(get(), detail::milliseconds(timeout), &event, e); });
        return event ? std::optional<XidEvent>(XidEvent(event)) : std::nullopt;
    }
};

/* Gives out the GPUs of this host, so that nobody else who asks gets the same. */
class GpuAllocator : public Handle<gpuc_gpu_allocator_t, gpuc_gpu_allocator_free> {
public:
    /* The account of this host. */
    static GpuAllocator open() { return GpuAllocator(detail::checked(gpuc_gpu_allocator_open)); }
    static GpuAllocator open_at(const std::string &path) {
        return GpuAllocator(detail::checked([&](gpuc_error_t **e) { return gpuc_gpu_allocator_open_at(path.c_str(), e); }));
    }

    void driver_root(const std::string &path) {
        detail::checked([&](gpuc_error_t **e) { return gpuc_gpu_allocator_set_driver_root(get(), path.c_str(), e); });
    }
    void memory_return(std::chrono::milliseconds limit) noexcept {
        gpuc_gpu_allocator_set_memory_return(get(), static_cast<std::uint64_t>(limit.count()));
    }
    void mps_start(std::chrono::milliseconds limit) noexcept {
        gpuc_gpu_allocator_set_mps_start(get(), static_cast<std::uint64_t>(limit.count()));
    }
    void respect_outer(bool respected) noexcept { gpuc_gpu_allocator_set_respect_outer(get(), respected); }

    std::string path() const { return detail::copied(gpuc_gpu_allocator_path(get())); }
    GpuLease acquire(const GpuRequest &request, const Timeout &timeout = std::nullopt, const Cancel *cancel = nullptr) const {
        return GpuLease(detail::checked([&](gpuc_error_t **e) {
            return gpuc_gpu_allocator_acquire(get(), request.get(), detail::milliseconds(timeout), detail::pointer(cancel), e);
        }));
    }
    GpuTicket enqueue(const GpuRequest &request) const {
        return GpuTicket(
            detail::checked([&](gpuc_error_t **e) { return gpuc_gpu_allocator_enqueue(get(), request.get(), e); }));
    }
    /* Who holds what since when, and who waits. */
    std::string status_json() const {
        return detail::taken(detail::checked([&](gpuc_error_t **e) { return gpuc_gpu_allocator_status_json(get(), e); }));
    }
    std::string status_text() const {
        return detail::taken(detail::checked([&](gpuc_error_t **e) { return gpuc_gpu_allocator_status_text(get(), e); }));
    }
    /* Looks after health; who is in quarantine then. */
    std::string review_json() const {
        return detail::taken(detail::checked([&](gpuc_error_t **e) { return gpuc_gpu_allocator_review_json(get(), e); }));
    }
    /* False if it was kept back before. */
    bool quarantine(const std::string &gpu) const {
        return detail::checked([&](gpuc_error_t **e) { return gpuc_gpu_allocator_quarantine(get(), gpu.c_str(), e); }) > 0;
    }
    /* False if it was not kept back. */
    bool readmit(const std::string &gpu) const {
        return detail::checked([&](gpuc_error_t **e) { return gpuc_gpu_allocator_readmit(get(), gpu.c_str(), e); }) > 0;
    }
    /* False if the GPU was kept back for it before, or need not be. */
    bool report_xid(const XidEvent &event) const {
        return detail::checked([&](gpuc_error_t **e) { return gpuc_gpu_allocator_report_xid(get(), event.get(), e); }) > 0;
    }

private:
    using Handle::Handle;
};

/* A MIG device that was made, or found, for one holder. */
class MigLease : public Handle<gpuc_mig_lease_t, gpuc_mig_lease_free> {
public:
    using Handle::Handle;

    std::string uuid() const { return detail::copied(gpuc_mig_lease_uuid(get())); }
    std::string gpu() const { return detail::copied(gpuc_mig_lease_gpu(get())); }
    bool is_created() const noexcept { return gpuc_mig_lease_is_created(get()); }
    std::string device_json() const {
        return detail::taken(detail::checked([&](gpuc_error_t **e) { return gpuc_mig_lease_device_json(get(), e); }));
    }
    /* The lease's, which heirs of it hold too. */
    int fd() const noexcept { return gpuc_mig_lease_fd(get()); }
    void release() && {
        detail::checked([&](gpuc_error_t **e) { return gpuc_mig_lease_release(release_handle(), e); });
    }
    /* Leaves it to those who inherited the descriptor. */
    void leave() && noexcept { gpuc_mig_lease_leave(release_handle()); }
};

/* The MIG devices of this host, made and destroyed by the caller's own account. */
class MigDevices : public Handle<gpuc_mig_devices_t, gpuc_mig_devices_free> {
public:
    explicit MigDevices(const std::string &directory, const std::optional<std::string> &driver_root = std::nullopt)
        : Handle(detail::checked([&](gpuc_error_t **e) {
              return gpuc_mig_devices_open(driver_root ? driver_root->c_str() : nullptr, directory.c_str(), e);
          })) {}

    std::string directory() const { return detail::copied(gpuc_mig_devices_directory(get())); }
    /* Among these GPUs, or all if there are none. */
    MigLease acquire(const std::string &profile, const Words &among = {}) const {
        const detail::Pointers pointers(among);
        return MigLease(detail::checked([&](gpuc_error_t **e) {
            return gpuc_mig_devices_acquire(get(), profile.c_str(), among.empty() ? nullptr : pointers.get(), e);
        }));
    }
    gpuc_mig_mode_change_t set_mode(const std::string &gpu, bool enabled) const {
        return static_cast<gpuc_mig_mode_change_t>(detail::checked(
            [&](gpuc_error_t **e) { return gpuc_mig_devices_set_mode(get(), gpu.c_str(), enabled, e); }));
    }
};

/* A CDI specification of what sandboxes with these GPUs would be given, as JSON. */
inline std::string cdi_spec_json(const GpuRequest &request, const std::optional<std::string> &driver_root = std::nullopt) {
    return detail::taken(detail::checked([&](gpuc_error_t **e) {
        return gpuc_cdi_spec_json(request.get(), driver_root ? driver_root->c_str() : nullptr, e);
    }));
}

/* The devices of the specifications in these directories, or in the usual ones, as JSON. */
inline std::string cdi_devices_json(const Words &directories = {}) {
    const detail::Pointers pointers(directories);
    return detail::taken(detail::checked([&](gpuc_error_t **e) {
        return gpuc_cdi_devices_json(directories.empty() ? nullptr : pointers.get(), e);
    }));
}

} // namespace gpucontainer

#endif
