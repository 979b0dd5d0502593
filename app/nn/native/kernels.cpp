// Kernels for a transformer on a CPU: linear layers with 8-bit or 4-bit weights, RoPE, attention, and a whole stack.
//
// Weights are quantized in blocks of 16 outputs x 32 inputs; each output of a block has a float16 scale. Activations are
// quantized to 8 bits in blocks of 32 values with a float32 scale. Sums inside a block are exact integers. The sums of all
// blocks are added in float32, in the order of the inputs. So an output has the same bits for any number of tokens and
// threads, and on every instruction set. The compiler must not contract products and sums (-ffp-contract=off).
//
// Letters: n tokens, D inputs, O outputs, H query heads, G key heads, R = H / G, d head size.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#else
#error "this instruction set is not supported"
#endif

namespace {

constexpr int kOut = 16;   // outputs of a block
constexpr int kIn = 32;    // inputs of a block
#if defined(__AVX512VNNI__)
constexpr int kTile = 8;   // tokens that share one read of the weights; their sums must fit into the registers
#else
constexpr int kTile = 4;
#endif
// Distances in bytes from the current read to the bytes that are prefetched: into the second level of the cache, and from
// there into the first one. The first level alone has too few requests in flight for four tokens at once.
constexpr int kFarAhead = 8192;
constexpr int kAhead = 2048;

typedef float Vec __attribute__((vector_size(64)));  // 16 floats; the compiler splits it where registers are smaller

struct Linear {
  const uint8_t* weights;   // blocks (O / 16, D / 32): 512 bytes of 8-bit values or 256 bytes of 4-bit values
  const uint16_t* scales;   // (O / 16, D / 32, 16) float16
  const float* bias;        // (O) or null
  const float* norm;        // (D) weight of the RMSNorm before the layer, or null
  float eps;
  int32_t bits;
  int64_t inputs, outputs;  // `weights` and `scales` are padded to a multiple of 16 outputs
};

struct Attention {
  float* keys;              // first layer of the cache (layers, rows, G, S, d)
  float* values;
  int64_t layer_stride, row_stride, group_stride;  // in floats
  const int64_t* rows;      // (n) the row of each token
  const int64_t* positions; // (n) the position of each token; a token attends to the positions 0..position
  const float* cos;         // (n, d) or (1, d), from `rotary`
  const float* sin;
  int64_t angle_stride;     // d, or 0 if all tokens have the same angles
  int32_t heads, groups, size;
  float scale;
};

struct LowRank {            // the matrices A and B of the adapters of a batch, bfloat16; see _Indices in low_rank.py
  const uint16_t* down_table;  // (lines, D)
  const uint16_t* up_table;    // (lines, width)
  const int64_t* down;
  const int64_t* token;
  const int64_t* up;
  const int64_t* chosen;       // null = 0, 1, 2 ...
  const int64_t* starts;
  int64_t inputs, width, down_count, up_count, blocks;
  float norm_floor;            // D * eps of the RMSNorm before the layer; -1 = no norm
};

struct Layer {
  Linear qkv, out, gate_up, down;
};

struct Tokens {             // quantized activations of n tokens
  std::vector<int8_t> values;   // (n, D)
  std::vector<float> scales;    // (n, D / 32)
  std::vector<int32_t> sums;    // (n, D / 32) the sum of each block, times -128 or -8; see multiply_block_row
  void resize(int64_t n, int64_t inputs) {
    if ((int64_t)values.size() < n * inputs) {
      values.resize(n * inputs);
      scales.resize(n * inputs / kIn);
      sums.resize(n * inputs / kIn);
    }
  }
};

// ---- threads --------------------------------------------------------------------------------------------------------

// Workers wait for work: they spin for a short time, because the next product follows soon, and then they sleep. A second
// caller does its work alone while the workers are busy.
class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }
  ~Pool() {
    stopping_ = true;
    start();
    for (auto& worker : workers_) worker.join();
  }
  // Call part(i) for each i in 0..count-1, each on any thread. Returns when all calls have returned.
  void run(int64_t count, const std::function<void(int64_t)>& part) {
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || workers_.empty() || count < 2) {
      for (int64_t i = 0; i < count; ++i) part(i);
      return;
    }
    part_ = &part;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    active_.store((int)workers_.size(), std::memory_order_relaxed);
    start();
    take();
    for (int spins = 0; active_.load(std::memory_order_acquire); ++spins) pause(spins);
  }

 private:
  void start() {
    ticket_.fetch_add(1, std::memory_order_release);
    ticket_.notify_all();
  }
  static void pause(int spins) {
    if (spins > 2000) std::this_thread::yield();
#if defined(__AVX2__)
    else _mm_pause();
#endif
  }
  void take() {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) (*part_)(i);
  }
  void work() {
    uint32_t seen = 0;
    for (;;) {
      for (int spins = 0; ticket_.load(std::memory_order_acquire) == seen && spins < 4000; ++spins) pause(0);
      ticket_.wait(seen, std::memory_order_acquire);
      ++seen;
      if (stopping_) return;
      take();
      active_.fetch_sub(1, std::memory_order_release);
    }
  }
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  bool stopping_ = false;
  const std::function<void(int64_t)>* part_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<int> active_{0};
  std::atomic<uint32_t> ticket_{0};
};

