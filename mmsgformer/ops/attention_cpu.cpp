// Attention, its column means and its gradient on a CPU: a block of queries against all keys at a time, whose part
// of the softmax matrix stays in the cache. Products, exponential and sums in float; attention_cpu.py compiles it.
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
constexpr int64_t kTile = 2 * kLanes;        // keys in a tile
constexpr int64_t kBlockElements = 1 << 15;  // of the softmax matrix at a time
constexpr int64_t kMaxBlockRows = 192;
constexpr int64_t kMaxPieces = 16;  // of a head's queries; their sums are added in one order, whatever the threads
constexpr int64_t kMinPiece = 64;
constexpr int64_t kMaxGradientPieces = 128;  // of all heads together, of which each keeps sums of all its keys
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

// out (rows, lanes of kVectors) = a (rows, n) times b (n, lanes of kVectors), added to what is there or not. Rows are
// computed kRows at a time: a and out have as many. kTransposed: a lies there as (n, rows).
template <int kVectors, bool kTransposed>
void multiply_tile(int64_t rows, const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t n, bool add,
                   float* out, int64_t out_stride) {
  for (int64_t first = 0; first < rows; first += kRows) {
    Vector sums[kRows][kVectors] = {};
    for (int64_t i = 0; i < n; ++i) {
      Vector right[kVectors];
#pragma GCC unroll 2
      for (int64_t x = 0; x < kVectors; ++x) right[x] = load(b + i * b_stride + x * kLanes);
#pragma GCC unroll 16
      for (int64_t m = 0; m < kRows; ++m) {
        const Vector left = Vector{} + (kTransposed ? a[i * a_stride + first + m] : a[(first + m) * a_stride + i]);
#pragma GCC unroll 2
        for (int64_t x = 0; x < kVectors; ++x) sums[m][x] += left * right[x];
      }
    }
#pragma GCC unroll 16
    for (int64_t m = 0; m < kRows; ++m)
#pragma GCC unroll 2
      for (int64_t x = 0; x < kVectors; ++x) {
        float* const p = out + (first + m) * out_stride + x * kLanes;
        store(p, add ? load(p) + sums[m][x] : sums[m][x]);
      }
  }
}

// The same for b and out of any width that is a multiple of kLanes.
template <bool kTransposed>
void multiply(int64_t rows, const float* a, int64_t a_stride, const float* b, int64_t n, bool add, float* out,
              int64_t width) {
  int64_t c = 0;
  for (; c + kTile <= width; c += kTile)
    multiply_tile<2, kTransposed>(rows, a, a_stride, b + c, width, n, add, out + c, width);
  if (c < width) multiply_tile<1, kTransposed>(rows, a, a_stride, b + c, width, n, add, out + c, width);
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

// Heads of x (B, heads, N, d), channels next to each other.
template <typename T>
struct Heads {
  explicit Heads(const at::Tensor& x)
      : data(x.data_ptr<T>()), image_stride(x.stride(0)), head_stride(x.stride(1)), stride(x.stride(2)),
        heads(x.size(1)) {}
  T* row(int64_t head, int64_t i) const {  // heads of all images are counted through
    return data + head / heads * image_stride + head % heads * head_stride + i * stride;
  }
  T* data;
  int64_t image_stride, head_stride, stride, heads;
};

// Rows first to last of a head, times a factor, as (last - first, width); only the channels that there are written.
template <typename T>
void copy_rows(const Heads<T>& x, int64_t head, int64_t first, int64_t last, int64_t d, float factor, float* out,
               int64_t width) {
  for (int64_t i = first; i < last; ++i, out += width) {
    const T* const row = x.row(head, i);
    for (int64_t c = 0; c < d; ++c) out[c] = float(row[c]) * factor;
  }
}

// x (B, heads, N, d) as (B * heads, N, width), zeros behind the d channels.
template <typename T>
at::Tensor as_rows(const at::Tensor& x, int64_t width) {
  const int64_t count = x.size(0) * x.size(1), n = x.size(2), d = x.size(3);
  auto out = at::zeros({count, n, width}, x.options().dtype(at::kFloat));
  float* const data = out.data_ptr<float>();
  const Heads<T> heads(x);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head)
      copy_rows(heads, head, 0, n, d, 1.f, data + head * n * width, width);
  });
  return out;
}

