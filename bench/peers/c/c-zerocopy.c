/* MSG_ZEROCOPY: the error queue is read when many completions are owed, or the kernel's limit on them is met. */
#include "common.h"
#include <linux/errqueue.h>
#include <poll.h>

static uint32_t sent_calls, done_calls;

/* Takes the completions that are there; whether there were any. */
static int reap(void) {
    int any = 0;
    for (;;) {
        char control[256];
        struct msghdr header = {.msg_control = control, .msg_controllen = sizeof control};
        if (recvmsg(SOCKET, &header, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) {
            if (errno == EAGAIN)
                return any;
            die("recvmsg(MSG_ERRQUEUE)");
        }
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&header); c; c = CMSG_NXTHDR(&header, c)) {
            struct sock_extended_err *e = (void *)CMSG_DATA(c);
            if (e->ee_origin == SO_EE_ORIGIN_ZEROCOPY) {
                done_calls += e->ee_data - e->ee_info + 1;
                any = 1;
            }
        }
    }
}

int main(int argc, char **argv) {
    (void)argc;
    size_t bytes = strtoull(argv[1], NULL, 10);
    int one = 1, file;
    char *message = message_in_file(bytes, &file);
    if (setsockopt(SOCKET, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one) < 0)
        die("setsockopt(SO_ZEROCOPY)");
    for (;;)
        for (size_t at = 0; at < bytes;) {
            ssize_t sent = send(SOCKET, message + at, bytes - at, MSG_ZEROCOPY | MSG_NOSIGNAL);
            if (sent < 0 && errno != ENOBUFS)
                die("send(MSG_ZEROCOPY)");
            if (sent >= 0) {
                at += sent;
                sent_calls++;
            }
            if (sent < 0 || sent_calls - done_calls > 64) {
                struct pollfd wait = {.fd = SOCKET};
                while (!reap())
                    if (poll(&wait, 1, -1) < 0)
                        die("poll");
            }
        }
}
