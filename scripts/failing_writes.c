/* Makes a write to a file below TORTURE_FOLDER fail: the TORTURE_AT-th, and those behind it.
 *
 * To be preloaded; TORTURE_ERRNO is the error, TORTURE_COUNT a file in which the number of writes
 * is kept, by all processes together. Without TORTURE_FOLDER nothing fails.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static long number = 0;

static int fails(int fd) {
    const char *folder = getenv("TORTURE_FOLDER"), *at = getenv("TORTURE_AT");
    if (!folder || !at) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    if (strncmp(path, folder, strlen(folder))) return 0;
    long now = __sync_add_and_fetch(&number, 1);
    if (atol(at) == 0) {
        const char *count = getenv("TORTURE_COUNT");
        FILE *file = count ? fopen(count, "w") : NULL;
        if (file) { fprintf(file, "%ld", now); fclose(file); }
        return 0;
    }
    if (now < atol(at)) return 0;
    errno = atoi(getenv("TORTURE_ERRNO"));
    return 1;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *buffer, size_t size) {
    REAL(write);
    return fails(fd) ? -1 : real(fd, buffer, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    return fails(fd) ? -1 : real(fd, parts, count);
}

ssize_t pwrite64(int fd, const void *buffer, size_t size, off_t offset) {
    REAL(pwrite64);
    return fails(fd) ? -1 : real(fd, buffer, size, offset);
}

ssize_t sendfile64(int out, int in, off_t *offset, size_t size) {
    static ssize_t (*real)(int, int, off_t *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "sendfile64");
    return fails(out) ? -1 : real(out, in, offset, size);
}
