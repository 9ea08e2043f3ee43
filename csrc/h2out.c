/* h2out.c - what the gRPC server says on one connection: headers, messages, status; frames by nghttp2.
 *
 * Bytes are put into the connection's `out` once, headers between them, and written from there. Those of a file are read
 * straight into their places, as many frames at a time as there are. (gRPC: "gRPC over HTTP2"; HTTP/2: RFC 9113.) */
#define _GNU_SOURCE
#include "h2.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* Clients say in frames what they have read: those that tell of so many bytes each are no flood. */
enum { GRANT_NBYTES = 4096 };

enum { FRAME_LEAST_NBYTES = 4096 };

/* After so much others have their turn with the connection, and what the peer says is heard: one that reads as fast as
 * the answer comes could keep a thread, and all who want the lock, for the 2 GiB that a window may have. */
enum { WRITE_MAX_NBYTES = 4 << 20 };

#define HEADER(name, value, value_nbytes) \
    {(uint8_t *)(uintptr_t)(name), (uint8_t *)(uintptr_t)(value), sizeof(name) - 1, value_nbytes, \
     NGHTTP2_NV_FLAG_NO_COPY_NAME}

/* ---- how a call ends -------------------------------------------------------------------------------------------- */

static void set_text(struct bt_h2_call *k, const char *text)
{
    free(k->text);
    k->text = text != NULL && *text != 0 ? strdup(text) : NULL;
}

static size_t status_headers(struct bt_h2_call *k, nghttp2_nv *headers, char number[4])
{
    int n = snprintf(number, 4, "%d", k->status);
    headers[0] = (nghttp2_nv)HEADER("grpc-status", number, (size_t)n);
    if (k->text == NULL)
        return 1;
    headers[1] = (nghttp2_nv)HEADER("grpc-message", k->text, strlen(k->text));
    return 2;
}

static int submit_trailer(struct bt_h2_call *k)
{
    nghttp2_nv headers[2];
    char number[4];
    size_t n = status_headers(k, headers, number);
    return nghttp2_submit_trailer(k->connection->session, k->stream, headers, n);
}

/* A whole answer without a message. */
static void submit_status(struct bt_h2_call *k)
{
    nghttp2_nv headers[5] = {HEADER(":status", "200", 3), HEADER("content-type", "application/grpc", 16)};
    char number[4];
    size_t n = 2 + status_headers(k, headers + 2, number);

    if (k->status == GRPC_UNIMPLEMENTED)
        headers[n++] = (nghttp2_nv)HEADER("grpc-accept-encoding", "identity", 8);
    k->headers_sent = 1;
    nghttp2_submit_response(k->connection->session, k->stream, headers, n, NULL);
}

void h2_finish(struct bt_h2_call *k, int status, const char *text)
{
    if (k->done)
        return;
    k->done = 1;
    if (k->stream == 0)
        return;
    k->status = status;
    set_text(k, text);
    if (!k->headers_sent) {
        submit_status(k);
    } else if (k->left_nbytes > 0 || k->head_at < k->head_nbytes) {
        /* Nobody may take half a message for a whole one. */
        nghttp2_submit_rst_stream(k->connection->session, NGHTTP2_FLAG_NONE, k->stream, NGHTTP2_CANCEL);
    } else {
        k->finishing = 1;
        nghttp2_session_resume_data(k->connection->session, k->stream);
    }
}

void h2_finish_http(struct bt_h2_call *k, const char *status)
{
    nghttp2_nv header = HEADER(":status", status, 3);
    k->gone = k->done = k->headers_sent = 1;
    nghttp2_submit_response(k->connection->session, k->stream, &header, 1, NULL);
}

/* ---- frames out -------------------------------------------------------------------------------------------------- */

/* Read the bytes of the run into their places. After a failure there are zeros in those that were not read, and the call
 * has failed: the peer has granted the frames, and leaving them out would cost the connection's window as much for good. */
static int settle(struct h2_connection *c)
{
    struct h2_run *run = &c->run;
    struct iovec *pieces = run->pieces;
    unsigned count = run->count;
    uint64_t offset = run->offset;
    int result = 0;

    run->count = 0;
    while (count > 0) {
        ssize_t n = preadv(run->fd, pieces, (int)count, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            run->call->failure = n < 0 ? errno : -1;
            for (; count > 0; count--, pieces++)
                memset(pieces->iov_base, 0, pieces->iov_len);
            result = -1;
            break;
        }
        offset += (uint64_t)n;
        while (count > 0 && (size_t)n >= pieces->iov_len) {
            n -= (ssize_t)pieces->iov_len;
            pieces++;
            count--;
        }
        if (count > 0) {
            pieces->iov_base = (uint8_t *)pieces->iov_base + n;
            pieces->iov_len -= (size_t)n;
        }
    }
    return result;
}

