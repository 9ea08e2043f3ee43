/* h2in.c - what the gRPC server hears on one connection: requests, messages and their room; frames by nghttp2.
 *
 * (gRPC: "gRPC over HTTP2" in grpc/doc/PROTOCOL-HTTP2.md; HTTP/2: RFC 9113.) */
#define _GNU_SOURCE
#include "h2.h"

#include <stdlib.h>
#include <string.h>

enum { TOKENS_MAX = 20000, TOKENS_EACH_MS = 2, TOKENS_OF_WORK = 100, TOKEN_NBYTES = 128 };

/* Older versions of the library have no such limits, and need no lifting of them: containerd's client ends each read by a
 * reset, thousands in a second. What resets cost is bounded by `max_calls`, which counts handlers, and by the tokens. */
extern void nghttp2_option_set_stream_reset_rate_limit(nghttp2_option *, uint64_t, uint64_t) __attribute__((weak));
extern void nghttp2_option_set_glitch_rate_limit(nghttp2_option *, uint64_t, uint64_t) __attribute__((weak));

/* ---- room for messages ------------------------------------------------------------------------------------------ */

void h2_free_message(bt_h2 *s, struct h2_message *m)
{
    if (m == NULL)
        return;
    atomic_fetch_sub(&s->buffered_nbytes, m->charged_nbytes);
    if (m->reserved)
        atomic_fetch_sub(&s->reserved_nbytes, m->charged_nbytes);
    atomic_store(&s->grant, 1);
    free(m->data);
    free(m);
}

/* Count nbytes more; 0 when the budget (of large ones alone: three quarters) has no room. */
static int charge(bt_h2 *s, struct h2_message *m, size_t nbytes, int large)
{
    if (large && atomic_fetch_add(&s->reserved_nbytes, nbytes) + nbytes > s->limits.buffered_nbytes / 4 * 3) {
        atomic_fetch_sub(&s->reserved_nbytes, nbytes);
        return 0;
    }
    if (atomic_fetch_add(&s->buffered_nbytes, nbytes) + nbytes > s->limits.buffered_nbytes) {
        atomic_fetch_sub(&s->buffered_nbytes, nbytes);
        if (large)
            atomic_fetch_sub(&s->reserved_nbytes, nbytes);
        return 0;
    }
    m->charged_nbytes += nbytes;
    m->reserved = large;
    return 1;
}

static void open_window(struct bt_h2_call *k, int64_t nbytes)
{
    if (nbytes <= 0 || k->stream == 0 || k->half_closed)
        return;
    if (nghttp2_submit_window_update(k->connection->session, NGHTTP2_FLAG_NONE, k->stream, (int32_t)nbytes) == 0)
        k->window_nbytes += nbytes;
}

int h2_try_room(struct bt_h2_call *k)
{
    struct h2_message *m = k->coming;
    size_t small = m->charged_nbytes;
    uint8_t *data;

    if (!charge(k->connection->server, m, m->nbytes - m->capacity_nbytes, 1))
        return 0;
    /* What was charged before is of the large part from here on. */
    atomic_fetch_add(&k->connection->server->reserved_nbytes, small);
    data = realloc(m->data, m->nbytes);
    if (data == NULL) {
        h2_end(k, GRPC_RESOURCE_EXHAUSTED, "no memory for the message");
        return 1;
    }
    m->data = data;
    m->capacity_nbytes = m->nbytes;
    k->moved_ns = h2_now_ns();
    open_window(k, (int64_t)(m->nbytes - m->filled_nbytes) - k->window_nbytes);
    return 1;
}

void h2_reopen(struct bt_h2_call *k)
{
    if (k->wants_room)
        return;
    if (k->coming == NULL) {
        if (k->window_nbytes < H2_WINDOW_NBYTES / 2)
            open_window(k, H2_WINDOW_NBYTES - k->window_nbytes);
    } else if (k->first == NULL) {
        open_window(k, (int64_t)(k->coming->nbytes - k->coming->filled_nbytes) - k->window_nbytes);
    }
}

