/* h2_fuzz.c - libFuzzer target: the gRPC server with any bytes as a connection, in any pieces.
 *
 * The first byte of a test case chooses how the client behaves, the second how large its pieces are; the rest is what it
 * says. Handlers in threads of their own take and send in every way there is, and two methods are answered without them. The
 * client reads or does not, and hangs up at its end. What is held:
 *  - nothing is read or written outside of what is there, nothing is used after it was freed, and nothing is kept: when the
 *    client has gone, no call, no connection and no byte of a message is left;
 *  - no call waits for ever;
 *  - a handler that is answered BT_OK has got a message within the limit, and metadata that say how long they are;
 *  - the server goes on: it is one for all test cases.
 * Run it by scripts/sanitize. Called with -DSEEDS, this file writes a corpus to the folder it is given instead. */
#define _GNU_SOURCE
#include "blobtee.h"

#include <errno.h>
#include <fcntl.h>
#include <nghttp2/nghttp2.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { UNARY, FILE_PARTS, ECHO, REFUSE, SILENT, WATCHED, INFO, READ, METHODS };
enum { CONTROL_NBYTES = 2, THREADS_KEPT = 2, FILE_NBYTES = 300000, LONGEST_MS = 10000 };
enum { READS_ANSWERS = 1, SAYS_HELLO = 2, WAITS = 4, HALF_CLOSES = 8 };

static const char *const paths[METHODS] = {"/f.F/Unary", "/f.F/File", "/f.F/Echo", "/f.F/Refuse",
                                           "/f.F/Silent", "/f.F/Watched", "/f.F/Info", "/f.F/Read"};

#define HOLD(condition)                                                                                  \
    do {                                                                                                 \
        if (!(condition)) {                                                                              \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);               \
            abort();                                                                                     \
        }                                                                                                \
    } while (0)

#ifndef SEEDS

static const char digest[] = "sha256:0123";
static const bt_h2_limits limits = {.message_nbytes = 1 << 20,
                                    .buffered_nbytes = 2 << 20,
                                    .connections = 4,
                                    .handshake_ms = 2000,
                                    .stall_ms = 500};
static bt_h2 *server;
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static socklen_t address_nbytes;
static int file;

/* ---- the server ---------------------------------------------------------------------------------------------------- */

static void look_at_metadata(bt_h2_call *call)
{
    const char *metadata;
    size_t nbytes = bt_h2_metadata(call, &metadata), at = 0;
    while (at < nbytes) {
        const uint8_t *p = (const uint8_t *)metadata + at;
        HOLD(nbytes - at >= 4);
        at += 4 + (size_t)(p[0] << 8 | p[1]) + (size_t)(p[2] << 8 | p[3]);
    }
    HOLD(at == nbytes);
}

static void handle(bt_h2_call *call, int method)
{
    const uint8_t *message;
    size_t nbytes;
    int result = BT_OK;

    look_at_metadata(call);
    switch (method) {
    case UNARY:
        if (bt_h2_take(call, &message, &nbytes) == BT_OK)
            bt_h2_send(call, message, nbytes, 1);
        break;
    case FILE_PARTS:
        bt_h2_take(call, &message, &nbytes);
        for (int i = 0; i < 3 && result == BT_OK; i++)
            result = bt_h2_send_file(call, (const uint8_t *)"\x12\x34", 2, file, (uint64_t)i * 90000, 90000, i == 2);
        HOLD(result == BT_OK || result == BT_GONE);
        HOLD(bt_h2_send_file(call, NULL, 0, file, FILE_NBYTES, 1, 1) != BT_OK);
        break;
    case ECHO:
        while ((result = bt_h2_take(call, &message, &nbytes)) == BT_OK) {
            HOLD(nbytes <= limits.message_nbytes);
            if (bt_h2_send(call, message, nbytes, 0) != BT_OK)
                break;
        }
        bt_h2_end(call, 0, NULL);
        return;
    case REFUSE: bt_h2_end(call, 5, "it is not there"); return;
    case WATCHED:
        bt_h2_watch(call);
        bt_h2_is_active(call);
        while (bt_h2_take(call, &message, &nbytes) == BT_OK) {
        }
        break;
    case INFO:
    case READ: bt_h2_end(call, 12, NULL); return;
    default: break;
    }
    bt_h2_release(call);
}

static void *serve(void *unused);

static void begin_thread(void)
{
    pthread_t thread;
    HOLD(pthread_create(&thread, NULL, serve, NULL) == 0 && pthread_detach(thread) == 0);
}

/* One thread at least waits, whatever the handlers are at. */
static void *serve(void *unused)
{
    bt_h2_event event;
    while (bt_h2_next(server, 1000, THREADS_KEPT, &event) == BT_OK) {
        if (event.waiting == 0)
            begin_thread();
        if (event.kind == BT_H2_ENDED)
            bt_h2_told(event.call);
        else
            handle(event.call, event.method);
    }
    return unused;
}

