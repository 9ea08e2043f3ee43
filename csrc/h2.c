/* h2.c - the gRPC server: its sockets, its clock, and the threads that wait for calls.
 *
 * The threads that have nothing to do wait in one epoll set, which wakes one of them for each connection that has
 * something to read (EPOLLONESHOT). That thread reads, gives the connection back, and runs the handler of what it has
 * read itself: a client that asks one thing after another costs no switch between threads. A handler that waits for
 * its stream reads the connection too, for as long as it hears of no other stream. */
#define _GNU_SOURCE
#include "h2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { SPECIAL_WAKE, SPECIAL_TIMER, SPECIAL_LISTENER };
enum { ACCEPTS_MAX = 16 };

const char *bt_nghttp2_version(void) { return NGHTTP2_VERSION; }

/* ---- connections come ---------------------------------------------------------------------------------------------- */

static int adopt(bt_h2 *s, struct h2_listener *listener, int fd)
{
    struct h2_connection *c = calloc(1, sizeof(*c));
    uint32_t slot;

    if (c == NULL)
        return -1;
    c->server = s;
    c->listener = listener;
    c->fd = fd;
    c->began_ns = c->used_ns = h2_now_ns();
    atomic_init(&c->refs, 2);
    pthread_mutex_init(&c->lock, NULL);
    if (h2_begin(c) != 0)
        goto no_session;
    pthread_mutex_lock(&s->lock);
    for (slot = 0; slot < s->limits.connections && s->connections[slot] != NULL; slot++)
        ;
    if (slot == s->limits.connections || s->draining) {
        pthread_mutex_unlock(&s->lock);
        goto no_session;
    }
    c->slot = slot;
    c->generation = ++s->generations[slot] == 0 ? ++s->generations[slot] : s->generations[slot];
    s->connections[slot] = c;
    s->nconnections++;
    pthread_mutex_unlock(&s->lock);

    pthread_mutex_lock(&c->lock);
    struct epoll_event event = {EPOLLONESHOT, {.u64 = (uint64_t)c->generation << 32 | slot}};
    if (epoll_ctl(s->epoll, EPOLL_CTL_ADD, fd, &event) != 0)
        h2_lose(c);
    h2_pump(c, 0);
    h2_arm(c, 0);
    pthread_mutex_unlock(&c->lock);
    h2_alarm(s, c->began_ns + s->limits.handshake_ms * 1000000LL);
    h2_let_go(c);
    return 0;

no_session:
    nghttp2_session_del(c->session);
    pthread_mutex_destroy(&c->lock);
    free(c);
    return -1;
}

static struct h2_connection *held(bt_h2 *s, uint32_t slot, uint32_t generation)
{
    struct h2_connection *c = NULL;
    pthread_mutex_lock(&s->lock);
    if (slot < s->limits.connections) {
        c = s->connections[slot];
        if (c != NULL && generation != 0 && c->generation != generation)
            c = NULL;
        if (c != NULL)
            h2_hold(c);
    }
    pthread_mutex_unlock(&s->lock);
    return c;
}

/* End the connection without a call that was used longest ago. */
static void make_place(bt_h2 *s)
{
    uint32_t found = s->limits.connections;
    int64_t used = INT64_MAX;
    struct h2_connection *c;

    for (uint32_t slot = 0; slot < s->limits.connections; slot++) {
        if ((c = held(s, slot, 0)) == NULL)
            continue;
        pthread_mutex_lock(&c->lock);
        if (c->calls == NULL && c->used_ns < used) {
            used = c->used_ns;
            found = slot;
        }
        pthread_mutex_unlock(&c->lock);
        h2_let_go(c);
    }
    if ((c = held(s, found, 0)) == NULL)
        return;
    pthread_mutex_lock(&c->lock);
    if (!c->dead && c->calls == NULL) {
        nghttp2_session_terminate_session(c->session, NGHTTP2_NO_ERROR);
        h2_pump(c, 1);
    }
    pthread_mutex_unlock(&c->lock);
    h2_let_go(c);
}

