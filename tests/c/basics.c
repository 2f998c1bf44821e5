/* The version, and errors that are not there. */
#include "check.h"
/* Twice is as good as once. */
#include <gpucontainer.h>

int main(void) {
    int before = open_descriptors();
    char expected[64];
    snprintf(expected, sizeof expected, "%d.%d.%d", GPUC_VERSION_MAJOR, GPUC_VERSION_MINOR, GPUC_VERSION_PATCH);
    CHECK(strcmp(gpuc_version(), expected) == 0);

    CHECK(gpuc_error_kind(NULL) == GPUC_ERROR_UNKNOWN);
    CHECK(gpuc_error_errno(NULL) == 0);
    CHECK(strcmp(gpuc_error_message(NULL), "") == 0);
    CHECK(gpuc_error_path(NULL) == NULL);
    gpuc_error_free(NULL);

    CHECK(open_descriptors() == before);
    return 0;
}
