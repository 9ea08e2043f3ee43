/* huddle.c - threads that take turns in Python's interpreter do so on one processor.
 *
 * Who calls the kernel lets go of the interpreter. With a second processor another thread is woken there, and has taken
 * it before a call of a microsecond is over: each of dozens of them costs two switches of threads, and the time in which
 * nobody has it yet. On one processor the thread that was woken has to wait, and the one that called finds the
 * interpreter free. Calls that do take long let others run all the same. */
#define _GNU_SOURCE
#include "blobtee.h"

#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#define NOWHERE (-1)
#define CHOICE_MS 5000

/* Where to be: wherever the kernel put a thread, when it was last free to. */
static atomic_int chosen = NOWHERE;
static _Atomic int64_t choice_due_ms;

static __thread int place = NOWHERE, chooses;
static __thread cpu_set_t before;

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static void move_to(int processor)
{
    cpu_set_t alone;

    if (place == NOWHERE && sched_getaffinity(0, sizeof(before), &before) != 0)
        return;
    if (CPU_COUNT(&before) == 1 || !CPU_ISSET(processor, &before))
        return;
    CPU_ZERO(&alone);
    CPU_SET(processor, &alone);
    if (sched_setaffinity(0, sizeof(alone), &alone) == 0)
        place = processor;
}

void bt_huddle(void)
{
    int64_t now = now_ms(), due = atomic_load(&choice_due_ms);
    int processor;

    if (now >= due && atomic_compare_exchange_strong(&choice_due_ms, &due, now + CHOICE_MS)) {
        chooses = 1;
        if (place != NOWHERE) {
            /* It is free for once, and says next time where that has brought it. */
            bt_spread();
            return;
        }
    }
    if (chooses) {
        chooses = 0;
        if ((processor = sched_getcpu()) >= 0 && processor < CPU_SETSIZE)
            atomic_store(&chosen, processor);
    }
    processor = atomic_load(&chosen);
    if (processor != NOWHERE && processor != place)
        move_to(processor);
}

void bt_spread(void)
{
    cpu_set_t now;

    if (place == NOWHERE)
        return;
    /* Somebody may have put the thread elsewhere meanwhile, and meant it. */
    if (sched_getaffinity(0, sizeof(now), &now) == 0 && CPU_COUNT(&now) == 1 && CPU_ISSET(place, &now))
        sched_setaffinity(0, sizeof(before), &before);
    place = NOWHERE;
}