// ---- elementary functions -------------------------------------------------------------------------------------------

float sum_of(Vec v) {
  float a[16];
  std::memcpy(a, &v, sizeof a);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; ++i) a[i] += a[i + width];
  return a[0];
}

Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

// exp of 16 values: 2^k times a polynomial (Cephes, expf). Values below -87 give almost 0, values above 88 almost infinity.
Vec exp_of(Vec x) {
  float a[16];
  std::memcpy(a, &x, sizeof a);
  for (int i = 0; i < 16; ++i) {
    float v = a[i] < -87.0f ? -87.0f : (a[i] > 88.0f ? 88.0f : a[i]);
    float k = __builtin_rintf(v * 1.44269504088896341f);
    float r = (v - k * 0.693359375f) - k * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * (r * r) + r) + 1.0f;
    int32_t bits = ((int32_t)k + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    a[i] = p * power;
  }
  return load(a);
}

#if defined(__AVX2__)
float half_to_float(uint16_t h) { return _cvtsh_ss(h); }
uint16_t float_to_half(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }
#else
float half_to_float(uint16_t h) {
  __fp16 value;
  std::memcpy(&value, &h, sizeof value);
  return (float)value;
}
uint16_t float_to_half(float value) {
  const __fp16 half = (__fp16)value;
  uint16_t h;
  std::memcpy(&h, &half, sizeof h);
  return h;
}
#endif

// ---- activations ----------------------------------------------------------------------------------------------------

// Quantize one token: 32 values share the scale max(|x|) / 127. A block of zeros has the scale 0. zero: the number that is
// added to each packed weight.
void quantize(const float* x, int64_t inputs, int zero, int8_t* values, float* scales, int32_t* sums) {
  for (int64_t b = 0; b < inputs / kIn; ++b, x += kIn, values += kIn) {
    float largest = 0;
    for (int i = 0; i < kIn; ++i) largest = std::fabs(x[i]) > largest ? std::fabs(x[i]) : largest;
    // The comparisons above ignore a NaN. `probe` is NaN if a value is NaN or infinite. Then the output is NaN, too.
    float probe = 0;
    for (int i = 0; i < kIn; ++i) probe += x[i] * 0.0f;
    float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    int32_t sum = 0;
    for (int i = 0; i < kIn; ++i) {
      int32_t q = (int32_t)__builtin_rintf(x[i] * inverse);
      q = q > 127 ? 127 : (q < -127 ? -127 : q);
      values[i] = (int8_t)q;
      sum += q;
    }
    scales[b] = largest * (1.0f / 127.0f) + probe;
    sums[b] = -sum * zero;
  }
}

