/* Ports of the host for containers, and private networks. */
#ifndef GPUCONTAINER_NETWORK_HPP
#define GPUCONTAINER_NETWORK_HPP

#include <gpucontainer/handle.hpp>

namespace gpucontainer {

/* Ports of a container that are wanted on the host: on its loopback addresses, unless it is said otherwise. */
class PortMapping : public Handle<gpuc_port_mapping_t, gpuc_port_mapping_free> {
public:
    /* Host port 0 is any free one; of several, the first. */
    explicit PortMapping(std::uint16_t container_port, std::uint16_t host_port = 0, gpuc_protocol_t protocol = GPUC_PROTOCOL_TCP,
                         std::uint16_t count = 1)
        : Handle(gpuc_port_mapping_new(static_cast<std::uint32_t>(protocol), container_port, host_port, count)) {}

    PortMapping &address(const std::string &address) { return gpuc_port_mapping_set_address(get(), address.c_str()), *this; }
    PortMapping &all_interfaces() { return gpuc_port_mapping_set_all_interfaces(get()), *this; }
    PortMapping &mode(gpuc_port_mode_t mode) {
        return gpuc_port_mapping_set_mode(get(), static_cast<std::uint32_t>(mode)), *this;
    }
    PortMapping &source(gpuc_source_address_t source) {
        return gpuc_port_mapping_set_source(get(), static_cast<std::uint32_t>(source)), *this;
    }
    PortMapping &idle_timeout(std::chrono::milliseconds timeout) {
        return gpuc_port_mapping_set_idle_timeout(get(), static_cast<std::uint64_t>(timeout.count())), *this;
    }
    /* In LISTEN_FDNAMES. */
    PortMapping &name(const std::string &name) { return gpuc_port_mapping_set_name(get(), name.c_str()), *this; }
    PortMapping &unlocked(bool unlocked) { return gpuc_port_mapping_set_unlocked(get(), unlocked), *this; }
};

/* A listening socket that this process was started with, which the caller closes; the first one if no name is said. */
inline int activated_socket(const std::optional<std::string> &name = std::nullopt) {
    return detail::checked([&](gpuc_error_t **e) { return gpuc_activated_socket(name ? name->c_str() : nullptr, e); });
}

/* A network namespace in a private network, until this is gone. */
class NetworkMember : public Handle<gpuc_network_member_t, gpuc_network_member_free> {
public:
    using Handle::Handle;

    /* IPv4 first. */
    Words addresses() const { return list(gpuc_network_member_address); }
    Words gateways() const { return list(gpuc_network_member_gateway); }
    /* As setns takes it; it stays this one's. */
    int fd() const noexcept { return gpuc_network_member_fd(get()); }
    /* Names and addresses of all members, rewritten in place. */
    std::string hosts_file() const { return detail::copied(gpuc_network_member_hosts_file(get())); }
    /* A connected socket to a TCP port inside, which the caller closes. */
    int dial(std::uint16_t port, const Timeout &timeout = std::nullopt) const {
        return detail::checked(
            [&](gpuc_error_t **e) { return gpuc_network_member_dial(get(), port, detail::milliseconds(timeout), e); });
    }

private:
    Words list(const char *(*at)(const gpuc_network_member_t *, std::size_t)) const {
        Words words;
        for (std::size_t index = 0; const char *word = at(get(), index); index++) words.emplace_back(word);
        return words;
    }
};

/* A network of this host whose members know each other by name. */
class PrivateNetwork : public Handle<gpuc_private_network_t, gpuc_private_network_free> {
public:
    explicit PrivateNetwork(const std::string &name)
        : Handle(detail::checked([&](gpuc_error_t **e) { return gpuc_private_network_new(name.c_str(), e); })) {}

    /* Whether members reach what the host reaches. Yes by default. */
    PrivateNetwork &outbound(bool on) { return gpuc_private_network_set_outbound(get(), on), *this; }
    /* Whether members reach services of the host. No by default. */
    PrivateNetwork &host_access(bool on) { return gpuc_private_network_set_host_access(get(), on), *this; }

    /* Comes into it without a sandbox. */
    NetworkMember join(const std::string &name) const {
        return NetworkMember(
            detail::checked([&](gpuc_error_t **e) { return gpuc_private_network_join(get(), name.c_str(), e); }));
    }
};

} // namespace gpucontainer

#endif
