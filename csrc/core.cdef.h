/* What Python sees of blobtee.h. cffi compiles this against the real header, so a difference stops the build. */

enum bt_result {
    BT_OK, BT_BUSY, BT_BAD_ARGUMENT, BT_BAD_STATE, BT_TOO_LONG, BT_NOT_DRAINED, BT_NO_SPACE, BT_NO_MEMORY,
    BT_GONE, BT_END, BT_TIMED_OUT, BT_CLOSED,
    BT_TRUNCATED, BT_BAD_MAGIC, BT_BAD_METHOD, BT_BAD_FLAGS, BT_BAD_HEADER_CRC, BT_BAD_DEFLATE, BT_BAD_CRC,
    BT_BAD_ISIZE, BT_TRAILING_GARBAGE, BT_INTERNAL, BT_ERRNO, ...
};
const char *bt_strerror(int result);

#define BT_CPU_ALL ...
uint32_t bt_cpu_found(void);
uint32_t bt_cpu_allowed(void);
int bt_cpu_restrict(const char *words, size_t *bad_begin, size_t *bad_end);
const char *bt_cpu_word(uint32_t feature);

#define BT_SHA256_STATE_MAX_NBYTES ...
typedef struct bt_sha256 { ...; } bt_sha256;
void bt_sha256_init(bt_sha256 *h);
int bt_sha256_update(bt_sha256 *h, const uint8_t *in, size_t in_nbytes);
int bt_sha256_append(bt_sha256 *h, const uint8_t *in, size_t in_nbytes, uint8_t *digest);
int bt_sha256_update_many(bt_sha256 *const *h, const uint8_t *const *in, const size_t *in_nbytes, size_t n);
int bt_sha256_many(const uint8_t *const *in, const size_t *in_nbytes, size_t n, uint8_t *digests);
int bt_sha256_digest(bt_sha256 *h, uint8_t *digest);
int bt_sha256_copy(bt_sha256 *to, bt_sha256 *from);
int bt_sha256_nbytes(bt_sha256 *h, uint64_t *nbytes);
int bt_sha256_save(bt_sha256 *h, uint8_t *out);
int bt_sha256_restore(bt_sha256 *h, const uint8_t *in, size_t in_nbytes);
int bt_sha256_update_chained(bt_sha256 *h, const uint8_t *in, size_t in_nbytes, size_t every_nbytes, uint8_t *values);
int bt_sha256_chaining_value(bt_sha256 *h, uint8_t *value);
int bt_sha256_resume(bt_sha256 *h, const uint8_t *value, uint64_t nbytes);
const char *bt_sha256_path(void);
int bt_sha256_lanes(void);

uint32_t bt_crc32c(uint32_t value, const uint8_t *in, size_t in_nbytes);
void bt_crc32c_each(const uint8_t *in, size_t in_nbytes, size_t every_nbytes, uint8_t *values);
const char *bt_crc32c_path(void);

typedef struct bt_inflater bt_inflater;
typedef struct bt_inflate_info {
    uint64_t total_in_nbytes;
    uint64_t total_out_nbytes;
    uint64_t members;
    int finished;
    int needs_input;
    int failure;
    uint32_t crc;
    uint32_t member_nbytes;
    ...;
} bt_inflate_info;
bt_inflater *bt_inflate_alloc(void);
void bt_inflate_free(bt_inflater *z);
int bt_inflate(bt_inflater *z, const uint8_t *in, size_t in_nbytes, size_t *in_used_nbytes,
               uint8_t *out, size_t out_nbytes, size_t *out_used_nbytes);
int bt_inflate_finish(bt_inflater *z);
int bt_inflate_stat(bt_inflater *z, bt_inflate_info *info);

#define BT_GZPOINT_WINDOW_NBYTES ...
#define BT_GZPOINT_HEADER_NBYTES ...
#define BT_GZPOINT_AHEAD_NBYTES ...
#define BT_GZPOINT_MAX_SPACING ...
typedef struct bt_gzpoint {
    uint64_t in_nbytes;
    uint64_t out_nbytes;
    uint32_t crc;
    uint32_t member_nbytes;
    uint8_t nbits;
    uint8_t bits;
    uint32_t header_nbits;
    uint32_t window_nbytes;
    uint32_t ahead_nbytes;
    uint8_t ahead[...];
    uint8_t header[...];
    uint8_t window[...];
    ...;
} bt_gzpoint;
int bt_inflate_mark(bt_inflater *z, uint64_t spacing_nbytes);
int bt_inflate_point(bt_inflater *z, bt_gzpoint *point, int *found);
int bt_inflate_resume(bt_inflater *z, const bt_gzpoint *point);

#define BT_GZIP_MIN_LEVEL ...
#define BT_GZIP_MAX_LEVEL ...
typedef struct bt_gzipper bt_gzipper;
bt_gzipper *bt_gzip_alloc(int level);
void bt_gzip_free(bt_gzipper *g);
size_t bt_gzip_bound(size_t in_nbytes);
#define BT_GZIP_SIZED_MAX_NBYTES ...
int bt_gzip_member(bt_gzipper *g, const uint8_t *in, size_t in_nbytes,
                   uint8_t *out, size_t out_nbytes, int sized, size_t *member_nbytes);

typedef struct bt_gunzipper bt_gunzipper;
bt_gunzipper *bt_gunzip_alloc(void);
void bt_gunzip_free(bt_gunzipper *g);
int bt_gunzip_member(bt_gunzipper *g, const uint8_t *in, size_t in_nbytes, uint8_t *out, size_t out_nbytes);