void rms_norm(const float* x, const float* weight, float eps, int64_t inputs, float* y) {
  Vec squares = {};
  for (int64_t i = 0; i < inputs; i += 16) squares += load(x + i) * load(x + i);
  float inverse = 1.0f / std::sqrt(sum_of(squares) / (float)inputs + eps);
  for (int64_t i = 0; i < inputs; i += 16) store(y + i, load(x + i) * inverse * load(weight + i));
}

// silu(gate) * up of one token: (2 F) -> (F)
void gate(const float* gate_up, int64_t width, float* y) {
  for (int64_t i = 0; i < width; i += 16) {
    Vec g = load(gate_up + i);
    store(y + i, g / (1.0f + exp_of(-g)) * load(gate_up + width + i));
  }
}

// ---- products -------------------------------------------------------------------------------------------------------

inline void prefetch(const uint8_t* weights) {
  __builtin_prefetch(weights + kFarAhead, 0, 2);
  __builtin_prefetch(weights + kAhead);
}

#if defined(__AVX512VNNI__)

inline __m512 as_float(const uint16_t* scales) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)scales));
}

template <int kBits, int kTokens>
void multiply_block_row(const Linear& w, const Tokens& x, int64_t first, int64_t block_row, float (*y)[kOut]) {
  const int64_t blocks = w.inputs / kIn;
  const uint8_t* q = w.weights + block_row * blocks * (kOut * kIn * kBits / 8);
  const uint16_t* scales = w.scales + block_row * blocks * kOut;
  __m512 total[kTokens];
  for (int t = 0; t < kTokens; ++t) total[t] = _mm512_setzero_ps();
  const __m512i low = _mm512_set1_epi8(15);
  for (int64_t b = 0; b < blocks; ++b) {
    __m512i group[8];
    if constexpr (kBits == 8) {
      for (int j = 0; j < 8; ++j) {
        group[j] = _mm512_loadu_si512(q + 64 * j);
        prefetch(q + 64 * j);
      }
    } else {
      for (int j = 0; j < 4; ++j) {
        __m512i both = _mm512_loadu_si512(q + 64 * j);
        prefetch(q + 64 * j);
        group[j] = _mm512_and_si512(both, low);
        group[j + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
      }
    }
    q += kOut * kIn * kBits / 8;
    __m512 scale = as_float(scales + b * kOut);
    for (int t = 0; t < kTokens; ++t) {
      const int64_t at = (first + t) * blocks + b;
      const int8_t* a = x.values.data() + at * kIn;
      // Weights are stored without a sign: 128 (or 8) is added to each weight. `x.sums` subtracts this part again.
      __m512i sum = _mm512_set1_epi32(x.sums[at]);
      __m512i other = _mm512_setzero_si512();
      for (int j = 0; j < 8; j += 2) {
        int32_t four, next;
        std::memcpy(&four, a + 4 * j, 4);
        std::memcpy(&next, a + 4 * j + 4, 4);
        sum = _mm512_dpbusd_epi32(sum, group[j], _mm512_set1_epi32(four));
        if constexpr (kTokens < 4) other = _mm512_dpbusd_epi32(other, group[j + 1], _mm512_set1_epi32(next));
        else sum = _mm512_dpbusd_epi32(sum, group[j + 1], _mm512_set1_epi32(next));
      }
      __m512 whole = _mm512_cvtepi32_ps(kTokens < 4 ? _mm512_add_epi32(sum, other) : sum);
      total[t] = _mm512_fmadd_ps(whole, _mm512_mul_ps(scale, _mm512_set1_ps(x.scales[at])), total[t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) _mm512_storeu_ps(y[t], total[t]);
}

#elif defined(__AVX2__)

template <int kBits, int kTokens>
void multiply_block_row(const Linear& w, const Tokens& x, int64_t first, int64_t block_row, float (*y)[kOut]) {
  const int64_t blocks = w.inputs / kIn;
  const uint8_t* q = w.weights + block_row * blocks * (kOut * kIn * kBits / 8);
  const uint16_t* scales = w.scales + block_row * blocks * kOut;
  __m256 total[kTokens][2];
  for (int t = 0; t < kTokens; ++t) total[t][0] = total[t][1] = _mm256_setzero_ps();
  const __m256i low = _mm256_set1_epi8(15);
  [[maybe_unused]] const __m256i ones = _mm256_set1_epi16(1), sign = _mm256_set1_epi8((char)0x80);
  for (int64_t b = 0; b < blocks; ++b, q += kOut * kIn * kBits / 8) {
    for (int j = 0; j < kBits; ++j) prefetch(q + 64 * j);
    for (int half = 0; half < 2; ++half) {  // 8 outputs
      __m256i group[8];
      for (int j = 0; j < kBits; ++j) {
        __m256i loaded = _mm256_loadu_si256((const __m256i*)(q + 64 * j + 32 * half));
        if constexpr (kBits == 8) {
          group[j] = loaded;
        } else {
          group[j] = _mm256_and_si256(loaded, low);
          group[j + 4] = _mm256_and_si256(_mm256_srli_epi16(loaded, 4), low);
        }
      }
      __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(scales + b * kOut + 8 * half)));
      for (int t = 0; t < kTokens; ++t) {
        const int64_t at = (first + t) * blocks + b;
        const int8_t* a = x.values.data() + at * kIn;
        __m256i sum;
#if defined(__AVXVNNI__)
        sum = _mm256_set1_epi32(x.sums[at]);
        for (int j = 0; j < 8; ++j) {
          int32_t four;
          std::memcpy(&four, a + 4 * j, 4);
          sum = _mm256_dpbusd_avx_epi32(sum, group[j], _mm256_set1_epi32(four));
        }
#else
        if constexpr (kBits == 8) {
          // Multiply |a| by w with the sign of a. The sum of two products fits into 16 bits: |a| and |w| are at most 127.
          sum = _mm256_setzero_si256();
          for (int j = 0; j < 8; ++j) {
            int32_t four;
            std::memcpy(&four, a + 4 * j, 4);
            __m256i act = _mm256_set1_epi32(four);
            __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(act), _mm256_sign_epi8(_mm256_xor_si256(group[j], sign), act));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
          }
        } else {
          __m256i pairs = _mm256_setzero_si256();  // the sum of 16 products of 4-bit and 8-bit values fits into 16 bits
          for (int j = 0; j < 8; ++j) {
            int32_t four;
            std::memcpy(&four, a + 4 * j, 4);
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(group[j], _mm256_set1_epi32(four)));
          }
          sum = _mm256_add_epi32(_mm256_madd_epi16(pairs, ones), _mm256_set1_epi32(x.sums[at]));
        }
#endif
        __m256 factor = _mm256_mul_ps(scale, _mm256_set1_ps(x.scales[at]));
        total[t][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), factor, total[t][half]);
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    _mm256_storeu_ps(y[t], total[t][0]);
    _mm256_storeu_ps(y[t] + 8, total[t][1]);
  }
}

#else  // NEON

template <int kBits, int kTokens>
void multiply_block_row(const Linear& w, const Tokens& x, int64_t first, int64_t block_row, float (*y)[kOut]) {
  const int64_t blocks = w.inputs / kIn;
  const uint8_t* q = w.weights + block_row * blocks * (kOut * kIn * kBits / 8);
  const uint16_t* scales = w.scales + block_row * blocks * kOut;
  float32x4_t total[kTokens][4];
  for (int t = 0; t < kTokens; ++t)
    for (int part = 0; part < 4; ++part) total[t][part] = vdupq_n_f32(0);
  for (int64_t b = 0; b < blocks; ++b, q += kOut * kIn * kBits / 8) {
    __builtin_prefetch(q + kAhead);
    for (int part = 0; part < 4; ++part) {  // 4 outputs
      int8x16_t group[8];
      for (int j = 0; j < kBits; ++j) {
        uint8x16_t loaded = vld1q_u8(q + 64 * j + 16 * part);
        if constexpr (kBits == 8) {
          group[j] = vreinterpretq_s8_u8(veorq_u8(loaded, vdupq_n_u8(0x80)));
        } else {
          group[j] = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(loaded, vdupq_n_u8(15))), vdupq_n_s8(8));
          group[j + 4] = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(loaded, 4)), vdupq_n_s8(8));
        }
      }
      float32x4_t scale = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(scales + b * kOut + 4 * part)));
      for (int t = 0; t < kTokens; ++t) {
        const int64_t at = (first + t) * blocks + b;
        const int8_t* a = x.values.data() + at * kIn;
        int32x4_t sum = vdupq_n_s32(0);
        for (int j = 0; j < 8; ++j) {
          int32_t four;
          std::memcpy(&four, a + 4 * j, 4);
          sum = vdotq_s32(sum, group[j], vreinterpretq_s8_s32(vdupq_n_s32(four)));
        }
        total[t][part] = vfmaq_f32(total[t][part], vcvtq_f32_s32(sum), vmulq_n_f32(scale, x.scales[at]));
      }
    }
  }
  for (int t = 0; t < kTokens; ++t)
    for (int part = 0; part < 4; ++part) vst1q_f32(y[t] + 4 * part, total[t][part]);
}

