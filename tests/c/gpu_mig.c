/* MIG devices that are made, waited for and destroyed, and XIDs, on a stand-in for a machine with a split GPU, as root. */
#include "check.h"
#include <poll.h>

#define FIRST "GPU-b1000000-0000-4000-8000-000000000000"
#define SECOND "GPU-b1000000-0000-4000-8000-000000000001"
#define THERE "MIG-b10c0000-0000-5000-8000-000000000003"

/* Whether the machine has a MIG device of that identifier. */
static bool exists(const char *uuid) {
    gpuc_error_t *error;
    gpuc_host_t *host = gpuc_host_probe(&error);
    CHECK_NO_ERROR(error);
    bool found = strstr(gpuc_host_json(host), uuid) != NULL;
    gpuc_host_free(host);
    return found;
}

int main(void) {
    if (getenv("GPUCONTAINER_DRIVER_ROOT") == NULL) {
        printf("SKIP gpu_mig: not root, so there is no stand-in for a machine with GPUs\n");
        return 0;
    }
    char directory[] = "/tmp/gpuc-c-mig-XXXXXX";
    CHECK(mkdtemp(directory) != NULL);
    int before = open_descriptors();
    gpuc_error_t *error;
    char table[64], leases[64];
    snprintf(table, sizeof table, "%s/table", directory);
    snprintf(leases, sizeof leases, "%s/mig", directory);

    /* An allocator makes what a lease lacks. */
    gpuc_gpu_allocator_t *allocator = gpuc_gpu_allocator_open_at(table, &error);
    CHECK_NO_ERROR(error);
    gpuc_gpu_allocator_set_respect_outer(allocator, false);
    gpuc_gpu_request_t *one = gpuc_gpu_request_new("count:1");
    gpuc_gpu_request_set_mig_profile(one, "1g.10gb");
    gpuc_gpu_lease_t *first = gpuc_gpu_allocator_acquire(allocator, one, 0, NULL, &error);
    CHECK_NO_ERROR(error);
    CHECK(strcmp(gpuc_gpu_lease_gpu(first, 0), THERE) == 0);
    gpuc_gpu_request_set_make_mig_devices(one, false);
    CHECK(gpuc_gpu_allocator_acquire(allocator, one, 0, NULL, &error) == NULL);
    CHECK(gpuc_error_kind(error) == GPUC_ERROR_GPU_UNAVAILABLE);
    gpuc_error_free(error);
    gpuc_gpu_request_set_make_mig_devices(one, true);
    gpuc_gpu_lease_t *second = gpuc_gpu_allocator_acquire(allocator, one, 0, NULL, &error);
    CHECK_NO_ERROR(error);
    char made[64];
    snprintf(made, sizeof made, "%s", gpuc_gpu_lease_gpu(second, 0));
    CHECK(strcmp(made, THERE) != 0 && exists(made));

    /* The room is used up: a place in the queue is kept from one wait to the next. */
    gpuc_gpu_ticket_t *ticket = gpuc_gpu_allocator_enqueue(allocator, one, &error);
    CHECK_NO_ERROR(error);
    gpuc_gpu_lease_t *third = NULL;
    CHECK(gpuc_gpu_ticket_wait(ticket, 0, &third, &error) == 0 && third == NULL);
    CHECK_NO_ERROR(error);
    CHECK(strstr(gpuc_gpu_ticket_reason(ticket), "has no room beside") != NULL);
    CHECK(gpuc_gpu_lease_release(second, &error) == 0 && !exists(made));
    /* Somebody who polls is told, and looks. */
    struct pollfd told = {gpuc_gpu_ticket_fd(ticket, &error), POLLIN, 0};
    CHECK_NO_ERROR(error);
    CHECK(told.fd >= 0 && told.fd == gpuc_gpu_ticket_fd(ticket, NULL));
    for (int tries = 0; third == NULL && tries < 1000; tries++) {
        CHECK(poll(&told, 1, 60000) == 1);
        CHECK(gpuc_gpu_ticket_wait(ticket, 0, &third, &error) >= 0);
        CHECK_NO_ERROR(error);
    }
    CHECK(third != NULL);
    CHECK(poll(&told, 1, 0) == 0);
    CHECK(gpuc_gpu_ticket_fd(NULL, NULL) == -1);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_gpu_lease_count(third) == 1 && exists(gpuc_gpu_lease_gpu(third, 0)));
    gpuc_gpu_lease_t *none = third;
    CHECK(gpuc_gpu_ticket_wait(ticket, 0, &none, &error) == -1 && none == NULL);
    CHECK(gpuc_error_kind(error) == GPUC_ERROR_CLOSED);
    gpuc_error_free(error);
    gpuc_gpu_ticket_free(ticket);
    snprintf(made, sizeof made, "%s", gpuc_gpu_lease_gpu(third, 0));
    gpuc_gpu_lease_free(third);
    gpuc_gpu_lease_free(first);
    CHECK(!exists(made) && exists(THERE));
    gpuc_gpu_request_t *many = gpuc_gpu_request_new("count:9");
    gpuc_gpu_request_set_mig_profile(many, "1g.10gb");
    CHECK(gpuc_gpu_allocator_enqueue(allocator, many, &error) == NULL);
    CHECK(gpuc_error_kind(error) == GPUC_ERROR_GPU_UNAVAILABLE);
    CHECK(strstr(gpuc_error_message(error), "is not in MIG mode") != NULL);
    gpuc_error_free(error);
    gpuc_gpu_request_free(many);
    gpuc_gpu_request_free(one);

    /* By themselves. */
    gpuc_mig_devices_t *devices = gpuc_mig_devices_open(NULL, leases, &error);
    CHECK_NO_ERROR(error);
    CHECK(strcmp(gpuc_mig_devices_directory(devices), leases) == 0);
    const char *const among[] = {SECOND, NULL};
    CHECK(gpuc_mig_devices_acquire(devices, "3g.40gb", among, &error) == NULL);
    CHECK(gpuc_error_kind(error) == GPUC_ERROR_GPU_UNAVAILABLE);
    gpuc_error_free(error);
    CHECK(gpuc_mig_devices_set_mode(devices, SECOND, true, &error) == GPUC_MIG_MODE_CHANGED);
    CHECK(gpuc_mig_devices_set_mode(devices, SECOND, true, &error) == GPUC_MIG_MODE_UNCHANGED);
    gpuc_mig_lease_t *half = gpuc_mig_devices_acquire(devices, "3g.40gb", among, &error);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_mig_lease_is_created(half) && strcmp(gpuc_mig_lease_gpu(half), SECOND) == 0);
    CHECK(gpuc_mig_lease_fd(half) >= 0 && gpuc_mig_lease_fd(NULL) == -1);
    char *json = gpuc_mig_lease_device_json(half, &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(json, gpuc_mig_lease_uuid(half)) != NULL && strstr(json, "\"profile\":\"3g.40gb\"") != NULL);
    gpuc_string_free(json);
    CHECK(gpuc_mig_devices_set_mode(devices, SECOND, false, &error) == -1);
    CHECK(gpuc_error_kind(error) == GPUC_ERROR_BUSY);
    gpuc_error_free(error);
    gpuc_mig_lease_t *small = gpuc_mig_devices_acquire(devices, "1g.10gb", NULL, &error);
    CHECK_NO_ERROR(error);
    CHECK(!gpuc_mig_lease_is_created(small) && strcmp(gpuc_mig_lease_uuid(small), THERE) == 0);
    gpuc_mig_lease_free(small);
    snprintf(made, sizeof made, "%s", gpuc_mig_lease_uuid(half));
    /* Nobody has inherited it: it goes with the next who opens. */
    gpuc_mig_lease_leave(half);
    CHECK(exists(made));
    gpuc_mig_devices_free(devices);
    devices = gpuc_mig_devices_open(NULL, leases, &error);
    CHECK_NO_ERROR(error);
    CHECK(!exists(made));
    half = gpuc_mig_devices_acquire(devices, "3g.40gb", among, &error);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_mig_lease_release(half, &error) == 0);
    CHECK(gpuc_mig_devices_set_mode(devices, SECOND, false, &error) == GPUC_MIG_MODE_CHANGED);
    gpuc_mig_devices_free(devices);

    /* What the driver reports: first the fault of an application, then one of a GPU. */
    const char *const both[] = {FIRST, SECOND, NULL};
    gpuc_xid_watch_t *watch = gpuc_xid_watch_open(NULL, both, &error);
    CHECK_NO_ERROR(error);
    gpuc_xid_event_t *event = NULL;
    CHECK(gpuc_xid_watch_next(watch, 60000, &event, &error) == 1);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_xid_event_number(event) == 31 && strcmp(gpuc_xid_event_gpu(event), SECOND) == 0);
    CHECK(strcmp(gpuc_xid_event_action(event), "restart-application") == 0 && !gpuc_xid_event_quarantines(event));
    CHECK(gpuc_gpu_allocator_report_xid(allocator, event, &error) == 0);
    gpuc_xid_event_free(event);
    /* The next one by a descriptor, as a loop waits for it. */
    struct pollfd polled = {gpuc_xid_watch_fd(watch, &error), POLLIN, 0};
    CHECK_NO_ERROR(error);
    CHECK(polled.fd >= 0 && poll(&polled, 1, 60000) == 1);
    CHECK(gpuc_xid_watch_next(watch, 0, &event, &error) == 1);
    CHECK(gpuc_xid_watch_fd(watch, NULL) == polled.fd && poll(&polled, 1, 0) == 0);
    CHECK(gpuc_xid_watch_fd(NULL, NULL) == -1);
    uint32_t instance = 7;
    CHECK(!gpuc_xid_event_slice(event, &instance, NULL) && instance == 7);
    CHECK(strcmp(gpuc_xid_event_action(event), "reset-gpu") == 0 && gpuc_xid_event_quarantines(event));
    CHECK(gpuc_gpu_allocator_report_xid(allocator, event, &error) == 1);
    CHECK(gpuc_gpu_allocator_report_xid(allocator, event, &error) == 0);
    gpuc_xid_event_free(event);
    CHECK(gpuc_gpu_allocator_readmit(allocator, FIRST, &error) == 1);
    CHECK(gpuc_xid_watch_next(watch, 1, &event, &error) == 0 && event == NULL);
    CHECK_NO_ERROR(error);
    gpuc_xid_watch_free(watch);
    const char *const nobody[] = {"GPU-none", NULL};
    CHECK(gpuc_xid_watch_open(NULL, nobody, &error) == NULL);
    gpuc_error_free(error);

    gpuc_gpu_allocator_free(allocator);
    CHECK(open_descriptors() == before);
    char remove_all[80];
    snprintf(remove_all, sizeof remove_all, "rm -r %s", directory);
    CHECK(system(remove_all) == 0);
    return 0;
}
