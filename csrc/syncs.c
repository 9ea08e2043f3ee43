/* syncs.c - files that become durable while who wrote them does something else.
 *
 * The threads that do it are started when they are needed, and end when nothing has come for a while: one more for each
 * file that finds all of them at work, as a disk makes many durable in the time of one. */
#define _GNU_SOURCE
#include "blobtee.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { MOST_THREADS = 32, IDLE_SECONDS = 10, STACK_NBYTES = 128 << 10 };

struct bt_sync {
    int fd, result;
    unsigned process;
    sem_t done;
    bt_sync *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t has_come = PTHREAD_COND_INITIALIZER;
static bt_sync *first, *last;
static unsigned threads, idle, waiting; /* waiting: syncs that nobody has begun */
static unsigned process;                /* another one in each child */

static void sync_now(bt_sync *s)
{
    s->result = fsync(s->fd) == 0 ? BT_OK : BT_ERRNO - errno;
    sem_post(&s->done);
}

/* Whether something came within IDLE_SECONDS. The lock is held. */
static int wait_for_some(void)
{
    struct timespec end;
    int result = 0;

    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += IDLE_SECONDS;
    idle++;
    while (first == NULL && result == 0)
        result = pthread_cond_timedwait(&has_come, &lock, &end);
    idle--;
    return first != NULL;
}

static void *work(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&lock);
    while (first != NULL || wait_for_some()) {
        bt_sync *s = first;
        if ((first = s->next) == NULL)
            last = NULL;
        waiting--;
        pthread_mutex_unlock(&lock);
        sync_now(s);
        pthread_mutex_lock(&lock);
    }
    threads--;
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* 0, or an errno. */
static int start_thread(void)
{
    pthread_attr_t attributes;
    pthread_t thread;
    sigset_t all, before;
    int result;

    /* It inherits the processor, and the signals that are let through: those are the interpreter's. */
    bt_spread();
    sigfillset(&all);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_NBYTES);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    result = pthread_create(&thread, &attributes, work, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return result;
}

/* A child has none of its parent's threads. (pthread_atfork(3)) */
static void hold(void) { pthread_mutex_lock(&lock); }
static void let_go(void) { pthread_mutex_unlock(&lock); }
static void begin_anew(void)
{
    first = last = NULL;
    threads = idle = waiting = 0;
    process++;
    pthread_cond_init(&has_come, NULL);
    pthread_mutex_unlock(&lock);
}
static void know_of_forks(void) { pthread_atfork(hold, let_go, begin_anew); }

bt_sync *bt_sync_begin(int fd)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    bt_sync *s = malloc(sizeof(*s));
    int is_taken = 1;

    if (s == NULL)
        return NULL;
    pthread_once(&once, know_of_forks);
    *s = (bt_sync){.fd = fd};
    sem_init(&s->done, 0, 0);
    pthread_mutex_lock(&lock);
    s->process = process;
    if (idle <= waiting && threads < MOST_THREADS && start_thread() == 0)
        threads++;
    if (threads > 0) {
        if (last != NULL)
            last->next = s;
        else
            first = s;
        last = s;
        waiting++;
        if (idle > 0)
            pthread_cond_signal(&has_come);
    } else {
        is_taken = 0;
    }
    pthread_mutex_unlock(&lock);
    if (!is_taken)
        sync_now(s);
    return s;
}

int bt_sync_end(bt_sync *s)
{
    int result;
    if (s->process != process)
        sync_now(s); /* it was begun before a fork, and those who do it are the parent's */
    while (sem_wait(&s->done) != 0)
        ;
    result = s->result;
    sem_destroy(&s->done);
    free(s);
    return result;
}