#endif

template <int kBits>
void multiply_tile(const Linear& w, const Tokens& x, int64_t first, int64_t tokens, int64_t block_row, float (*y)[kOut]) {
  switch (tokens) {
    case 1: return multiply_block_row<kBits, 1>(w, x, first, block_row, y);
    case 2: return multiply_block_row<kBits, 2>(w, x, first, block_row, y);
    case 3: return multiply_block_row<kBits, 3>(w, x, first, block_row, y);
    case 4: return multiply_block_row<kBits, 4>(w, x, first, block_row, y);
#if defined(__AVX512VNNI__)
    case 5: return multiply_block_row<kBits, 5>(w, x, first, block_row, y);
    case 6: return multiply_block_row<kBits, 6>(w, x, first, block_row, y);
    case 7: return multiply_block_row<kBits, 7>(w, x, first, block_row, y);
    case 8: return multiply_block_row<kBits, 8>(w, x, first, block_row, y);
#endif
  }
}

// Compute y (n, O) = x W^T + bias. If `add`, compute y += x W^T + bias.
void multiply(Pool& pool, const Linear& w, const Tokens& x, int64_t n, float* y, bool add) {
  const int64_t block_rows = (w.outputs + kOut - 1) / kOut;
  const int64_t chunk = std::max<int64_t>(1, std::min<int64_t>(16, block_rows / 8));
  pool.run((block_rows + chunk - 1) / chunk, [&](int64_t part) {
    for (int64_t row = part * chunk; row < std::min(block_rows, (part + 1) * chunk); ++row) {
      const int64_t start = row * kOut, count = std::min<int64_t>(kOut, w.outputs - start);
      for (int64_t first = 0; first < n; first += kTile) {
        float sums[kTile][kOut];
        const int64_t tokens = std::min<int64_t>(kTile, n - first);
        if (w.bits == 8) multiply_tile<8>(w, x, first, tokens, row, sums);
        else multiply_tile<4>(w, x, first, tokens, row, sums);
        for (int64_t t = 0; t < tokens; ++t) {
          float* to = y + (first + t) * w.outputs + start;
          for (int64_t i = 0; i < count; ++i) {
            float value = w.bias ? sums[t][i] + w.bias[start + i] : sums[t][i];
            to[i] = add ? to[i] + value : value;
          }
        }
      }
    }
  });
}

