// Attention and its column means on a CPU: a block of queries against all keys at a time, whose part of the
// softmax matrix stays in the cache. Products, exponential and sums in float; attention_cpu.py compiles it.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16, kRows = 8;  // floats in a register; queries in a tile of two registers of keys
#else
constexpr int64_t kLanes = 8, kRows = 6;
#endif
constexpr int64_t kTile = 2 * kLanes;        // keys, or channels, in a tile
constexpr int64_t kBlockElements = 1 << 15;  // of the softmax matrix at a time
constexpr int64_t kMaxBlockRows = 192;
constexpr int64_t kMaxPieces = 16;  // of a head's queries; their sums are added in one order, whatever the threads
constexpr int64_t kMinPiece = 64;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(kLanes * sizeof(float)), aligned(4)));

inline Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
inline void store(float* p, Vector x) { *reinterpret_cast<Vector*>(p) = x; }
inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

inline float largest_of(Vector x) {
  for (int64_t half = kLanes / 2; half; half /= 2)
    for (int64_t i = 0; i < half; ++i) x[i] = std::max(x[i], x[i + half]);
  return x[0];
}

inline float sum_of(Vector x) {
  for (int64_t half = kLanes / 2; half; half /= 2)
    for (int64_t i = 0; i < half; ++i) x[i] += x[i + half];
  return x[0];
}

// exp(x) for x <= 0, to a unit in the last place: 2^n times a polynomial; 0 below the smallest normal number.
inline Vector exp_of_negative(Vector x) {
  const Vector magic = Vector{} + 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vector shifted = x * 1.44269504f + magic;
  const Vector n = shifted - magic;
  const Vector r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  Vector p = r * 0.00138888894f + 0.00833333377f;
  p = p * r + 0.0416666679f;
  p = p * r + 0.166666672f;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  const Integers bits = (reinterpret_cast<const Integers&>(shifted) << 23) + reinterpret_cast<const Integers&>(p);
  return x > -87.f ? reinterpret_cast<const Vector&>(bits) : Vector{};
}

// out (rows, kTile) = a (rows, n) times b (n, kTile), where kRows divides the rows.
void multiply(int64_t rows, const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t n, float* out,
              int64_t out_stride) {
  for (int64_t first = 0; first < rows; first += kRows) {
    Vector sums[kRows][2] = {};
    for (int64_t i = 0; i < n; ++i) {
      const Vector b0 = load(b + i * b_stride), b1 = load(b + i * b_stride + kLanes);
#pragma GCC unroll 16
      for (int64_t m = 0; m < kRows; ++m) {
        const Vector x = Vector{} + a[(first + m) * a_stride + i];
        sums[m][0] += x * b0;
        sums[m][1] += x * b1;
      }
    }
#pragma GCC unroll 16
    for (int64_t m = 0; m < kRows; ++m) {
      store(out + (first + m) * out_stride, sums[m][0]);
      store(out + (first + m) * out_stride + kLanes, sums[m][1]);
    }
  }
}

// Softmax of one row of logits in place, not yet divided by its sum: returns the largest logit and the sum.
std::pair<float, float> exponentiate(float* row, int64_t size) {
  Vector top = load(row);
  for (int64_t j = kLanes; j < size; j += kLanes) {
    const Vector x = load(row + j);
    top = top > x ? top : x;
  }
  const float largest = largest_of(top);
  Vector total{};
  for (int64_t j = 0; j < size; j += kLanes) {
    const Vector e = exp_of_negative(load(row + j) - largest);
    store(row + j, e);
    total += e;
  }
  return {largest, sum_of(total)};
}

// Keys (K, d) as tiles (K / kTile, d, kTile), values (K, d) as (K, width) with a width of whole tiles; both are
// zeros where nothing is written.
template <typename T>
void pack(const T* keys, int64_t key_stride, const T* values, int64_t value_stride, int64_t num_keys, int64_t d,
          int64_t width, float* packed_keys, float* packed_values) {
  for (int64_t j = 0; j < num_keys; ++j) {
    for (int64_t c = 0; c < d; ++c) {
      packed_keys[(j / kTile * d + c) * kTile + j % kTile] = float(keys[j * key_stride + c]);
      packed_values[j * width + c] = float(values[j * value_stride + c]);
    }
  }
}

