/* h2life.c - what the gRPC server's connections share, and how they and their calls begin, go on and end. */
#define _GNU_SOURCE
#include "h2.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { READINGS_MAX = 4, QUEUE_MAX = 512 };

int64_t h2_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND_NS + t.tv_nsec;
}

/* ---- what connections share --------------------------------------------------------------------------------------- */

uint8_t *h2_buffer(bt_h2 *s)
{
    uint8_t *buffer = NULL;
    pthread_mutex_lock(&s->lock);
    if (s->nbuffers > 0)
        buffer = s->buffers[--s->nbuffers];
    pthread_mutex_unlock(&s->lock);
    return buffer != NULL ? buffer : malloc(H2_BUFFER_NBYTES);
}

void h2_give_back(bt_h2 *s, uint8_t *buffer)
{
    if (buffer == NULL)
        return;
    pthread_mutex_lock(&s->lock);
    if (s->nbuffers < sizeof(s->buffers) / sizeof(*s->buffers)) {
        s->buffers[s->nbuffers++] = buffer;
        buffer = NULL;
    }
    pthread_mutex_unlock(&s->lock);
    free(buffer);
}

void h2_wake(bt_h2 *s)
{
    uint64_t one = 1;
    if (write(s->wake, &one, sizeof(one)) < 0) {
        /* The counter is full: whoever waits has been woken already. */
    }
}

void h2_alarm(bt_h2 *s, int64_t due_ns)
{
    pthread_mutex_lock(&s->lock);
    if (due_ns < s->due_ns) {
        struct itimerspec when = {.it_value = {due_ns / SECOND_NS, due_ns % SECOND_NS}};
        s->due_ns = due_ns;
        timerfd_settime(s->timer, TFD_TIMER_ABSTIME, &when, NULL);
    }
    pthread_mutex_unlock(&s->lock);
}

static void push(struct bt_h2_call **first, struct bt_h2_call **last, struct bt_h2_call *k)
{
    k->next_event = NULL;
    if (*last != NULL)
        (*last)->next_event = k;
    else
        *first = k;
    *last = k;
}

/* ---- the lives of connections and calls ---------------------------------------------------------------------------- */

void h2_hold(struct h2_connection *c) { atomic_fetch_add(&c->refs, 1); }

void h2_let_go(struct h2_connection *c)
{
    bt_h2 *s = c->server;

    if (atomic_fetch_sub(&c->refs, 1) != 1)
        return;
    h2_give_back(s, c->out);
    nghttp2_session_del(c->session);
    close(c->fd);
    pthread_mutex_destroy(&c->lock);
    free(c);
    pthread_mutex_lock(&s->lock);
    s->nconnections--;
    if (s->nconnections == 0)
        pthread_cond_broadcast(&s->idle);
    pthread_mutex_unlock(&s->lock);
}

void h2_unref(struct bt_h2_call *k)
{
    struct h2_connection *c = k->connection;
    bt_h2 *s = c->server;

    if (--k->refs > 0)
        return;
    h2_free_message(s, k->taken);
    pthread_cond_destroy(&k->changed);
    if (k->counted) {
        atomic_fetch_sub(&c->listener->calls, 1);
        pthread_mutex_lock(&s->lock);
        if (--s->calls == 0)
            pthread_cond_broadcast(&s->idle);
        pthread_mutex_unlock(&s->lock);
    }
    if (k->known.answer != NULL)
        bt_answers_let_go(k->known.answer);
    free(k->headers);
    free(k->text);
    free(k);
}

/* A queue's hold on a call and its connection, given up without the lock held. */
void h2_let_go_of_call(struct bt_h2_call *k)
{
    struct h2_connection *c = k->connection;
    pthread_mutex_lock(&c->lock);
    h2_unref(k);
    pthread_mutex_unlock(&c->lock);
    h2_let_go(c);
}

static void enqueue(struct bt_h2_call *k, struct bt_h2_call **first, struct bt_h2_call **last)
{
    bt_h2 *s = k->connection->server;
    k->refs++;
    h2_hold(k->connection);
    pthread_mutex_lock(&s->lock);
    push(first, last, k);
    pthread_mutex_unlock(&s->lock);
}

void h2_dispatch(struct bt_h2_call *k) { enqueue(k, &k->connection->server->ready, &k->connection->server->ready_last); }