// x (B, heads, N, d) as (B * heads, N / kTile, d, kTile), zeros behind the N tokens.
template <typename T>
at::Tensor as_tiles(const at::Tensor& x) {
  const int64_t count = x.size(0) * x.size(1), n = x.size(2), d = x.size(3), padded = round_up(n, kTile);
  auto out = at::zeros({count, padded * d}, x.options().dtype(at::kFloat));
  float* const data = out.data_ptr<float>();
  const Heads<T> heads(x);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head)
      for (int64_t i = 0; i < n; ++i) {
        const T* const row = heads.row(head, i);
        float* const column = data + head * padded * d + i / kTile * d * kTile + i % kTile;
        for (int64_t c = 0; c < d; ++c) column[c * kTile] = float(row[c]);
      }
  });
  return out;
}

// How many queries of a head are computed by one thread, and at a time.
struct Blocks {
  Blocks(int64_t num_queries, int64_t padded_keys, int64_t max_pieces)
      : piece(std::max(round_up((num_queries + max_pieces - 1) / max_pieces, kRows), kMinPiece)),
        pieces((num_queries + piece - 1) / piece),
        block(std::clamp(kBlockElements / padded_keys / kRows * kRows, kRows, kMaxBlockRows)) {}
  int64_t piece, pieces, block;
};

