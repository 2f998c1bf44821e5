/* Children that become sandboxes. */
#ifndef ENTERING_H
#define ENTERING_H

#include "root.h"

#include <sys/wait.h>

/* A child that becomes the sandbox that `described` makes of a script. What is passed to it is a pipe, as number 9, whose
   other end is `ready`. */
static inline pid_t become(gpuc_config_t *(*described)(const char *script), const char *script, int *ready) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    const pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        gpuc_error_t *error;
        gpuc_config_t *config = described(script);
        close(ends[0]);
        gpuc_config_pass_fd(config, 9, ends[1]);
        gpuc_enter(config, &error);
        fprintf(stderr, "%s\n", gpuc_error_message(error));
        _exit(99);
    }
    close(ends[1]);
    *ready = ends[0];
    return pid;
}

static inline int status_of(pid_t pid) {
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    return status;
}

#endif
