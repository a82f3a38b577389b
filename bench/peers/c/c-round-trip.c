/* Writes a message, reads it back, and stores what that took in ns, behind a tenth as many that are not stored:
   SIZE SAMPLES, times as 64-bit words on descriptor 1. */
#include "common.h"

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec;
}

int main(int argc, char **argv) {
    (void)argc;
    size_t bytes = strtoull(argv[1], NULL, 10), samples = strtoull(argv[2], NULL, 10), warm = samples / 10;
    char *message = malloc(bytes);
    uint64_t *times = mmap(NULL, samples * 8, PROT_READ | PROT_WRITE, MAP_SHARED, 1, 0);
    if (times == MAP_FAILED)
        die("mmap");
    memset(times, 0, samples * 8);
    memset(message, 0x5a, bytes);
    for (size_t sample = 0; sample < samples + warm; sample++) {
        uint64_t begin = now();
        for (size_t at = 0; at < bytes;) {
            ssize_t sent = send(SOCKET, message + at, bytes - at, MSG_NOSIGNAL);
            if (sent < 0)
                die("send");
            at += sent;
        }
        for (size_t at = 0; at < bytes;) {
            ssize_t got = read(SOCKET, message + at, bytes - at);
            if (got <= 0)
                die("read");
            at += got;
        }
        if (sample >= warm)
            times[sample - warm] = now() - begin;
    }
    return 0;
}
