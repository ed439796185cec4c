/// Products of panels of codes in plain C.
#include "../rungs.h"

static void gram_panels(const int16_t *a, const int16_t *b, int64_t *sums) {
    for (int i = 0; i < QRT_GRAM_PANEL; i++, sums += QRT_GRAM_PANEL) {
        int32_t row[QRT_GRAM_PANEL] = {0};
        for (int t = 0; t < QRT_GRAM_ROWS / 2; t++) {
            const int16_t *pair = a + (t * QRT_GRAM_PANEL + i) * 2, *other = b + t * QRT_GRAM_PANEL * 2;
            for (int j = 0; j < QRT_GRAM_PANEL; j++) row[j] += pair[0] * other[2 * j] + pair[1] * other[2 * j + 1];
        }
        for (int j = 0; j < QRT_GRAM_PANEL; j++) sums[j] += row[j];
    }
}

void qrt_portable_gram(qrt_kernel_table *t) { t->gram = (qrt_gram){gram_panels}; }