/* A database that does not change, and one answer of each kind. */
static bt_answers *known(void)
{
    static const int64_t bounds_ns[] = {1000000};
    struct {
        uint32_t version, unused[2];
        uint8_t is_initialized, more[35];
    } header = {.version = 3007000, .is_initialized = 1};
    uint8_t *page = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    HOLD(page != MAP_FAILED && sizeof(header) == BT_WAL_STATE_NBYTES);
    memcpy(page, &header, sizeof(header));
    memcpy(page + sizeof(header), &header, sizeof(header));
    bt_wal *wal = bt_wal_watch((uintptr_t)page);
    HOLD(wal != NULL);
    bt_answers *answers = bt_answers_new(wal, 1 << 16, 8, INT64_MAX, bounds_ns, 1);
    HOLD(answers != NULL);
    char path[64];
    bt_look look;
    snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
    HOLD(bt_answers_look(answers, path, &look) == BT_OK);
    const uint8_t *name = (const uint8_t *)digest;
    HOLD(bt_answers_keep(answers, BT_ANSWER_MESSAGE, 7, name, strlen(digest), path, &look, name, 9, -1) == BT_OK);
    HOLD(bt_answers_keep(answers, BT_ANSWER_FILE, 7, name, strlen(digest), path, &look, NULL, 0, file) == BT_OK);
    return answers;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static uint8_t bytes[FILE_NBYTES];
    (void)argc;
    (void)argv;

    file = memfd_create("fuzz", MFD_CLOEXEC);
    HOLD(file >= 0 && write(file, bytes, sizeof(bytes)) == FILE_NBYTES);
    server = bt_h2_new(&limits);
    HOLD(server != NULL);
    for (int i = 0; i < METHODS; i++)
        HOLD(bt_h2_method(server, paths[i], i == 0) == i);
    bt_h2_answer(server, known(), INFO, READ, 100000);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* A name of its own that is no file's (unix(7)). */
    int n = snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, "blobtee-h2-fuzz-%d", getpid());
    address_nbytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
    HOLD(listener >= 0 && bind(listener, (struct sockaddr *)&address, address_nbytes) == 0 && listen(listener, 16) == 0);
    HOLD(bt_h2_listen(server, listener, 7, 16) == BT_OK);
    begin_thread();
    return 0;
}

/* ---- the client ---------------------------------------------------------------------------------------------------- */

/* Read what has been said; 0 when the server has hung up. */
static int hear(int fd, int timeout_ms)
{
    static uint8_t heard[1 << 16];
    struct pollfd polled = {fd, POLLIN, 0};
    while (poll(&polled, 1, timeout_ms) > 0) {
        ssize_t n = recv(fd, heard, sizeof(heard), MSG_DONTWAIT);
        if (n <= 0)
            return n < 0 && errno == EAGAIN;
    }
    return 1;
}

static int say(int fd, const uint8_t *data, size_t nbytes, int how)
{
    for (int tries = 0; nbytes > 0 && tries < 3; tries++) {
        ssize_t n = send(fd, data, nbytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN)
            return 0;
        if (n > 0) {
            data += n;
            nbytes -= (size_t)n;
            tries = 0;
        }
        if (how & READS_ANSWERS && !hear(fd, n < 0))
            return 0;
        if (n < 0 && !(how & READS_ANSWERS))
            usleep(500); /* a client that does not read: the server stops reading too */
    }
    return nbytes == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    static const uint8_t hello[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0";
    if (nbytes < CONTROL_NBYTES)
        return 0;
    int how = data[0];
    size_t piece = data[1] == 0 ? 1 << 20 : data[1];
    data += CONTROL_NBYTES;
    nbytes -= CONTROL_NBYTES;

    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    HOLD(fd >= 0 && connect(fd, (struct sockaddr *)&address, address_nbytes) == 0);
    /* It has been accepted when it is greeted: only then is there something that has to end. */
    struct pollfd greeted = {fd, POLLIN, 0};
    HOLD(poll(&greeted, 1, LONGEST_MS) == 1);
    int goes_on = !(how & SAYS_HELLO) || say(fd, hello, sizeof(hello) - 1, how);
    while (goes_on && nbytes > 0) {
        size_t n = nbytes < piece ? nbytes : piece;
        goes_on = say(fd, data, n, how);
        data += n;
        nbytes -= n;
    }
    if (goes_on && how & WAITS)
        hear(fd, 2);
    if (goes_on && how & HALF_CLOSES && shutdown(fd, SHUT_WR) == 0)
        hear(fd, 2);
    close(fd);

    HOLD(bt_h2_wait_idle(server, LONGEST_MS, 1) == BT_OK);
    bt_h2_stats stats;
    bt_h2_stat(server, &stats);
    HOLD(stats.connections == 0 && stats.calls == 0 && stats.buffered_nbytes == 0);
    return 0;
}

#else /* ---- the corpus --------------------------------------------------------------------------------------------- */

static const char *folder;
static int seeds;

struct body {
    uint8_t data[1 << 18];
    size_t nbytes, at;
};

static ssize_t on_read(nghttp2_session *session, int32_t stream, uint8_t *buffer, size_t nbytes, uint32_t *flags,
                       nghttp2_data_source *source, void *user)
{
    struct body *body = source->ptr;
    size_t left = body->nbytes - body->at, n = nbytes < left ? nbytes : left;
    (void)session;
    (void)stream;
    (void)user;
    memcpy(buffer, body->data + body->at, n);
    body->at += n;
    if (body->at == body->nbytes)
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)n;
}