static void begin_message(struct bt_h2_call *k)
{
    bt_h2 *s = k->connection->server;
    size_t nbytes = (size_t)k->prefix[1] << 24 | (size_t)k->prefix[2] << 16 | (size_t)k->prefix[3] << 8 | k->prefix[4];
    struct h2_message *m;

    k->prefix_nbytes = 0;
    if (k->prefix[0] != 0) {
        if (k->prefix[0] == 1)
            h2_end(k, GRPC_UNIMPLEMENTED, "compressed messages are not understood");
        else
            h2_end(k, GRPC_INTERNAL, "a message of no known form");
        return;
    }
    if (nbytes > s->limits.message_nbytes) {
        h2_end(k, GRPC_RESOURCE_EXHAUSTED, "the message is larger than the server takes");
        return;
    }
    m = calloc(1, sizeof(*m));
    if (m != NULL) {
        m->nbytes = nbytes;
        m->capacity_nbytes = nbytes < H2_WINDOW_NBYTES ? nbytes : H2_WINDOW_NBYTES;
        m->data = malloc(m->capacity_nbytes + 1);
    }
    if (m == NULL || m->data == NULL || !charge(s, m, m->capacity_nbytes + sizeof(*m), 0)) {
        h2_free_message(s, m);
        h2_end(k, GRPC_RESOURCE_EXHAUSTED, "the server holds as many bytes of messages as it may");
        return;
    }
    k->coming = m;
    k->moved_ns = h2_now_ns();
    if (m->capacity_nbytes == nbytes)
        h2_reopen(k);
    else if (!h2_try_room(k))
        h2_hunger(k);
}

/* ---- how a call is ended ------------------------------------------------------------------------------------------ */

static void drop_messages(struct bt_h2_call *k)
{
    bt_h2 *s = k->connection->server;
    struct h2_message *m = k->first;

    h2_free_message(s, k->coming);
    while (m != NULL) {
        struct h2_message *next = m->next;
        h2_free_message(s, m);
        m = next;
    }
    k->coming = k->first = k->last = NULL;
}

void h2_end(struct bt_h2_call *k, int status, const char *text)
{
    h2_finish(k, status, text);
    k->gone = 1;
    drop_messages(k);
    h2_changed(k);
}

void h2_closed(struct bt_h2_call *k)
{
    struct h2_connection *c = k->connection;

    k->stream = 0;
    if (k->before != NULL)
        k->before->after = k->after;
    else
        c->calls = k->after;
    if (k->after != NULL)
        k->after->before = k->before;
    k->before = k->after = NULL;
    if (!k->done || k->finishing || k->left_nbytes > 0)
        k->gone = 1;
    k->done = 1;
    h2_known_closed(k);
    drop_messages(k);
    h2_changed(k);
    h2_unref(k);
}

/* ---- frames in ---------------------------------------------------------------------------------------------------- */

/* Frames and bytes cost, work is refunded: a peer that sends nothing of use is sent away. */
void h2_earn(struct h2_connection *c, int64_t tokens)
{
    c->tokens = c->tokens + tokens > TOKENS_MAX ? TOKENS_MAX : c->tokens + tokens;
}

static int on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *hd, void *user)
{
    (void)session;
    (void)hd;
    ((struct h2_connection *)user)->tokens--;
    return 0;
}

static int is_broke(struct h2_connection *c)
{
    if (c->tokens >= 0)
        return 0;
    int64_t now = h2_now_ns(), ms = (now - c->tokens_ns) / 1000000;
    c->tokens_ns = now;
    h2_earn(c, ms > TOKENS_MAX ? TOKENS_MAX : ms * TOKENS_EACH_MS);
    return c->tokens < 0;
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct h2_connection *c = user;
    struct bt_h2_call *k;

    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    k = calloc(1, sizeof(*k));
    if (k == NULL)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    k->connection = c;
    k->refs = 1;
    k->stream = k->id = frame->hd.stream_id;
    k->method = -1;
    k->body_fd = -1;
    k->window_nbytes = H2_WINDOW_NBYTES;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&k->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    k->after = c->calls;
    if (c->calls != NULL)
        c->calls->before = k;
    c->calls = k;
    c->active = k->id;
    nghttp2_session_set_stream_user_data(session, k->stream, k);
    return 0;
}

