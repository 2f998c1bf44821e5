/* Events of the library reach a function, up to a level, until somebody else or nobody is to hear them. */
#include "root.h"

struct heard {
    int all, compiled, errors;
};

static void hear(void *context, gpuc_log_level_t level, const char *message) {
    struct heard *heard = (struct heard *)context;
    heard->all++;
    heard->compiled += level == GPUC_LOG_DEBUG && strstr(message, "program compiled sandbox=") != NULL;
    /* From inside nothing can be changed. */
    gpuc_error_t *error;
    heard->errors += gpuc_set_log(GPUC_LOG_ERROR, NULL, NULL, &error) == -1 &&
                     gpuc_error_kind(error) == GPUC_ERROR_INVALID_ARGUMENT;
    gpuc_error_free(error);
}

static void start(void) {
    gpuc_error_t *error;
    gpuc_config_t *config = shell("exit 0");
    gpuc_sandbox_t *sandbox = gpuc_sandbox_spawn(config, &error);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_sandbox_wait(sandbox, -1, NULL, &error) == 1);
    gpuc_sandbox_free(sandbox);
    gpuc_config_free(config);
}

int main(void) {
    make_root();
    gpuc_error_t *error;
    struct heard first = {0, 0, 0}, second = {0, 0, 0};
    start();
    CHECK(gpuc_set_log(GPUC_LOG_DEBUG, hear, &first, &error) == 0);
    start();
    CHECK(first.compiled == 1 && first.errors == first.all);
    const int before = first.all;
    CHECK(gpuc_set_log(GPUC_LOG_ERROR, hear, &second, &error) == 0);
    start();
    CHECK(first.all == before && second.all == 0);
    CHECK(gpuc_set_log(0, hear, &second, &error) == -1);
    CHECK(gpuc_error_kind(error) == GPUC_ERROR_INVALID_ARGUMENT);
    CHECK(strstr(gpuc_error_message(error), "level 0") != NULL);
    gpuc_error_free(error);
    CHECK(gpuc_set_log(0, NULL, NULL, &error) == 0);
    start();
    CHECK(first.all == before && second.all == 0);
    remove_root();
    return 0;
}
