/// vpdpbusd and vpdpwssd of 256 bits. Inside a region of AVX2.

/// By hand, so that compilers without the target avxvnni do. {vex}: the other encoding is AVX-512's.
#ifndef QRT_EMULATE_VNNI
static inline vi vi_dot4(vi acc, vi codes, vi weights) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(codes), "xm"(weights));
    return acc;
}
static inline vi vi_dot2(vi acc, vi a, vi b) {
    __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(acc) : "x"(a), "xm"(b));
    return acc;
}
#endif
