/* h2calls.c - what the handlers of the gRPC server's calls do: take messages, send them, end. */
#define _GNU_SOURCE
#include "h2.h"

#include <poll.h>
#include <string.h>

/* Wait until `holds`. The lock is held. */
static void wait_until(struct bt_h2_call *k, int (*holds)(struct bt_h2_call *))
{
    struct h2_connection *c = k->connection;
    bt_h2 *s = c->server;

    c->active = k->id;
    while (!holds(k)) {
        if (c->claimed || c->dead || c->active != k->id) {
            pthread_cond_wait(&k->changed, &c->lock);
            continue;
        }
        c->claimed = 1;
        h2_arm(c, 1);
        while (!holds(k) && !c->dead && c->active == k->id) {
            struct pollfd polled = {c->fd, 0, 0};
            int timeout_ms = -1;
            if (!h2_is_stuffed(c))
                polled.events |= POLLIN;
            if (c->blocked)
                polled.events |= POLLOUT;
            /* The sweep may end the call, and does not wake who polls. */
            if (k->deadline_ns != 0) {
                int64_t left_ms = (k->deadline_ns - h2_now_ns()) / 1000000 + 20;
                timeout_ms = left_ms < 20 ? 20 : left_ms > 3600000 ? 3600000 : (int)left_ms;
            }
            if (k->coming != NULL && (timeout_ms < 0 || timeout_ms > 1000))
                timeout_ms = 1000;
            pthread_mutex_unlock(&c->lock);
            poll(&polled, 1, timeout_ms);
            pthread_mutex_lock(&c->lock);
            if (polled.revents != 0 && !c->dead)
                h2_turn(c);
            pthread_mutex_lock(&s->lock);
            if ((s->ready != NULL || s->ended != NULL) && s->waiting > 0)
                h2_wake(s);
            pthread_mutex_unlock(&s->lock);
        }
        c->claimed = 0;
        h2_arm(c, 0);
    }
}

static int has_request(struct bt_h2_call *k) { return k->first != NULL || k->half_closed || k->gone; }

int bt_h2_take(bt_h2_call *k, const uint8_t **message, size_t *nbytes)
{
    struct h2_connection *c = k->connection;
    int result = BT_OK;

    pthread_mutex_lock(&c->lock);
    h2_free_message(c->server, k->taken);
    k->taken = NULL;
    if (!has_request(k))
        wait_until(k, has_request);
    if (k->gone) {
        result = BT_GONE;
    } else if (k->first == NULL) {
        result = BT_END;
    } else {
        k->taken = k->first;
        k->first = k->taken->next;
        if (k->first == NULL)
            k->last = NULL;
        *message = k->taken->data;
        *nbytes = k->taken->nbytes;
        h2_reopen(k);
        if (nghttp2_session_want_write(c->session)) {
            h2_pump(c, 0);
            h2_arm(c, 0);
        }
    }
    pthread_mutex_unlock(&c->lock);
    if (h2_can_feed(c->server))
        h2_wake(c->server);
    return result;
}

static int is_sent(struct bt_h2_call *k)
{
    return (k->left_nbytes == 0 && k->head_at == k->head_nbytes) || k->gone || k->failure != 0;
}

/* Send head[0, head_nbytes) and `nbytes` of the body that is set in `k`, as one message. The lock is held. */
static int send_message(struct bt_h2_call *k, const uint8_t *head, size_t head_nbytes, size_t nbytes, int is_last)
{
    struct h2_connection *c = k->connection;
    int result = BT_OK;

    if (k->gone || k->done)
        return BT_GONE;
    h2_set_message(k, head, head_nbytes, nbytes, is_last);
    h2_answer(k);
    h2_pump(c, 0);
    h2_arm(c, 0);
    if (!is_sent(k))
        wait_until(k, is_sent);
    if (k->left_nbytes > 0 || k->head_at < k->head_nbytes || k->failure != 0) {
        result = k->failure > 0 ? BT_ERRNO - k->failure : k->failure < 0 ? BT_TRUNCATED : BT_GONE;
        k->gone = 1;
    }
    k->body = NULL;
    k->body_fd = -1;
    k->left_nbytes = k->head_nbytes = k->head_at = 0;
    return result;
}

int bt_h2_send(bt_h2_call *k, const uint8_t *message, size_t nbytes, int is_last)
{
    int result;
    if (nbytes > BT_H2_MESSAGE_MAX_NBYTES)
        return BT_TOO_LONG;
    pthread_mutex_lock(&k->connection->lock);
    k->body = message;
    result = send_message(k, NULL, 0, nbytes, is_last);
    pthread_mutex_unlock(&k->connection->lock);
    return result;
}

int bt_h2_exchange(bt_h2_call *k, const uint8_t *message, size_t nbytes, const uint8_t **next, size_t *next_nbytes)
{
    int result = bt_h2_send(k, message, nbytes, 0);
    return result == BT_OK ? bt_h2_take(k, next, next_nbytes) : result;
}

int bt_h2_send_file(bt_h2_call *k, const uint8_t *head, size_t head_nbytes, int fd, uint64_t offset, size_t nbytes,
                    int is_last)
{
    int result;
    if (head_nbytes > H2_HEAD_MAX_NBYTES || nbytes > BT_H2_MESSAGE_MAX_NBYTES - head_nbytes || offset > INT64_MAX - nbytes)
        return BT_BAD_ARGUMENT;
    pthread_mutex_lock(&k->connection->lock);
    k->body_fd = fd;
    k->body_offset = offset;
    result = send_message(k, head, head_nbytes, nbytes, is_last);
    pthread_mutex_unlock(&k->connection->lock);
    return result;
}

int bt_h2_is_active(bt_h2_call *k)
{
    pthread_mutex_lock(&k->connection->lock);
    int is_active = !k->gone;
    pthread_mutex_unlock(&k->connection->lock);
    return is_active;
}

int bt_h2_watch(bt_h2_call *k)
{
    pthread_mutex_lock(&k->connection->lock);
    int result = k->gone ? BT_GONE : BT_OK;
    if (result == BT_OK)
        k->watched = 1;
    pthread_mutex_unlock(&k->connection->lock);
    return result;
}

size_t bt_h2_metadata(bt_h2_call *k, const char **metadata)
{
    *metadata = k->headers;
    return k->headers_nbytes;
}

void bt_h2_told(bt_h2_call *k)
{
    bt_h2_expect(k->connection->server, 1);
    h2_let_go_of_call(k);
}

void bt_h2_end(bt_h2_call *k, int status, const char *text)
{
    struct h2_connection *c = k->connection;
    bt_h2 *s = c->server;

    pthread_mutex_lock(&c->lock);
    h2_free_message(s, k->taken);
    k->taken = NULL;
    if (!k->done) {
        h2_finish(k, status, text);
        h2_pump(c, 0);
        h2_arm(c, 0);
    }
    k->watched = 0;
    /* Before anybody hears that no call is left: who asks for one more then needs no other thread. */
    bt_h2_expect(s, 1);
    atomic_fetch_sub(&s->handling, 1);
    h2_unref(k);
    if (c->leaving == LEAVES) {
        h2_pump(c, 0);
        h2_arm(c, 0);
    }
    pthread_mutex_unlock(&c->lock);
    h2_let_go(c);
    if (h2_can_feed(s))
        h2_wake(s);
}

void bt_h2_release(bt_h2_call *k) { bt_h2_end(k, GRPC_INTERNAL, "nobody answered"); }
