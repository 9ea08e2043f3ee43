/* h2known.c - calls that are answered where they are read, out of the answers that are known: no handler, no other thread.
 *
 * Requests are read by hand, and only as clients put them: each field once at most, in its plain form, and nothing that is
 * not known. All others are for a handler, and so is what ends in an error. (protobuf.dev, Encoding.) */
#define _GNU_SOURCE
#include "h2.h"

#include <string.h>

enum { DIGEST = 1, OFFSET = 2, SIZE = 3, DATA = 2, NUMBER_KIND = 0, BYTES_KIND = 2 };

struct request {
    const uint8_t *digest;
    size_t digest_nbytes;
    int64_t offset, size;
    unsigned seen;
};

/* ---- messages by hand -------------------------------------------------------------------------------------------- */

/* A number in 7 bits a byte, the lowest first; 0 when it is none, or longer than 64 bits. */
static int number(const uint8_t **at, const uint8_t *end, uint64_t *n)
{
    *n = 0;
    for (unsigned shift = 0; *at < end && shift < 64; shift += 7) {
        uint8_t byte = *(*at)++;
        if (shift == 63 && byte > 1)
            return 0;
        *n |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return 1;
    }
    return 0;
}

static size_t put_number(uint8_t *to, uint64_t n)
{
    size_t nbytes = 0;
    for (; n > 0x7f; n >>= 7)
        to[nbytes++] = (uint8_t)(n | 0x80);
    to[nbytes++] = (uint8_t)n;
    return nbytes;
}

/* Whether message[0, nbytes) is a digest, and with `is_read` an offset and a size, as usual. */
static int understand(struct request *r, const uint8_t *message, size_t nbytes, int is_read)
{
    const uint8_t *end = message + nbytes;
    uint64_t n;

    memset(r, 0, sizeof(*r));
    while (message < end) {
        unsigned field = *message >> 3, kind = *message & 7;
        message++;
        if (field < DIGEST || field > (is_read ? SIZE : DIGEST) || r->seen & 1u << field || !number(&message, end, &n))
            return 0;
        r->seen |= 1u << field;
        if (field == DIGEST) {
            if (kind != BYTES_KIND || n > (uint64_t)(end - message))
                return 0;
            r->digest = message;
            r->digest_nbytes = (size_t)n;
            message += n;
        } else if (kind != NUMBER_KIND) {
            return 0;
        } else if (field == OFFSET) {
            r->offset = (int64_t)n;
        } else {
            r->size = (int64_t)n;
        }
    }
    return r->digest != NULL;
}

/* ---- answers ------------------------------------------------------------------------------------------------------ */

static void count(struct bt_h2_call *k, int how)
{
    bt_h2 *s = k->connection->server;
    int kind = k->method == s->info ? BT_ANSWER_MESSAGE : BT_ANSWER_FILE;

    if (k->known.counted)
        return;
    k->known.counted = 1;
    bt_answers_count(s->answers, kind, k->connection->listener->place, how, h2_now_ns() - k->known.began_ns);
}

void h2_go_on(struct bt_h2_call *k)
{
    bt_h2 *s = k->connection->server;
    struct h2_known *known = &k->known;
    uint64_t left = known->end - known->at, offset = known->at - known->begin;
    size_t nbytes = left < s->piece_nbytes ? (size_t)left : s->piece_nbytes, head_nbytes = 0;
    uint8_t head[32];

    if (offset > 0) {
        head[head_nbytes++] = 1 << 3 | NUMBER_KIND;
        head_nbytes += put_number(head + head_nbytes, offset);
    }
    head[head_nbytes++] = DATA << 3 | BYTES_KIND;
    head_nbytes += put_number(head + head_nbytes, nbytes);
    bt_answers_count_sent(s->answers, k->connection->listener->place, nbytes);
    k->body_fd = known->answer->fd;
    k->body_offset = known->at;
    known->at += nbytes;
    /* Before the client can know that it was the last. */
    if (known->at == known->end)
        count(k, ANSWERS_OK);
    h2_set_message(k, head, head_nbytes, nbytes, known->at == known->end);
}

static int begin_file(struct bt_h2_call *k, const struct request *r)
{
    uint64_t size = k->known.answer->nbytes, begin = r->offset > 0 ? (uint64_t)r->offset : 0;

    if (begin >= size)
        return 0;
    k->known.begin = k->known.at = begin;
    k->known.end = r->size > 0 && (uint64_t)r->size < size - begin ? begin + (uint64_t)r->size : size;
    bt_answers_count_opened(k->connection->server->answers, k->connection->listener->place);
    h2_go_on(k);
    return 1;
}

static void begin_message(struct bt_h2_call *k)
{
    k->body = k->known.answer->message;
    count(k, ANSWERS_OK);
    h2_set_message(k, NULL, 0, k->known.answer->nbytes, 1);
}

int h2_answer_known(struct bt_h2_call *k)
{
    bt_h2 *s = k->connection->server;
    int is_read = k->method == s->read, kind = is_read ? BT_ANSWER_FILE : BT_ANSWER_MESSAGE;
    struct request r;

    if (s->answers == NULL || k->first == NULL || (!is_read && k->method != s->info))
        return 0;
    k->known.began_ns = h2_now_ns();
    if (!understand(&r, k->first->data, k->first->nbytes, is_read))
        return 0;
    k->known.answer = bt_answers_find(s->answers, kind, k->connection->listener->place, r.digest, r.digest_nbytes);
    if (k->known.answer == NULL)
        return 0;
    if (!is_read) {
        begin_message(k);
    } else if (!begin_file(k, &r)) {
        bt_answers_let_go(k->known.answer);
        k->known.answer = NULL;
        return 0;
    }
    h2_answer(k);
    if (is_read || !h2_is_crowd(s))
        bt_spread();
    return 1;
}

void h2_known_closed(struct bt_h2_call *k)
{
    if (k->known.answer != NULL)
        count(k, ANSWERS_CANCELLED);
}
