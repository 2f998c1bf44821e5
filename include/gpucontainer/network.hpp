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

/* A service of the host, as in "127.0.0.1:5432", that is wanted inside on a port of the loopback addresses; 0 is any free one. */
class HostService : public Handle<gpuc_host_service_t, gpuc_host_service_free> {
public:
    explicit HostService(std::uint16_t port, const std::string &host, gpuc_protocol_t protocol = GPUC_PROTOCOL_TCP)
        : Handle(gpuc_host_service_new(static_cast<std::uint32_t>(protocol), port, host.c_str())) {}

    /* On this address inside and no other. */
    HostService &address(const std::string &address) { return gpuc_host_service_set_address(get(), address.c_str()), *this; }
    HostService &idle_timeout(std::chrono::milliseconds timeout) {
        return gpuc_host_service_set_idle_timeout(get(), static_cast<std::uint64_t>(timeout.count())), *this;
    }
};

/* A listening socket that this process was started with, which the caller closes; the first one if no name is said. */
inline int activated_socket(const std::optional<std::string> &name = std::nullopt) {
    return detail::checked([&](gpuc_error_t **e) { return gpuc_activated_socket(name ? name->c_str() : nullptr, e); });
}

/* Services of the host that can be reached in a network namespace, until this is gone. */
class ExposedServices : public Handle<gpuc_exposed_services_t, gpuc_exposed_services_free> {
public:
    using Handle::Handle;

    /* The services with their real ports inside and their counters. */
    std::string json() const {
        return detail::taken(detail::checked([&](gpuc_error_t **e) { return gpuc_exposed_services_json(get(), e); }));
    }
};

/* A network namespace to connect into, and to lead ports and services into. */
class NetworkNamespace : public Handle<gpuc_network_namespace_t, gpuc_network_namespace_free> {
public:
    using Handle::Handle;

    /* That of a process, as long as it lives. The descriptor stays the caller's. */
    static NetworkNamespace of_process(int pidfd) {
        return NetworkNamespace(
            detail::checked([&](gpuc_error_t **e) { return gpuc_network_namespace_of_process(pidfd, e); }));
    }
    /* By descriptors of /proc/PID/ns/net and, for callers without privilege, /proc/PID/ns/user; both stay the caller's. */
    static NetworkNamespace from_fds(int network, int user = -1) {
        return NetworkNamespace(
            detail::checked([&](gpuc_error_t **e) { return gpuc_network_namespace_from_fds(network, user, e); }));
    }

    /* A connected socket to a TCP port inside, which the caller closes. */
    int dial(std::uint16_t port, const Timeout &timeout = std::nullopt) const {
        return detail::checked(
            [&](gpuc_error_t **e) { return gpuc_network_namespace_dial(get(), port, detail::milliseconds(timeout), e); });
    }
    /* Makes a service of the host reachable inside. */
    ExposedServices expose_host(const HostService &service) const {
        return ExposedServices(detail::checked(
            [&](gpuc_error_t **e) { return gpuc_network_namespace_expose_host(get(), service.get(), e); }));
    }
};

/* Ports of the host that lead into a container, until this is gone. */
class Published : public Handle<gpuc_published_t, gpuc_published_free> {
public:
    using Handle::Handle;

    /* The ports with their counters. */
    std::string json() const {
        return detail::taken(detail::checked([&](gpuc_error_t **e) { return gpuc_published_json(get(), e); }));
    }
};

/* Ports of the host that are taken and not yet joined to a container. */
class Reservation : public Handle<gpuc_reservation_t, gpuc_reservation_free> {
public:
    using Handle::Handle;

    /* The ports with their real numbers. */
    std::string json() const {
        return detail::taken(detail::checked([&](gpuc_error_t **e) { return gpuc_reservation_json(get(), e); }));
    }
    /* Passes everything on to the ports in a namespace. The reservation is over then. */
    Published relay(const NetworkNamespace &network) && {
        gpuc_reservation_t *self = release_handle();
        return Published(detail::checked([&](gpuc_error_t **e) { return gpuc_reservation_relay(self, network.get(), e); }));
    }
    /* The same by rewriting addresses, where the kernel can. */
    Published translate(const NetworkNamespace &network) && {
        gpuc_reservation_t *self = release_handle();
        return Published(
            detail::checked([&](gpuc_error_t **e) { return gpuc_reservation_translate(self, network.get(), e); }));
    }
    /* The sockets, which the caller closes, for a program that takes clients itself. */
    std::vector<int> into_sockets() && {
        std::vector<int> sockets(131072);
        gpuc_reservation_t *self = release_handle();
        sockets.resize(static_cast<std::size_t>(detail::checked([&](gpuc_error_t **e) {
            return gpuc_reservation_into_sockets(self, sockets.data(), sockets.size(), e);
        })));
        return sockets;
    }
};

/* Takes ports of the host for containers. */
class PortMapper {
public:
    /* All or none. */
    Reservation reserve(const std::vector<const PortMapping *> &mappings) const {
        std::vector<const gpuc_port_mapping_t *> pointers;
        for (const PortMapping *mapping : mappings) pointers.push_back(mapping->get());
        return Reservation(detail::checked(
            [&](gpuc_error_t **e) { return gpuc_port_mapper_reserve(pointers.data(), pointers.size(), e); }));
    }
    /* A TCP socket that listens already, which stays the caller's. */
    Reservation adopt(std::uint16_t container_port, int socket) const {
        return Reservation(
            detail::checked([&](gpuc_error_t **e) { return gpuc_port_mapper_adopt(container_port, socket, e); }));
    }
};

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

    /* As in "10.9.0.0/24". By default 1,022 addresses to which the host has no route. */
    PrivateNetwork &ipv4(const std::string &addresses) {
        detail::checked([&](gpuc_error_t **e) { return gpuc_private_network_set_ipv4(get(), addresses.c_str(), e); });
        return *this;
    }
    /* Whether members have IPv6 addresses too. Yes by default, where the kernel has IPv6. */
    PrivateNetwork &ipv6(bool on) { return gpuc_private_network_set_ipv6(get(), on), *this; }
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
