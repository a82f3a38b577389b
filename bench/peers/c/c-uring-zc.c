/* io_uring SEND_ZC from memory that is pinned for each send. */
#include "uring_zc.h"

int main(int argc, char **argv) {
    (void)argc;
    send_zero_copy(strtoull(argv[1], NULL, 10), 0);
}