static void watch_listener(bt_h2 *s, size_t i)
{
    struct epoll_event event = {EPOLLIN | EPOLLONESHOT, {.u64 = SPECIAL_LISTENER + i}};
    pthread_mutex_lock(&s->lock);
    if (!s->draining)
        epoll_ctl(s->epoll, EPOLL_CTL_MOD, s->listeners[i].fd, &event);
    pthread_mutex_unlock(&s->lock);
}

static void take_connections(bt_h2 *s, size_t i)
{
    for (int n = 0; n < ACCEPTS_MAX; n++) {
        int is_draining, is_full;
        pthread_mutex_lock(&s->lock);
        is_draining = s->draining;
        is_full = s->nconnections >= s->limits.connections;
        pthread_mutex_unlock(&s->lock);
        if (is_draining)
            return;
        if (is_full)
            make_place(s);
        int fd = accept4(s->listeners[i].fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) {
            if (errno != EMFILE && errno != ENFILE && errno != ENOMEM && errno != ENOBUFS)
                break;
            /* The sweep tries again; who waits to be accepted waits. */
            h2_alarm(s, h2_now_ns() + SECOND_NS);
            return;
        }
        if (adopt(s, &s->listeners[i], fd) != 0)
            close(fd);
    }
    watch_listener(s, i);
}

/* ---- time ---------------------------------------------------------------------------------------------------------- */

static int64_t earlier(int64_t a, int64_t b) { return a < b ? a : b; }

/* End what has waited too long on one connection; when the next of its things is due. */
static int64_t sweep_connection(struct h2_connection *c, int64_t now, int is_short)
{
    bt_h2 *s = c->server;
    int64_t due = INT64_MAX, stall = s->limits.stall_ms * 1000000LL;

    if (!c->greeted) {
        int64_t end = c->began_ns + s->limits.handshake_ms * 1000000LL;
        if (end <= now) {
            h2_lose(c);
            return INT64_MAX;
        }
        due = end;
    }
    if (c->leaving == SAYS_GOODBYE) {
        /* It has not answered the ping of the goodbye. */
        if (now - c->used_ns > SECOND_NS) {
            c->leaving = HAS_HEARD;
            h2_feed(c, NULL, 0);
        } else {
            due = earlier(due, c->used_ns + SECOND_NS + 1);
        }
    }
    for (struct bt_h2_call *k = c->calls, *after; k != NULL; k = after) {
        after = k->after;
        if (k->deadline_ns != 0 && k->deadline_ns <= now) {
            if (k->done)
                nghttp2_submit_rst_stream(c->session, NGHTTP2_FLAG_NONE, k->id, NGHTTP2_CANCEL);
            h2_end(k, GRPC_DEADLINE_EXCEEDED, "the deadline has passed");
            k->deadline_ns = 0;
            continue;
        }
        if (k->deadline_ns != 0)
            due = earlier(due, k->deadline_ns);
        if (is_short && k->coming != NULL && k->coming->capacity_nbytes > H2_WINDOW_NBYTES && now - k->moved_ns > stall)
            h2_end(k, GRPC_RESOURCE_EXHAUSTED, "the message did not come on while others waited for its room");
        else if (k->wants_room && now - k->moved_ns > 4 * stall)
            h2_end(k, GRPC_RESOURCE_EXHAUSTED, "there is no room for the message");
    }
    h2_pump(c, 0);
    h2_arm(c, 0);
    return due;
}

