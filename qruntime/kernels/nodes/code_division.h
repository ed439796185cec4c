/// How a product of codes and packed weights is divided among threads.
#ifndef QRT_CODE_DIVISION_H
#define QRT_CODE_DIVISION_H

#include "../gemm_q8.h"
#include "convolution.h"

/// Blocks of lines, nearly equal, times runs of panels. Unit u is block u % blocks of run u / blocks.
typedef struct {
    int64_t lines, blocks, panels, runs;  ///< panels of a run
} qrt_code_division;

enum { QRT_BLOCKS_PER_THREAD = 4 };

/// For `lines` lines, `most_lines` of which share a panel while it is in the cache. `codes_bytes` are those of all lines. Panels are
/// divided where `has_runs` allows it.
///
/// Each block reads all weights of its run, each run all codes of its block. Whoever has all panels finds in the cache what it made of
/// its lines one node earlier, so that runs must save more than a little.
static inline qrt_code_division qrt_divide_codes(const qrt_q8_weights *w, int threads, int64_t lines, int64_t most_lines, int64_t codes_bytes,
                                                 bool has_runs) {
    enum { KEPT_BYTES = 3 << 17, UNITS_PER_THREAD = 8 };
    const int64_t least = qrt_max(1, qrt_ceil_div(lines, qrt_max(1, most_lines))), weight_bytes = w->num_panels * w->panel_bytes;
    const double by_blocks = (double)weight_bytes * (double)(weight_bytes > KEPT_BYTES ? qrt_max(least, threads) : threads) + (double)codes_bytes;
    const double by_runs = (double)codes_bytes * (double)(codes_bytes > KEPT_BYTES ? w->num_panels : threads) + (double)weight_bytes;
    qrt_code_division d = {lines, least, w->num_panels, 1};
    if (has_runs && w->num_panels > 1 && 1.5 * by_runs < by_blocks) {
        d.panels = 1;
        d.runs = w->num_panels;
        if (threads > 1) d.blocks = qrt_max(least, qrt_min(lines, qrt_ceil_div(UNITS_PER_THREAD * (int64_t)threads, d.runs)));
    } else if (threads > 1) {
        const int64_t wanted = qrt_max(least, QRT_BLOCKS_PER_THREAD * (int64_t)threads);
        d.blocks = qrt_max(1, qrt_min(lines, qrt_ceil_div(wanted, threads) * threads));
    }
    return d;
}

/// Tasks that share the units of `groups` such products evenly where each of them needs room.
static inline int64_t qrt_tasks_of(const qrt_code_division *d, int threads, int64_t groups) {
    const int64_t units = groups * d->blocks * d->runs;
    return d->runs > 1 ? units : qrt_min(units, threads > 1 ? QRT_BLOCKS_PER_THREAD * (int64_t)threads : 1);
}

/// The first line of a block, or their number for the one behind the last.
static inline int64_t qrt_block_begin(const qrt_code_division *d, int64_t block) {
    return d->lines / d->blocks * block + d->lines % d->blocks * block / d->blocks;
}

#endif
