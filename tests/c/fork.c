/* Forks while sandboxes run: a child frees its copies and ends, starts sandboxes of its own, and harms nothing. */
#include "root.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <sys/wait.h>

static gpuc_sandbox_t *serve(const char *script) {
    gpuc_error_t *error;
    gpuc_config_t *config = shell(script);
    gpuc_config_set_stdio(config, 0, GPUC_STDIO_NULL);
    gpuc_config_set_stdio(config, 2, GPUC_STDIO_NULL);
    gpuc_config_publish(config, 80, 0);
    gpuc_sandbox_t *sandbox = gpuc_sandbox_spawn(config, &error);
    CHECK_NO_ERROR(error);
    gpuc_config_free(config);
    return sandbox;
}

/* Whether a client of the published port gets its answer. */
static bool answers(const gpuc_sandbox_t *sandbox) {
    for (int attempt = 0; attempt < 3000; attempt++, usleep(10000)) {
        struct sockaddr_in address;
        memset(&address, 0, sizeof address);
        address.sin_family = AF_INET;
        address.sin_port = htons(gpuc_sandbox_host_port(sandbox, 80));
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        const int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        char answer[6] = "";
        const bool there = connect(client, (const struct sockaddr *)&address, sizeof address) == 0 &&
                           recv(client, answer, sizeof answer - 1, MSG_WAITALL) == 5;
        close(client);
        if (there) return strcmp(answer, "hello") == 0;
    }
    return false;
}

static const char script[] = "while :; do nc -l -p 80 -e sh -c 'printf hello'; done";

/* Another thread of the parent's, which starts and ends sandboxes all the time. */
static volatile bool over;
static void *keep_on(void *none) {
    while (!over) gpuc_sandbox_free(serve("exec sleep 1000"));
    return none;
}

static void await_success(pid_t child) {
    int status;
    CHECK(child > 0);
    for (int look = 0; waitpid(child, &status, WNOHANG) == 0; look++) {
        if (look == 6000) kill(child, SIGKILL);
        CHECK(look <= 6000);
        usleep(10000);
    }
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void) {
    make_root();
    gpuc_error_t *error;
    const int open = open_descriptors();
    gpuc_sandbox_t *sandbox = serve(script);
    CHECK(answers(sandbox));
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, keep_on, NULL) == 0);
    for (int time = 0; time < 8; time++) {
        const pid_t child = fork();
        if (child == 0) {
            switch (time % 4) {
            case 0: /* frees its copy and ends as programs do */
                gpuc_sandbox_free(sandbox);
                exit(0);
            case 1: /* ends with everything */
                exit(0);
            case 2: /* closes it, and says nothing went wrong */
                CHECK(gpuc_sandbox_close(sandbox, &error) == 0);
                exit(0);
            default: /* has sandboxes of its own, ports included */
                gpuc_sandbox_free(sandbox);
                sandbox = serve(script);
                CHECK(answers(sandbox));
                gpuc_sandbox_free(sandbox);
                exit(0);
            }
        }
        await_success(child);
        CHECK(gpuc_sandbox_wait(sandbox, 0, NULL, &error) == 0);
        CHECK(answers(sandbox));
    }
    over = true;
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(gpuc_sandbox_close(sandbox, &error) == 0);
    CHECK(open_descriptors() == open);
    remove_root();
    return 0;
}