static void add(struct body *body, const void *message, size_t nbytes)
{
    uint8_t prefix[5] = {0, (uint8_t)(nbytes >> 24), (uint8_t)(nbytes >> 16), (uint8_t)(nbytes >> 8), (uint8_t)nbytes};
    HOLD(body->nbytes + 5 + nbytes <= sizeof(body->data));
    memcpy(body->data + body->nbytes, prefix, 5);
    memcpy(body->data + body->nbytes + 5, message, nbytes);
    body->nbytes += 5 + nbytes;
}

/* One conversation: `calls` calls of the method with messages of `nbytes`, and after them what `more` says. */
static void conversation(int method, int calls, int messages, size_t nbytes, int more)
{
    static struct body bodies[8];
    static uint8_t message[70000];
    static const char *const names[] = {":method", ":scheme", ":path", ":authority", "content-type", "te",
                                        "grpc-timeout", "containerd-namespace"};
    const char *values[] = {"POST", "http", paths[method], "localhost", "application/grpc", "trailers", "5S", "k8s.io"};
    static const uint8_t hows[][CONTROL_NBYTES] = {{5, 0}, {5, 100}, {1, 9}, {12, 255}, {13, 0}};
    nghttp2_nv headers[8];
    nghttp2_session_callbacks *callbacks;
    nghttp2_session *session;
    const uint8_t *out;
    ssize_t n;
    char path[4096];

    snprintf(path, sizeof(path), "%s/seed%03d", folder, seeds);
    FILE *to = fopen(path, "wb");
    HOLD(to != NULL && fwrite(hows[seeds++ % 5], 1, CONTROL_NBYTES, to) == CONTROL_NBYTES);
    for (int i = 0; i < 8; i++)
        headers[i] = (nghttp2_nv){(uint8_t *)(uintptr_t)names[i], (uint8_t *)(uintptr_t)values[i], strlen(names[i]),
                                  strlen(values[i]), NGHTTP2_NV_FLAG_NONE};
    HOLD(nghttp2_session_callbacks_new(&callbacks) == 0 && nghttp2_session_client_new(&session, callbacks, NULL) == 0);
    nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, more & 1 ? 100 : 1 << 20}};
    nghttp2_submit_settings(session, 0, settings, 1);
    for (int i = 0; i < calls; i++) {
        bodies[i].nbytes = bodies[i].at = 0;
        for (int m = 0; m < messages; m++)
            add(&bodies[i], method == INFO || method == READ ? (const void *)"\x0a\x0bsha256:0123\x10\x05\x18\x09" : message,
                method == INFO ? 13 : method == READ ? 17 : nbytes);
        nghttp2_data_provider provider = {{.ptr = &bodies[i]}, on_read};
        int32_t stream = nghttp2_submit_request(session, NULL, headers, 8, &provider, NULL);
        if (more & 2)
            nghttp2_submit_rst_stream(session, 0, stream, NGHTTP2_CANCEL);
        if (more & 4)
            nghttp2_submit_window_update(session, 0, stream, 1000);
    }
    if (more & 4)
        nghttp2_submit_ping(session, 0, NULL);
    if (more & 8)
        nghttp2_submit_goaway(session, 0, 0, 0, NULL, 0);
    while ((n = nghttp2_session_mem_send(session, &out)) > 0)
        HOLD(fwrite(out, 1, (size_t)n, to) == (size_t)n);
    HOLD(n == 0 && fclose(to) == 0);
    nghttp2_session_del(session);
    nghttp2_session_callbacks_del(callbacks);
}

int main(int argc, char **argv)
{
    HOLD(argc == 2);
    folder = argv[1];
    for (int method = 0; method < METHODS; method++)
        for (int more = 0; more < 16; more++)
            conversation(method, 1 + more % 3, 1 + more % 2, more < 8 ? (size_t)more * 11 : 3000, more);
    conversation(ECHO, 2, 1, 66000, 0);
    conversation(UNARY, 1, 0, 0, 0);
    return 0;
}
#endif
