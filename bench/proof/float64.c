/* The float64 σ of kernels/formulas.py in C, operation for operation, and its error on a sample of windows.
 *
 * float64 WINDOWS  sweep WINDOWS windows of neighbouring numbers, print the findings as JSON
 * float64 eval K   read float64 values, write σ of each, the float32 reciprocal being off by K ulp
 */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if LDBL_MANT_DIG < 64
#error "the reference needs a long double wider than double"
#endif

#define WINDOW 4096
#define COMPARED 16 /* one in so many inputs is compared with the reference */

static inline double double_of(uint64_t bits) { double x; memcpy(&x, &bits, 8); return x; }
static inline uint64_t bits_of(double x) { uint64_t bits; memcpy(&bits, &x, 8); return bits; }

/* 1/x, off by ``off`` ulp. */
static inline float reciprocal32(float x, int off)
{
    float reciprocal = 1.0f / x;
    uint32_t bits;
    memcpy(&bits, &reciprocal, 4);
    bits += (uint32_t)off;
    memcpy(&reciprocal, &bits, 4);
    return reciprocal;
}

/* Names and order as in _sigmoid_float64. ``denominator``: whose reciprocal was taken. */
static inline double sigmoid(double x, int off, float *denominator)
{
    const double scale = 0x1p-100;
    x = x < -746.0 ? -746.0 : x; /* false for NaN, which stays */
    x = x > 40.0 ? 40.0 : x;
    double shifted = fma(x, -0x1.71547652b82fep+0, 0x1.8p+52);
    double g = fma(x, 0x1.fffffffe66d25p-1, fma(shifted, 0x1.62e42fee88p-1, -0x1.0a2b23f2e6p+52));
    double power = double_of((bits_of(shifted) << 52) + 0x39B0000000000000u);
    double w = fma(g, 0x1.1f1a6d92cf9c4p-29, -0x1.af7812c4c395cp-26);
    w = fma(w, g, 0x1.27e516115448ap-22);
    w = fma(w, g, -0x1.71dde7a7e2cdfp-19);
    w = fma(w, g, 0x1.a01a019579f80p-16);
    w = fma(w, g, -0x1.a01a01c0ff705p-13);
    w = fma(w, g, 0x1.6c16c172ed7c7p-10);
    w = fma(w, g, -0x1.1111111550e29p-7);
    w = fma(w, g, 0x1.5555555998792p-5);
    w = fma(w, g, -0x1.5555555887b18p-3);
    w = fma(w, g, 0x1.00000001992dbp-1);
    w = fma(w, g, -0x1.992dafcb90ee5p-33);
    double power_g = power * g;
    double p = double_of(bits_of(power + scale) & ~(uint64_t)0xFFFFFF);
    double rest = fma(power_g, w, scale - (p - power));
    double normalizer = double_of(0x7FE0000000000000u - (bits_of(p) & 0x7FF0000000000000u));
    *denominator = (float)((p + (rest - power_g)) * normalizer);
    double reciprocal = (double)reciprocal32(*denominator, off) * normalizer;
    double residual = fma(-reciprocal, rest, fma(reciprocal, power_g, fma(-reciprocal, p, 1.0)));
    return fma(reciprocal, fma(residual, residual, residual), reciprocal) * scale;
}

static uint64_t random_state;

/* splitmix64: the same windows on every machine. */
static uint64_t random_bits(void)
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static double between(double low, double high) { return low + (high - low) * (double)(random_bits() >> 11) * 0x1p-53; }

enum { EVERYWHERE, NEAR_0, EACH_BINADE, WHERE_N_CHANGES, WHERE_RECIPROCAL_CHANGES, SUBNORMAL, SATURATED, KINDS };
static const char *const KIND_NAMES[KINDS] = {
    "x in [-746, 40]", "|x| < 1.5", "each binade of x", "where n changes", "where the reciprocal changes",
    "x in [-746, -708]", "x in [30, 40]"
};

/* The number in the middle of the index-th window of a kind. */
static double centre(int kind, uint64_t index)
{
    switch (kind) {
    case NEAR_0: return between(-1.5, 1.5);
    case EACH_BINADE: {
        double x = ldexp(between(1.0, 2.0), (int)(random_bits() % 70) - 60);
        return random_bits() & 1 ? -fmin(x, 746.0) : fmin(x, 40.0);
    }
    case WHERE_N_CHANGES: return -0x1.62e42fefa39efp-1 * ((double)(index % 1133) - 57.5);
    case WHERE_RECIPROCAL_CHANGES: { /* the rounded denominator is halfway between two float32 numbers, or beside it */
        double halfway = double_of(0x3FF0000010000000u + ((random_bits() % (35u << 23)) << 29));
        long double rounding = ((long double)nextafter(halfway, INFINITY) - halfway) / 2;
        return (double)-logl(halfway - 1.0L + (random_bits() & 1 ? rounding : -rounding));
    }
    case SUBNORMAL: return between(-746.0, -708.0);
    case SATURATED: return between(30.0, 40.0);
    default: return between(-746.0, 40.0);
    }
}

/* 2^52 / (the power of two below exact): multiplies an error into ulps. Subnormals share the spacing of 2^-1022. */
static inline long double ulps_per_unit(long double exact)
{
    int exponent;
    frexpl(exact, &exponent);
    return ldexpl(1.0L, 53 - (exponent < -1021 ? -1021 : exponent));
}

