/* The far end of all streams: reads 128 KiB at a time and counts. */
#include "common.h"

int main(void) {
    static char buffer[128 << 10];
    open_counter();
    for (;;) {
        ssize_t got = read(SOCKET, buffer, sizeof buffer);
        if (got < 0)
            die("read");
        if (got == 0)
            return 0;
        *counter += got;
    }
}
