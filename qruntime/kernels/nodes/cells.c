#include "cells.h"

#include <math.h>
#include <string.h>

enum { F, G, H };

#define REAL float
#define CELL(name) name
#define ACTIVATIONS qrt_activations
#define LSTM_OPTIONS qrt_lstm_options
#define LIMIT qrt_kernels.pointwise.unary[QRT_CLIP]
#include "cells.inc.h"
#undef REAL
#undef CELL
#undef ACTIVATIONS
#undef LSTM_OPTIONS
#undef LIMIT

#define REAL double
#define CELL(name) name##_f64
#define ACTIVATIONS qrt_activations_f64
#define LSTM_OPTIONS qrt_lstm_options_f64
#define LIMIT qrt_kernels.pointwise.unary_f64[QRT_CLIP]
#include "cells.inc.h"
