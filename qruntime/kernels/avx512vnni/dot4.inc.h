/// vpdpbusd and vpdpwssd of 512 bits. Inside the region of simd_avx512.h, which needs no further target for what is written by hand.

#ifndef QRT_EMULATE_VNNI
static inline vi vi_dot4(vi acc, vi codes, vi weights) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(codes), "vm"(weights));
    return acc;
}
static inline vi vi_dot2(vi acc, vi a, vi b) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "vm"(b));
    return acc;
}
#endif
