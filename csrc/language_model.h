// fastText's supervised models with a quantised input matrix and hierarchical softmax, as lid.176.ftz is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qwen_data {

// Names the language of texts; the labels are those of fastText, the probabilities but for the last bits of sums.
class LanguageModel {
  public:
    struct Answer {
        std::int32_t label;  // -1 where nothing of the text is known to the model.
        float probability;
    };

    // Throws std::invalid_argument if `content` is no such model, is damaged or has n-grams of several words.
    explicit LanguageModel(std::string_view content);

    const std::vector<std::string>& labels() const { return labels_; }

    // The most probable label of one line of text, whose words stand between white space.
    Answer predict(std::string_view line, std::vector<float>& hidden) const;

  private:
    // Open addressing from 64-bit keys to rows of the input matrix. Most n-grams of a text are not among those that a
    // pruned model keeps: one bit a key, 16 bits of room for each, ends most lookups.
    class RowTable {
      public:
        void reserve(std::size_t entries);
        void insert(std::uint64_t key, std::int32_t row);
        std::int32_t find(std::uint64_t key) const;  // -1 if there is none.

      private:
        struct Entry {
            std::uint64_t key = 0;
            std::int32_t row = -1;  // -1 in a free place.
        };
        std::vector<Entry> entries_;
        std::vector<std::uint64_t> filter_;
        std::uint64_t mask_ = 0;
        std::uint64_t filter_mask_ = 0;
    };
    struct Node {
        std::int32_t left = -1;
        std::int32_t right = -1;
        std::int64_t count = 0;
    };

    class Reader;

    void read_dictionary(Reader& reader);
    void read_input(Reader& reader);
    void read_output(Reader& reader);
    void build_tree(const std::vector<std::int64_t>& counts);
    void add_row(std::int32_t row, std::vector<float>& hidden, std::size_t& count) const;
    void add_word(std::string_view word, std::vector<float>& hidden, std::size_t& count) const;
    void search(std::int32_t node, float score, const std::vector<float>& hidden, Answer& best) const;

    std::int32_t dim_ = 0;
    std::int32_t min_n_ = 0;
    std::int32_t max_n_ = 0;
    std::uint32_t bucket_ = 0;
    std::uint64_t bucket_inverse_ = 0;  // For remainders by multiplication.
    std::int32_t num_words_ = 0;
    bool is_pruned_ = false;
    RowTable words_;    // By two hashes of the word.
    RowTable ngrams_;   // By bucket.
    std::vector<std::string> labels_;
    std::vector<Node> tree_;
    std::vector<float> input_;   // [rows, dim]
    std::vector<float> output_;  // [labels, dim]
};

}  // namespace qwen_data
