#include "language_model.h"

#include <cmath>
#include <cstring>
#include <stdexcept>

#include "text_hash.h"

namespace qwen_data {

namespace {

constexpr std::int32_t kMagic = 793712314;
constexpr std::int32_t kVersion = 12;
constexpr std::int32_t kHierarchicalSoftmax = 1;
constexpr std::int32_t kSupervised = 3;
constexpr std::int32_t kCentroids = 256;
constexpr std::int64_t kUnreachable = 1000000000000000;  // Of counts in fastText's tree.
constexpr std::string_view kEndOfLine = "</s>";
// What models can be is bounded, so that a damaged size asks for no memory.
constexpr std::int64_t kMostRows = 1 << 24;
constexpr std::int32_t kLargestDim = 4096;

// FNV-1a over signed bytes, as fastText has it.
constexpr std::uint32_t kHashStart = 2166136261U;
inline std::uint32_t hash_byte(std::uint32_t hash, char c) {
    return (hash ^ static_cast<std::uint32_t>(static_cast<std::int8_t>(c))) * 16777619U;
}

inline bool is_continuation_byte(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

inline bool is_separator(char c) {
    // All below the space that str.split() takes for white space, and what fastText does.
    return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1C && c <= 0x1F) || c == '\0';
}

float log_of(double x) { return static_cast<float>(std::log(x + 1e-5)); }

// Keys are buckets of a hash, or hashes: one multiplication does.
inline std::uint64_t spread(std::uint64_t key) { return key * 0x9E3779B97F4A7C15ULL; }

std::uint64_t key_of_word(std::string_view word) { return hash_bytes(word.data(), word.size()); }

}  // namespace

class LanguageModel::Reader {
  public:
    explicit Reader(std::string_view content) : left_(content) {}

    template <typename T>
    T number() {
        T value;
        std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
        return value;
    }

    std::string_view take(std::size_t size) {
        if (size > left_.size()) {
            fail("it ends too early");
        }
        const std::string_view part = left_.substr(0, size);
        left_.remove_prefix(size);
        return part;
    }

    std::string_view text() {
        const std::size_t end = left_.find('\0');
        if (end == std::string_view::npos) {
            fail("it ends too early");
        }
        const std::string_view part = left_.substr(0, end);
        left_.remove_prefix(end + 1);
        return part;
    }

    std::vector<float> floats(std::size_t count) {
        std::vector<float> values(count);
        std::memcpy(values.data(), take(count * sizeof(float)).data(), count * sizeof(float));
        return values;
    }

    static void require(bool holds, const char* rule) {
        if (!holds) {
            fail(rule);
        }
    }

    [[noreturn]] static void fail(const char* what) {
        throw std::invalid_argument(std::string("language model: ") + what);
    }

