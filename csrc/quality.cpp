#include "quality.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

#include "parallel.h"
#include "shingles.h"
#include "text_hash.h"
#include "words.h"

namespace qwen_data {

namespace {

// Rows and columns are handed to the threads in blocks, for one of them may be very short.
constexpr std::size_t kBlock = 64;

void check(bool holds, const std::string& message) {
    if (!holds) {
        throw std::invalid_argument("LogisticLoss: " + message);
    }
}

double log_one_plus_exp(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }

}  // namespace

void NgramCounts::count(const Characters& characters, std::string_view text, std::size_t max_ngram, unsigned bits) {
    if (counts_.size() != std::size_t{1} << bits) {
        counts_.assign(std::size_t{1} << bits, 0);
    } else {
        for (const std::uint32_t bucket : buckets_) {
            counts_[bucket] = 0;
        }
    }
    buckets_.clear();
    total_ = 0;
    // polynomials[n - 1] is that of the n words that end here.
    std::array<std::uint64_t, kLongestNgram> polynomials{};
    std::size_t num_words = 0;
    for_each_word(characters, text, [&](const Word& word) {
        const std::uint64_t hash = hash_bytes(word.begin, static_cast<std::size_t>(word.end - word.begin));
        ++num_words;
        const std::size_t longest = std::min(num_words, max_ngram);
        for (std::size_t n = longest; n > 1; --n) {
            polynomials[n - 1] = polynomials[n - 2] * kShingleBase + hash;
        }
        polynomials[0] = hash;
        for (std::size_t n = 0; n < longest; ++n) {
            const auto bucket = static_cast<std::uint32_t>(mix64(polynomials[n]) >> (64 - bits));
            if (counts_[bucket]++ == 0) {
                buckets_.push_back(bucket);
            }
        }
        total_ += longest;
    });
}

double score_ngrams(const NgramCounts& counts, const float* weights) {
    double sum = 0;
    counts.for_each([&](std::uint32_t bucket, float value) {
        sum += static_cast<double>(weights[bucket]) * static_cast<double>(value);
    });
    return sum;
}

LogisticLoss::LogisticLoss(FeatureRows rows, View<const std::uint8_t> labels, std::size_t num_columns)
    : rows_(rows), labels_(labels), starts_(num_columns + 1, 0) {
    check(rows.offsets.size == labels.size + 1, "offsets has " + std::to_string(rows.offsets.size) + " values for " +
                                                    std::to_string(labels.size) + " labels; it needs one more");
    check(labels.size < (std::uint64_t{1} << 32), "more than 2^32 rows");
    check(rows.columns.size == rows.values.size, "columns and values have different lengths");
    check(rows.offsets[0] == 0 && static_cast<std::size_t>(rows.offsets[labels.size]) == rows.values.size,
          "offsets must lead from 0 to the number of values");
    check(std::is_sorted(rows.offsets.begin(), rows.offsets.end()), "offsets must ascend");
    check(std::all_of(labels.begin(), labels.end(), [](std::uint8_t label) { return label <= 1; }),
          "labels must be 0 or 1");
    for (const std::uint32_t column : rows.columns) {
        check(column < num_columns, "column " + std::to_string(column) + " of " + std::to_string(num_columns));
        ++starts_[column + 1];
    }
    for (std::size_t column = 0; column < num_columns; ++column) {
        starts_[column + 1] += starts_[column];
    }
    column_rows_.resize(rows.values.size);
    column_values_.resize(rows.values.size);
    std::vector<std::size_t> next(starts_.begin(), starts_.end() - 1);
    for (std::size_t row = 0; row < labels.size; ++row) {
        for (auto k = static_cast<std::size_t>(rows.offsets[row]); k < static_cast<std::size_t>(rows.offsets[row + 1]);
             ++k) {
            const std::size_t place = next[rows.columns[k]]++;
            column_rows_[place] = static_cast<std::uint32_t>(row);
            column_values_[place] = rows.values[k];
        }
    }
}

double LogisticLoss::evaluate(View<const double> weights, View<double> gradient, std::size_t threads) const {
    const std::size_t num_columns = this->num_columns();
    check(weights.size == num_columns + 1 && gradient.size == num_columns + 1,
          "weights and gradient must have " + std::to_string(num_columns + 1) + " values");
    const std::size_t num_rows = labels_.size;
    std::vector<double> losses(num_rows);
    std::vector<double> slopes(num_rows);  // d loss / d z
    const auto blocks = [](std::size_t count) { return (count + kBlock - 1) / kBlock; };
    parallel_for<int>(blocks(num_rows), threads, [&](std::size_t block, int&) {
        for (std::size_t row = block * kBlock; row < std::min(num_rows, (block + 1) * kBlock); ++row) {
            double z = weights[num_columns];
            for (auto k = static_cast<std::size_t>(rows_.offsets[row]);
                 k < static_cast<std::size_t>(rows_.offsets[row + 1]); ++k) {
                z += weights[rows_.columns[k]] * static_cast<double>(rows_.values[k]);
            }
            const double sign = labels_[row] == 1 ? 1.0 : -1.0;
            losses[row] = log_one_plus_exp(-sign * z);
            slopes[row] = -sign / (1.0 + std::exp(sign * z));
        }
    });
    parallel_for<int>(blocks(num_columns), threads, [&](std::size_t block, int&) {
        for (std::size_t column = block * kBlock; column < std::min(num_columns, (block + 1) * kBlock); ++column) {
            double sum = 0;
            for (std::size_t k = starts_[column]; k < starts_[column + 1]; ++k) {
                sum += slopes[column_rows_[k]] * static_cast<double>(column_values_[k]);
            }
            gradient[column] = sum;
        }
    });
    double loss = 0;
    double intercept = 0;
    for (std::size_t row = 0; row < num_rows; ++row) {
        loss += losses[row];
        intercept += slopes[row];
    }
    gradient[num_columns] = intercept;
    return loss;
}

}  // namespace qwen_data