// Apply the gate or the norm, quantize, and multiply. If `gated`, x is (n, 2 D); otherwise x is (n, D).
void linear(Pool& pool, const Linear& w, const float* x, int64_t n, bool gated, float* y, bool add) {
  thread_local Tokens tokens;
  tokens.resize(n, w.inputs);
  Tokens& quantized = tokens;
  pool.run(n > 8 ? n : 1, [&](int64_t part) {
    std::vector<float> changed(gated || w.norm ? w.inputs : 0);
    for (int64_t t = n > 8 ? part : 0; t < (n > 8 ? part + 1 : n); ++t) {
      const float* token = x + t * (gated ? 2 : 1) * w.inputs;
      if (gated) {
        gate(token, w.inputs, changed.data());
        token = changed.data();
      } else if (w.norm) {
        rms_norm(token, w.norm, w.eps, w.inputs, changed.data());
        token = changed.data();
      }
      const int64_t at = t * (w.inputs / kIn);
      quantize(token, w.inputs, w.bits == 8 ? 128 : 8, quantized.values.data() + at * kIn, quantized.scales.data() + at, quantized.sums.data() + at);
    }
  });
  multiply(pool, w, quantized, n, y, add);
}

// ---- attention ------------------------------------------------------------------------------------------------------

void rotate(const float* x, const float* cos, const float* sin, int64_t size, float* y) {
  const int64_t half = size / 2;
  for (int64_t i = 0; i < half; ++i) {
    y[i] = x[i] * cos[i] + x[i + half] * sin[i];
    y[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i + half];
  }
}