static int is(const uint8_t *text, size_t nbytes, const char *word)
{
    return nbytes == strlen(word) && memcmp(text, word, nbytes) == 0;
}

static int starts(const uint8_t *text, size_t nbytes, const char *word)
{
    return nbytes >= strlen(word) && memcmp(text, word, strlen(word)) == 0;
}

/* "grpc-timeout": at most eight digits and a unit. Nanoseconds, or -1. */
static int64_t timeout_ns(const uint8_t *text, size_t nbytes)
{
    int64_t n = 0;
    if (nbytes < 2 || nbytes > 9)
        return -1;
    for (size_t i = 0; i + 1 < nbytes; i++) {
        if (text[i] < '0' || text[i] > '9')
            return -1;
        n = n * 10 + (text[i] - '0');
    }
    switch (text[nbytes - 1]) {
    case 'H': return (n < 100000 ? n : 100000) * 3600000000000;
    case 'M': return n * 60000000000;
    case 'S': return n * 1000000000;
    case 'm': return n * 1000000;
    case 'u': return n * 1000;
    case 'n': return n;
    default: return -1;
    }
}

static int method_of(bt_h2 *s, const uint8_t *path, size_t nbytes)
{
    for (size_t i = 0; i < s->nmethods; i++)
        if (is(path, nbytes, s->methods[i]))
            return (int)i;
    return -1;
}

