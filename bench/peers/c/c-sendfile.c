/* sendfile from a memfd: its pages are shared. */
#include "common.h"
#include <sys/sendfile.h>

int main(int argc, char **argv) {
    (void)argc;
    size_t bytes = strtoull(argv[1], NULL, 10);
    int file;
    message_in_file(bytes, &file);
    for (;;)
        for (off_t at = 0; at < (off_t)bytes;)
            if (sendfile(SOCKET, file, &at, bytes - at) < 0)
                die("sendfile");
}
