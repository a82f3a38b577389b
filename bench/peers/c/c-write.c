/* write: one call a message, and more where it was not taken whole. */
#include "common.h"

int main(int argc, char **argv) {
    (void)argc;
    size_t bytes = strtoull(argv[1], NULL, 10);
    char *message = aligned_alloc(4096, (bytes + 4095) & ~4095ul);
    memset(message, 0x5a, bytes);
    for (;;)
        for (size_t at = 0; at < bytes;) {
            ssize_t sent = send(SOCKET, message + at, bytes - at, MSG_NOSIGNAL);
            if (sent < 0)
                die("send");
            at += sent;
        }
}
