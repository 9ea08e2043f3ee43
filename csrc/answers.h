/* answers.h - what the gRPC server sees of the answers that are known; blobtee.h is the contract. */
#ifndef BLOBTEE_ANSWERS_H
#define BLOBTEE_ANSWERS_H

#include "blobtee.h"

/* One answer. It does not change, and stays until whoever found it lets go of it. */
struct bt_answer {
    const uint8_t *message; /* of BT_ANSWER_MESSAGE */
    size_t nbytes;          /* of the message, or of the file */
    int fd;                 /* of BT_ANSWER_FILE */
};

/* How an RPC ended, as far as such answers go. */
enum { ANSWERS_OK, ANSWERS_CANCELLED };

/* The answer, if it is known and good at this moment; else NULL. Thread-safe, as the others. */
const struct bt_answer *bt_answers_find(bt_answers *a, int kind, uint32_t place, const uint8_t *digest, size_t nbytes);

void bt_answers_let_go(const struct bt_answer *answer);

void bt_answers_count(bt_answers *a, int kind, uint32_t place, int how, int64_t ns);
void bt_answers_count_opened(bt_answers *a, uint32_t place);
void bt_answers_count_sent(bt_answers *a, uint32_t place, size_t nbytes);

/* Drop what is out of date, or has not been asked for in a while; most often too early, and then quick. */
void bt_answers_tidy(bt_answers *a);

#endif
