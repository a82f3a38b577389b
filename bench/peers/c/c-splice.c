/* vmsplice from a memfd's pages into a pipe, and splice from there into the socket. */
#include "common.h"
#include <fcntl.h>
#include <sys/uio.h>

int main(int argc, char **argv) {
    (void)argc;
    size_t bytes = strtoull(argv[1], NULL, 10);
    int file, ends[2];
    char *message = message_in_file(bytes, &file);
    if (pipe(ends) < 0 || fcntl(ends[1], F_SETPIPE_SZ, 1 << 20) < 0)
        die("pipe");
    for (;;)
        for (size_t at = 0; at < bytes;) {
            struct iovec part = {.iov_base = message + at, .iov_len = bytes - at};
            ssize_t in = vmsplice(ends[1], &part, 1, 0 | SPLICE_F_NONBLOCK);
            if (in < 0)
                die("vmsplice");
            at += in;
            while (in > 0) {
                ssize_t out = splice(ends[0], NULL, SOCKET, NULL, in, SPLICE_F_MOVE | (at < bytes ? SPLICE_F_MORE : 0));
                if (out < 0)
                    die("splice");
                in -= out;
            }
        }
}
