// Hashed n-grams of words as features, and logistic regression on them.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "characters.h"
#include "views.h"

namespace qwen_data {

// Longest n-gram, and the most bits of a bucket's number.
constexpr std::size_t kLongestNgram = 8;
constexpr unsigned kMostBits = 24;

// The n-grams of one text, n = 1 .. max_ngram, counted by bucket. Reused from text to text.
//
// Bucket of an n-gram: the top `bits` bits of mix64(sum of hash_bytes(word i) * B^(n - 1 - i)), words as for_each_word
// gives them, symbols included (the hashing trick, Weinberger et al. 2009).
class NgramCounts {
  public:
    // Counts `text` (valid UTF-8); what was counted before is forgotten. max_ngram <= kLongestNgram, bits 1..kMostBits.
    void count(const Characters& characters, std::string_view text, std::size_t max_ngram, unsigned bits);

    // Calls visit(bucket, value) for each bucket that has n-grams, in the order in which they first came:
    // value = sqrt(n-grams in the bucket / n-grams of the text), so that the squares add up to 1.
    template <typename Visit>
    void for_each(Visit&& visit) const {
        const auto total = static_cast<double>(total_);
        for (const std::uint32_t bucket : buckets_) {
            visit(bucket, static_cast<float>(std::sqrt(static_cast<double>(counts_[bucket]) / total)));
        }
    }

    std::size_t size() const { return buckets_.size(); }

  private:
    std::vector<std::uint32_t> counts_;
    std::vector<std::uint32_t> buckets_;
    std::uint64_t total_ = 0;
};

// sum of weights[bucket] * value over the buckets of a text, in their order; 0 for a text without words.
double score_ngrams(const NgramCounts& counts, const float* weights);

// n texts as rows of features: values[k] of column columns[k] for k in [offsets[i], offsets[i + 1]).
struct FeatureRows {
    View<const std::int64_t> offsets;
    View<const std::uint32_t> columns;
    View<const float> values;
};

// The logistic loss of rows with labels, and its gradient. Keeps the features by row and, copied, by column, so that
// every sum is taken by one thread in a fixed order: the result does not depend on the number of threads.
class LogisticLoss {
  public:
    // Throws std::invalid_argument if offsets, columns or labels do not fit together.
    LogisticLoss(FeatureRows rows, View<const std::uint8_t> labels, std::size_t num_columns);

    std::size_t num_columns() const { return starts_.size() - 1; }

    // For z_i = weights[last] + sum_j weights[j] x_ij and y_i = +1 or -1: the sum of log(1 + exp(-y_i z_i)), and in
    // `gradient` its derivatives. Both arrays have num_columns + 1 values, the last one for the intercept.
    double evaluate(View<const double> weights, View<double> gradient, std::size_t threads) const;

  private:
    FeatureRows rows_;
    View<const std::uint8_t> labels_;
    std::vector<std::size_t> starts_;         // of each column, in the two arrays below
    std::vector<std::uint32_t> column_rows_;  // ascending within a column
    std::vector<float> column_values_;
};

}  // namespace qwen_data
