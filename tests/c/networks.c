/* Networks of sandboxes: published ports, services of the host, readiness, private networks, namespaces of others. */
#include "image.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

/* Whether a sandbox prints this. */
static void prints(gpuc_config_t *config, const char *expected) {
    gpuc_error_t *error;
    gpuc_sandbox_t *sandbox = spawn(config);
    gpuc_output_t *output = gpuc_sandbox_communicate(sandbox, NULL, 0, 20000, &error);
    CHECK_NO_ERROR(error);
    size_t length;
    const void *bytes = gpuc_output_bytes(output, 1, &length);
    CHECK(length == strlen(expected) && memcmp(bytes, expected, length) == 0);
    gpuc_output_free(output);
    close_sandbox(sandbox);
}

/* Two sandboxes and the program itself in one private network, and one that joins another's. */
static void private_network(const gpuc_image_t *image) {
    if (geteuid() != 0) return;
    gpuc_error_t *error;
    gpuc_private_network_t *wanted = gpuc_private_network_new("c-consumer", &error);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_private_network_set_ipv4(wanted, "10.9.0.0", &error) == -1);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "10.9.0.0");
    CHECK(gpuc_private_network_set_ipv4(wanted, "10.213.7.0/24", &error) == 0);
    CHECK_NO_ERROR(error);
    gpuc_private_network_set_ipv6(wanted, false);
    gpuc_private_network_set_outbound(wanted, false);
    gpuc_private_network_set_host_access(wanted, false);
    gpuc_network_member_t *member = gpuc_private_network_join(wanted, "program", &error);
    CHECK_NO_ERROR(error);
    CHECK(strcmp(gpuc_network_member_address(member, 0), "10.213.7.2") == 0);
    CHECK(gpuc_network_member_address(member, 1) == NULL);
    CHECK(gpuc_network_member_gateway(member, 0) == NULL);
    CHECK(gpuc_network_member_fd(member) > 2);
    CHECK(access(gpuc_network_member_hosts_file(member), R_OK) == 0);
    CHECK(gpuc_network_member_dial(member, 80, 1000, &error) == -1);
    expect(error, GPUC_ERROR_SYSTEM_CALL, "ECONNREFUSED");
    CHECK(gpuc_private_network_join(wanted, "program", &error) == NULL);
    expect(error, GPUC_ERROR_ALREADY_EXISTS, "program");

    gpuc_config_t *config = shell(image, "echo served | nc -l -p 80; exec sleep 1000");
    gpuc_config_set_name(config, "server");
    gpuc_config_set_private_network(config, wanted);
    gpuc_sandbox_t *server = spawn(config);
    char *json = gpuc_sandbox_json(server, &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(json, "\"10.213.7.3\"") != NULL);
    gpuc_string_free(json);
    config = shell(image, "until nc server 80 </dev/null; do sleep 0.1; done");
    gpuc_config_set_private_network(config, wanted);
    prints(config, "served\n");
    config = shell(image, "cat /sys/class/net/eth0/address");
    gpuc_config_join_network(config, server);
    prints(config, "02:67:0a:d5:07:03\n");
    config = shell(image, "cat /sys/class/net/eth0/address");
    gpuc_config_set_network_namespace(config, gpuc_network_member_fd(member));
    prints(config, "02:67:0a:d5:07:02\n");
    gpuc_port_mapping_t *mapping = gpuc_port_mapping_new(GPUC_PROTOCOL_TCP, 80, 0, 1);
    gpuc_port_mapping_set_all_interfaces(mapping);
    gpuc_port_mapping_set_mode(mapping, GPUC_PORT_MODE_NAT);
    CHECK(gpuc_sandbox_publish_mapping(server, mapping, &error) == 0);
    expect(error, GPUC_ERROR_UNSUPPORTED, "no route to the container's address 10.213.7.3");
    gpuc_port_mapping_free(mapping);
    close_sandbox(server);

    config = shell(image, "true");
    gpuc_config_set_outbound_network(config);
    CHECK(gpuc_sandbox_spawn(config, &error) == NULL);
    expect(error, GPUC_ERROR_UNSUPPORTED, "pasta");
    gpuc_config_free(config);
    gpuc_network_member_free(member);
    gpuc_private_network_free(wanted);
}

