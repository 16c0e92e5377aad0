// Attention, its column means and its gradient on a CPU: a block of queries against all keys at a time, whose part
// of the softmax matrix stays in the cache. Exponential and sums in float, products too, but those of bfloat16 on
// processors that have instructions for them. attention_cpu.py compiles it.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

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
constexpr int64_t kMaxGradientPieces = 32;  // of all heads together, of which each keeps sums of all its keys
constexpr float kInfinity = std::numeric_limits<float>::infinity(), kLog2e = 1.44269504f;

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(kLanes * sizeof(float)), aligned(4)));

inline Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
inline Vector repeat(const float* p) { return Vector{} + *p; }
inline Vector multiply_add(Vector sum, Vector left, Vector right) { return sum + left * right; }
inline void store(float* p, Vector x) { *reinterpret_cast<Vector*>(p) = x; }

// What tensors of type T are multiplied as. Products are made of packs: the numbers that one instruction multiplies
// and adds up in a lane, one float or two of bfloat16.
template <typename T>
struct Product {
  using Part = float;
};
template <typename Part>
constexpr int64_t kPack = 1;

#if defined(__AVX512BF16__)
template <>
struct Product<at::BFloat16> {
  using Part = at::BFloat16;
};
template <>
constexpr int64_t kPack<at::BFloat16> = 2;

inline Integers load(const at::BFloat16* p) { return *reinterpret_cast<const Integers*>(p); }
inline Integers repeat(const at::BFloat16* p) { return Integers{} + *reinterpret_cast<const int32_t*>(p); }
inline Vector multiply_add(Vector sum, Integers left, Integers right) {
  return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
}
inline void store(at::BFloat16* p, Vector x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh((__m512)x));
}
// Of two rows, a number of each to a pack.
inline void store_packs(at::BFloat16* p, const Vector (&x)[2]) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x[0]));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x[1]));
  _mm512_storeu_si512(p, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}
#endif
inline void store_packs(float* p, const Vector (&x)[1]) { store(p, x[0]); }

// What is multiplied of a matrix in float: itself, or its copy.
inline float* multiplied(std::vector<float>& matrix, std::vector<float>&) { return matrix.data(); }
inline at::BFloat16* multiplied(std::vector<float>&, std::vector<at::BFloat16>& copy) { return copy.data(); }

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

// 2^x for x <= 0: 2^n times a polynomial; 0 below the smallest normal number. Relative error 1e-7 (1 - x).
inline Vector power_of_two(Vector x) {
  const Vector magic = Vector{} + 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vector shifted = x + magic;
  const Vector r = x - (shifted - magic);
  Vector p = r * 0.000154035304f + 0.00133335581f;
  p = p * r + 0.00961812911f;
  p = p * r + 0.0555041087f;
  p = p * r + 0.240226507f;
  p = p * r + 0.693147181f;
  p = p * r + 1.f;
  const Integers bits = (reinterpret_cast<const Integers&>(shifted) << 23) + reinterpret_cast<const Integers&>(p);
  return x > -126.f ? reinterpret_cast<const Vector&>(bits) : Vector{};
}