/* Keep a header for whoever asks: lengths of name and value, two bytes each, then both. */
static void keep(struct bt_h2_call *k, const uint8_t *name, size_t name_nbytes, const uint8_t *value, size_t value_nbytes)
{
    size_t nbytes = k->headers_nbytes + 4 + name_nbytes + value_nbytes;
    if (nbytes > k->headers_capacity) {
        size_t capacity = nbytes < 512 ? 512 : 2 * nbytes;
        char *headers = realloc(k->headers, capacity);
        if (headers == NULL)
            return;
        k->headers = headers;
        k->headers_capacity = capacity;
    }
    uint8_t *to = (uint8_t *)k->headers + k->headers_nbytes;
    to[0] = (uint8_t)(name_nbytes >> 8);
    to[1] = (uint8_t)name_nbytes;
    to[2] = (uint8_t)(value_nbytes >> 8);
    to[3] = (uint8_t)value_nbytes;
    memcpy(to + 4, name, name_nbytes);
    memcpy(to + 4 + name_nbytes, value, value_nbytes);
    k->headers_nbytes = nbytes;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_nbytes,
                     const uint8_t *value, size_t value_nbytes, uint8_t flags, void *user)
{
    struct h2_connection *c = user;
    struct bt_h2_call *k = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    (void)flags;
    if (k == NULL)
        return 0;
    k->headers_seen_nbytes += name_nbytes + value_nbytes + 32;
    if (k->headers_seen_nbytes > H2_HEADERS_MAX_NBYTES) {
        k->too_large = 1;
        return 0;
    }
    if (frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    if (is(name, name_nbytes, ":path")) {
        k->method = method_of(c->server, value, value_nbytes);
    } else if (is(name, name_nbytes, ":method")) {
        k->is_post = is(value, value_nbytes, "POST");
    } else if (is(name, name_nbytes, "content-type")) {
        k->is_grpc = starts(value, value_nbytes, "application/grpc") &&
                     (value_nbytes == 16 || value[16] == '+' || value[16] == ';');
    } else if (is(name, name_nbytes, "grpc-timeout")) {
        int64_t ns = timeout_ns(value, value_nbytes);
        if (ns >= 0)
            k->deadline_ns = h2_now_ns() + ns;
    } else if (name[0] != ':') {
        keep(k, name, name_nbytes, value, value_nbytes);
    }
    return 0;
}

static void dispatch(struct bt_h2_call *k)
{
    if (k->dispatched || k->done)
        return;
    k->dispatched = 1;
    h2_earn(k->connection, TOKENS_OF_WORK);
    if (!h2_answer_known(k))
        h2_dispatch(k);
}

static void on_request(struct h2_connection *c, struct bt_h2_call *k)
{
    struct h2_listener *listener = c->listener;

    c->greeted = 1;
    c->used_ns = h2_now_ns();
    if (!k->is_post) {
        h2_finish_http(k, "405");
    } else if (!k->is_grpc) {
        h2_finish_http(k, "415");
    } else if (k->too_large) {
        h2_end(k, GRPC_RESOURCE_EXHAUSTED, "the metadata are larger than the server takes");
    } else if (k->method < 0) {
        h2_end(k, GRPC_UNIMPLEMENTED, "there is no such method");
    } else if (k->deadline_ns != 0 && k->deadline_ns <= c->used_ns) {
        h2_end(k, GRPC_DEADLINE_EXCEEDED, "the deadline has passed");
    } else if (atomic_fetch_add(&listener->calls, 1) >= listener->max_calls) {
        atomic_fetch_sub(&listener->calls, 1);
        atomic_fetch_add(&c->server->refused, 1);
        h2_end(k, GRPC_RESOURCE_EXHAUSTED, "as many calls run as the server takes");
    } else {
        k->counted = 1;
        pthread_mutex_lock(&c->server->lock);
        c->server->calls++;
        pthread_mutex_unlock(&c->server->lock);
        if (k->deadline_ns != 0)
            h2_alarm(c->server, k->deadline_ns);
    }
}

static void on_half_close(struct bt_h2_call *k)
{
    k->half_closed = 1;
    if (k->done)
        return;
    if (k->coming != NULL || k->prefix_nbytes > 0) {
        h2_end(k, GRPC_INTERNAL, "the request ends inside a message");
        return;
    }
    dispatch(k);
    h2_changed(k);
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct h2_connection *c = user;
    struct bt_h2_call *k;

    switch (frame->hd.type) {
    case NGHTTP2_SETTINGS:
        c->greeted = 1;
        return 0;
    case NGHTTP2_PING:
        if (frame->hd.flags & NGHTTP2_FLAG_ACK && c->leaving == SAYS_GOODBYE)
            c->leaving = HAS_HEARD;
        return 0;
    case NGHTTP2_HEADERS:
    case NGHTTP2_DATA:
        k = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
        if (k == NULL)
            return 0;
        if (frame->hd.type == NGHTTP2_HEADERS && frame->headers.cat == NGHTTP2_HCAT_REQUEST)
            on_request(c, k);
        if (frame->hd.flags & NGHTTP2_FLAG_END_STREAM)
            on_half_close(k);
        return 0;
    default:
        return 0;
    }
}

static void whole(struct bt_h2_call *k)
{
    struct h2_message *m = k->coming;

    k->coming = NULL;
    if (k->last != NULL)
        k->last->next = m;
    else
        k->first = m;
    k->last = m;
    h2_earn(k->connection, TOKENS_OF_WORK);
    dispatch(k);
    h2_changed(k);
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream, const uint8_t *data, size_t nbytes, void *user)
{
    struct h2_connection *c = user;
    struct bt_h2_call *k = nghttp2_session_get_stream_user_data(session, stream);
    const uint8_t *end = data + nbytes;
    (void)flags;

    nghttp2_session_consume_connection(session, nbytes);
    if (k == NULL)
        return 0;
    c->active = k->id;
    k->window_nbytes -= (int64_t)nbytes;
    h2_earn(c, 1 + (int64_t)nbytes / TOKEN_NBYTES);
    while (data < end && !k->done) {
        struct h2_message *m = k->coming;
        if (m == NULL) {
            k->prefix[k->prefix_nbytes++] = *data++;
            if (k->prefix_nbytes < H2_PREFIX_NBYTES)
                continue;
            begin_message(k);
            m = k->coming;
        } else {
            size_t n = (size_t)(end - data), room = m->capacity_nbytes - m->filled_nbytes;
            n = n < room ? n : room;
            if (n == 0) { /* more than the window lets through: nghttp2 would have refused it */
                h2_end(k, GRPC_INTERNAL, "more bytes than were asked for");
                break;
            }
            memcpy(m->data + m->filled_nbytes, data, n);
            m->filled_nbytes += n;
            data += n;
        }
        if (m != NULL && !k->done && m->filled_nbytes == m->nbytes)
            whole(k);
    }
    if (k->coming != NULL && !k->wants_room)
        k->moved_ns = h2_now_ns();
    return 0;
}

static int on_stream_close(nghttp2_session *session, int32_t stream, uint32_t error, void *user)
{
    struct bt_h2_call *k = nghttp2_session_get_stream_user_data(session, stream);
    (void)error;
    (void)user;
    if (k != NULL)
        h2_closed(k);
    return 0;
}

int h2_feed(struct h2_connection *c, const uint8_t *in, size_t nbytes)
{
    ssize_t n;

    c->working = 1;
    c->tokens -= (int64_t)nbytes / TOKEN_NBYTES;
    n = nghttp2_session_mem_recv(c->session, in, nbytes);
    c->working = 0;
    if (n < 0)
        return -1;
    if (is_broke(c)) {
        nghttp2_session_terminate_session(c->session, NGHTTP2_ENHANCE_YOUR_CALM);
        return -1;
    }
    if (c->leaving == HAS_HEARD) {
        c->leaving = LEAVES;
        nghttp2_submit_goaway(c->session, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(c->session),
                              NGHTTP2_NO_ERROR, NULL, 0);
    }
    return nghttp2_session_want_read(c->session) || nghttp2_session_want_write(c->session) ? 0 : -1;
}

/* ---- the beginning ------------------------------------------------------------------------------------------------ */

int h2_begin(struct h2_connection *c)
{
    static const nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, H2_WINDOW_NBYTES},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, H2_HEADERS_MAX_NBYTES},
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, INT32_MAX},
    };
    nghttp2_session_callbacks *callbacks;
    nghttp2_option *option;
    int failed;

    if (nghttp2_session_callbacks_new(&callbacks) != 0)
        return -1;
    if (nghttp2_option_new(&option) != 0) {
        nghttp2_session_callbacks_del(callbacks);
        return -1;
    }
    nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, on_begin_frame);
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
    h2_out_callbacks(callbacks);
    nghttp2_option_set_no_auto_window_update(option, 1);
    nghttp2_option_set_no_closed_streams(option, 1);
    if (nghttp2_option_set_stream_reset_rate_limit)
        nghttp2_option_set_stream_reset_rate_limit(option, UINT64_MAX >> 8, UINT64_MAX >> 8);
    if (nghttp2_option_set_glitch_rate_limit)
        nghttp2_option_set_glitch_rate_limit(option, UINT64_MAX >> 8, UINT64_MAX >> 8);
    failed = nghttp2_session_server_new2(&c->session, callbacks, c, option);
    nghttp2_option_del(option);
    nghttp2_session_callbacks_del(callbacks);
    if (failed)
        return -1;
    c->tokens = TOKENS_MAX;
    c->tokens_ns = c->began_ns;
    failed = nghttp2_submit_settings(c->session, NGHTTP2_FLAG_NONE, settings, sizeof(settings) / sizeof(*settings)) ||
             nghttp2_session_set_local_window_size(c->session, NGHTTP2_FLAG_NONE, 0, H2_CONNECTION_WINDOW_NBYTES);
    return failed ? -1 : 0;
}
