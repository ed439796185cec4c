#define _GNU_SOURCE
#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
static inline void relax(void) { _mm_pause(); }
#else
static inline void relax(void) { __asm__ volatile("" ::: "memory"); }
#endif

enum { MAX_WORKERS = 255 };

/// Spinning this long (some 20 µs) bridges the gap between two nodes of a model; longer would burn CPU
/// that other processes want.
enum { SPINS = 4000 };

static struct {
    pthread_mutex_t region;      ///< held by whoever has the pool for a parallel region
    pthread_mutex_t lock;        ///< guards sleeping and waking
    pthread_cond_t wake;
    int num_workers;             ///< threads started
    atomic_int wanted;           ///< workers that should take part in the current region
    atomic_uint epoch;           ///< changes when a region opens
    atomic_int sleepers;
    atomic_int busy;             ///< workers inside the current region
    atomic_llong next;
    int64_t num_tasks;
    qrt_task_fn task;
    void *context;
} pool = {.region = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static pthread_once_t fork_hooks = PTHREAD_ONCE_INIT;

static void drain(qrt_task_fn task, void *context, int64_t num_tasks) {
    for (;;) {
        int64_t i = atomic_fetch_add_explicit(&pool.next, 1, memory_order_relaxed);
        if (i >= num_tasks) return;
        task(context, i);
    }
}

static void *work(void *argument) {
    int index = (int)(intptr_t)argument;
    unsigned seen = 0;
    for (;;) {
        int spins = 0;
        while (atomic_load_explicit(&pool.epoch, memory_order_acquire) == seen) {
            if (++spins < SPINS) { relax(); continue; }
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
            drain(pool.task, pool.context, pool.num_tasks);
        atomic_fetch_sub(&pool.busy, 1);
    }
    return NULL;
}

/// The child has none of the parent's threads; locks may have been held by one of them.
static void forget_threads(void) {
    pthread_mutex_init(&pool.region, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pool.num_workers = 0;
    atomic_store(&pool.wanted, 0);
    atomic_store(&pool.sleepers, 0);
    atomic_store(&pool.busy, 0);
    atomic_store(&pool.epoch, 0);
}

static void install_fork_hooks(void) { pthread_atfork(NULL, NULL, forget_threads); }

static void start_workers(int count) {
    pthread_once(&fork_hooks, install_fork_hooks);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    while (pool.num_workers < count && pool.num_workers < MAX_WORKERS) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, work, (void *)(intptr_t)pool.num_workers)) break;
        pool.num_workers++;
    }
    pthread_attr_destroy(&attributes);
}

void qrt_parallel_for(int num_threads, int64_t num_tasks, qrt_task_fn task, void *context) {
    if (num_threads > num_tasks) num_threads = (int)num_tasks;
    if (num_threads <= 1 || pthread_mutex_trylock(&pool.region)) {
        for (int64_t i = 0; i < num_tasks; i++) task(context, i);
        return;
    }
    if (pool.num_workers < num_threads - 1) start_workers(num_threads - 1);
    pool.task = task;
    pool.context = context;
    pool.num_tasks = num_tasks;
    atomic_store(&pool.next, 0);
    atomic_store(&pool.wanted, num_threads - 1);
    atomic_fetch_add(&pool.epoch, 1);
    if (atomic_load(&pool.sleepers)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.lock);
    }
    drain(task, context, num_tasks);
    // Close the region before waiting: a worker that comes late must find nothing to do.
    atomic_store(&pool.wanted, 0);
    while (atomic_load(&pool.busy)) relax();
    pthread_mutex_unlock(&pool.region);
}

static int from_environment(const char *name) {
    const char *text = getenv(name);
    int n = text ? atoi(text) : 0;
    return n > 0 ? n : 0;
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
#if defined(__linux__)
        cpu_set_t set;
        n = sched_getaffinity(0, sizeof set, &set) ? (int)sysconf(_SC_NPROCESSORS_ONLN) : CPU_COUNT(&set);
#else
        n = (int)sysconf(_SC_NPROCESSORS_ONLN);
#endif
        int quota = quota_cpus();
        if (quota && quota < n) n = quota;
    }
    return n < 1 ? 1 : n > MAX_WORKERS + 1 ? MAX_WORKERS + 1 : n;
}