// heads (n, H + 2 G, d): queries, keys and values of new tokens. Writes keys and values into the cache. y (n, H d).
void attend(Pool& pool, const Attention& a, int64_t layer, const float* heads, int64_t n, float* y) {
  const int64_t d = a.size, width = (a.heads + 2 * a.groups) * d, share = a.heads / a.groups;
  float* keys = a.keys + layer * a.layer_stride;
  float* values = a.values + layer * a.layer_stride;
  for (int64_t t = 0; t < n; ++t) {
    const int64_t at = a.positions[t];
    for (int64_t g = 0; g < a.groups; ++g) {
      const int64_t place = a.rows[t] * a.row_stride + g * a.group_stride + at * d;
      rotate(heads + t * width + (a.heads + g) * d, a.cos + t * a.angle_stride, a.sin + t * a.angle_stride, d, keys + place);
      std::memcpy(values + place, heads + t * width + (a.heads + a.groups + g) * d, d * sizeof(float));
    }
  }
  pool.run(n * a.groups, [&](int64_t part) {
    const int64_t t = part / a.groups, g = part % a.groups, count = a.positions[t] + 1;
    const float* k = keys + a.rows[t] * a.row_stride + g * a.group_stride;
    const float* v = values + a.rows[t] * a.row_stride + g * a.group_stride;
    const int64_t padded = (count + 15) / 16 * 16;
    thread_local std::vector<float> scores, query;
    scores.resize(padded * share);
    query.resize(share * d);
    for (int64_t r = 0; r < share; ++r) {
      const float* q = heads + t * width + (g * share + r) * d;
      rotate(q, a.cos + t * a.angle_stride, a.sin + t * a.angle_stride, d, query.data() + r * d);
    }
    for (int64_t p = 0; p < count; ++p)
      for (int64_t r = 0; r < share; ++r) {
        Vec sum = {};
        for (int64_t i = 0; i < d; i += 16) sum += load(query.data() + r * d + i) * load(k + p * d + i);
        scores[r * padded + p] = sum_of(sum) * a.scale;
      }
    for (int64_t r = 0; r < share; ++r) {
      float* s = scores.data() + r * padded;
      float largest = s[0];
      for (int64_t p = 1; p < count; ++p) largest = s[p] > largest ? s[p] : largest;
      for (int64_t p = count; p < padded; ++p) s[p] = -INFINITY;
      Vec total = {};
      for (int64_t p = 0; p < padded; p += 16) {
        Vec weight = exp_of(load(s + p) - largest);
        if (p + 16 > count)
          for (int64_t i = count - p; i < 16; ++i) weight[i] = 0;
        store(s + p, weight);
        total += weight;
      }
      const float inverse = 1.0f / sum_of(total);
      float* to = y + (t * a.heads + g * share + r) * d;
      for (int64_t i = 0; i < d; i += 16) {
        Vec sum = {};
        for (int64_t p = 0; p < count; ++p) sum += s[p] * load(v + p * d + i);
        store(to + i, sum * inverse);
      }
    }
  });
}