/* As `settle`, where frames of others follow. */
static void settle_or_reset(struct h2_connection *c)
{
    struct bt_h2_call *k = c->run.call;
    if (c->run.count > 0 && settle(c) != 0) {
        nghttp2_submit_rst_stream(c->session, NGHTTP2_FLAG_NONE, k->id, NGHTTP2_INTERNAL_ERROR);
        h2_changed(k);
    }
}

static ssize_t on_read(nghttp2_session *session, int32_t stream, uint8_t *buffer, size_t nbytes, uint32_t *flags,
                       nghttp2_data_source *source, void *user)
{
    struct h2_connection *c = user;
    struct bt_h2_call *k = source->ptr;
    size_t ready = k->head_nbytes - k->head_at + k->left_nbytes;
    size_t space = H2_BUFFER_NBYTES - H2_FRAME_SLACK_NBYTES;
    (void)session;
    (void)stream;
    (void)buffer;

    if (ready == 0) {
        if (!k->finishing)
            return NGHTTP2_ERR_DEFERRED;
        *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
        k->finishing = 0;
        return submit_trailer(k) == 0 ? 0 : NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    }
    space = space > c->out_nbytes ? space - c->out_nbytes : 0;
    if (space < FRAME_LEAST_NBYTES && space < ready)
        return NGHTTP2_ERR_PAUSE;
    ready = ready < nbytes ? ready : nbytes;
    ready = ready < space ? ready : space;
    *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    if (k->finishing && ready == k->head_nbytes - k->head_at + k->left_nbytes)
        *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
    return (ssize_t)ready;
}

static int on_send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *head, size_t nbytes,
                        nghttp2_data_source *source, void *user)
{
    struct h2_connection *c = user;
    struct bt_h2_call *k = source->ptr;
    struct h2_run *run = &c->run;
    (void)session;
    (void)frame;

    if (run->count > 0 && (run->call != k || run->count == H2_RUN_FRAMES))
        settle_or_reset(c);
    if (k->failure != 0)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    size_t begin = c->out_nbytes;
    memcpy(c->out + c->out_nbytes, head, 9);
    c->out_nbytes += 9;
    size_t n = k->head_nbytes - k->head_at;
    n = n < nbytes ? n : nbytes;
    memcpy(c->out + c->out_nbytes, k->head + k->head_at, n);
    k->head_at += n;
    c->out_nbytes += n;
    nbytes -= n;
    if (nbytes > 0 && k->body_fd < 0) {
        memcpy(c->out + c->out_nbytes, k->body, nbytes);
        k->body += nbytes;
    } else if (nbytes > 0) {
        if (run->count == 0) {
            run->call = k;
            run->offset = k->body_offset;
            run->fd = k->body_fd;
        }
        run->pieces[run->count++] = (struct iovec){c->out + c->out_nbytes, nbytes};
        k->body_offset += nbytes;
    }
    c->out_nbytes += nbytes;
    k->left_nbytes -= nbytes;
    h2_earn(c, (int64_t)(c->out_nbytes - begin) / GRANT_NBYTES);
    if (k->left_nbytes > 0 || k->head_at < k->head_nbytes)
        return 0;
    /* The status must not say more than what is known by then, and the message must not come to its end. The frame that
     * would bring that is not counted when it is refused here. */
    if (run->count > 0 && settle(c) != 0) {
        c->out_nbytes = begin;
        h2_changed(k);
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    }
    h2_changed(k);
    if (k->known.answer != NULL && !k->done) {
        h2_go_on(k);
        return 0;
    }
    if (k->finishing) {
        k->finishing = 0;
        return submit_trailer(k) == 0 ? 0 : NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    }
    return 0;
}

/* Frames are as long as the peer takes them: fewer of them are cheaper for both. */
static ssize_t on_frame_length(nghttp2_session *session, uint8_t type, int32_t stream, int32_t session_window,
                               int32_t stream_window, uint32_t max_frame, void *user)
{
    int64_t n = session_window < stream_window ? session_window : stream_window;
    (void)session;
    (void)type;
    (void)stream;
    (void)user;
    n = n < max_frame ? n : max_frame;
    return (ssize_t)(n < H2_BUFFER_NBYTES / 2 ? n : H2_BUFFER_NBYTES / 2);
}

