/// A batch item by item: steps of a plan that act on each item of the first dimension by itself run one after the other for
/// one item, then for the next.
///
/// What a step hands to the next is still in the cache then, whatever the batch, and threads take items of their own instead
/// of waiting for each other after every step. The bits are those of the batch as a whole, for no kernel lets items see each other.
#ifndef QRT_BY_ITEMS_H
#define QRT_BY_ITEMS_H

#include "nodes.h"

/// A node bound to slots.
typedef struct {
    qrt_node node;
    qrt_node_fn fn;       ///< NULL: only its definition can run
    int first_input;      ///< into arrays of input pointers
    int first_output;     ///< slot; the outputs of a node are adjacent
    int first_release;    ///< into the array of slots to release
    int num_releases;
    bool widens;          ///< fn also stands for its operator in narrower floats
    bool declined;        ///< the kernel did, when the step last ran
    bool is_itemwise;     ///< item i of its outputs depends on item i of its inputs that are no constants, and on no other item
    size_t weight_bytes;  ///< of the packed weights that it reads
} qrt_step;

/// The steps of a plan.
typedef struct {
    const qrt_step *steps;
    const int *input_refs;    ///< slot of each input, −1 for an absent one
    const int *releases;
    const char *is_constant;  ///< by slot
    int num_slots, num_input_refs;
} qrt_steps;

/// What a thread needs to run items: slots and free buffers.
typedef struct {
    qrt_run run;
    qrt_tensor *slots;
    const qrt_tensor **inputs;
    char *states;  ///< by slot
    int count;     ///< how many steps its first item took
} qrt_lane;

/// The lanes of a frame, made when first needed. Starts as zeros.
typedef struct {
    qrt_lane *lanes;
    int count;
} qrt_lanes;

/// Asked by the calling thread between items, about twenty times a second: another answer than 0 ends the run.
typedef struct {
    int (*is_wanted)(void *context);
    void *context;
} qrt_interrupt;

/// Runs the steps order[0], order[1], … on the tensors in `slots` item by item as far as that pays, and returns how many: their results
/// are in `slots`, and what they release is still there. 0 when nothing was done: the caller then runs the first one as any other.
/// −1 when it was interrupted, and nothing is left of it.
int qrt_run_by_items(const qrt_steps *plan, const int *order, int count, qrt_run *run, qrt_tensor *slots, qrt_lanes *lanes,
                     const qrt_interrupt *interrupt);

/// Bytes of the free buffers of all lanes.
size_t qrt_lanes_free_bytes(const qrt_lanes *lanes);
void qrt_lanes_clear(qrt_lanes *lanes);

#endif
