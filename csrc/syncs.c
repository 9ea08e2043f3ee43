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

struct bt_sync_job {
    int fd, result;
    unsigned process;
    sem_t done;
    bt_sync_job *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t has_come = PTHREAD_COND_INITIALIZER;
static bt_sync_job *first, *last;
static unsigned threads, idle, waiting; /* waiting: syncs that nobody has begun */
static unsigned process;                /* another one in each child */

static int sync_now(int fd)
{
    /* File systems in user space and of other machines may be interrupted: that says nothing of the bytes. */
    while (fsync(fd) != 0)
        if (errno != EINTR)
            return BT_ERRNO - errno;
    return BT_OK;
}

static void finish(bt_sync_job *job)
{
    job->result = sync_now(job->fd);
    sem_post(&job->done);
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
        bt_sync_job *job = first;
        if ((first = job->next) == NULL)
            last = NULL;
        waiting--;
        pthread_mutex_unlock(&lock);
        finish(job);
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

void bt_sync_begin(bt_sync *s)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    bt_sync_job *job = malloc(sizeof(*job));
    int is_taken = 1;

    if (job == NULL)
        return;
    pthread_once(&once, know_of_forks);
    *job = (bt_sync_job){.fd = s->fd};
    sem_init(&job->done, 0, 0);
    s->job = job;
    pthread_mutex_lock(&lock);
    job->process = process;
    if (idle <= waiting && threads < MOST_THREADS && start_thread() == 0)
        threads++;
    if (threads > 0) {
        if (last != NULL)
            last->next = job;
        else
            first = job;
        last = job;
        waiting++;
        if (idle > 0)
            pthread_cond_signal(&has_come);
    } else {
        is_taken = 0;
    }
    pthread_mutex_unlock(&lock);
    if (!is_taken)
        finish(job);
}

int bt_sync_wait(bt_sync *s)
{
    bt_sync_job *job = s->job;

    if (s->is_over)
        return s->result;
    /* Begun before a fork, those who do it are the parent's. */
    if (job == NULL || (job->process != process && sem_trywait(&job->done) != 0)) {
        s->result = sync_now(s->fd);
    } else {
        if (job->process == process)
            while (sem_wait(&job->done) != 0)
                ;
        s->result = job->result;
    }
    s->is_over = 1;
    s->job = NULL;
    if (job != NULL)
        sem_destroy(&job->done);
    free(job);
    return s->result;
}