template <typename T>
std::tuple<at::Tensor, at::Tensor, at::Tensor> attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                      const bool* valid) {
  const int64_t batch = q.size(0), heads = q.size(1), num_queries = q.size(2), d = q.size(3), num_keys = k.size(2);
  const int64_t padded = round_up(num_keys, kTile), width = round_up(d, kLanes);
  const Blocks cut(num_queries, padded, kMaxPieces);
  const int64_t piece = cut.piece, pieces = cut.pieces, block = cut.block;
  const float scale = 1.f / std::sqrt(float(d));
  const auto floats = q.options().dtype(at::kFloat);

  auto out = at::empty({batch, num_queries, heads, d}, q.options()).transpose(1, 2);  // heads are joined next
  auto lse = at::empty({batch, heads, num_queries}, floats);
  auto sums = at::zeros({batch, heads * pieces, padded}, floats);
  const at::Tensor key_tiles = as_tiles<T>(k), value_rows = as_rows<T>(v, width);
  const Heads<T> q_heads(q), out_heads(out);
  float *const lse_data = lse.data_ptr<float>(), *const sums_data = sums.data_ptr<float>();
  const float *const keys_data = key_tiles.data_ptr<float>(), *const values_data = value_rows.data_ptr<float>();

  at::parallel_for(0, batch * heads * pieces, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> queries(block * width), weights(block * padded), result(block * width), factors(block);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t head = item / pieces, image = head / heads;
      float* const item_sums = sums_data + item * padded;
      const bool* const is_real = valid ? valid + image * num_keys : nullptr;
      const int64_t stop = std::min(num_queries, (item % pieces + 1) * piece);
      for (int64_t start = item % pieces * piece; start < stop; start += block) {
        const int64_t rows = std::min(block, stop - start), whole_rows = round_up(rows, kRows);
        copy_rows(q_heads, head, start, start + rows, d, scale, queries.data(), width);
        for (int64_t j = 0; j < padded; j += kTile)
          multiply_tile<2, false>(whole_rows, queries.data(), width, keys_data + (head * padded + j) * d, kTile, d, false,
                                  weights.data() + j, padded);
        for (int64_t m = 0; m < rows; ++m) {
          float* const row = weights.data() + m * padded;
          std::fill(row + num_keys, row + padded, -kInfinity);
          for (int64_t j = 0; is_real && j < num_keys; ++j)
            if (!is_real[j]) row[j] = -kInfinity;
          const auto [largest, sum] = exponentiate(row, padded);
          factors[m] = 1.f / sum;
          lse_data[head * num_queries + start + m] = largest + std::log(sum);
        }
        multiply<false>(whole_rows, weights.data(), padded, values_data + head * num_keys * width, num_keys, false,
                        result.data(), width);
        for (int64_t m = 0; m < rows; ++m) {
          T* const row = out_heads.row(head, start + m);
          for (int64_t c = 0; c < d; ++c) row[c] = T(result[m * width + c] * factors[m]);
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

// Sums (B * heads, pieces, N, width) over the pieces, as (B, heads, N, d).
template <typename T>
at::Tensor added_up(const float* sums, int64_t pieces, int64_t padded, int64_t width, const at::Tensor& like) {
  const int64_t batch = like.size(0), heads = like.size(1), n = like.size(2), d = like.size(3);
  auto out = at::empty({batch, n, heads, d}, like.options()).transpose(1, 2);
  const Heads<T> out_heads(out);
  at::parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head)
      for (int64_t i = 0; i < n; ++i) {
        T* const row = out_heads.row(head, i);
        for (int64_t c = 0; c < d; ++c) {
          float sum = 0;
          for (int64_t p = 0; p < pieces; ++p) sum += sums[((head * pieces + p) * padded + i) * width + c];
          row[c] = T(sum);
        }
      }
  });
  return out;
}

// The softmax matrix P is made again from the log-sum-exp. With G the gradient of the output O:
// dV = P^T G, dS = P * (G V^T - rowsum(G * O)), dQ = scale * dS K, dK = scale * dS^T Q.
template <typename T>
std::tuple<at::Tensor, at::Tensor, at::Tensor> attend_backward(const at::Tensor& grad, const at::Tensor& q,
                                                               const at::Tensor& k, const at::Tensor& v,
                                                               const bool* valid, const at::Tensor& out,
                                                               const at::Tensor& lse) {
  const int64_t batch = q.size(0), heads = q.size(1), num_queries = q.size(2), d = q.size(3), num_keys = k.size(2);
  const int64_t padded = round_up(num_keys, kTile), width = round_up(d, kLanes), padded_rows = round_up(padded, kRows);
  const int64_t max_pieces = std::clamp(kMaxGradientPieces / std::max<int64_t>(batch * heads, 1), int64_t{1}, kMaxPieces);
  const Blocks cut(num_queries, padded, max_pieces);
  const int64_t piece = cut.piece, pieces = cut.pieces, block = cut.block;
  const float scale = 1.f / std::sqrt(float(d));

  auto grad_q = at::empty({batch, num_queries, heads, d}, q.options()).transpose(1, 2);
  const at::Tensor key_tiles = as_tiles<T>(k), value_tiles = as_tiles<T>(v), key_rows = as_rows<T>(k, width);
  auto sums = at::zeros({2, batch * heads * pieces, padded_rows * width}, q.options().dtype(at::kFloat));
  float *const grad_keys = sums.data_ptr<float>(), *const grad_values = grad_keys + sums.stride(0);
  const float *const keys = key_tiles.data_ptr<float>(), *const values = value_tiles.data_ptr<float>();
  const float *const rows_of_keys = key_rows.data_ptr<float>(), *const lse_data = lse.data_ptr<float>();
  const Heads<T> q_heads(q), grad_heads(grad), out_heads(out), grad_q_heads(grad_q);

  at::parallel_for(0, batch * heads * pieces, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> queries(block * width), grads(block * width), outputs(block * width), result(block * width);
    // The product by their columns reads kRows of these, also at the end of the last row.
    std::vector<float> weights(block * padded + kRows), logits(block * padded + kRows), mask(padded);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t head = item / pieces, image = head / heads;
      const int64_t stop = std::min(num_queries, (item % pieces + 1) * piece);
      for (int64_t j = 0; j < padded; ++j)
        mask[j] = j < num_keys && (!valid || valid[image * num_keys + j]) ? 0.f : -kInfinity;
      for (int64_t start = item % pieces * piece; start < stop; start += block) {
        const int64_t rows = std::min(block, stop - start), whole_rows = round_up(rows, kRows);
        copy_rows(q_heads, head, start, start + rows, d, scale, queries.data(), width);
        copy_rows(grad_heads, head, start, start + rows, d, 1.f, grads.data(), width);
        copy_rows(out_heads, head, start, start + rows, d, 1.f, outputs.data(), width);
        for (int64_t j = 0; j < padded; j += kTile) {
          const int64_t tile = (head * padded + j) * d;
          multiply_tile<2, false>(whole_rows, queries.data(), width, keys + tile, kTile, d, false, weights.data() + j,
                                  padded);
          multiply_tile<2, false>(whole_rows, grads.data(), width, values + tile, kTile, d, false, logits.data() + j,
                                  padded);
        }
        for (int64_t m = 0; m < rows; ++m) {
          Vector delta{};
          for (int64_t c = 0; c < width; c += kLanes)
            delta += load(grads.data() + m * width + c) * load(outputs.data() + m * width + c);
          const float mean = sum_of(delta), row_lse = lse_data[head * num_queries + start + m];
          float *const p = weights.data() + m * padded, *const s = logits.data() + m * padded;
          for (int64_t j = 0; j < padded; j += kLanes) {
            const Vector weight = exp_of_negative(load(p + j) + load(mask.data() + j) - row_lse);
            store(p + j, weight);
            store(s + j, weight * (load(s + j) - mean));
          }
        }
        multiply<true>(num_keys, weights.data(), padded, grads.data(), rows, true,
                       grad_values + item * padded_rows * width, width);
        multiply<true>(num_keys, logits.data(), padded, queries.data(), rows, true,
                       grad_keys + item * padded_rows * width, width);
        multiply<false>(whole_rows, logits.data(), padded, rows_of_keys + head * num_keys * width, num_keys, false,
                        result.data(), width);
        for (int64_t m = 0; m < rows; ++m) {
          T* const row = grad_q_heads.row(head, start + m);
          for (int64_t c = 0; c < d; ++c) row[c] = T(result[m * width + c] * scale);
        }
      }
    }
  });
  return {grad_q, added_up<T>(grad_keys, pieces, padded_rows, width, k),
          added_up<T>(grad_values, pieces, padded_rows, width, v)};
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