void h2_changed(struct bt_h2_call *k)
{
    bt_h2 *s = k->connection->server;

    pthread_cond_signal(&k->changed);
    /* Only a call that was taken from the queue of the ready is watched, so that it is in one queue of events at a time. */
    if (k->told || !k->watched || !k->gone)
        return;
    k->told = 1;
    enqueue(k, &s->ended, &s->ended_last);
    h2_wake(s);
}

void h2_hunger(struct bt_h2_call *k)
{
    bt_h2 *s = k->connection->server;

    k->wants_room = 1;
    k->next_hungry = NULL;
    k->refs++;
    h2_hold(k->connection);
    pthread_mutex_lock(&s->lock);
    if (s->hungry_last != NULL)
        s->hungry_last->next_hungry = k;
    else
        s->hungry = k;
    s->hungry_last = k;
    pthread_mutex_unlock(&s->lock);
    h2_alarm(s, h2_now_ns() + SECOND_NS);
}

int h2_is_crowd(bt_h2 *s) { return atomic_load(&s->handling) >= H2_CROWD; }

int h2_can_feed(bt_h2 *s)
{
    int is_anybody;
    if (!atomic_load(&s->grant))
        return 0;
    pthread_mutex_lock(&s->lock);
    is_anybody = s->hungry != NULL;
    pthread_mutex_unlock(&s->lock);
    return is_anybody;
}

void h2_lose(struct h2_connection *c)
{
    bt_h2 *s = c->server;

    if (c->dead)
        return;
    c->dead = 1;
    c->blocked = 0;
    epoll_ctl(s->epoll, EPOLL_CTL_DEL, c->fd, NULL);
    shutdown(c->fd, SHUT_RDWR);
    while (c->calls != NULL)
        h2_closed(c->calls);
    pthread_mutex_lock(&s->lock);
    s->connections[c->slot] = NULL;
    pthread_mutex_unlock(&s->lock);
    /* Not the last hold: whoever is here has one of its own. */
    atomic_fetch_sub(&c->refs, 1);
}

/* Whether the session has come to its end, and all of that is said: who has broken the rules may stay silent for ever. */
static int is_over(struct h2_connection *c)
{
    return !c->working && c->out == NULL && !nghttp2_session_want_read(c->session) &&
           !nghttp2_session_want_write(c->session);
}

void h2_pump(struct h2_connection *c, int ends)
{
    if (c->dead)
        return;
    if (h2_write(c) != 0 || ends || (c->leaving == LEAVES && c->calls == NULL && c->out == NULL) || is_over(c))
        h2_lose(c);
}

int h2_is_stuffed(struct h2_connection *c)
{
    /* Who does not read the answers is not asked for more. */
    return c->blocked && nghttp2_session_get_outbound_queue_size(c->session) > QUEUE_MAX;
}

void h2_arm(struct h2_connection *c, int led)
{
    uint32_t wanted = 0;

    if (c->dead)
        return;
    if (!c->claimed && !h2_is_stuffed(c))
        wanted |= EPOLLIN;
    if (c->blocked && !led)
        wanted |= EPOLLOUT;
    if (wanted == c->armed)
        return;
    c->armed = wanted;
    struct epoll_event event = {wanted | EPOLLONESHOT, {.u64 = (uint64_t)c->generation << 32 | c->slot}};
    if (epoll_ctl(c->server->epoll, EPOLL_CTL_MOD, c->fd, &event) != 0)
        h2_lose(c);
}

void h2_turn(struct h2_connection *c)
{
    uint8_t *in = h2_buffer(c->server);

    if (c->blocked)
        h2_pump(c, 0);
    for (int i = 0; i < READINGS_MAX && !c->dead && !h2_is_stuffed(c); i++) {
        if (in == NULL) {
            h2_lose(c);
            break;
        }
        pthread_mutex_unlock(&c->lock);
        ssize_t n = recv(c->fd, in, H2_BUFFER_NBYTES, MSG_DONTWAIT);
        int error = errno;
        pthread_mutex_lock(&c->lock);
        if (c->dead)
            break;
        if (n > 0) {
            h2_pump(c, h2_feed(c, in, (size_t)n) != 0);
            if (n < H2_BUFFER_NBYTES)
                break;
        } else if (n == 0 || (error != EAGAIN && error != EWOULDBLOCK && error != EINTR)) {
            h2_lose(c);
        } else {
            break;
        }
    }
    h2_give_back(c->server, in);
}
