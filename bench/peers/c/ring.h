/* An io_uring by its system calls: one entry at a time, submitted and waited for in one call. */
#include "common.h"
#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <sys/uio.h>

struct ring {
    int fd;
    unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
};

static inline void ring_open(struct ring *ring, unsigned entries) {
    struct io_uring_params p = {.flags = IORING_SETUP_CQSIZE | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
                                .cq_entries = entries * 4};
    ring->fd = syscall(SYS_io_uring_setup, entries, &p);
    if (ring->fd < 0)
        die("io_uring_setup");
    size_t sq = p.sq_off.array + p.sq_entries * sizeof(unsigned);
    size_t cq = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    char *base = mmap(NULL, sq > cq ? sq : cq, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, IORING_OFF_SQ_RING);
    ring->sqes = mmap(NULL, p.sq_entries * sizeof *ring->sqes, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd,
                      IORING_OFF_SQES);
    if (base == MAP_FAILED || ring->sqes == MAP_FAILED)
        die("mmap");
    ring->sq_tail = (void *)(base + p.sq_off.tail);
    ring->sq_mask = (void *)(base + p.sq_off.ring_mask);
    ring->sq_array = (void *)(base + p.sq_off.array);
    ring->cq_head = (void *)(base + p.cq_off.head);
    ring->cq_tail = (void *)(base + p.cq_off.tail);
    ring->cq_mask = (void *)(base + p.cq_off.ring_mask);
    ring->cqes = (void *)(base + p.cq_off.cqes);
}

/* The next entry, cleared. */
static inline struct io_uring_sqe *ring_entry(struct ring *ring) {
    unsigned index = *ring->sq_tail & *ring->sq_mask;
    ring->sq_array[index] = index;
    return memset(&ring->sqes[index], 0, sizeof(struct io_uring_sqe));
}

/* Submits the entry that was filled, if any, and waits for a completion. */
static inline void ring_enter(struct ring *ring, unsigned submit) {
    __atomic_store_n(ring->sq_tail, *ring->sq_tail + submit, __ATOMIC_RELEASE);
    while (syscall(SYS_io_uring_enter, ring->fd, submit, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
        if (errno != EINTR)
            die("io_uring_enter");
}

/* Takes a completion; 0 if there is none. */
static inline int ring_take(struct ring *ring, struct io_uring_cqe *into) {
    unsigned head = *ring->cq_head;
    if (head == __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE))
        return 0;
    *into = ring->cqes[head & *ring->cq_mask];
    __atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
    return 1;
}
