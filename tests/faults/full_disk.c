/* Makes writing to files fail whose name contains $FULL: write with ENOSPC after half of the bytes,
 * fsync with EIO if $FULL_FSYNC is set. For LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_full(int file) {
    const char *part = getenv("FULL");
    char link[64], name[4096];
    if (!part || !*part) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0) return 0;
    name[length] = 0;
    return strstr(name, part) != NULL;
}

ssize_t write(int file, const void *bytes, size_t count) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    if (!getenv("FULL_FSYNC") && is_full(file)) {
        if (count > 1 && lseek(file, 0, SEEK_END) == 0) return real(file, bytes, count / 2);
        errno = ENOSPC;
        return -1;
    }
    return real(file, bytes, count);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    static ssize_t (*real)(int, const struct iovec *, int);
    if (!real) real = dlsym(RTLD_NEXT, "writev");
    if (!getenv("FULL_FSYNC") && is_full(file)) return write(file, parts->iov_base, parts->iov_len);
    return real(file, parts, count);
}

int fsync(int file) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    if (getenv("FULL_FSYNC") && is_full(file)) {
        errno = EIO;
        return -1;
    }
    return real(file);
}