  private:
    std::string_view left_;
};

void LanguageModel::RowTable::reserve(std::size_t entries) {
    std::size_t capacity = 64;
    while (capacity < 2 * entries) {
        capacity *= 2;
    }
    entries_.assign(capacity, {});
    filter_.assign(capacity / 8, 0);
    mask_ = capacity - 1;
    filter_mask_ = filter_.size() - 1;
}

void LanguageModel::RowTable::insert(std::uint64_t key, std::int32_t row) {
    const std::uint64_t hash = spread(key);
    filter_[(hash >> 38) & filter_mask_] |= std::uint64_t{1} << (hash >> 32 & 63);
    std::uint64_t slot = hash >> 32 & mask_;
    while (entries_[slot].row >= 0 && entries_[slot].key != key) {
        slot = (slot + 1) & mask_;
    }
    entries_[slot] = {key, row};
}

std::int32_t LanguageModel::RowTable::find(std::uint64_t key) const {
    const std::uint64_t hash = spread(key);
    if ((filter_[(hash >> 38) & filter_mask_] >> (hash >> 32 & 63) & 1) == 0) {
        return -1;
    }
    std::uint64_t slot = hash >> 32 & mask_;
    while (entries_[slot].row >= 0 && entries_[slot].key != key) {
        slot = (slot + 1) & mask_;
    }
    return entries_[slot].row;
}

LanguageModel::LanguageModel(std::string_view content) {
    Reader reader(content);
    Reader::require(reader.number<std::int32_t>() == kMagic, "it is no model of fastText");
    Reader::require(reader.number<std::int32_t>() == kVersion, "its version is not 12");
    dim_ = reader.number<std::int32_t>();
    reader.take(4 * sizeof(std::int32_t));  // Window, epochs, least count, negatives: of training.
    const auto word_ngrams = reader.number<std::int32_t>();
    const auto loss = reader.number<std::int32_t>();
    const auto model = reader.number<std::int32_t>();
    const auto bucket = reader.number<std::int32_t>();
    min_n_ = reader.number<std::int32_t>();
    max_n_ = reader.number<std::int32_t>();
    reader.take(sizeof(std::int32_t) + sizeof(double));  // Updates of the rate, sampling threshold.
    Reader::require(dim_ > 0 && dim_ <= kLargestDim, "its dimension is out of bounds");
    Reader::require(word_ngrams == 1, "it has n-grams of several words");
    Reader::require(loss == kHierarchicalSoftmax && model == kSupervised, "it is not supervised with a tree of labels");
    Reader::require(bucket > 1 && min_n_ >= 1 && max_n_ >= min_n_ && max_n_ < 64, "its n-grams are out of bounds");
    bucket_ = static_cast<std::uint32_t>(bucket);
    bucket_inverse_ = ~std::uint64_t{0} / bucket_ + 1;
    read_dictionary(reader);
    read_input(reader);
    read_output(reader);
}

void LanguageModel::read_dictionary(Reader& reader) {
    const auto size = reader.number<std::int32_t>();
    num_words_ = reader.number<std::int32_t>();
    const auto num_labels = reader.number<std::int32_t>();
    reader.number<std::int64_t>();  // Tokens trained on.
    const auto num_pruned = reader.number<std::int64_t>();
    Reader::require(num_words_ >= 0 && num_labels > 0 && size == num_words_ + num_labels && size < kMostRows &&
                        num_pruned < kMostRows,
                    "its dictionary is out of bounds");
    words_.reserve(static_cast<std::size_t>(num_words_));
    std::vector<std::int64_t> counts;
    for (std::int32_t i = 0; i < size; ++i) {
        const std::string_view word = reader.text();
        const auto count = reader.number<std::int64_t>();
        const bool is_label = reader.number<std::int8_t>() != 0;
        Reader::require(is_label == (i >= num_words_), "words and labels are mixed");
        if (is_label) {
            labels_.emplace_back(word);
            counts.push_back(count);
        } else {
            words_.insert(key_of_word(word), i);
        }
    }
    is_pruned_ = num_pruned >= 0;
    ngrams_.reserve(static_cast<std::size_t>(num_pruned > 0 ? num_pruned : 0));
    for (std::int64_t i = 0; i < num_pruned; ++i) {
        const auto from = reader.number<std::int32_t>();
        const auto to = reader.number<std::int32_t>();
        Reader::require(from >= 0 && to >= 0 && to < num_pruned, "a pruned n-gram is out of bounds");
        ngrams_.insert(static_cast<std::uint64_t>(from), to);
    }
    build_tree(counts);
}

void LanguageModel::read_input(Reader& reader) {
    Reader::require(reader.number<std::int8_t>() != 0, "its input matrix is not quantised");
    const bool has_norms = reader.number<std::int8_t>() != 0;
    const auto num_rows = reader.number<std::int64_t>();
    const auto num_columns = reader.number<std::int64_t>();
    const auto num_codes = reader.number<std::int32_t>();
    Reader::require(num_rows > 0 && num_rows < kMostRows && num_columns == dim_ && num_codes > 0,
                    "its input matrix is out of bounds");
    const std::string_view codes = reader.take(static_cast<std::size_t>(num_codes));
    struct Quantizer {
        std::int32_t dim, parts, part_dim, last_dim;
        std::vector<float> centroids;
    };
    const auto read_quantizer = [&](std::int32_t dim) {
        Quantizer one{};
        one.dim = reader.number<std::int32_t>();
        one.parts = reader.number<std::int32_t>();
        one.part_dim = reader.number<std::int32_t>();
        one.last_dim = reader.number<std::int32_t>();
        Reader::require(one.dim == dim && one.parts > 0 && one.part_dim > 0 && one.last_dim > 0 &&
                            one.last_dim <= one.part_dim &&
                            std::int64_t{one.parts - 1} * one.part_dim + one.last_dim == dim,
                        "its quantiser is out of bounds");
        one.centroids = reader.floats(static_cast<std::size_t>(dim) * kCentroids);
        return one;
    };
    const Quantizer product = read_quantizer(dim_);
    Reader::require(num_rows * product.parts == num_codes, "its codes are out of bounds");
    std::string_view norm_codes;
    Quantizer norms{};
    if (has_norms) {
        norm_codes = reader.take(static_cast<std::size_t>(num_rows));
        norms = read_quantizer(1);
    }
    input_.resize(static_cast<std::size_t>(num_rows * dim_));
    for (std::int64_t row = 0; row < num_rows; ++row) {
        const float norm =
            has_norms ? norms.centroids[static_cast<unsigned char>(norm_codes[static_cast<std::size_t>(row)])] : 1.0F;
        for (std::int32_t part = 0; part < product.parts; ++part) {
            const std::int32_t width = part == product.parts - 1 ? product.last_dim : product.part_dim;
            const auto code =
                static_cast<unsigned char>(codes[static_cast<std::size_t>(row * product.parts + part)]);
            // fastText lays the centroids of the last, shorter part out by its own width.
            const std::size_t start = static_cast<std::size_t>(part) * kCentroids * product.part_dim +
                                      static_cast<std::size_t>(code) * width;
            for (std::int32_t i = 0; i < width; ++i) {
                input_[static_cast<std::size_t>(row * dim_ + part * product.part_dim + i)] =
                    norm * product.centroids[start + static_cast<std::size_t>(i)];
            }
        }
    }
}

void LanguageModel::read_output(Reader& reader) {
    Reader::require(reader.number<std::int8_t>() == 0, "its output matrix is quantised");
    const auto num_rows = reader.number<std::int64_t>();
    const auto num_columns = reader.number<std::int64_t>();
    Reader::require(num_rows == static_cast<std::int64_t>(labels_.size()) && num_columns == dim_,
                    "its output matrix is out of bounds");
    output_ = reader.floats(static_cast<std::size_t>(num_rows * dim_));
}

// Huffman's tree over the labels, which come with the most frequent first, in fastText's order of ties.
void LanguageModel::build_tree(const std::vector<std::int64_t>& counts) {
    const auto num_labels = static_cast<std::int32_t>(counts.size());
    tree_.assign(static_cast<std::size_t>(2 * num_labels - 1), {-1, -1, kUnreachable});
    for (std::int32_t i = 0; i < num_labels; ++i) {
        tree_[static_cast<std::size_t>(i)].count = counts[static_cast<std::size_t>(i)];
    }
    std::int32_t leaf = num_labels - 1;
    std::int32_t inner = num_labels;
    const auto count_of = [&](std::int32_t node) { return tree_[static_cast<std::size_t>(node)].count; };
    for (std::int32_t i = num_labels; i < 2 * num_labels - 1; ++i) {
        std::int32_t smallest[2];
        for (std::int32_t& one : smallest) {
            one = leaf >= 0 && count_of(leaf) < count_of(inner) ? leaf-- : inner++;
        }
        tree_[static_cast<std::size_t>(i)] = {smallest[0], smallest[1], count_of(smallest[0]) + count_of(smallest[1])};
    }
}

void LanguageModel::add_row(std::int32_t row, std::vector<float>& hidden, std::size_t& count) const {
    const std::size_t start = static_cast<std::size_t>(row) * static_cast<std::size_t>(dim_);
    if (start + static_cast<std::size_t>(dim_) > input_.size()) {
        Reader::fail("a row is missing");
    }
    const float* const values = &input_[start];
    float* const sums = hidden.data();
    std::int32_t i = 0;
    for (; i + 8 <= dim_; i += 8) {
        for (std::int32_t j = 0; j < 8; ++j) {  // Of known length, so that it becomes two or four instructions.
            sums[i + j] += values[i + j];
        }
    }
    for (; i < dim_; ++i) {
        sums[i] += values[i];
    }
    ++count;
}

void LanguageModel::add_word(std::string_view word, std::vector<float>& hidden, std::size_t& count) const {
    const std::int32_t known = words_.find(key_of_word(word));
    if (known >= 0) {
        add_row(known, hidden, count);
    }
    if (word == kEndOfLine) {
        return;
    }
    // n-grams of the word between < and >.
    const std::size_t size = word.size() + 2;
    const auto at = [&](std::size_t i) { return i == 0 ? '<' : i == size - 1 ? '>' : word[i - 1]; };
    for (std::size_t i = 0; i < size; ++i) {
        if (is_continuation_byte(at(i))) {
            continue;
        }
        std::uint32_t hash = kHashStart;
        std::size_t j = i;
        for (std::int32_t n = 1; j < size && n <= max_n_; ++n) {
            hash = hash_byte(hash, at(j++));
            while (j < size && is_continuation_byte(at(j))) {
                hash = hash_byte(hash, at(j++));
            }
            if (n < min_n_ || (n == 1 && (i == 0 || j == size))) {
                continue;
            }
            // hash % bucket_, after Lemire, Kaser and Kurz 2019.
            __extension__ typedef unsigned __int128 Wide;
            const auto bucket = static_cast<std::uint32_t>(static_cast<Wide>(bucket_inverse_ * hash) * bucket_ >> 64);
            const std::int32_t row = is_pruned_ ? ngrams_.find(bucket) : static_cast<std::int32_t>(bucket);
            if (row >= 0) {
                add_row(num_words_ + row, hidden, count);
            }
        }
    }
}

void LanguageModel::search(std::int32_t node, float score, const std::vector<float>& hidden, Answer& best) const {
    // Until something is found, `best.probability` holds the least score that counts.
    if (score < (best.label < 0 ? log_of(0.0) : best.probability)) {
        return;
    }
    const Node& here = tree_[static_cast<std::size_t>(node)];
    if (here.left < 0) {
        best = {node, score};
        return;
    }
    const float* weights = &output_[(static_cast<std::size_t>(node) - labels_.size()) * static_cast<std::size_t>(dim_)];
    float product = 0.0F;
    for (std::int32_t i = 0; i < dim_; ++i) {
        product += weights[i] * hidden[static_cast<std::size_t>(i)];
    }
    const float f = 1.0F / (1.0F + std::exp(-product));
    search(here.left, score + log_of(1.0 - f), hidden, best);
    search(here.right, score + log_of(f), hidden, best);
}

LanguageModel::Answer LanguageModel::predict(std::string_view line, std::vector<float>& hidden) const {
    hidden.assign(static_cast<std::size_t>(dim_), 0.0F);
    std::size_t count = 0;
    std::size_t position = 0;
    while (position < line.size()) {
        if (is_separator(line[position])) {
            ++position;
            continue;
        }
        const std::size_t begin = position;
        while (position < line.size() && !is_separator(line[position])) {
            ++position;
        }
        const std::string_view word = line.substr(begin, position - begin);
        if (word.substr(0, 9) != "__label__") {
            add_word(word, hidden, count);
        }
        if (word == kEndOfLine) {
            break;
        }
    }
    add_word(kEndOfLine, hidden, count);
    if (count == 0) {
        return {-1, 0.0F};
    }
    for (float& value : hidden) {
        value *= static_cast<float>(1.0 / static_cast<double>(count));
    }
    Answer best{-1, 0.0F};
    search(static_cast<std::int32_t>(tree_.size()) - 1, 0.0F, hidden, best);
    return best.label < 0 ? best : Answer{best.label, std::exp(best.probability)};
}

}  // namespace qwen_data
