/* answers.c - answers that a handler has given before, and what says whether they are still right.
 *
 * An answer follows from the metadata and from one file. It is good while both are what they were just before the
 * handler looked at them: the metadata by their WAL index, the file by what stat(2) says of its path. Both are asked
 * again each time the answer is to be given, so that nobody has to tell of a change, in this process or in another. */
#define _GNU_SOURCE
#include "answers.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { KINDS = 2, BUCKETS = 1024, DIGEST_MAX_NBYTES = 160 };
#define SECOND_NS 1000000000LL
#define TIDY_NS (2 * SECOND_NS)
#define IDLE_NS (10 * SECOND_NS)

struct entry {
    struct bt_answer answer; /* first: who has one has the other */
    atomic_uint refs;        /* the table's, and each user's */
    struct entry *next;      /* in its bucket */
    struct entry *newer, *older;
    int kind, kept;
    uint32_t place, hash;
    size_t weight;
    int64_t used_ns;
    bt_look look;
    const char *path;
    size_t digest_nbytes;
    uint8_t digest[];
};

/* All of one kind, in the order of their last use. */
struct shelf {
    struct entry *newest, *oldest;
    size_t weight, weight_max;
};

struct tally {
    atomic_ullong ok, cancelled, sum_ns, opened, sent_nbytes, below[BT_ANSWERS_BOUNDS + 1];
};

struct bt_answers {
    pthread_mutex_t lock;
    const bt_wal *wal;
    struct shelf shelves[KINDS];
    struct entry *buckets[BUCKETS];
    atomic_llong tidied_ns;
    int64_t fresh_ns;
    size_t nbounds;
    int64_t bounds_ns[BT_ANSWERS_BOUNDS];
    struct tally tallies[BT_H2_LISTENERS][KINDS];
};

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND_NS + t.tv_nsec;
}

/* ---- what an answer rests on ------------------------------------------------------------------------------------ */

static void describe(bt_look *look, const struct stat *found)
{
    look->device = found->st_dev;
    look->inode = found->st_ino;
    look->mode = found->st_mode;
    look->size_nbytes = (uint64_t)found->st_size;
    look->modified_s = found->st_mtim.tv_sec;
    look->modified_ns = found->st_mtim.tv_nsec;
    look->changed_s = found->st_ctim.tv_sec;
    look->changed_ns = found->st_ctim.tv_nsec;
}

static int is_same_file(const bt_look *look, const struct stat *found)
{
    return look->inode == found->st_ino && look->device == found->st_dev && look->mode == found->st_mode &&
           look->size_nbytes == (uint64_t)found->st_size && look->changed_ns == found->st_ctim.tv_nsec &&
           look->changed_s == found->st_ctim.tv_sec && look->modified_ns == found->st_mtim.tv_nsec &&
           look->modified_s == found->st_mtim.tv_sec;
}

static int is_same_state(const bt_answers *a, const bt_look *look)
{
    uint8_t state[BT_WAL_STATE_NBYTES];
    return bt_wal_state(a->wal, state) == BT_OK && memcmp(state, look->state, sizeof(state)) == 0;
}

/* Whether the handler would find nothing to write down of another use of the file. */
static int is_fresh(const bt_answers *a, const struct stat *found)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int64_t age = (now.tv_sec - found->st_atim.tv_sec) * SECOND_NS + (now.tv_nsec - found->st_atim.tv_nsec);
    return age >= 0 && age < a->fresh_ns;
}

static int is_good(const bt_answers *a, const struct entry *e)
{
    struct stat found;
    return is_same_state(a, &e->look) && stat(e->path, &found) == 0 && is_same_file(&e->look, &found) &&
           (e->kind != BT_ANSWER_FILE || is_fresh(a, &found));
}

int bt_answers_look(bt_answers *a, const char *path, bt_look *look)
{
    struct stat found;
    memset(look, 0, sizeof(*look));
    if (bt_wal_state(a->wal, look->state) != BT_OK || stat(path, &found) != 0 || !S_ISREG(found.st_mode))
        return BT_GONE;
    describe(look, &found);
    return BT_OK;
}

/* ---- the table; with the lock held -------------------------------------------------------------------------------- */

static uint32_t hash_of(int kind, uint32_t place, const uint8_t *digest, size_t nbytes)
{
    uint32_t hash = 2166136261u ^ (place << 1 | (uint32_t)kind); /* FNV-1a: digests are spread well by themselves */
    for (size_t i = 0; i < nbytes; i++)
        hash = (hash ^ digest[i]) * 16777619u;
    return hash;
}

static struct entry **slot_of(bt_answers *a, int kind, uint32_t place, const uint8_t *digest, size_t nbytes)
{
    uint32_t hash = hash_of(kind, place, digest, nbytes);
    struct entry **slot = &a->buckets[hash % BUCKETS];
    for (; *slot != NULL; slot = &(*slot)->next) {
        struct entry *e = *slot;
        if (e->hash == hash && e->kind == kind && e->place == place && e->digest_nbytes == nbytes &&
            memcmp(e->digest, digest, nbytes) == 0)
            break;
    }
    return slot;
}