static void network(const gpuc_image_t *image) {
    gpuc_error_t *error;
    gpuc_config_t *config = shell(image, "echo hi | nc -l -p 8080 >/dev/null; exec sleep 1000");
    gpuc_config_publish(config, 8080, 0);
    gpuc_sandbox_t *sandbox = spawn(config);
    CHECK(gpuc_sandbox_host_port(sandbox, 8080) > 0);
    CHECK(gpuc_sandbox_host_port(sandbox, 8081) == 0);
    char *json = gpuc_sandbox_json(sandbox, &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(json, "\"container_port\":8080") != NULL && strstr(json, "\"timeline\":[{") != NULL);
    gpuc_string_free(json);
    int connection = -1;
    /* The server may not listen yet, and takes one client only. */
    for (int attempt = 0; connection < 0 && attempt < 1000; attempt++) {
        connection = gpuc_sandbox_dial(sandbox, 8080, 1000, NULL);
        if (connection < 0) usleep(10000);
    }
    CHECK(connection >= 0);
    char text[16];
    ssize_t count = read(connection, text, sizeof text);
    CHECK(count == 3 && memcmp(text, "hi\n", 3) == 0);
    close(connection);
    uint16_t port = gpuc_sandbox_publish(sandbox, NULL, 8080, 0, &error);
    CHECK_NO_ERROR(error);
    CHECK(port > 0 && port != gpuc_sandbox_host_port(sandbox, 8080));
    CHECK(gpuc_sandbox_publish(sandbox, "127.0.0.1", 8080, port, &error) == 0);
    expect(error, GPUC_ERROR_PORT_IN_USE, "is taken");
    CHECK(gpuc_sandbox_publish(sandbox, "nowhere", 8080, 0, NULL) == 0);
    CHECK(gpuc_sandbox_unpublish(sandbox, NULL, port, &error));
    CHECK_NO_ERROR(error);
    CHECK(!gpuc_sandbox_unpublish(sandbox, NULL, port, NULL));
    close_sandbox(sandbox);
}

static void readiness(const gpuc_image_t *image) {
    gpuc_error_t *error;
    gpuc_config_t *config = shell(image, "sleep 0.2; exec nc -ll -p 8080 -e cat");
    gpuc_sandbox_t *sandbox = spawn(config);
    CHECK(gpuc_sandbox_wait_ready(sandbox, 8080, 60000, &error) == 0);
    CHECK_NO_ERROR(error);
    int connection = gpuc_sandbox_dial(sandbox, 8080, 1000, NULL);
    CHECK(connection >= 0);
    close(connection);
    CHECK(gpuc_sandbox_wait_ready(sandbox, 81, 50, &error) == -1);
    expect(error, GPUC_ERROR_TIMED_OUT, "port 81");
    CHECK(gpuc_sandbox_wait_ready(sandbox, 0, 50, &error) == -1);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "port 0");
    CHECK(gpuc_sandbox_wait_ready(NULL, 1, 0, &error) == -1);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "sandbox is NULL");
    close_sandbox(sandbox);

    config = shell(image, "sleep 0.2; exit 3");
    sandbox = spawn(config);
    CHECK(gpuc_sandbox_wait_ready(sandbox, 8080, -1, &error) == -1);
    expect(error, GPUC_ERROR_CLOSED, "exit code 3");
    close_sandbox(sandbox);
}

