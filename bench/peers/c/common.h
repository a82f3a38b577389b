/* What all loops share: the socket is descriptor 0, a page for counting is descriptor 1. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SOCKET 0

static volatile uint64_t *counter;

static inline void die(const char *call) {
    /* The other end goes first when a measurement is over. */
    if (errno == EPIPE || errno == ECONNRESET)
        exit(0);
    perror(call);
    exit(1);
}

static inline void open_counter(void) {
    counter = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, 1, 0);
    if (counter == MAP_FAILED)
        die("mmap");
}

/* A message of the given size in a memfd, mapped; `file` becomes its descriptor. */
static inline char *message_in_file(size_t bytes, int *file) {
    *file = memfd_create("message", MFD_CLOEXEC);
    if (*file < 0 || ftruncate(*file, bytes) < 0)
        die("memfd_create");
    char *message = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *file, 0);
    if (message == MAP_FAILED)
        die("mmap");
    memset(message, 0x5a, bytes);
    return message;
}