#define BT_TAR_COLUMNS ...
#define BT_TAR_MORE ...
typedef struct bt_tar_batch {
    int64_t *numbers;
    size_t capacity;
    uint8_t *text;
    size_t text_nbytes;
    uint8_t *owners;
    size_t owners_nbytes;
    size_t nentries, text_used, owners_used;
    uint64_t next;
    ...;
} bt_tar_batch;
int bt_tar_scan(const uint8_t *in, size_t in_nbytes, bt_tar_batch *batch);

typedef struct bt_wal bt_wal;
#define BT_WAL_STATE_NBYTES ...
bt_wal *bt_wal_watch(uintptr_t mapped);
int bt_wal_state(const bt_wal *w, uint8_t *state);
void bt_wal_end(bt_wal *w);
void bt_wal_free(bt_wal *w);

#define BT_H2_LISTENERS ...
#define BT_ANSWERS_BOUNDS ...
#define BT_ANSWERS_MESSAGE_MAX_NBYTES ...
#define BT_ANSWER_MESSAGE ...
#define BT_ANSWER_FILE ...
typedef struct bt_answers bt_answers;
typedef struct bt_look {
    uint64_t size_nbytes;
    ...;
} bt_look;
typedef struct bt_answers_counts {
    uint64_t ok, cancelled;
    uint64_t within[...];
    uint64_t sum_ns;
    uint64_t opened;
    uint64_t sent_nbytes;
    ...;
} bt_answers_counts;
bt_answers *bt_answers_new(const bt_wal *wal, size_t messages_nbytes, size_t files, int64_t fresh_ns,
                           const int64_t *bounds_ns, size_t nbounds);
void bt_answers_free(bt_answers *a);
int bt_answers_look(bt_answers *a, const char *path, bt_look *look);
int bt_answers_keep(bt_answers *a, int kind, uint32_t place, const uint8_t *digest, size_t digest_nbytes,
                    const char *path, const bt_look *look, const uint8_t *message, size_t nbytes, int fd);
void bt_answers_forget(bt_answers *a, uint32_t place, const uint8_t *digest, size_t nbytes);
void bt_answers_clear(bt_answers *a);
int bt_answers_tally(bt_answers *a, int kind, uint32_t place, bt_answers_counts *counts);

#define BT_H2_CALL ...
#define BT_H2_ENDED ...
typedef struct bt_h2 bt_h2;
typedef struct bt_h2_call bt_h2_call;
typedef struct bt_h2_limits {
    size_t message_nbytes;
    size_t buffered_nbytes;
    uint32_t connections;
    uint32_t handshake_ms;
    uint32_t stall_ms;
    ...;
} bt_h2_limits;
typedef struct bt_h2_event {
    int kind;
    bt_h2_call *call;
    int method;
    uint32_t place;
    unsigned waiting;
    ...;
} bt_h2_event;
typedef struct bt_h2_stats {
    size_t buffered_nbytes;
    uint32_t connections;
    unsigned calls;
    uint64_t refused;
    ...;
} bt_h2_stats;
bt_h2 *bt_h2_new(const bt_h2_limits *limits);
void bt_h2_free(bt_h2 *s);
int bt_h2_method(bt_h2 *s, const char *path, int is_light);
void bt_h2_answer(bt_h2 *s, bt_answers *a, int info, int read, size_t piece_nbytes);
int bt_h2_listen(bt_h2 *s, int fd, uint32_t place, uint32_t max_calls);
int bt_h2_next(bt_h2 *s, int timeout_ms, unsigned keep, bt_h2_event *event);
void bt_h2_expect(bt_h2 *s, int threads);
void bt_h2_drain(bt_h2 *s);
int bt_h2_wait_idle(bt_h2 *s, int timeout_ms, int and_connections);
void bt_h2_stop(bt_h2 *s);
void bt_h2_stat(bt_h2 *s, bt_h2_stats *stats);
int bt_h2_take(bt_h2_call *k, const uint8_t **message, size_t *nbytes);
int bt_h2_send(bt_h2_call *k, const uint8_t *message, size_t nbytes, int is_last);
int bt_h2_exchange(bt_h2_call *k, const uint8_t *message, size_t nbytes, const uint8_t **next, size_t *next_nbytes);
int bt_h2_send_file(bt_h2_call *k, const uint8_t *head, size_t head_nbytes, int fd, uint64_t offset, size_t nbytes,
                    int is_last);
int bt_h2_is_active(bt_h2_call *k);
int bt_h2_watch(bt_h2_call *k);
size_t bt_h2_metadata(bt_h2_call *k, const char **metadata);
void bt_h2_end(bt_h2_call *k, int status, const char *text);
void bt_h2_release(bt_h2_call *k);
void bt_h2_told(bt_h2_call *k);

void bt_huddle(void);
void bt_spread(void);

typedef struct { const char *name; const uint8_t *data; size_t nbytes, before_nbytes; } bt_small_file;
int bt_begin_folder(const char *folder, const char *spare, const bt_small_file *files, size_t nfiles, const char *data);
void bt_settle_files(const char *paths, size_t npaths, int rights, int64_t stale_ns);
typedef struct bt_sync_job bt_sync_job;
typedef struct { int fd, is_over, result; bt_sync_job *job; } bt_sync;
void bt_sync_begin(bt_sync *s);
int bt_sync_wait(bt_sync *s);

const char *bt_isal_version(void);
const char *bt_libdeflate_version(void);
const char *bt_nghttp2_version(void);