static void sweep(bt_h2 *s)
{
    uint64_t count;
    int64_t now = h2_now_ns(), due = INT64_MAX;
    int is_short;

    if (read(s->timer, &count, sizeof(count)) < 0) {
        /* Somebody else has set it anew. */
    }
    pthread_mutex_lock(&s->lock);
    s->due_ns = INT64_MAX;
    is_short = s->hungry != NULL;
    pthread_mutex_unlock(&s->lock);
    for (uint32_t slot = 0; slot < s->limits.connections; slot++) {
        struct h2_connection *c = held(s, slot, 0);
        if (c == NULL)
            continue;
        pthread_mutex_lock(&c->lock);
        if (!c->dead)
            due = earlier(due, sweep_connection(c, now, is_short));
        pthread_mutex_unlock(&c->lock);
        h2_let_go(c);
    }
    for (size_t i = 0; i < s->nlisteners; i++)
        watch_listener(s, i);
    if (is_short) {
        due = earlier(due, now + SECOND_NS);
        atomic_store(&s->grant, 1);
    }
    if (due != INT64_MAX)
        /* Who sets deadlines by the hundred is swept by the hundredth of a second. */
        h2_alarm(s, due > now + SECOND_NS / 100 ? due : now + SECOND_NS / 100);
}

/* Give room that has become free to those who wait for it, in the order of their coming. */
static void feed_the_hungry(bt_h2 *s)
{
    atomic_store(&s->grant, 0);
    for (;;) {
        pthread_mutex_lock(&s->lock);
        struct bt_h2_call *k = s->hungry;
        if (k != NULL && (s->hungry = k->next_hungry) == NULL)
            s->hungry_last = NULL;
        pthread_mutex_unlock(&s->lock);
        if (k == NULL)
            return;
        struct h2_connection *c = k->connection;
        int is_done = 1;
        pthread_mutex_lock(&c->lock);
        if (k->done || k->coming == NULL || (is_done = h2_try_room(k))) {
            k->wants_room = 0;
            h2_pump(c, 0);
            h2_arm(c, 0);
        }
        pthread_mutex_unlock(&c->lock);
        if (is_done) {
            h2_let_go_of_call(k);
            continue;
        }
        pthread_mutex_lock(&s->lock);
        k->next_hungry = s->hungry;
        s->hungry = k;
        if (s->hungry_last == NULL)
            s->hungry_last = k;
        pthread_mutex_unlock(&s->lock);
        return;
    }
}

/* ---- for the threads that serve ------------------------------------------------------------------------------------ */

static void look_after(bt_h2 *s, uint64_t what)
{
    struct h2_connection *c;

    if (what >> 32 == 0) {
        if (what == SPECIAL_TIMER)
            sweep(s);
        else if (what >= SPECIAL_LISTENER)
            take_connections(s, (size_t)what - SPECIAL_LISTENER);
        return;
    }
    if ((c = held(s, (uint32_t)what, (uint32_t)(what >> 32))) == NULL)
        return;
    pthread_mutex_lock(&c->lock);
    c->armed = 0;
    if (c->claimed) {
        h2_pump(c, 0);
    } else if (!c->dead) {
        c->claimed = 1;
        h2_turn(c);
        c->claimed = 0;
    }
    h2_arm(c, 0);
    pthread_mutex_unlock(&c->lock);
    h2_let_go(c);
}

static struct bt_h2_call *pop(struct bt_h2_call **first, struct bt_h2_call **last)
{
    struct bt_h2_call *k = *first;
    if (k != NULL && (*first = k->next_event) == NULL)
        *last = NULL;
    return k;
}

void bt_h2_expect(bt_h2 *s, int threads)
{
    pthread_mutex_lock(&s->lock);
    s->coming += (unsigned)threads;
    pthread_mutex_unlock(&s->lock);
}

