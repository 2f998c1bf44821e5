/* What the host can do. */
#include "check.h"

int main(void) {
    int before = open_descriptors();
    /* Not initialised on purpose: the library only writes to it. */
    gpuc_error_t *error;
    gpuc_host_t *host = gpuc_host_probe(&error);
    CHECK_NO_ERROR(error);
    CHECK(host != NULL);

    CHECK(gpuc_host_has(host, "kernel"));
    CHECK(!gpuc_host_has(host, "no-such-thing"));
    CHECK(!gpuc_host_has(host, "\xff\xfe"));
    CHECK(!gpuc_host_has(host, NULL));
    CHECK(!gpuc_host_has(NULL, "kernel"));
    CHECK(gpuc_host_has(host, "gpus") == (gpuc_host_gpu_count(host) > 0));
    CHECK(gpuc_host_gpu_count(NULL) == 0);
    CHECK(strstr(gpuc_host_text(host), "user-namespaces") != NULL);
    CHECK(gpuc_host_json(host)[0] == '{');
    CHECK(strstr(gpuc_host_json(host), gpuc_version()) != NULL);
    CHECK(strcmp(gpuc_host_json(NULL), "") == 0);
    gpuc_host_free(host);
    gpuc_host_free(NULL);

    gpuc_host_free(gpuc_host_probe(NULL));
    CHECK(open_descriptors() == before);
    return 0;
}
