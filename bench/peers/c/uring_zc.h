/* io_uring SEND_ZC, from a registered buffer or not: a few sends may owe their notifications. */
#include "ring.h"

#define OWED 16

static inline void send_zero_copy(size_t bytes, int is_fixed) {
    int file;
    char *message = message_in_file(bytes, &file);
    struct ring ring;
    struct io_uring_cqe done;
    int owed = 0, under_way = 0;
    ring_open(&ring, 32);
    if (is_fixed) {
        struct iovec buffer = {.iov_base = message, .iov_len = bytes};
        if (syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &buffer, 1) < 0)
            die("io_uring_register");
    }
    for (;;) {
        int submit = !under_way && owed < OWED;
        if (submit) {
            struct io_uring_sqe *entry = ring_entry(&ring);
            entry->opcode = IORING_OP_SEND_ZC;
            entry->fd = SOCKET;
            entry->addr = (uintptr_t)message;
            entry->len = bytes;
            entry->msg_flags = MSG_WAITALL | MSG_NOSIGNAL;
            entry->ioprio = is_fixed ? IORING_RECVSEND_FIXED_BUF : 0;
            under_way = 1;
        }
        ring_enter(&ring, submit);
        while (ring_take(&ring, &done)) {
            if (done.flags & IORING_CQE_F_NOTIF) {
                owed--;
                continue;
            }
            if (done.res < 0) {
                errno = -done.res;
                die("SEND_ZC");
            }
            under_way = 0;
            owed += !!(done.flags & IORING_CQE_F_MORE);
        }
    }
}