// Gradients of q, k and v from that of the output, and from what attention_cpu gave.
std::tuple<at::Tensor, at::Tensor, at::Tensor> attention_cpu_backward(const at::Tensor& grad, const at::Tensor& q,
                                                                      const at::Tensor& k, const at::Tensor& v,
                                                                      const at::Tensor& valid, const at::Tensor& out,
                                                                      const at::Tensor& lse) {
  const bool* const real = valid.numel() ? valid.data_ptr<bool>() : nullptr;
  if (q.scalar_type() == at::kFloat) return attend_backward<float>(grad, q, k, v, real, out, lse);
  if (q.scalar_type() == at::kHalf) return attend_backward<at::Half>(grad, q, k, v, real, out, lse);
  return attend_backward<at::BFloat16>(grad, q, k, v, real, out, lse);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mmsgformer, library) {
  library.def("attention_cpu(Tensor q, Tensor k, Tensor v, Tensor valid) -> (Tensor, Tensor, Tensor)");
  library.def(
      "attention_cpu_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor valid, Tensor out, Tensor lse) "
      "-> (Tensor, Tensor, Tensor)");
  library.impl("attention_cpu", c10::DispatchKey::CPU, &attention_cpu);
  library.impl("attention_cpu_backward", c10::DispatchKey::CPU, &attention_cpu_backward);
}
