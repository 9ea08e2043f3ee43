/* wal.c - whether a SQLite database in WAL mode has changed, without asking SQLite.
 *
 * Each commit, by whatever process, writes a new header into the database's WAL index, which all processes that have it
 * open share in memory; SQLite's own readers compare that header with the one they know (sqlite.org/walformat.html,
 * section 2.1: two copies of 48 bytes, the second of which is written first). So does this.
 *
 * The memory is reached through SQLite's own mapping, never through the file: closing a descriptor of the file would take
 * all of this process's locks on it away (fcntl(2)), and SQLite's are among them. */
#define _GNU_SOURCE
#include "blobtee.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { WORDS = BT_WAL_STATE_NBYTES / 8, AT_INITIALIZED = 12 };
#define VERSION 3007000u

struct bt_wal {
    const uint64_t *index;
    size_t nbytes;
    atomic_int ended;
};

int bt_wal_state(const bt_wal *w, uint8_t *state)
{
    uint64_t first[WORDS], second[WORDS];
    uint32_t version;

    for (int i = 0; i < WORDS; i++)
        first[i] = __atomic_load_n(&w->index[i], __ATOMIC_RELAXED);
    atomic_thread_fence(memory_order_acquire);
    for (int i = 0; i < WORDS; i++)
        second[i] = __atomic_load_n(&w->index[WORDS + i], __ATOMIC_RELAXED);
    memcpy(&version, first, sizeof(version));
    /* Asked last: whoever ends it does so while the memory is still SQLite's. */
    atomic_thread_fence(memory_order_acquire);
    if (memcmp(first, second, sizeof(first)) != 0 || version != VERSION || ((uint8_t *)first)[AT_INITIALIZED] == 0 ||
        atomic_load(&w->ended))
        return BT_GONE;
    memcpy(state, first, sizeof(first));
    return BT_OK;
}

bt_wal *bt_wal_watch(uintptr_t mapped)
{
    bt_wal *w = calloc(1, sizeof(*w));
    uint8_t state[BT_WAL_STATE_NBYTES];
    long page = sysconf(_SC_PAGESIZE);

    if (w == NULL)
        return NULL;
    atomic_init(&w->ended, 0);
    w->nbytes = (size_t)page;
    /* A second mapping of the same pages (mremap(2), an old size of 0), which stays when SQLite's goes. */
    void *index = mremap((void *)mapped, 0, w->nbytes, MREMAP_MAYMOVE);
    if (index == MAP_FAILED) {
        free(w);
        return NULL;
    }
    w->index = index;
    if (mprotect(index, w->nbytes, PROT_READ) != 0 || bt_wal_state(w, state) != BT_OK) {
        bt_wal_free(w);
        return NULL;
    }
    return w;
}

void bt_wal_end(bt_wal *w) { atomic_store(&w->ended, 1); }

void bt_wal_free(bt_wal *w)
{
    if (w == NULL)
        return;
    munmap((void *)(uintptr_t)w->index, w->nbytes);
    free(w);
}
