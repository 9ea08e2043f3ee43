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
#include <string.h>
#include <time.h>

#define NOWHERE (-1)
#define CHOICE_MS 5000

/* Where to be: wherever the kernel put a thread, when it was last free to. */
static atomic_int chosen = NOWHERE;
static _Atomic int64_t choice_due_ms;

static __thread int place = NOWHERE, chooses;
/* Where it might run when it began to huddle, and what to ask the kernel for to be there again. */
static __thread cpu_set_t seen, home;

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

/* The kernel keeps what a thread asks for, and lets it run where its control group allows that too (since Linux 6.2). Who
 * may run wherever the group allows has to ask for that, not for what it is now: the group may be given more. */
static void look(const cpu_set_t *now)
{
    cpu_set_t all, then;

    seen = home = *now;
    memset(&all, 0xff, sizeof(all));
    if (sched_setaffinity(0, sizeof(all), &all) == 0 && sched_getaffinity(0, sizeof(then), &then) == 0 &&
        CPU_EQUAL(&then, now))
        home = all;
}

static void move_to(int processor)
{
    cpu_set_t now, alone;

    bt_spread();
    if (sched_getaffinity(0, sizeof(now), &now) != 0 || CPU_COUNT(&now) == 1 || !CPU_ISSET(processor, &now))
        return;
    if (!CPU_EQUAL(&now, &seen))
        look(&now);
    CPU_ZERO(&alone);
    CPU_SET(processor, &alone);
    if (sched_setaffinity(0, sizeof(alone), &alone) == 0)
        place = processor;
    else
        sched_setaffinity(0, sizeof(home), &home);
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
    cpu_set_t now, then;
    int is_known;

    if (place == NOWHERE)
        return;
    is_known = sched_getaffinity(0, sizeof(now), &now) == 0;
    sched_setaffinity(0, sizeof(home), &home);
    /* When it was elsewhere: its control group allows no more now, or somebody has put it there and meant it. */
    if (is_known && !(CPU_COUNT(&now) == 1 && CPU_ISSET(place, &now)) &&
        sched_getaffinity(0, sizeof(then), &then) == 0 && !CPU_EQUAL(&then, &now))
        sched_setaffinity(0, sizeof(now), &now);
    place = NOWHERE;
}
