/* A root file system for tests: a directory with one program under several names. */
#ifndef ROOT_H
#define ROOT_H

#include "check.h"

#include <sys/stat.h>
#include <unistd.h>

static char root[] = "/tmp/gpuc-root-XXXXXX";

static inline void make_root(void) {
    static const char *const names[] = {"sh", "cat", "sleep", "kill", "nc"};
    char path[128];
    CHECK(mkdtemp(root) != NULL);
    snprintf(path, sizeof path, "%s/bin", root);
    CHECK(mkdir(path, 0755) == 0);
    snprintf(path, sizeof path, "cp /bin/busybox %s/bin/busybox", root);
    CHECK(system(path) == 0);
    for (size_t at = 0; at < sizeof names / sizeof names[0]; at++) {
        snprintf(path, sizeof path, "%s/bin/%s", root, names[at]);
        CHECK(symlink("busybox", path) == 0);
    }
}

/* A sandbox of that directory that runs a script. */
static inline gpuc_config_t *shell(const char *script) {
    gpuc_error_t *error;
    gpuc_config_t *config = gpuc_config_new_from_directory(root, &error);
    CHECK_NO_ERROR(error);
    const char *const command[] = {"sh", "-c", script, NULL};
    gpuc_config_set_command(config, command);
    return config;
}

static inline void remove_root(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", root);
    CHECK(system(command) == 0);
}

#endif