int bt_h2_next(bt_h2 *s, int timeout_ms, unsigned keep, bt_h2_event *event)
{
    struct epoll_event found;
    struct bt_h2_call *k;
    int n;

    memset(event, 0, sizeof(*event));
    pthread_mutex_lock(&s->lock);
    s->waiting++;
    if (s->coming > 0)
        s->coming--;
    for (;;) {
        if ((k = pop(&s->ended, &s->ended_last)) != NULL) {
            event->kind = BT_H2_ENDED;
            break;
        }
        if ((k = pop(&s->ready, &s->ready_last)) != NULL) {
            event->kind = BT_H2_CALL;
            break;
        }
        if (s->stopped && s->calls == 0) {
            s->waiting--;
            pthread_mutex_unlock(&s->lock);
            h2_wake(s);
            return BT_CLOSED;
        }
        pthread_mutex_unlock(&s->lock);
        if (h2_can_feed(s))
            feed_the_hungry(s);
        n = epoll_wait(s->epoll, &found, 1, timeout_ms);
        if (n > 0)
            look_after(s, found.data.u64);
        if (s->answers != NULL)
            bt_answers_tidy(s->answers);
        pthread_mutex_lock(&s->lock);
        if (n == 0 && s->waiting > keep) {
            s->waiting--;
            pthread_mutex_unlock(&s->lock);
            return BT_TIMED_OUT;
        }
    }
    event->waiting = --s->waiting + s->coming;
    if ((s->ended != NULL || s->ready != NULL) && s->waiting > 0)
        h2_wake(s);
    pthread_mutex_unlock(&s->lock);

    struct h2_connection *c = k->connection;
    event->call = k;
    if (event->kind == BT_H2_CALL) {
        atomic_fetch_add(&s->handling, 1);
        pthread_mutex_lock(&c->lock);
        event->place = c->listener->place;
        event->method = k->method;
        pthread_mutex_unlock(&c->lock);
    }
    /* Without another that waits, this thread is about to start one, which would inherit its processor. */
    if (event->kind == BT_H2_CALL && event->waiting > 0 && s->light_methods >> k->method & 1 && h2_is_crowd(s))
        bt_huddle();
    else
        bt_spread();
    return BT_OK;
}

/* ---- the server's life ---------------------------------------------------------------------------------------------- */

bt_h2 *bt_h2_new(const bt_h2_limits *limits)
{
    bt_h2 *s = calloc(1, sizeof(*s));
    if (s == NULL)
        return NULL;
    s->limits = *limits;
    s->due_ns = INT64_MAX;
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&s->idle, &attributes);
    pthread_condattr_destroy(&attributes);
    s->connections = calloc(limits->connections, sizeof(struct h2_connection *));
    s->generations = calloc(limits->connections, sizeof(uint32_t));
    s->epoll = epoll_create1(EPOLL_CLOEXEC);
    s->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    s->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    struct epoll_event woken = {EPOLLIN | EPOLLET, {.u64 = SPECIAL_WAKE}};
    struct epoll_event due = {EPOLLIN | EPOLLET, {.u64 = SPECIAL_TIMER}};
    if (s->connections == NULL || s->generations == NULL || s->epoll < 0 || s->wake < 0 || s->timer < 0 ||
        epoll_ctl(s->epoll, EPOLL_CTL_ADD, s->wake, &woken) != 0 ||
        epoll_ctl(s->epoll, EPOLL_CTL_ADD, s->timer, &due) != 0) {
        bt_h2_free(s);
        return NULL;
    }
    return s;
}

