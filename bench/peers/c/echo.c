/* The far end of round trips: reads a message and writes it back. */
#include "common.h"

int main(int argc, char **argv) {
    (void)argc;
    size_t bytes = strtoull(argv[1], NULL, 10);
    char *message = malloc(bytes);
    for (;;) {
        for (size_t at = 0; at < bytes;) {
            ssize_t got = read(SOCKET, message + at, bytes - at);
            if (got < 0)
                die("read");
            if (got == 0)
                return 0;
            at += got;
        }
        for (size_t at = 0; at < bytes;) {
            ssize_t sent = send(SOCKET, message + at, bytes - at, MSG_NOSIGNAL);
            if (sent < 0)
                die("send");
            at += sent;
        }
    }
}
