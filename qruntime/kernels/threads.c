#define _GNU_SOURCE
#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
static inline void relax(void) { _mm_pause(); }
#else
static inline void relax(void) { __asm__ volatile("" ::: "memory"); }
#endif

enum { MAX_WORKERS = 255 };

/// Spinning this long bridges the gap between two nodes of a model; longer would burn CPU that other threads want.
enum { SPIN_NS = 50000, YIELD_NS = 5000, SPINS_BEFORE_YIELD = 1000 };

static struct {
    pthread_mutex_t region;      ///< held by whoever has the pool for a parallel region
    pthread_mutex_t lock;        ///< guards sleeping and waking
    pthread_cond_t wake;
    atomic_int num_workers;      ///< threads started
    int num_cpus;                ///< more threads than these would only take CPUs from each other
    atomic_int wanted;           ///< workers that should take part in the current region
    atomic_uint epoch;           ///< changes when a region opens
    atomic_int sleepers;
    atomic_int busy;             ///< workers inside the current region
    atomic_llong unshared_end;   ///< when small work that met sleeping workers last ended
    int64_t num_tasks;
    int num_shares;
    qrt_task_fn task;
    void *context;
} pool = {.region = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

/// The tasks are cut into a share for each thread, which begins with its own and then helps with those of others: so a thread
/// finds in its cache what it made of the same share one node earlier. A line of the cache for each.
static struct {
    _Alignas(64) atomic_llong next;
} shares[MAX_WORKERS + 1];

static pthread_once_t prepared = PTHREAD_ONCE_INIT;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/// Spin while `*value` is `unwanted`; false when SPIN_NS pass. A pause takes 10 to 150 cycles, so the clock decides.
static bool spin_while(const atomic_uint *value, unsigned unwanted) {
    int64_t start = now_ns(), waited = 0;
    do {
        for (int i = 0; i < 32; i++) {
            if (atomic_load_explicit(value, memory_order_acquire) != unwanted) return true;
            relax();
        }
        // Where the thread that opens regions shares this CPU, it would wait for the end of the spinning.
        if (waited > YIELD_NS) sched_yield();
        waited = now_ns() - start;
    } while (waited < SPIN_NS);
    return false;
}

static int64_t share_begin(int64_t num_tasks, int num_shares, int share) {
    return num_tasks / num_shares * share + (num_tasks % num_shares < share ? num_tasks % num_shares : share);
}

static void drain(int own, qrt_task_fn task, void *context, int64_t num_tasks, int num_shares) {
    for (int i = 0; i < num_shares; i++) {
        const int share = (own + i) % num_shares;
        const int64_t end = share_begin(num_tasks, num_shares, share + 1);
        while (atomic_load_explicit(&shares[share].next, memory_order_relaxed) < end) {
            int64_t next = atomic_fetch_add_explicit(&shares[share].next, 1, memory_order_relaxed);
            if (next >= end) break;
            task(context, next);
        }
    }
}

static void *work(void *argument) {
    int index = (int)(intptr_t)argument;
    unsigned seen = 0;
    for (;;) {
        if (!spin_while(&pool.epoch, seen)) {
            pthread_mutex_lock(&pool.lock);
            atomic_fetch_add(&pool.sleepers, 1);
            while (atomic_load(&pool.epoch) == seen) pthread_cond_wait(&pool.wake, &pool.lock);
            atomic_fetch_sub(&pool.sleepers, 1);
            pthread_mutex_unlock(&pool.lock);
        }
        seen = atomic_load_explicit(&pool.epoch, memory_order_acquire);
        // Enter first, then look whether the region is still open: it closes only when nobody is inside.
        atomic_fetch_add(&pool.busy, 1);
        if (atomic_load(&pool.epoch) == seen && index < atomic_load(&pool.wanted))
            drain(index + 1, pool.task, pool.context, pool.num_tasks, pool.num_shares);
        atomic_fetch_sub(&pool.busy, 1);
    }
    return NULL;
}

/// The child has none of the parent's threads; locks may have been held by one of them.
static void forget_threads(void) {
    pthread_mutex_init(&pool.region, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    atomic_store(&pool.num_workers, 0);
    atomic_store(&pool.wanted, 0);
    atomic_store(&pool.sleepers, 0);
    atomic_store(&pool.busy, 0);
    atomic_store(&pool.epoch, 0);
}

static int usable_cpus(pid_t thread) {
#if defined(__linux__)
    cpu_set_t set;
    if (!sched_getaffinity(thread, sizeof set, &set)) return CPU_COUNT(&set);
#else
    (void)thread;
#endif
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
}

static void prepare_pool(void) {
    pthread_atfork(NULL, NULL, forget_threads);
    int cpus = usable_cpus(getpid());
    pool.num_cpus = cpus < MAX_WORKERS + 1 ? cpus : MAX_WORKERS + 1;
}

static void start_workers(int count) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    while (pool.num_workers < count) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, work, (void *)(intptr_t)pool.num_workers)) break;
        pool.num_workers++;
    }
    pthread_attr_destroy(&attributes);
}

