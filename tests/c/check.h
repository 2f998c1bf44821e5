/* What the consumers share. Each of them is compiled as C11 and as C++17. */
#ifndef CHECK_H
#define CHECK_H

#include <dirent.h>
#include <gpucontainer.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                              \
    do {                                                                              \
        if (!(condition)) {                                                           \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);   \
            exit(1);                                                                  \
        }                                                                             \
    } while (0)

/* Checks that a call did not fail, and says why if it did. */
#define CHECK_NO_ERROR(error)                                                                    \
    do {                                                                                         \
        if ((error) != NULL) {                                                                   \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, gpuc_error_message(error));       \
            exit(1);                                                                             \
        }                                                                                        \
    } while (0)

/* How many descriptors the process has open. */
static inline int open_descriptors(void) {
    int count = 0;
    DIR *directory = opendir("/proc/self/fd");
    CHECK(directory != NULL);
    while (readdir(directory) != NULL) {
        count++;
    }
    closedir(directory);
    return count;
}

#endif
