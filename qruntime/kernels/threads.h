/// One process-wide pool of plain threads.
#ifndef QRT_THREADS_H
#define QRT_THREADS_H

#include <stdbool.h>
#include <stdint.h>

typedef void (*qrt_task_fn)(void *context, int64_t task);

/// Run tasks 0 … num_tasks-1, each exactly once, on at most `num_threads` threads (the caller
/// included) and as there are CPUs, and return when all are done. Results must not depend on which thread runs a task.
/// Runs everything in the caller when num_threads is 1, when there is one task, or when another
/// parallel region is under way (so concurrent runs never wait for each other).
void qrt_parallel_for(int num_threads, int64_t num_tasks, qrt_task_fn task, void *context);

/// Whether small work is worth sharing: other threads are awake, or unshared work ended a moment ago, so that more will
/// follow and waking them pays.
bool qrt_threads_are_warm(void);
/// Small work that was not shared, because threads were not warm, has ended.
void qrt_unshared_work_ended(void);

/// Threads to use by default: QRUNTIME_NUM_THREADS, else OMP_NUM_THREADS, else the CPUs that affinity
/// and cgroup quota leave to this process.
int qrt_default_threads(void);

#endif