void qrt_parallel_for(int num_threads, int64_t num_tasks, qrt_task_fn task, void *context) {
    pthread_once(&prepared, prepare_pool);
    if (num_threads > pool.num_cpus) num_threads = pool.num_cpus;
    if (num_threads > num_tasks) num_threads = (int)num_tasks;
    if (num_threads <= 1 || pthread_mutex_trylock(&pool.region)) {
        for (int64_t i = 0; i < num_tasks; i++) task(context, i);
        return;
    }
    if (pool.num_workers < num_threads - 1) start_workers(num_threads - 1);
    pool.task = task;
    pool.context = context;
    pool.num_tasks = num_tasks;
    pool.num_shares = num_threads;
    for (int i = 0; i < num_threads; i++) atomic_store_explicit(&shares[i].next, share_begin(num_tasks, num_threads, i), memory_order_relaxed);
    atomic_store(&pool.wanted, num_threads - 1);
    atomic_fetch_add(&pool.epoch, 1);
    if (atomic_load(&pool.sleepers)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.lock);
    }
    drain(0, task, context, num_tasks, num_threads);
    // Close the region before waiting: a worker that comes late must find nothing to do.
    atomic_store(&pool.wanted, 0);
    // A worker may have lost its CPU within a task: after a while it is offered this one.
    for (int spins = 0; atomic_load(&pool.busy); spins++) {
        if (spins < SPINS_BEFORE_YIELD) relax();
        else sched_yield();
    }
    pthread_mutex_unlock(&pool.region);
}

bool qrt_threads_are_warm(void) {
    if (atomic_load(&pool.num_workers) && !atomic_load(&pool.sleepers)) return true;
    return now_ns() - atomic_load(&pool.unshared_end) < SPIN_NS;
}

void qrt_unshared_work_ended(void) { atomic_store(&pool.unshared_end, now_ns()); }

static int from_environment(const char *name) {
    const char *text = getenv(name);
    long n = text ? strtol(text, NULL, 10) : 0;
    return n < 1 ? 0 : n > MAX_WORKERS + 1 ? MAX_WORKERS + 1 : (int)n;
}

/// CPUs that the cgroup quota allows, rounded up; 0 when there is no quota.
static int quota_cpus(void) {
    long long quota = 0, period = 0;
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (file) {
        int fields = fscanf(file, "%lld %lld", &quota, &period);
        fclose(file);
        if (fields != 2) return 0;
    } else {
        file = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r");
        if (!file) return 0;
        int fields = fscanf(file, "%lld", &quota);
        fclose(file);
        FILE *periods = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r");
        if (!periods) return 0;
        fields += fscanf(periods, "%lld", &period);
        fclose(periods);
        if (fields != 2) return 0;
    }
    return quota > 0 && period > 0 ? (int)((quota + period - 1) / period) : 0;
}

int qrt_default_threads(void) {
    int n = from_environment("QRUNTIME_NUM_THREADS");
    if (!n) n = from_environment("OMP_NUM_THREADS");
    if (!n) {
        n = usable_cpus(0);
        int quota = quota_cpus();
        if (quota && quota < n) n = quota;
    }
    return n < 1 ? 1 : n > MAX_WORKERS + 1 ? MAX_WORKERS + 1 : n;
}