static int on_sent(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct h2_connection *c = user;
    /* The ping must not overtake the goodbye, as it would if both were submitted at once. */
    if (frame->hd.type == NGHTTP2_GOAWAY && c->leaving == SAYS_GOODBYE)
        nghttp2_submit_ping(session, NGHTTP2_FLAG_NONE, (const uint8_t *)"goodbye");
    /* A stream that was answered before its client had said all: it need not say more (RFC 9113 section 8.1). */
    if (frame->hd.type == NGHTTP2_HEADERS && frame->hd.flags & NGHTTP2_FLAG_END_STREAM &&
        nghttp2_session_get_stream_remote_close(session, frame->hd.stream_id) == 0)
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_NO_ERROR);
    return 0;
}

void h2_set_message(struct bt_h2_call *k, const uint8_t *head, size_t head_nbytes, size_t nbytes, int is_last)
{
    size_t whole = head_nbytes + nbytes;

    k->head[0] = 0;
    k->head[1] = (uint8_t)(whole >> 24);
    k->head[2] = (uint8_t)(whole >> 16);
    k->head[3] = (uint8_t)(whole >> 8);
    k->head[4] = (uint8_t)whole;
    if (head_nbytes > 0)
        memcpy(k->head + H2_PREFIX_NBYTES, head, head_nbytes);
    k->head_at = 0;
    k->head_nbytes = H2_PREFIX_NBYTES + head_nbytes;
    k->left_nbytes = nbytes;
    if (is_last)
        k->finishing = k->done = 1;
}

void h2_answer(struct bt_h2_call *k)
{
    nghttp2_session *session = k->connection->session;

    if (k->headers_sent) {
        nghttp2_session_resume_data(session, k->stream);
        return;
    }
    nghttp2_nv headers[2] = {HEADER(":status", "200", 3), HEADER("content-type", "application/grpc", 16)};
    nghttp2_data_provider provider = {{.ptr = k}, on_read};
    k->headers_sent = 1;
    if (nghttp2_submit_response(session, k->stream, headers, 2, &provider) != 0)
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, k->stream, NGHTTP2_INTERNAL_ERROR);
}

static int produce(struct h2_connection *c)
{
    const uint8_t *frame;
    ssize_t n;

    while (c->out_nbytes + H2_FRAME_SLACK_NBYTES <= H2_BUFFER_NBYTES) {
        n = nghttp2_session_mem_send(c->session, &frame);
        if (n < 0)
            return -1;
        if (n == 0)
            break;
        if (c->out_nbytes + (size_t)n > H2_BUFFER_NBYTES)
            return -1;
        settle_or_reset(c);
        memcpy(c->out + c->out_nbytes, frame, (size_t)n);
        c->out_nbytes += (size_t)n;
    }
    settle_or_reset(c);
    return 0;
}

int h2_write(struct h2_connection *c)
{
    size_t left_nbytes = WRITE_MAX_NBYTES;

    if (c->dead || c->working)
        return 0;
    c->blocked = 0;
    if (c->out == NULL) {
        if (!nghttp2_session_want_write(c->session))
            return 0;
        c->out = h2_buffer(c->server);
        if (c->out == NULL)
            return -1;
    }
    for (;;) {
        if (c->out_at == c->out_nbytes) {
            c->out_at = c->out_nbytes = 0;
            c->working = 1;
            int result = produce(c);
            c->working = 0;
            if (result != 0)
                return -1;
            if (c->out_nbytes == 0)
                break;
        }
        ssize_t n = send(c->fd, c->out + c->out_at, c->out_nbytes - c->out_at, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n >= 0) {
            c->out_at += (size_t)n;
            left_nbytes -= (size_t)n < left_nbytes ? (size_t)n : left_nbytes;
            if (left_nbytes == 0) {
                c->blocked = 1;
                return 0;
            }
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            c->blocked = 1;
            return 0;
        } else if (errno != EINTR) {
            return -1;
        }
    }
    h2_give_back(c->server, c->out);
    c->out = NULL;
    return 0;
}

void h2_out_callbacks(nghttp2_session_callbacks *callbacks)
{
    nghttp2_session_callbacks_set_send_data_callback(callbacks, on_send_data);
    nghttp2_session_callbacks_set_data_source_read_length_callback(callbacks, on_frame_length);
    nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_sent);
}
