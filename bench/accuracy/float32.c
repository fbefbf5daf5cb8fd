/* The float32 σ of kernels/scalar.py in C, operation for operation, and its error at every float32.
 *
 * float32 STRIDE   sweep every STRIDE-th input, print the findings as JSON; SIGINT ends it with those until then
 * float32 eval K   read float32 values, write σ of each, the reciprocal being off by K ulp
 */
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 4096
#define INFINITY_BITS 0x7f800000u
#define SIGN_BIT 0x80000000u

static inline float float_of(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline uint32_t bits_of(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }

/* Names and order as in _sigmoid_float32. ``off``: by how many ulp the reciprocal differs from the nearest number. */
static inline float sigmoid(float x, int off)
{
    const float scale = 0x1p-40f;
    x = x < -105.0f ? -105.0f : x; /* false for NaN, which stays */
    x = x > 30.0f ? 30.0f : x;
    float shifted = fmaf(x, -0x1.715476p-10f, 0x1.8p+13f);
    float g = fmaf(x, 0x1.002560p+0f, fmaf(shifted, 0x1.6318p+9f, -0x1.0a52p+23f));
    float power = float_of((bits_of(shifted) << 23) + 0x2B800000u);
    float w = fmaf(g, 0x1.715476p-10f, -0x1.11c2c2p-7f);
    w = fmaf(w, g, 0x1.548668p-5f);
    w = fmaf(w, g, -0x1.54be84p-3f);
    w = fmaf(w, g, 0x1.ff6aaap-2f);
    w = fmaf(w, g, 0x1.2adp-11f);
    float power_g = power * g;
    float p = power + scale;
    float rest = fmaf(power_g, w, scale - (p - power));
    float reciprocal = float_of(bits_of(1.0f / (p + (rest - power_g))) + (uint32_t)off);
    float residual = fmaf(-reciprocal, rest, fmaf(reciprocal, power_g, fmaf(-reciprocal, p, 1.0f)));
    return fmaf(reciprocal, residual, reciprocal) * scale;
}

/* 2^23 / (the power of two below |exact|): multiplies an error into ulps. Subnormals share the spacing of 2^-126. */
static inline double ulps_per_unit(double exact)
{
    uint64_t bits;
    memcpy(&bits, &exact, 8);
    int64_t exponent = (int64_t)(bits >> 52) - 1023;
    bits = (uint64_t)(1023 + 23 - (exponent < -126 ? -126 : exponent)) << 52;
    double scale;
    memcpy(&scale, &bits, 8);
    return scale;
}

struct findings {
    double max_ulp, gradient_max_ulp;
    float max_ulp_at, gradient_max_ulp_at;
    uint64_t correctly_rounded, decreases, nan_lost;
};

static volatile sig_atomic_t interrupted;
static void interrupt(int number) { (void)number; interrupted = 1; }

static float x[BLOCK], out[3][BLOCK];
static double exact[BLOCK], slope[BLOCK];

/* One block of ascending inputs. ``last``: the output before the block, replaced by its last one. */
static void examine(const float *result, int n, int negative, float *last, struct findings *found)
{
    for (int i = 0; i < n; i++) {
        double error = fabs(result[i] - exact[i]) * ulps_per_unit(exact[i]);
        if (!(error <= found->max_ulp)) { found->max_ulp = error; found->max_ulp_at = x[i]; }
        found->correctly_rounded += result[i] == (float)exact[i];
        found->decreases += result[i] < *last;
        *last = result[i];
        if (negative && slope[i] >= 0x1p-126) { /* t = σ(-|x|) is this result; the derivative is even */
            double gradient = fmaf(-result[i], result[i], result[i]);
            error = fabs(gradient - slope[i]) * ulps_per_unit(slope[i]);
            if (!(error <= found->gradient_max_ulp)) { found->gradient_max_ulp = error; found->gradient_max_ulp_at = x[i]; }
        }
    }
}

static void sweep(uint64_t stride)
{
    struct findings found[3] = {{0}};
    float last[3] = {0, 0, 0}, highest = 0;
    uint64_t inputs = 0, mixed_decreases = 0, nans = 0;
    for (int negative = 1; negative >= 0; negative--)
        for (uint64_t start = 0; start <= INFINITY_BITS && !interrupted; start += BLOCK * stride) {
            int n = 0;
            for (uint64_t bits = start; n < BLOCK && bits <= INFINITY_BITS; bits += stride)
                x[n++] = float_of(negative ? SIGN_BIT | (INFINITY_BITS - (uint32_t)bits) : (uint32_t)bits);
            for (int i = 0; i < n; i++) {
                double t = exp(-fabs((double)x[i]));
                exact[i] = (negative ? t : 1.0) / (1.0 + t);
                slope[i] = t / ((1.0 + t) * (1.0 + t));
            }
            for (int off = -1; off <= 1; off++) {
                for (int i = 0; i < n; i++)
                    out[off + 1][i] = sigmoid(x[i], off);
                examine(out[off + 1], n, negative, &last[off + 1], &found[off + 1]);
            }
            for (int i = 0; i < n; i++) { /* could a different reciprocal error at each input make σ decrease? */
                float low = fminf(fminf(out[0][i], out[1][i]), out[2][i]);
                mixed_decreases += low < highest;
                highest = fmaxf(fmaxf(out[0][i], out[1][i]), out[2][i]);
            }
            inputs += (uint64_t)n;
        }
    for (uint64_t bits = INFINITY_BITS + 1; bits <= 0x7fffffffu; bits += stride, nans += 2)
        for (int off = -1; off <= 1; off++) {
            float a = sigmoid(float_of((uint32_t)bits), off), b = sigmoid(float_of(SIGN_BIT | (uint32_t)bits), off);
            found[off + 1].nan_lost += (a == a) + (b == b);
        }
    printf("{\"stride\": %llu, \"complete\": %s, \"inputs\": %llu, \"nans\": %llu, \"mixed_decreases\": %llu, "
           "\"reciprocal_off\": {", (unsigned long long)stride, interrupted ? "false" : "true", (unsigned long long)inputs, (unsigned long long)nans,
           (unsigned long long)mixed_decreases);
    for (int off = -1; off <= 1; off++) {
        struct findings f = found[off + 1];
        printf("%s\"%+d\": {\"max_ulp\": %.6f, \"max_ulp_at\": %.9g, \"correctly_rounded\": %llu, \"decreases\": %llu, "
               "\"nan_lost\": %llu, \"gradient_max_ulp\": %.6f, \"gradient_max_ulp_at\": %.9g}",
               off > -1 ? ", " : "", off, f.max_ulp, f.max_ulp_at, (unsigned long long)f.correctly_rounded,
               (unsigned long long)f.decreases, (unsigned long long)f.nan_lost, f.gradient_max_ulp,
               f.gradient_max_ulp_at);
    }
    printf("}}\n");
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "eval") == 0) {
        size_t n;
        while ((n = fread(x, 4, BLOCK, stdin)) > 0) {
            for (size_t i = 0; i < n; i++)
                x[i] = sigmoid(x[i], atoi(argv[2]));
            if (fwrite(x, 4, n, stdout) != n) return 1;
        }
        return 0;
    }
    if (argc != 2 || strtoull(argv[1], NULL, 10) == 0) return 2;
    signal(SIGINT, interrupt);
    sweep(strtoull(argv[1], NULL, 10));
    return 0;
}