struct findings {
    double max_ulp, max_ulp_at, gradient_max_ulp, gradient_max_ulp_at;
    uint64_t compared, correctly_rounded, decreases;
};

static double x[WINDOW], out[3][WINDOW];
static float denominator[WINDOW];

/* The neighbours around ``centre``, in ascending order. */
static void fill(double centre)
{
    int64_t middle = (int64_t)bits_of(centre);
    for (int i = 0; i < WINDOW; i++) {
        int64_t bits = middle + (middle < 0 ? WINDOW / 2 - i : i - WINDOW / 2);
        x[i] = double_of((uint64_t)bits);
    }
}

/* NaNs of either sign, with each single bit of payload. */
static uint64_t count_lost_nans(int off)
{
    uint64_t lost = 0;
    for (int bit = 0; bit < 104; bit++) {
        double nan = double_of((bit < 52 ? 0x7FF0000000000000u : 0xFFF0000000000000u) | (uint64_t)1 << bit % 52);
        double result = sigmoid(nan, off, denominator);
        lost += result == result;
    }
    return lost;
}

static void sweep(uint64_t windows)
{
    static struct findings found[KINDS][3];
    uint64_t mixed_decreases = 0, reciprocal_changes = 0;
    for (uint64_t window = 0; window < windows; window++) {
        int kind = (int)(window % KINDS);
        fill(centre(kind, window / KINDS));
        for (int off = -1; off <= 1; off++) {
            struct findings *f = &found[kind][off + 1];
            double *result = out[off + 1];
            uint64_t decreases = 0;
            for (int i = 0; i < WINDOW; i++)
                result[i] = sigmoid(x[i], off, &denominator[i]);
            for (int i = 1; i < WINDOW; i++)
                decreases += result[i] < result[i - 1];
            f->decreases += decreases;
        }
        for (int i = 1; i < WINDOW; i++) { /* could another error of the next reciprocal make σ decrease? */
            double low = fmin(fmin(out[0][i], out[1][i]), out[2][i]);
            double high = fmax(fmax(out[0][i - 1], out[1][i - 1]), out[2][i - 1]);
            reciprocal_changes += denominator[i] != denominator[i - 1];
            mixed_decreases += denominator[i] != denominator[i - 1] && low < high;
        }
        for (int i = (int)(random_bits() % COMPARED); i < WINDOW; i += COMPARED) {
            long double t = expl(-fabsl((long double)x[i])), exact = (x[i] < 0 ? t : 1.0L) / (1.0L + t);
            long double slope = t / ((1.0L + t) * (1.0L + t));
            long double per_unit = ulps_per_unit(exact), slope_per_unit = ulps_per_unit(slope);
            for (int off = 0; off < 3; off++) {
                struct findings *f = &found[kind][off];
                double error = (double)(fabsl(out[off][i] - exact) * per_unit);
                if (!(error <= f->max_ulp)) { f->max_ulp = error; f->max_ulp_at = x[i]; }
                f->compared++;
                f->correctly_rounded += out[off][i] == (double)exact;
                if (x[i] < 0 && slope >= 0x1p-1022L) { /* t = σ(-|x|) is this result; the derivative is even */
                    error = (double)(fabsl(out[off][i] * (1.0 - out[off][i]) - slope) * slope_per_unit);
                    if (!(error <= f->gradient_max_ulp)) { f->gradient_max_ulp = error; f->gradient_max_ulp_at = x[i]; }
                }
            }
        }
    }
    printf("{\"windows\": %llu, \"neighbours\": %llu, \"compared\": %llu, \"reciprocal_changes\": %llu, "
           "\"mixed_decreases\": %llu, \"nan_lost\": %llu, \"reciprocal_off\": {",
           (unsigned long long)windows, (unsigned long long)windows * (WINDOW - 1),
           (unsigned long long)windows * (WINDOW / COMPARED), (unsigned long long)reciprocal_changes,
           (unsigned long long)mixed_decreases,
           (unsigned long long)(count_lost_nans(-1) + count_lost_nans(0) + count_lost_nans(1)));
    for (int kind = 0; kind < KINDS; kind++) {
        printf("%s\"%s\": {", kind ? ", " : "", KIND_NAMES[kind]);
        for (int off = -1; off <= 1; off++) {
            struct findings f = found[kind][off + 1];
            printf("%s\"%+d\": {\"max_ulp\": %.6f, \"max_ulp_at\": %.17g, \"compared\": %llu, "
                   "\"correctly_rounded\": %llu, \"decreases\": %llu, \"gradient_max_ulp\": %.6f, \"gradient_max_ulp_at\": %.17g}",
                   off > -1 ? ", " : "", off, f.max_ulp, f.max_ulp_at, (unsigned long long)f.compared,
                   (unsigned long long)f.correctly_rounded, (unsigned long long)f.decreases, f.gradient_max_ulp, f.gradient_max_ulp_at);
        }
        printf("}");
    }
    printf("}}\n");
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "eval") == 0) {
        size_t n;
        while ((n = fread(x, 8, WINDOW, stdin)) > 0) {
            for (size_t i = 0; i < n; i++)
                x[i] = sigmoid(x[i], atoi(argv[2]), &denominator[i]);
            if (fwrite(x, 8, n, stdout) != n) return 1;
        }
        return 0;
    }
    if (argc != 2 || strtoull(argv[1], NULL, 10) == 0) return 2;
    sweep(strtoull(argv[1], NULL, 10));
    return 0;
}