template <typename T>
std::tuple<at::Tensor, at::Tensor, at::Tensor> attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                      const bool* valid) {
  const int64_t batch = q.size(0), heads = q.size(1), num_queries = q.size(2), d = q.size(3), num_keys = k.size(2);
  const int64_t padded = round_up(num_keys, kTile), width = round_up(d, kTile);
  const int64_t block = std::clamp(kBlockElements / padded / kRows * kRows, kRows, kMaxBlockRows);
  const int64_t piece = std::max(round_up((num_queries + kMaxPieces - 1) / kMaxPieces, kRows), kMinPiece);
  const int64_t pieces = (num_queries + piece - 1) / piece;
  const float scale = 1.f / std::sqrt(float(d));
  const auto floats = q.options().dtype(at::kFloat);

  auto out = at::empty({batch, num_queries, heads, d}, q.options()).transpose(1, 2);  // heads are joined next
  auto lse = at::empty({batch, heads, num_queries}, floats);
  auto sums = at::zeros({batch, heads * pieces, padded}, floats);
  auto packed_keys = at::zeros({batch * heads, padded * d}, floats);
  auto packed_values = at::zeros({batch * heads, padded * width}, floats);
  T* const out_data = out.data_ptr<T>();
  float *const lse_data = lse.data_ptr<float>(), *const sums_data = sums.data_ptr<float>();
  float *const keys_data = packed_keys.data_ptr<float>(), *const values_data = packed_values.data_ptr<float>();
  const T *const q_data = q.data_ptr<T>(), *const k_data = k.data_ptr<T>(), *const v_data = v.data_ptr<T>();
  const int64_t q_stride = q.stride(2), k_stride = k.stride(2), v_stride = v.stride(2), out_stride = out.stride(2);
  const auto of_head = [heads](const at::Tensor& x, int64_t head) {  // where a head of an image starts
    return head / heads * x.stride(0) + head % heads * x.stride(1);
  };

  at::parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head)
      pack(k_data + of_head(k, head), k_stride, v_data + of_head(v, head), v_stride, num_keys, d, width,
           keys_data + head * padded * d, values_data + head * padded * width);
  });

  at::parallel_for(0, batch * heads * pieces, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> queries(block * d), weights(block * padded), result(block * width), factors(block);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t head = item / pieces, image = head / heads;
      const T* const head_queries = q_data + of_head(q, head);
      T* const head_out = out_data + of_head(out, head);
      float* const item_sums = sums_data + item * padded;
      const bool* const is_real = valid ? valid + image * num_keys : nullptr;
      const int64_t stop = std::min(num_queries, (item % pieces + 1) * piece);
      for (int64_t start = item % pieces * piece; start < stop; start += block) {
        const int64_t rows = std::min(block, stop - start), whole_rows = round_up(rows, kRows);
        for (int64_t m = 0; m < rows; ++m)
          for (int64_t c = 0; c < d; ++c)
            queries[m * d + c] = float(head_queries[(start + m) * q_stride + c]) * scale;
        for (int64_t j = 0; j < padded; j += kTile)
          multiply(whole_rows, queries.data(), d, keys_data + head * padded * d + j * d, kTile, d, weights.data() + j,
                   padded);
        for (int64_t m = 0; m < rows; ++m) {
          float* const row = weights.data() + m * padded;
          std::fill(row + num_keys, row + padded, -kInfinity);
          for (int64_t j = 0; is_real && j < num_keys; ++j)
            if (!is_real[j]) row[j] = -kInfinity;
          const auto [largest, sum] = exponentiate(row, padded);
          factors[m] = 1.f / sum;
          lse_data[head * num_queries + start + m] = largest + std::log(sum);
        }
        for (int64_t c = 0; c < width; c += kTile)
          multiply(whole_rows, weights.data(), padded, values_data + head * padded * width + c, width, num_keys,
                   result.data() + c, width);
        for (int64_t m = 0; m < rows; ++m) {
          for (int64_t c = 0; c < d; ++c)
            head_out[(start + m) * out_stride + c] = T(result[m * width + c] * factors[m]);
          if (is_real && !is_real[start + m]) factors[m] = 0.f;  // padding pays no attention
        }
        for (int64_t j = 0; j < padded; j += kLanes) {
          Vector sum = load(item_sums + j);
          for (int64_t m = 0; m < rows; ++m) sum += load(weights.data() + m * padded + j) * factors[m];
          store(item_sums + j, sum);
        }
      }
    }
  });

  auto means = at::empty({batch, num_keys}, floats);
  float* const means_data = means.data_ptr<float>();
  at::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image)
      for (int64_t j = 0; j < num_keys; ++j) {
        float sum = 0;
        for (int64_t i = 0; i < heads * pieces; ++i) sum += sums_data[(image * heads * pieces + i) * padded + j];
        means_data[image * num_keys + j] = sum / float(heads * num_queries);
      }
  });
  return {out, means, lse};
}

// q (B, heads, Q, d), k and v (B, heads, K, d), channels next to each other; valid (B, K) for Q = K, or empty
// -> output (B, heads, Q, d), column means (B, K), log-sum-exp (B, heads, Q).
std::tuple<at::Tensor, at::Tensor, at::Tensor> attention_cpu(const at::Tensor& q, const at::Tensor& k,
                                                             const at::Tensor& v,
                                                             const at::Tensor& valid) {
  const bool* const real = valid.numel() ? valid.data_ptr<bool>() : nullptr;
  if (q.scalar_type() == at::kFloat) return attend<float>(q, k, v, real);
  if (q.scalar_type() == at::kHalf) return attend<at::Half>(q, k, v, real);
  return attend<at::BFloat16>(q, k, v, real);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mmsgformer, library) {
  library.def("attention_cpu(Tensor q, Tensor k, Tensor v, Tensor valid) -> (Tensor, Tensor, Tensor)");
  library.impl("attention_cpu", c10::DispatchKey::CPU, &attention_cpu);
}
