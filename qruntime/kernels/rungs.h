/// Overlays of each rung, one function per family: `qrt_<rung>_<family>` fills its part of the table.
#ifndef QRT_RUNGS_H
#define QRT_RUNGS_H

#include "kernels.h"

void qrt_portable_gemm_q8(qrt_kernel_table *t);
void qrt_portable_gemm_nbits_q8(qrt_kernel_table *t);
void qrt_avx2_gemm_nbits_q8(qrt_kernel_table *t);
void qrt_avx_vnni_gemm_nbits_q8(qrt_kernel_table *t);
void qrt_avx512vnni_gemm_nbits_q8(qrt_kernel_table *t);
void qrt_neon_gemm_nbits_q8(qrt_kernel_table *t);
void qrt_neon_dotprod_gemm_nbits_q8(qrt_kernel_table *t);

void qrt_portable_gemm_clusters(qrt_kernel_table *t);
void qrt_avx2_gemm_clusters(qrt_kernel_table *t);
void qrt_avx_vnni_gemm_clusters(qrt_kernel_table *t);
void qrt_avx512vnni_gemm_clusters(qrt_kernel_table *t);
void qrt_neon_gemm_clusters(qrt_kernel_table *t);
void qrt_neon_dotprod_gemm_clusters(qrt_kernel_table *t);

void qrt_portable_gemm_f32(qrt_kernel_table *t);
void qrt_portable_gemm_f64(qrt_kernel_table *t);
void qrt_portable_gemm_nbits(qrt_kernel_table *t);
void qrt_portable_attention(qrt_kernel_table *t);
void qrt_avx2_gemm_f32(qrt_kernel_table *t);
void qrt_avx2_gemm_f64(qrt_kernel_table *t);
void qrt_avx2_gemm_nbits(qrt_kernel_table *t);
void qrt_avx2_attention(qrt_kernel_table *t);
void qrt_avx512_gemm_f32(qrt_kernel_table *t);
void qrt_avx512_gemm_f64(qrt_kernel_table *t);
void qrt_avx2_gemm_q8(qrt_kernel_table *t);
void qrt_avx_vnni_gemm_q8(qrt_kernel_table *t);
void qrt_avx512vnni_gemm_q8(qrt_kernel_table *t);
void qrt_amx_gemm_q8(qrt_kernel_table *t);
void qrt_portable_pointwise(qrt_kernel_table *table);
void qrt_avx2_pointwise(qrt_kernel_table *table);
void qrt_avx512_pointwise(qrt_kernel_table *table);

void qrt_portable_column_sums(qrt_kernel_table *t);
void qrt_avx2_column_sums(qrt_kernel_table *t);
void qrt_avx512_column_sums(qrt_kernel_table *t);

void qrt_portable_dft(qrt_kernel_table *t);
void qrt_avx2_dft(qrt_kernel_table *t);
void qrt_avx512_dft(qrt_kernel_table *t);

void qrt_portable_conv_f32(qrt_kernel_table *t);
void qrt_avx2_conv_f32(qrt_kernel_table *t);
void qrt_avx512_conv_f32(qrt_kernel_table *t);
void qrt_neon_conv_f32(qrt_kernel_table *t);
void qrt_portable_conv_q8(qrt_kernel_table *t);
void qrt_avx2_conv_q8(qrt_kernel_table *t);
void qrt_avx512_conv_q8(qrt_kernel_table *t);
void qrt_neon_conv_q8(qrt_kernel_table *t);

void qrt_portable_gram(qrt_kernel_table *t);
void qrt_avx2_gram(qrt_kernel_table *t);
void qrt_avx_vnni_gram(qrt_kernel_table *t);
void qrt_avx512_gram(qrt_kernel_table *t);
void qrt_avx512vnni_gram(qrt_kernel_table *t);
void qrt_neon_gram(qrt_kernel_table *t);

void qrt_portable_outlier_pairs(qrt_kernel_table *t);
void qrt_avx2_outlier_pairs(qrt_kernel_table *t);
void qrt_avx512_outlier_pairs(qrt_kernel_table *t);

void qrt_portable_rows(qrt_kernel_table *table);
void qrt_avx2_rows(qrt_kernel_table *table);
void qrt_avx512_rows(qrt_kernel_table *table);
void qrt_portable_rnn(qrt_kernel_table *t);
void qrt_avx2_rnn(qrt_kernel_table *t);
void qrt_avx512_rnn(qrt_kernel_table *t);
void qrt_avx512_gemm_nbits(qrt_kernel_table *t);
void qrt_avx512bf16_gemm_nbits(qrt_kernel_table *t);
void qrt_avx512_attention(qrt_kernel_table *t);
void qrt_avx_vnni_attention(qrt_kernel_table *t);
void qrt_avx512vnni_attention(qrt_kernel_table *t);
void qrt_portable_code_grid(qrt_kernel_table *t);
void qrt_avx2_code_grid(qrt_kernel_table *t);
void qrt_avx512_code_grid(qrt_kernel_table *t);
void qrt_portable_cache_codes(qrt_kernel_table *t);
void qrt_avx2_cache_codes(qrt_kernel_table *t);
void qrt_avx512_cache_codes(qrt_kernel_table *t);
void qrt_portable_qlinear(qrt_kernel_table *t);
void qrt_avx2_qlinear(qrt_kernel_table *t);
void qrt_avx512_qlinear(qrt_kernel_table *t);
void qrt_avx512vnni_qlinear(qrt_kernel_table *t);

void qrt_neon_gemm_f32(qrt_kernel_table *t);
void qrt_neon_gemm_f64(qrt_kernel_table *t);
void qrt_neon_gemm_q8(qrt_kernel_table *t);
void qrt_neon_dotprod_gemm_q8(qrt_kernel_table *t);
void qrt_neon_pointwise(qrt_kernel_table *t);
void qrt_neon_rows(qrt_kernel_table *t);
void qrt_neon_rnn(qrt_kernel_table *t);
void qrt_neon_gemm_nbits(qrt_kernel_table *t);
void qrt_neon_qlinear(qrt_kernel_table *t);
void qrt_neon_attention(qrt_kernel_table *t);

#endif