// Quantize one output of a block: the scale is rounded to float16 first, and the values are rounded with this scale.
template <int kBits>
void pack_output(const float* w, int output, uint8_t* block, uint16_t* scale) {
  float largest = 0;
  for (int i = 0; i < kIn; ++i)
    if (std::fabs(w[i]) > std::fabs(largest)) largest = w[i];
  // With 4 bits, the value with the largest magnitude becomes -8, because there is no +8.
  const float wanted = kBits == 8 ? std::fabs(largest) / 127.0f : largest / -8.0f;
  *scale = float_to_half(wanted);
  const float real = half_to_float(*scale);
  const float inverse = real != 0.0f ? 1.0f / real : 0.0f;
  constexpr int kLimit = kBits == 8 ? 127 : 7, kZero = kBits == 8 ? 128 : 8;
  for (int i = 0; i < kIn; ++i) {
    int q = (int)__builtin_rintf(w[i] * inverse);
    q = q > kLimit ? kLimit : (q < (kBits == 8 ? -127 : -8) ? (kBits == 8 ? -127 : -8) : q);
    const int group = i / 4, place = output * 4 + i % 4;
    if constexpr (kBits == 8) {
      block[64 * group + place] = (uint8_t)(q + kZero);
    } else {
      block[64 * (group % 4) + place] |= (uint8_t)((q + kZero) << (group < 4 ? 0 : 4));
    }
  }
}

// ---- low-rank adapters ----------------------------------------------------------------------------------------------

Vec load_bfloat16(const uint16_t* p) {
  uint32_t wide[16];
  for (int i = 0; i < 16; ++i) wide[i] = (uint32_t)p[i] << 16;
  Vec v;
  std::memcpy(&v, wide, sizeof v);
  return v;
}

// small[i] = line down[i] times token token[i] of x (n, D). If the layer has a norm, divide by the length of the token.
void multiply_lines(Pool& pool, const LowRank& a, const float* x, float* small) {
  constexpr int64_t kLines = 16;  // lines of one part of the work
  pool.run((a.down_count + kLines - 1) / kLines, [&](int64_t part) {
    int64_t measured = -1;  // the token whose length is known
    float inverse = 1.0f;
    for (int64_t i = part * kLines; i < std::min(a.down_count, (part + 1) * kLines); ++i) {
      const float* token = x + a.token[i] * a.inputs;
      if (a.norm_floor >= 0 && a.token[i] != measured) {
        measured = a.token[i];
        Vec squares = {};
        for (int64_t j = 0; j < a.inputs; j += 16) squares += load(token + j) * load(token + j);
        inverse = 1.0f / std::sqrt(sum_of(squares) + a.norm_floor);
      }
      const uint16_t* line = a.down_table + a.down[i] * a.inputs;
      Vec sum = {};
      for (int64_t j = 0; j < a.inputs; j += 16) sum += load_bfloat16(line + j) * load(token + j);
      small[i] = sum_of(sum) * inverse;
    }
  });
}

