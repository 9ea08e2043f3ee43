/* h2.h - what the parts of the gRPC server share: h2.c has its sockets and waiting threads, h2calls.c what handlers do,
 * h2life.c the lives of connections and calls, h2in.c and h2out.c what is heard and said, h2known.c what needs no
 * handler. blobtee.h is the contract.
 *
 * A connection is changed under its `lock` alone; the server's `lock` may be taken inside that one, never the other way
 * round. One thread at a time reads a connection: who has set `claimed`. Everybody writes. */
#ifndef BLOBTEE_H2_H
#define BLOBTEE_H2_H

#include "answers.h"

#if !__has_include(<nghttp2/nghttp2.h>)
#error "blobtee needs nghttp2: on Debian or Ubuntu install the package libnghttp2-dev"
#endif

#include <nghttp2/nghttp2.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/uio.h>

#define SECOND_NS 1000000000LL

enum {
    H2_BUFFER_NBYTES = 256 << 10,     /* of one reading, or of one piece of what is written */
    H2_FRAME_SLACK_NBYTES = 32 << 10, /* kept free for frames that nghttp2 makes itself */
    H2_WINDOW_NBYTES = 64 << 10,      /* what a stream may send that nobody asked for */
    H2_CONNECTION_WINDOW_NBYTES = 1 << 30,
    H2_HEADERS_MAX_NBYTES = 16 << 10,
    H2_HEAD_MAX_NBYTES = 64,          /* of what comes before a file in a message */
    H2_PREFIX_NBYTES = 5,
    H2_RUN_FRAMES = 64,
    H2_METHODS = 64,
    H2_CROWD = 6,                     /* calls in hand from which on threads huddle */
};

/* gRPC's status codes, as far as they are given here. */
enum {
    GRPC_OK = 0, GRPC_DEADLINE_EXCEEDED = 4, GRPC_RESOURCE_EXHAUSTED = 8, GRPC_UNIMPLEMENTED = 12, GRPC_INTERNAL = 13,
    GRPC_UNAVAILABLE = 14
};

/* How far a connection's goodbye has come. */
enum { STAYS, SAYS_GOODBYE, HAS_HEARD, LEAVES };

/* A message that is coming, waits, or is in the hands of who took it. */
struct h2_message {
    struct h2_message *next;
    uint8_t *data;
    size_t nbytes, filled_nbytes, capacity_nbytes;
    size_t charged_nbytes; /* of the server's budget */
    int reserved;          /* its room is of the part for large ones */
};

struct h2_listener {
    int fd;
    uint32_t place, max_calls;
    atomic_uint calls;
};

/* What a call is answered from, if no handler is needed. */
struct h2_known {
    const struct bt_answer *answer;
    uint64_t begin, at, end; /* of the file: where the answer begins, its next message, its end */
    int64_t began_ns;
    int counted;
};

struct bt_h2_call {
    struct h2_connection *connection;
    struct bt_h2_call *before, *after; /* in the connection's list, while the stream is open */
    struct bt_h2_call *next_event, *next_hungry;
    unsigned refs;     /* the stream's, the handler's, one for each queue it is in */
    int32_t stream;    /* 0 when it is closed */
    int32_t id;        /* what the stream was */
    pthread_cond_t changed;
    /* the request */
    int method, counted, is_post, is_grpc, too_large;
    char *headers;
    size_t headers_nbytes, headers_capacity, headers_seen_nbytes;
    int64_t deadline_ns, moved_ns; /* 0: none; when the last byte of the message that is coming came */
    uint8_t prefix[H2_PREFIX_NBYTES];
    unsigned prefix_nbytes;
    struct h2_message *coming, *first, *last, *taken;
    int64_t window_nbytes; /* what the peer may still send */
    int half_closed, dispatched, wants_room, watched, told;
    int gone;          /* nobody waits for the answer any more */
    /* the answer */
    int headers_sent, done, finishing, status, failure;
    char *text;
    uint8_t head[H2_PREFIX_NBYTES + H2_HEAD_MAX_NBYTES];
    size_t head_nbytes, head_at;
    const uint8_t *body;
    int body_fd;
    uint64_t body_offset;
    size_t left_nbytes;
    struct h2_known known;
};

/* Frames of one file that lie in `out` without their bytes: these come by one read. */
struct h2_run {
    struct bt_h2_call *call;
    struct iovec pieces[H2_RUN_FRAMES];
    unsigned count;
    uint64_t offset;
    int fd;
};

struct h2_connection {
    bt_h2 *server;
    struct h2_listener *listener;
    pthread_mutex_t lock;
    atomic_uint refs;
    uint32_t slot, generation;
    int fd;
    nghttp2_session *session;
    uint8_t *out; /* NULL when there is nothing to write */
    size_t out_at, out_nbytes;
    struct h2_run run;
    int claimed, blocked, dead, greeted, working, leaving;
    uint32_t armed;
    int32_t active; /* the stream that was heard of last */
    int64_t began_ns, used_ns, tokens_ns, tokens;
    struct bt_h2_call *calls;
};