static void port_mappings(const gpuc_image_t *image) {
    gpuc_error_t *error;
    gpuc_port_mapping_t *mapping = gpuc_port_mapping_new(GPUC_PROTOCOL_UDP, 5000, 0, 10);
    gpuc_port_mapping_set_idle_timeout(mapping, 1000);
    gpuc_port_mapping_set_mode(mapping, GPUC_PORT_MODE_RELAY);
    gpuc_port_mapping_set_address(mapping, "127.0.0.1");
    gpuc_port_mapping_set_name(mapping, "datagrams");
    gpuc_port_mapping_set_unlocked(mapping, false);
    gpuc_config_t *config = shell(image, "exec sleep 1000");
    gpuc_config_set_injectable_ports(config, true);
    gpuc_config_publish_mapping(config, mapping);
    gpuc_host_service_t *database = gpuc_host_service_new(GPUC_PROTOCOL_TCP, 5432, "127.0.0.1:9");
    gpuc_config_expose_host(config, database);
    gpuc_sandbox_t *sandbox = spawn(config);
    uint16_t port = gpuc_sandbox_host_port(sandbox, 5000);
    CHECK(port > 0);
    char *json = gpuc_sandbox_json(sandbox, &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(json, "\"protocol\":\"udp\"") != NULL && strstr(json, "\"count\":10") != NULL);
    CHECK(strstr(json, "\"mode\":\"relay\"") != NULL && strstr(json, "\"port\":5432") != NULL);
    gpuc_string_free(json);

    CHECK(gpuc_sandbox_publish_mapping(sandbox, mapping, &error) != 0);
    CHECK_NO_ERROR(error);
    gpuc_port_mapping_free(mapping);
    mapping = gpuc_port_mapping_new(GPUC_PROTOCOL_UDP, 1, port, 1);
    CHECK(gpuc_sandbox_publish_mapping(sandbox, mapping, &error) == 0);
    expect(error, GPUC_ERROR_PORT_IN_USE, "is taken");
    gpuc_port_mapping_set_source(mapping, GPUC_SOURCE_ADDRESS_PROXY_V2);
    CHECK(gpuc_sandbox_publish_mapping(sandbox, mapping, &error) == 0);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "for TCP");
    gpuc_port_mapping_set_all_interfaces(mapping);
    gpuc_port_mapping_set_mode(mapping, 77);
    CHECK(gpuc_sandbox_publish_mapping(sandbox, mapping, &error) == 0);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "77 is no mode");
    gpuc_port_mapping_free(mapping);
    CHECK(gpuc_sandbox_publish_mapping(sandbox, NULL, NULL) == 0);

    int listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(gpuc_sandbox_publish_socket(sandbox, listener, 80, &error) == 0);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "no TCP socket that listens");
    CHECK(listen(listener, 8) == 0);
    uint16_t led = gpuc_sandbox_publish_socket(sandbox, listener, 80, &error);
    CHECK_NO_ERROR(error);
    CHECK(led > 0 && gpuc_sandbox_host_port(sandbox, 80) == led);
    CHECK(close(listener) == 0);
    CHECK(gpuc_sandbox_publish_socket(sandbox, -1, 80, NULL) == 0);
    CHECK(gpuc_activated_socket(NULL, &error) == -1);
    expect(error, GPUC_ERROR_NOT_FOUND, "started with no such socket");

    gpuc_host_service_t *names = gpuc_host_service_new(GPUC_PROTOCOL_UDP, 0, "127.0.0.1:53");
    gpuc_host_service_set_address(names, "127.0.0.9");
    gpuc_host_service_set_idle_timeout(names, 1000);
    uint16_t inside = gpuc_sandbox_expose_host(sandbox, names, &error);
    CHECK_NO_ERROR(error);
    CHECK(inside > 0);
    json = gpuc_sandbox_json(sandbox, &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(json, "\"address\":null") != NULL && strstr(json, "\"address\":\"127.0.0.9\"") != NULL);
    gpuc_string_free(json);
    CHECK(gpuc_sandbox_expose_host(sandbox, database, &error) == 0);
    expect(error, GPUC_ERROR_PORT_IN_USE, "inside");
    gpuc_host_service_set_address(names, "192.0.2.77");
    CHECK(gpuc_sandbox_expose_host(sandbox, names, &error) == 0);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "no address of the container");
    CHECK(gpuc_sandbox_expose_host(sandbox, NULL, NULL) == 0);
    gpuc_host_service_free(names);
    gpuc_host_service_free(database);
    CHECK(gpuc_sandbox_withdraw_host(sandbox, GPUC_PROTOCOL_UDP, inside, &error));
    CHECK_NO_ERROR(error);
    CHECK(!gpuc_sandbox_withdraw_host(sandbox, GPUC_PROTOCOL_UDP, inside, NULL));
    close_sandbox(sandbox);
}

int main(void) {
    char directory[] = "/tmp/gpuc-c-networks-XXXXXX";
    CHECK(mkdtemp(directory) != NULL);
    int before = open_descriptors();
    gpuc_error_t *error;
    gpuc_image_store_t *store = gpuc_image_store_open(directory, &error);
    CHECK_NO_ERROR(error);
    gpuc_image_t *image = build(store);
    network(image);
    readiness(image);
    port_mappings(image);
    private_network(image);
    gpuc_image_free(image);
    gpuc_image_store_free(store);
    CHECK(open_descriptors() == before);
    CHECK(nftw(directory, remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0);
    return 0;
}