// Block b of y (blocks, width) += sum of small[chosen[j]] times line up[j], for j in starts[b]..starts[b + 1]
void add_lines(Pool& pool, const LowRank& a, const float* small, float* y) {
  pool.run(a.blocks, [&](int64_t b) {
    const int64_t begin = a.starts[b], end = b + 1 < a.blocks ? a.starts[b + 1] : a.up_count;
    for (int64_t i = 0; begin < end && i < a.width; i += 16) {
      Vec sum = {};
      for (int64_t j = begin; j < end; ++j)
        sum += small[a.chosen ? a.chosen[j] : j] * load_bfloat16(a.up_table + a.up[j] * a.width + i);
      store(y + b * a.width + i, load(y + b * a.width + i) + sum);
    }
  });
}

}  // namespace

extern "C" {

void* tts_pool(int threads) { return new Pool(threads); }

void tts_free_pool(void* pool) { delete static_cast<Pool*>(pool); }

// Pack weights (O, D) float32. `packed` and `scales` must contain zeros.
void tts_pack(void* pool, const float* w, int64_t outputs, int64_t inputs, int bits, uint8_t* packed, uint16_t* scales) {
  const int64_t blocks = inputs / kIn, bytes = kOut * kIn * bits / 8;
  static_cast<Pool*>(pool)->run((outputs + kOut - 1) / kOut, [&](int64_t row) {
    for (int64_t b = 0; b < blocks; ++b)
      for (int o = 0; o < kOut && row * kOut + o < outputs; ++o) {
        const float* from = w + (row * kOut + o) * inputs + b * kIn;
        uint8_t* block = packed + (row * blocks + b) * bytes;
        uint16_t* scale = scales + (row * blocks + b) * kOut + o;
        if (bits == 8) pack_output<8>(from, o, block, scale);
        else pack_output<4>(from, o, block, scale);
      }
  });
}

void tts_linear(void* pool, const Linear* w, const float* x, int64_t n, float* y) {
  linear(*static_cast<Pool*>(pool), *w, x, n, false, y, false);
}

void tts_gate(void* pool, const float* gate_up, int64_t n, int64_t width, float* y) {
  static_cast<Pool*>(pool)->run(n, [&](int64_t t) { gate(gate_up + 2 * t * width, width, y + t * width); });
}

void tts_attend(void* pool, const Attention* a, int64_t layer, const float* heads, int64_t n, float* y) {
  attend(*static_cast<Pool*>(pool), *a, layer, heads, n, y);
}

// Add the products of low-rank adapters: x (n, D), y (n, O).
void tts_add_low_rank(void* any_pool, const LowRank* a, const float* x, float* y) {
  Pool& pool = *static_cast<Pool*>(any_pool);
  thread_local std::vector<float> small;
  small.resize(std::max<size_t>(small.size(), a->down_count));
  multiply_lines(pool, *a, x, small.data());
  add_lines(pool, *a, small.data(), y);
}

// Compute all layers and the final norm: x (n, D) -> y (n, D). Overwrites x.
void tts_stack(void* any_pool, const Layer* layers, int64_t count, const Attention* a, const float* norm, float eps,
               float* x, int64_t n, float* y) {
  Pool& pool = *static_cast<Pool*>(any_pool);
  thread_local std::vector<float> heads, attended, gate_up;
  for (int64_t i = 0; i < count; ++i) {
    const Layer& layer = layers[i];
    heads.resize(std::max<size_t>(heads.size(), n * layer.qkv.outputs));
    attended.resize(std::max<size_t>(attended.size(), n * layer.out.inputs));
    gate_up.resize(std::max<size_t>(gate_up.size(), n * layer.gate_up.outputs));
    linear(pool, layer.qkv, x, n, false, heads.data(), false);
    attend(pool, *a, i, heads.data(), n, attended.data());
    linear(pool, layer.out, attended.data(), n, false, x, true);
    linear(pool, layer.gate_up, x, n, false, gate_up.data(), false);
    linear(pool, layer.down, gate_up.data(), n, true, x, true);
  }
  for (int64_t t = 0; t < n; ++t) rms_norm(x + t * layers[0].qkv.inputs, norm, eps, layers[0].qkv.inputs, y + t * layers[0].qkv.inputs);
}

}  // extern "C"
