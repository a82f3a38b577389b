/* The far end of c-udp: GRO, 64 KB a call; counts what arrives. */
#include "common.h"
#include <netinet/in.h>
#include <netinet/udp.h>

int main(void) {
    static char buffer[64 << 10];
    int one = 1;
    open_counter();
    if (setsockopt(SOCKET, IPPROTO_UDP, UDP_GRO, &one, sizeof one) < 0)
        die("setsockopt(UDP_GRO)");
    for (;;) {
        char control[64];
        struct iovec part = {.iov_base = buffer, .iov_len = sizeof buffer};
        struct msghdr header = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        ssize_t got = recvmsg(SOCKET, &header, 0);
        if (got < 0)
            die("recvmsg");
        *counter += got;
    }
}