// out (rows, lanes of kVectors) = a (rows, n) times b (n, lanes of kVectors), added to what is there or not; n and the
// strides of a and b are in packs. Rows are computed kRows at a time: a and out have as many. kTransposed: a lies there
// as (n, rows).
template <int kVectors, bool kTransposed, typename Part>
void multiply_tile(int64_t rows, const Part* a, int64_t a_stride, const Part* b, int64_t b_stride, int64_t n, bool add,
                   float* out, int64_t out_stride) {
  for (int64_t first = 0; first < rows; first += kRows) {
    Vector sums[kRows][kVectors] = {};
    for (int64_t i = 0; i < n; ++i) {
      decltype(load(b)) right[kVectors];
#pragma GCC unroll 2
      for (int64_t x = 0; x < kVectors; ++x) right[x] = load(b + (i * b_stride + x * kLanes) * kPack<Part>);
#pragma GCC unroll 16
      for (int64_t m = 0; m < kRows; ++m) {
        const auto left =
            repeat(a + (kTransposed ? i * a_stride + first + m : (first + m) * a_stride + i) * kPack<Part>);
#pragma GCC unroll 2
        for (int64_t x = 0; x < kVectors; ++x) sums[m][x] = multiply_add(sums[m][x], left, right[x]);
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
template <bool kTransposed, typename Part>
void multiply(int64_t rows, const Part* a, int64_t a_stride, const Part* b, int64_t n, bool add, float* out,
              int64_t width) {
  int64_t c = 0;
  for (; c + kTile <= width; c += kTile)
    multiply_tile<2, kTransposed>(rows, a, a_stride, b + c * kPack<Part>, width, n, add, out + c, width);
  if (c < width) multiply_tile<1, kTransposed>(rows, a, a_stride, b + c * kPack<Part>, width, n, add, out + c, width);
}

// Softmax of one row of logits, not yet divided by its sum, in place and to `copy`, which floats do not need: returns
// the largest logit and the sum.
template <typename Part>
std::pair<float, float> exponentiate(float* row, Part* copy, int64_t size, float scale) {
  Vector top = load(row);
  for (int64_t j = kLanes; j < size; j += kLanes) {
    const Vector x = load(row + j);
    top = top > x ? top : x;
  }
  const float largest = largest_of(top);
  Vector total{};
  for (int64_t j = 0; j < size; j += kLanes) {
    const Vector e = power_of_two((load(row + j) - largest) * (scale * kLog2e));
    store(row + j, e);
    if constexpr (kPack<Part> > 1) store(copy + j, e);
    total += e;
  }
  return {largest * scale, sum_of(total)};
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

// Rows first to last of a head as (last - first, width); only the channels that there are written.
template <typename T, typename Part>
void copy_rows(const Heads<T>& x, int64_t head, int64_t first, int64_t last, int64_t d, Part* out, int64_t width) {
  for (int64_t i = first; i < last; ++i, out += width) {
    const T* const row = x.row(head, i);
    for (int64_t c = 0; c < d; ++c) out[c] = Part(row[c]);
  }
}

// The same with the rows of a pack beside each other, (packs, width, kPack); of a last pack that is not full the
// rest is zeros.
template <typename T, typename Part>
void pack_rows(const Heads<T>& x, int64_t head, int64_t first, int64_t last, int64_t d, Part* out, int64_t width) {
  for (int64_t i = 0; i < round_up(last - first, kPack<Part>); ++i) {
    Part* const packs = out + i / kPack<Part> * width * kPack<Part> + i % kPack<Part>;
    const T* const row = first + i < last ? x.row(head, first + i) : nullptr;
    for (int64_t c = 0; c < d; ++c) packs[c * kPack<Part>] = row ? Part(row[c]) : Part(0.f);
  }
}

template <typename Part>
at::Tensor zeros(int64_t count, int64_t size) {
  return at::zeros({count, size}, at::TensorOptions().dtype(c10::CppTypeToScalarType<Part>::value));
}

// x (B, heads, N, d) as `pack_rows` makes it of each head, zeros behind the d channels.
template <typename Part, typename T>
at::Tensor as_rows(const at::Tensor& x, int64_t width) {
  const int64_t count = x.size(0) * x.size(1), n = x.size(2), d = x.size(3), size = round_up(n, kPack<Part>) * width;
  auto out = zeros<Part>(count, size);
  Part* const data = out.template data_ptr<Part>();
  const Heads<T> heads(x);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) pack_rows(heads, head, 0, n, d, data + head * size, width);
  });
  return out;
}

// x (B, heads, N, d) as (B * heads, N / kTile, packs of d, kTile, kPack), zeros behind the N tokens and d channels.
template <typename Part, typename T>
at::Tensor as_tiles(const at::Tensor& x) {
  const int64_t count = x.size(0) * x.size(1), n = x.size(2), d = x.size(3);
  const int64_t whole = round_up(d, kPack<Part>), size = round_up(n, kTile) * whole;
  auto out = zeros<Part>(count, size);
  Part* const data = out.template data_ptr<Part>();
  const Heads<T> heads(x);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head)
      for (int64_t i = 0; i < n; ++i) {
        const T* const row = heads.row(head, i);
        Part* const column = data + head * size + i / kTile * whole * kTile + i % kTile * kPack<Part>;
        for (int64_t c = 0; c < d; ++c)
          column[c / kPack<Part> * kTile * kPack<Part> + c % kPack<Part>] = Part(row[c]);
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
  using Part = typename Product<T>::Part;
  constexpr int64_t pack = kPack<Part>;
  const int64_t batch = q.size(0), heads = q.size(1), num_queries = q.size(2), d = q.size(3), num_keys = k.size(2);
  const int64_t padded = round_up(num_keys, kTile), width = round_up(d, kLanes), whole_d = round_up(d, pack);
  const int64_t packs_of_keys = round_up(num_keys, pack) / pack;
  const Blocks cut(num_queries, padded, kMaxPieces);
  const int64_t piece = cut.piece, pieces = cut.pieces, block = cut.block;
  const float scale = 1.f / std::sqrt(float(d));
  const auto floats = q.options().dtype(at::kFloat);

  auto out = at::empty({batch, num_queries, heads, d}, q.options()).transpose(1, 2);  // heads are joined next
  auto lse = at::empty({batch, heads, num_queries}, floats);
  auto sums = at::zeros({batch, heads * pieces, padded}, floats);
  const at::Tensor key_tiles = as_tiles<Part, T>(k), value_rows = as_rows<Part, T>(v, width);
  const Heads<T> q_heads(q), out_heads(out);
  float *const lse_data = lse.data_ptr<float>(), *const sums_data = sums.data_ptr<float>();
  const Part *const keys_data = key_tiles.data_ptr<Part>(), *const values_data = value_rows.data_ptr<Part>();

  at::parallel_for(0, batch * heads * pieces, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> weights(block * padded), result(block * width), factors(block);
    std::vector<Part> queries(block * width), copies(pack > 1 ? block * padded : 0);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t head = item / pieces, image = head / heads;
      float* const item_sums = sums_data + item * padded;
      const bool* const is_real = valid ? valid + image * num_keys : nullptr;
      const int64_t stop = std::min(num_queries, (item % pieces + 1) * piece);
      for (int64_t start = item % pieces * piece; start < stop; start += block) {
        const int64_t rows = std::min(block, stop - start), whole_rows = round_up(rows, kRows);
        copy_rows(q_heads, head, start, start + rows, d, queries.data(), width);
        for (int64_t j = 0; j < padded; j += kTile)
          multiply_tile<2, false>(whole_rows, queries.data(), width / pack, keys_data + (head * padded + j) * whole_d,
                                  kTile, whole_d / pack, false, weights.data() + j, padded);
        for (int64_t m = 0; m < rows; ++m) {
          float* const row = weights.data() + m * padded;
          std::fill(row + num_keys, row + padded, -kInfinity);
          for (int64_t j = 0; is_real && j < num_keys; ++j)
            if (!is_real[j]) row[j] = -kInfinity;
          const auto [largest, sum] = exponentiate(row, copies.data() + (pack > 1 ? m * padded : 0), padded, scale);
          factors[m] = 1.f / sum;
          lse_data[head * num_queries + start + m] = largest + std::log(sum);
        }
        multiply<false>(whole_rows, multiplied(weights, copies), padded / pack,
                        values_data + head * packs_of_keys * pack * width, packs_of_keys, false, result.data(), width);
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

// Sums (B * heads, pieces, N, width) over the pieces, times a factor, as (B, heads, N, d).
template <typename T>
at::Tensor added_up(const float* sums, int64_t pieces, int64_t padded, int64_t width, float factor,
                    const at::Tensor& like) {
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
          row[c] = T(sum * factor);
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
  using Part = typename Product<T>::Part;
  constexpr int64_t pack = kPack<Part>;
  const int64_t batch = q.size(0), heads = q.size(1), num_queries = q.size(2), d = q.size(3), num_keys = k.size(2);
  const int64_t padded = round_up(num_keys, kTile), width = round_up(d, kLanes), padded_rows = round_up(padded, kRows);
  const int64_t whole_d = round_up(d, pack), packs_of_keys = round_up(num_keys, pack) / pack;
  const int64_t max_pieces = std::clamp(kMaxGradientPieces / std::max<int64_t>(batch * heads, 1), int64_t{1}, kMaxPieces);
  const Blocks cut(num_queries, padded, max_pieces);
  const int64_t piece = cut.piece, pieces = cut.pieces, block = cut.block;
  const float scale = 1.f / std::sqrt(float(d));

  auto grad_q = at::empty({batch, num_queries, heads, d}, q.options()).transpose(1, 2);
  const at::Tensor key_tiles = as_tiles<Part, T>(k), value_tiles = as_tiles<Part, T>(v);
  const at::Tensor key_rows = as_rows<Part, T>(k, width);
  auto sums = at::empty({2, batch * heads * pieces, padded_rows * width}, q.options().dtype(at::kFloat));
  float *const grad_keys = sums.data_ptr<float>(), *const grad_values = grad_keys + sums.stride(0);
  const Part *const keys = key_tiles.data_ptr<Part>(), *const values = value_tiles.data_ptr<Part>();
  const Part* const rows_of_keys = key_rows.data_ptr<Part>();
  const float* const lse_data = lse.data_ptr<float>();
  const Heads<T> q_heads(q), grad_heads(grad), out_heads(out), grad_q_heads(grad_q);

  at::parallel_for(0, batch * heads * pieces, 1, [&](int64_t begin, int64_t end) {
    // The product by their columns reads kRows packs of these, also at the end of the last row.
    const int64_t size = block * padded + kRows * pack, copy_size = pack > 1 ? size : 0;
    std::vector<float> weights(size), scores(size), result(block * width), mask(padded);
    std::vector<float> grad_row(width), out_row(width);
    std::vector<Part> weight_packs(copy_size), score_packs(copy_size), score_rows(copy_size);
    std::vector<Part> queries(block * width), query_packs(block * width);
    std::vector<Part> grads(block * width), grad_packs(block * width);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t head = item / pieces, image = head / heads;
      const int64_t stop = std::min(num_queries, (item % pieces + 1) * piece);
      for (int64_t j = 0; j < padded; ++j)
        mask[j] = j < num_keys && (!valid || valid[image * num_keys + j]) ? 0.f : -kInfinity;
      for (int64_t start = item % pieces * piece; start < stop; start += block) {
        const int64_t rows = std::min(block, stop - start), whole_rows = round_up(rows, kRows);
        const int64_t packs_of_rows = round_up(rows, pack) / pack;
        const bool add = start > item % pieces * piece;
        copy_rows(q_heads, head, start, start + rows, d, queries.data(), width);
        copy_rows(grad_heads, head, start, start + rows, d, grads.data(), width);
        pack_rows(q_heads, head, start, start + rows, d, query_packs.data(), width);
        pack_rows(grad_heads, head, start, start + rows, d, grad_packs.data(), width);
        for (int64_t j = 0; j < padded; j += kTile) {
          const int64_t tile = (head * padded + j) * whole_d, packs = whole_d / pack;
          multiply_tile<2, false>(whole_rows, queries.data(), width / pack, keys + tile, kTile, packs, false,
                                  weights.data() + j, padded);
          multiply_tile<2, false>(whole_rows, grads.data(), width / pack, values + tile, kTile, packs, false,
                                  scores.data() + j, padded);
        }
        for (int64_t m = 0; m < rows; m += pack) {
          float mean[pack] = {}, row_lse[pack] = {};
          for (int64_t i = 0; i < std::min(pack, rows - m); ++i) {
            copy_rows(grad_heads, head, start + m + i, start + m + i + 1, d, grad_row.data(), width);
            copy_rows(out_heads, head, start + m + i, start + m + i + 1, d, out_row.data(), width);
            Vector sum{};
            for (int64_t c = 0; c < width; c += kLanes) sum += load(grad_row.data() + c) * load(out_row.data() + c);
            mean[i] = sum_of(sum);
            row_lse[i] = lse_data[head * num_queries + start + m + i] * kLog2e;
          }
          for (int64_t j = 0; j < padded; j += kLanes) {
            Vector weight[pack] = {}, score[pack] = {};
            for (int64_t i = 0; i < std::min(pack, rows - m); ++i) {
              const int64_t at = (m + i) * padded + j;
              const Vector x = load(weights.data() + at) * (scale * kLog2e) + (load(mask.data() + j) - row_lse[i]);
              weight[i] = power_of_two(x > 0.f ? Vector{} : x);  // rounded, a huge logit may exceed its sum
              score[i] = weight[i] * (load(scores.data() + at) - mean[i]);
              if constexpr (pack > 1) store(score_rows.data() + at, score[i]);
            }
            store_packs(multiplied(weights, weight_packs) + m * padded + j * pack, weight);
            store_packs(multiplied(scores, score_packs) + m * padded + j * pack, score);
          }
        }
        multiply<true>(num_keys, multiplied(weights, weight_packs), padded, grad_packs.data(), packs_of_rows, add,
                       grad_values + item * padded_rows * width, width);
        multiply<true>(num_keys, multiplied(scores, score_packs), padded, query_packs.data(), packs_of_rows, add,
                       grad_keys + item * padded_rows * width, width);
        multiply<false>(whole_rows, multiplied(scores, score_rows), padded / pack,
                        rows_of_keys + head * packs_of_keys * pack * width, packs_of_keys, false, result.data(), width);
        for (int64_t m = 0; m < rows; ++m) {
          T* const row = grad_q_heads.row(head, start + m);
          for (int64_t c = 0; c < d; ++c) row[c] = T(result[m * width + c] * scale);
        }
      }
    }
  });
  return {grad_q, added_up<T>(grad_keys, pieces, padded_rows, width, scale, k),
          added_up<T>(grad_values, pieces, padded_rows, width, 1.f, v)};
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