void bt_h2_free(bt_h2 *s)
{
    if (s == NULL)
        return;
    for (size_t i = 0; i < s->nmethods; i++)
        free(s->methods[i]);
    while (s->nbuffers > 0)
        free(s->buffers[--s->nbuffers]);
    for (int *fd = (int[]){s->epoll, s->wake, s->timer, -2}; *fd != -2; fd++)
        if (*fd >= 0)
            close(*fd);
    free(s->connections);
    free(s->generations);
    pthread_cond_destroy(&s->idle);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

int bt_h2_method(bt_h2 *s, const char *path, int is_light)
{
    if (s->nmethods == H2_METHODS)
        return BT_NO_SPACE;
    if ((s->methods[s->nmethods] = strdup(path)) == NULL)
        return BT_NO_MEMORY;
    if (is_light)
        s->light_methods |= 1ull << s->nmethods;
    return (int)s->nmethods++;
}

void bt_h2_answer(bt_h2 *s, bt_answers *a, int info, int read, size_t piece_nbytes)
{
    s->answers = a;
    s->info = info;
    s->read = read;
    s->piece_nbytes = piece_nbytes;
}

int bt_h2_listen(bt_h2 *s, int fd, uint32_t place, uint32_t max_calls)
{
    if (s->nlisteners == BT_H2_LISTENERS)
        return BT_NO_SPACE;
    struct h2_listener *listener = &s->listeners[s->nlisteners];
    listener->fd = fd;
    listener->place = place;
    listener->max_calls = max_calls;
    atomic_init(&listener->calls, 0);
    struct epoll_event event = {EPOLLIN | EPOLLONESHOT, {.u64 = SPECIAL_LISTENER + s->nlisteners}};
    if (epoll_ctl(s->epoll, EPOLL_CTL_ADD, fd, &event) != 0)
        return BT_ERRNO - errno;
    s->nlisteners++;
    return BT_OK;
}

static void each_connection(bt_h2 *s, void (*work)(struct h2_connection *))
{
    for (uint32_t slot = 0; slot < s->limits.connections; slot++) {
        struct h2_connection *c = held(s, slot, 0);
        if (c == NULL)
            continue;
        pthread_mutex_lock(&c->lock);
        if (!c->dead)
            work(c);
        pthread_mutex_unlock(&c->lock);
        h2_let_go(c);
    }
}

/* Say that no new stream will be taken soon; when the ping comes back, that none is (RFC 9113 section 6.8). */
static void say_goodbye(struct h2_connection *c)
{
    c->leaving = SAYS_GOODBYE;
    c->used_ns = h2_now_ns();
    nghttp2_submit_shutdown_notice(c->session);
    h2_pump(c, 0);
    h2_arm(c, 0);
}

void bt_h2_drain(bt_h2 *s)
{
    pthread_mutex_lock(&s->lock);
    s->draining = 1;
    for (size_t i = 0; i < s->nlisteners; i++)
        epoll_ctl(s->epoll, EPOLL_CTL_DEL, s->listeners[i].fd, NULL);
    pthread_mutex_unlock(&s->lock);
    each_connection(s, say_goodbye);
    h2_alarm(s, h2_now_ns() + SECOND_NS + 1);
}

int bt_h2_wait_idle(bt_h2 *s, int timeout_ms, int and_connections)
{
    int64_t end = h2_now_ns() + timeout_ms * 1000000LL;
    struct timespec until = {end / SECOND_NS, end % SECOND_NS};
    int failed = 0;

    pthread_mutex_lock(&s->lock);
    while ((s->calls > 0 || (and_connections && s->nconnections > 0)) && !failed)
        failed = pthread_cond_timedwait(&s->idle, &s->lock, &until);
    failed = s->calls > 0 || (and_connections && s->nconnections > 0);
    pthread_mutex_unlock(&s->lock);
    return failed ? BT_TIMED_OUT : BT_OK;
}

static void end_calls(struct h2_connection *c)
{
    for (struct bt_h2_call *k = c->calls, *after; k != NULL; k = after) {
        after = k->after;
        h2_end(k, GRPC_UNAVAILABLE, "the server is stopping");
    }
    h2_pump(c, 1);
}

void bt_h2_stop(bt_h2 *s)
{
    bt_h2_drain(s);
    pthread_mutex_lock(&s->lock);
    s->stopped = 1;
    pthread_mutex_unlock(&s->lock);
    each_connection(s, end_calls);
    h2_wake(s);
}

void bt_h2_stat(bt_h2 *s, bt_h2_stats *stats)
{
    pthread_mutex_lock(&s->lock);
    stats->connections = s->nconnections;
    stats->calls = s->calls;
    pthread_mutex_unlock(&s->lock);
    stats->buffered_nbytes = atomic_load(&s->buffered_nbytes);
    stats->refused = atomic_load(&s->refused);
}