struct bt_h2 {
    pthread_mutex_t lock;
    pthread_cond_t idle;
    bt_h2_limits limits;
    int epoll, wake, timer;
    char *methods[H2_METHODS];
    size_t nmethods;
    uint64_t light_methods; /* a bit each */
    bt_answers *answers; /* NULL: none are known */
    int info, read;      /* the methods that are answered from them */
    size_t piece_nbytes;
    struct h2_listener listeners[BT_H2_LISTENERS];
    size_t nlisteners;
    struct h2_connection **connections; /* by slot */
    uint32_t *generations;
    uint32_t nconnections;
    struct bt_h2_call *ready, *ready_last, *ended, *ended_last, *hungry, *hungry_last;
    uint8_t *buffers[16];
    size_t nbuffers;
    unsigned waiting, coming; /* threads: in bt_h2_next, on their way to it */
    atomic_uint handling;     /* calls in the hands of threads */
    int draining, stopped;
    int64_t due_ns;
    atomic_size_t buffered_nbytes, reserved_nbytes;
    atomic_int grant;
    unsigned calls;
    atomic_ullong refused;
};

/* All that follows wants the connection's lock held, unless it says otherwise. */

/* ---- h2in.c ------------------------------------------------------------------------------------------------------ */

/* Make the session and say hello. 0, or -1 when memory is out. */
int h2_begin(struct h2_connection *c);

/* Take in[0, nbytes) from the peer. -1: the connection has to end, after what is to be written. */
int h2_feed(struct h2_connection *c, const uint8_t *in, size_t nbytes);

/* End the call from here, if nobody has yet. The handler finds it gone. */
void h2_end(struct bt_h2_call *k, int status, const char *text);

/* The stream is no more. */
void h2_closed(struct bt_h2_call *k);

/* Give the message that is coming its room, if there is some: 0 when there is not. */
int h2_try_room(struct bt_h2_call *k);

/* Let the peer send as much as it may, after a message was taken. */
void h2_reopen(struct bt_h2_call *k);

/* The peer had so much work done, and may send as much more. */
void h2_earn(struct h2_connection *c, int64_t tokens);

/* Without the lock. */
void h2_free_message(bt_h2 *s, struct h2_message *m);

/* ---- h2out.c ----------------------------------------------------------------------------------------------------- */

void h2_out_callbacks(nghttp2_session_callbacks *callbacks);

/* Write what can be written. -1: the connection is broken. Sets `blocked` when the socket takes no more, or has taken so
 * much that it may be the turn of others: what is left is for who finds it writable. */
int h2_write(struct h2_connection *c);

/* Set the message that is sent next: head[0, head_nbytes) and `nbytes` of the body that is set in `k`. */
void h2_set_message(struct bt_h2_call *k, const uint8_t *head, size_t head_nbytes, size_t nbytes, int is_last);

/* Begin to send the message that is set in `k`. */
void h2_answer(struct bt_h2_call *k);

/* Say how the call ended, if that has not been said. */
void h2_finish(struct bt_h2_call *k, int status, const char *text);

/* Say that it is no gRPC: an HTTP status alone. */
void h2_finish_http(struct bt_h2_call *k, const char *status);

/* ---- h2known.c --------------------------------------------------------------------------------------------------- */

/* Answer the call, whose first message has come, if the answer is known: 0 when a handler has to. */
int h2_answer_known(struct bt_h2_call *k);

/* The last message of an answer that is known has been sent, and it was not the answer's last. */
void h2_go_on(struct bt_h2_call *k);

/* The stream is no more: say how it ended. */
void h2_known_closed(struct bt_h2_call *k);

/* ---- h2life.c ---------------------------------------------------------------------------------------------------- */

/* These seven without the lock. */
int64_t h2_now_ns(void);
uint8_t *h2_buffer(bt_h2 *s);
void h2_give_back(bt_h2 *s, uint8_t *buffer);
/* One of the threads that wait has something to do. */
void h2_wake(bt_h2 *s);
/* At `due_ns` somebody has to look. */
void h2_alarm(bt_h2 *s, int64_t due_ns);
/* Whether several handlers run at once. */
int h2_is_crowd(bt_h2 *s);
/* Whether somebody waits for room, and some has become free. */
int h2_can_feed(bt_h2 *s);

/* The first without the lock, the second and third must be. */
void h2_hold(struct h2_connection *c);
void h2_let_go(struct h2_connection *c);
void h2_let_go_of_call(struct bt_h2_call *k);

void h2_unref(struct bt_h2_call *k);

/* The call has a request, and goes to a handler. */
void h2_dispatch(struct bt_h2_call *k);

/* Who waits for the call, or wants to hear of its end, is told. */
void h2_changed(struct bt_h2_call *k);

/* The call waits for room for its message. */
void h2_hunger(struct bt_h2_call *k);

/* The connection ends here and now; its handlers find their calls gone. */
void h2_lose(struct h2_connection *c);

/* Write, and end what cannot go on, or what `ends`. */
void h2_pump(struct h2_connection *c, int ends);

/* Whether the peer does not read its answers: then it is not asked for more. */
int h2_is_stuffed(struct h2_connection *c);

/* Have the waiting threads look after the connection, as far as nobody else does; `led`: the caller looks after all. */
void h2_arm(struct h2_connection *c, int led);

/* Read once, if there is something, and write what came of it. The caller has claimed the connection; the lock is not
 * held while the kernel works. */
void h2_turn(struct h2_connection *c);

#endif
