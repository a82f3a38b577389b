/* io_uring SEND: one entry a message. */
#include "ring.h"

int main(int argc, char **argv) {
    (void)argc;
    size_t bytes = strtoull(argv[1], NULL, 10);
    int file;
    char *message = message_in_file(bytes, &file);
    struct ring ring;
    struct io_uring_cqe done;
    ring_open(&ring, 8);
    for (;;) {
        struct io_uring_sqe *entry = ring_entry(&ring);
        entry->opcode = IORING_OP_SEND;
        entry->fd = SOCKET;
        entry->addr = (uintptr_t)message;
        entry->len = bytes;
        entry->msg_flags = MSG_WAITALL | MSG_NOSIGNAL;
        ring_enter(&ring, 1);
        while (ring_take(&ring, &done))
            if (done.res < 0) {
                errno = -done.res;
                die("SEND");
            }
    }
}