static void unshelve(bt_answers *a, struct entry *e)
{
    struct shelf *shelf = &a->shelves[e->kind];
    *(e->newer != NULL ? &e->newer->older : &shelf->newest) = e->older;
    *(e->older != NULL ? &e->older->newer : &shelf->oldest) = e->newer;
    shelf->weight -= e->weight;
}

static void shelve(bt_answers *a, struct entry *e)
{
    struct shelf *shelf = &a->shelves[e->kind];
    e->newer = NULL;
    e->older = shelf->newest;
    *(e->older != NULL ? &e->older->newer : &shelf->oldest) = e;
    shelf->newest = e;
    shelf->weight += e->weight;
}

static void free_entry(struct entry *e)
{
    if (e->answer.fd >= 0)
        close(e->answer.fd);
    free(e);
}

static void drop(bt_answers *a, struct entry *e)
{
    struct entry **slot = &a->buckets[e->hash % BUCKETS];
    if (!e->kept)
        return;
    while (*slot != e)
        slot = &(*slot)->next;
    *slot = e->next;
    unshelve(a, e);
    e->kept = 0;
    bt_answers_let_go(&e->answer);
}

/* ---- finding and keeping ------------------------------------------------------------------------------------------ */

const struct bt_answer *bt_answers_find(bt_answers *a, int kind, uint32_t place, const uint8_t *digest, size_t nbytes)
{
    struct entry *e;

    pthread_mutex_lock(&a->lock);
    e = *slot_of(a, kind, place, digest, nbytes);
    if (e != NULL) {
        atomic_fetch_add(&e->refs, 1);
        e->used_ns = now_ns();
        if (e->newer != NULL) {
            unshelve(a, e);
            shelve(a, e);
        }
    }
    pthread_mutex_unlock(&a->lock);
    if (e == NULL || is_good(a, e))
        return e != NULL ? &e->answer : NULL;
    pthread_mutex_lock(&a->lock);
    drop(a, e);
    pthread_mutex_unlock(&a->lock);
    bt_answers_let_go(&e->answer);
    return NULL;
}

void bt_answers_let_go(const struct bt_answer *answer)
{
    struct entry *e = (struct entry *)(uintptr_t)answer;
    if (atomic_fetch_sub(&e->refs, 1) == 1)
        free_entry(e);
}

static struct entry *make(int kind, uint32_t place, const uint8_t *digest, size_t digest_nbytes, const char *path,
                          const bt_look *look, const uint8_t *message, size_t nbytes, int fd)
{
    size_t path_nbytes = strlen(path) + 1;
    size_t weight = sizeof(struct entry) + digest_nbytes + path_nbytes + nbytes;
    struct entry *e = calloc(1, weight);

    if (e == NULL)
        return NULL;
    e->answer.fd = -1;
    e->kind = kind;
    e->place = place;
    e->hash = hash_of(kind, place, digest, digest_nbytes);
    e->look = *look;
    e->digest_nbytes = digest_nbytes;
    memcpy(e->digest, digest, digest_nbytes);
    memcpy(e->digest + digest_nbytes, path, path_nbytes);
    e->path = (const char *)e->digest + digest_nbytes;
    e->used_ns = now_ns();
    e->kept = 1;
    atomic_init(&e->refs, 1);
    if (kind == BT_ANSWER_MESSAGE) {
        uint8_t *to = e->digest + digest_nbytes + path_nbytes;
        if (nbytes > 0)
            memcpy(to, message, nbytes);
        e->answer.message = to;
        e->answer.nbytes = nbytes;
        e->weight = weight;
        return e;
    }
    e->weight = 1;
    e->answer.nbytes = look->size_nbytes;
    e->answer.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (e->answer.fd < 0) {
        free(e);
        return NULL;
    }
    return e;
}

int bt_answers_keep(bt_answers *a, int kind, uint32_t place, const uint8_t *digest, size_t digest_nbytes,
                    const char *path, const bt_look *look, const uint8_t *message, size_t nbytes, int fd)
{
    struct stat found;
    struct entry *e, *oldest;

    if ((kind != BT_ANSWER_MESSAGE && kind != BT_ANSWER_FILE) || place >= BT_H2_LISTENERS ||
        digest_nbytes > DIGEST_MAX_NBYTES || nbytes > BT_ANSWERS_MESSAGE_MAX_NBYTES)
        return BT_BAD_ARGUMENT;
    /* What is opened may be another file than the one that was looked at. */
    if (!is_same_state(a, look) || (kind == BT_ANSWER_FILE && (fstat(fd, &found) != 0 || !is_same_file(look, &found))))
        return BT_GONE;
    e = make(kind, place, digest, digest_nbytes, path, look, message, nbytes, fd);
    if (e == NULL)
        return BT_NO_MEMORY;
    if (e->weight > a->shelves[kind].weight_max) {
        free_entry(e);
        return BT_NO_SPACE;
    }
    pthread_mutex_lock(&a->lock);
    struct entry **slot = slot_of(a, kind, place, digest, digest_nbytes);
    if (*slot != NULL)
        drop(a, *slot);
    while ((oldest = a->shelves[kind].oldest) != NULL && a->shelves[kind].weight + e->weight > a->shelves[kind].weight_max)
        drop(a, oldest);
    e->next = a->buckets[e->hash % BUCKETS];
    a->buckets[e->hash % BUCKETS] = e;
    shelve(a, e);
    pthread_mutex_unlock(&a->lock);
    return BT_OK;
}

