/* Processes that become sandboxes with GPUs: what they lease is free when they have ended, whatever way. */
#include "entering.h"

#include <signal.h>

/* Nobody else leases there. */
static char table[] = "/dev/shm/gpuc-enter-XXXXXX";

static gpuc_gpu_allocator_t *allocator_of_table(void) {
    gpuc_error_t *error;
    gpuc_gpu_allocator_t *allocator = gpuc_gpu_allocator_open_at(table, &error);
    CHECK_NO_ERROR(error);
    return allocator;
}

static gpuc_config_t *with_all_gpus(const char *script) {
    gpuc_config_t *config = shell(script);
    gpuc_config_set_gpus(config, "count:8", 0);
    gpuc_config_set_gpu_allocator(config, allocator_of_table());
    gpuc_config_set_gpu_wait(config, 30000, NULL);
    return config;
}

static pid_t enter(const char *script, int *ready) { return become(with_all_gpus, script, ready); }

/* Whether somebody has leased GPUs. */
static bool leased(void) {
    gpuc_error_t *error;
    gpuc_gpu_allocator_t *allocator = allocator_of_table();
    gpuc_gpu_request_t *all = gpuc_gpu_request_new("count:8");
    gpuc_gpu_lease_t *lease = gpuc_gpu_allocator_acquire(allocator, all, 0, NULL, &error);
    const bool none = lease != NULL;
    if (!none) CHECK(gpuc_error_kind(error) == GPUC_ERROR_GPU_UNAVAILABLE);
    gpuc_error_free(error);
    gpuc_gpu_lease_free(lease);
    gpuc_gpu_request_free(all);
    gpuc_gpu_allocator_free(allocator);
    return !none;
}

int main(void) {
    gpuc_error_t *error;
    gpuc_host_t *host = gpuc_host_probe(&error);
    CHECK_NO_ERROR(error);
    const size_t gpus = gpuc_host_gpu_count(host);
    gpuc_host_free(host);
    if (gpus != 8) {
        printf("SKIP gpu_enter: this machine has not 8 GPUs, real or not\n");
        return 0;
    }
    make_root();
    CHECK(mkdtemp(table) != NULL);
    int ready;
    char byte;
    for (int time = 0; time < 3; time++) {
        const pid_t pid = enter("set -- /dev/nvidia[0-9]*; echo >&9; while [ ! -e /end ]; do sleep 0.01; done; exit $#", &ready);
        CHECK(read(ready, &byte, 1) == 1);
        CHECK(leased());
        char end[64];
        snprintf(end, sizeof end, "%s/end", root);
        fclose(fopen(end, "w"));
        const int status = status_of(pid);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 8);
        /* At once: nobody else had to find out. */
        CHECK(!leased());
        CHECK(remove(end) == 0);
        close(ready);
    }
    const pid_t pid = enter("echo >&9; sleep 1000", &ready);
    CHECK(read(ready, &byte, 1) == 1);
    CHECK(kill(pid, SIGKILL) == 0);
    const int status = status_of(pid);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    CHECK(read(ready, &byte, 1) == 0);
    close(ready);
    for (int look = 0; leased(); look++) {
        CHECK(look < 3000);
        usleep(10000);
    }
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", table);
    CHECK(system(command) == 0);
    remove_root();
    return 0;
}
