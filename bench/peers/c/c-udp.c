/* UDP with GSO: calls of as many segments of 1400 bytes as 64 KB hold. A message is as many calls as it takes. */
#include "common.h"
#include <netinet/in.h>
#include <netinet/udp.h>

#define SEGMENT 1400
#define CALL (46 * SEGMENT)

int main(int argc, char **argv) {
    (void)argc;
    size_t bytes = strtoull(argv[1], NULL, 10);
    char *message = aligned_alloc(4096, (bytes + 4095) & ~4095ul);
    memset(message, 0x5a, bytes);
    int segment = SEGMENT;
    if (setsockopt(SOCKET, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof segment) < 0)
        die("setsockopt(UDP_SEGMENT)");
    for (;;)
        for (size_t at = 0; at < bytes;) {
            size_t part = bytes - at < CALL ? bytes - at : CALL;
            ssize_t sent = send(SOCKET, message + at, part, MSG_NOSIGNAL);
            /* Nobody listens any more, or the queue is full. */
            if (sent < 0 && errno == ECONNREFUSED)
                return 0;
            if (sent < 0 && errno != ENOBUFS)
                die("send");
            if (sent > 0)
                at += sent;
        }
}