void bt_answers_forget(bt_answers *a, uint32_t place, const uint8_t *digest, size_t nbytes)
{
    pthread_mutex_lock(&a->lock);
    for (int kind = 0; kind < KINDS; kind++) {
        struct entry *e = *slot_of(a, kind, place, digest, nbytes);
        if (e != NULL)
            drop(a, e);
    }
    pthread_mutex_unlock(&a->lock);
}

/* A file that is kept open is not gone from the disk, even if its name is: what nobody asks for any more must not stay. */
void bt_answers_tidy(bt_answers *a)
{
    uint8_t state[BT_WAL_STATE_NBYTES];
    long long now = now_ns(), last = atomic_load(&a->tidied_ns);

    if (now - last < TIDY_NS || !atomic_compare_exchange_strong(&a->tidied_ns, &last, now))
        return;
    if (bt_wal_state(a->wal, state) != BT_OK)
        memset(state, 0, sizeof(state));
    pthread_mutex_lock(&a->lock);
    for (int kind = 0; kind < KINDS; kind++) {
        for (struct entry *e = a->shelves[kind].oldest, *newer; e != NULL; e = newer) {
            newer = e->newer;
            if (now - e->used_ns > IDLE_NS || memcmp(state, e->look.state, sizeof(state)) != 0)
                drop(a, e);
        }
    }
    pthread_mutex_unlock(&a->lock);
}

/* ---- counting ----------------------------------------------------------------------------------------------------- */

static void add(atomic_ullong *to, unsigned long long n) { atomic_fetch_add_explicit(to, n, memory_order_relaxed); }

void bt_answers_count(bt_answers *a, int kind, uint32_t place, int how, int64_t ns)
{
    struct tally *t = &a->tallies[place][kind];
    size_t i = 0;

    while (i < a->nbounds && a->bounds_ns[i] < ns)
        i++;
    add(how == ANSWERS_OK ? &t->ok : &t->cancelled, 1);
    add(&t->below[i], 1);
    add(&t->sum_ns, (unsigned long long)(ns > 0 ? ns : 0));
}

void bt_answers_count_opened(bt_answers *a, uint32_t place) { add(&a->tallies[place][BT_ANSWER_FILE].opened, 1); }

void bt_answers_count_sent(bt_answers *a, uint32_t place, size_t nbytes)
{
    add(&a->tallies[place][BT_ANSWER_FILE].sent_nbytes, nbytes);
}

int bt_answers_tally(bt_answers *a, int kind, uint32_t place, bt_answers_counts *counts)
{
    if (kind < 0 || kind >= KINDS || place >= BT_H2_LISTENERS)
        return BT_BAD_ARGUMENT;
    struct tally *t = &a->tallies[place][kind];
    counts->ok = atomic_load(&t->ok);
    counts->cancelled = atomic_load(&t->cancelled);
    counts->sum_ns = atomic_load(&t->sum_ns);
    counts->opened = atomic_load(&t->opened);
    counts->sent_nbytes = atomic_load(&t->sent_nbytes);
    for (size_t i = 0; i <= a->nbounds; i++)
        counts->within[i] = atomic_load(&t->below[i]);
    return BT_OK;
}

/* ---- life --------------------------------------------------------------------------------------------------------- */

bt_answers *bt_answers_new(const bt_wal *wal, size_t messages_nbytes, size_t files, int64_t fresh_ns,
                           const int64_t *bounds_ns, size_t nbounds)
{
    bt_answers *a = nbounds <= BT_ANSWERS_BOUNDS ? calloc(1, sizeof(*a)) : NULL;
    if (a == NULL)
        return NULL;
    a->wal = wal;
    a->shelves[BT_ANSWER_MESSAGE].weight_max = messages_nbytes;
    a->shelves[BT_ANSWER_FILE].weight_max = files;
    a->fresh_ns = fresh_ns;
    a->nbounds = nbounds;
    if (nbounds > 0)
        memcpy(a->bounds_ns, bounds_ns, nbounds * sizeof(*bounds_ns));
    pthread_mutex_init(&a->lock, NULL);
    return a;
}

void bt_answers_clear(bt_answers *a)
{
    pthread_mutex_lock(&a->lock);
    for (int kind = 0; kind < KINDS; kind++)
        while (a->shelves[kind].oldest != NULL)
            drop(a, a->shelves[kind].oldest);
    pthread_mutex_unlock(&a->lock);
}

void bt_answers_free(bt_answers *a)
{
    if (a == NULL)
        return;
    bt_answers_clear(a);
    pthread_mutex_destroy(&a->lock);
    free(a);
}
