#include "merge_learner.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "parallel.h"

namespace qwen_data {

namespace {

struct Nothing {};

// Words that a thread encodes at a time.
constexpr std::size_t kWordsAtOnce = 4096;
// Places that it looks at between two calls of `check`.
constexpr std::uint32_t kPlacesAtOnce = 1 << 18;

struct EncodedWords {
    std::vector<std::uint32_t> ids;
    std::vector<std::uint32_t> sizes;  // [words]
};

// The base's tokens of every pre-token, kWordsAtOnce of them in each item.
std::vector<EncodedWords> encoded(const BytePairs& base, const std::vector<CountedPretoken>& pretokens,
                                  std::size_t threads, const std::function<void()>& check) {
    struct Scratch {
        BytePairs::Scratch encoder;
        std::vector<std::uint32_t> ids;
    };
    std::vector<EncodedWords> blocks((pretokens.size() + kWordsAtOnce - 1) / kWordsAtOnce);
    parallel_for<Scratch>(blocks.size(), threads, [&](std::size_t number, Scratch& scratch) {
        check();
        const std::size_t end = std::min(pretokens.size(), (number + 1) * kWordsAtOnce);
        for (std::size_t word = number * kWordsAtOnce; word < end; ++word) {
            base.encode(pretokens[word].text, scratch.ids, scratch.encoder);
            blocks[number].ids.insert(blocks[number].ids.end(), scratch.ids.begin(), scratch.ids.end());
            blocks[number].sizes.push_back(static_cast<std::uint32_t>(scratch.ids.size()));
        }
    });
    return blocks;
}

}  // namespace

MergeLearner::MergeLearner(const BytePairs& base, const PretokenCounts& counts, View<const std::uint64_t> factors,
                           const LearningRules& rules, const std::function<void()>& check)
    : rules_(rules), lengths_(base.lengths()), num_tokens_(factors.size) {
    encode_words(base, counts, factors, check);
    fresh_left_.assign(lengths_.size(), kNone);
    fresh_right_.assign(lengths_.size(), kNone);
    count_pairs(check);
}

void MergeLearner::encode_words(const BytePairs& base, const PretokenCounts& counts,
                                View<const std::uint64_t> factors, const std::function<void()>& check) {
    const std::vector<CountedPretoken> pretokens = counts.all();
    constexpr auto most = std::numeric_limits<std::int64_t>::max();
    double total = 0;
    for (const CountedPretoken& one : pretokens) {
        if (one.group >= factors.size || factors[one.group] == 0) {
            throw std::invalid_argument("group " + std::to_string(one.group) + " has no factor");
        }
        total += static_cast<double>(one.count) * static_cast<double>(one.text.size()) *
                 static_cast<double>(factors[one.group]);
    }
    if (total >= static_cast<double>(most)) {
        throw std::invalid_argument("bytes times factors are more than 64 bits can count");
    }
    std::size_t word = 0;
    for (const EncodedWords& block : encoded(base, pretokens, rules_.threads, check)) {
        const std::uint32_t* ids = block.ids.data();
        for (const std::uint32_t size : block.sizes) {
            const CountedPretoken& pretoken = pretokens[word++];
            num_tokens_[pretoken.group] += pretoken.count * size;
            if (size > 1) {  // Nothing can be joined in a word of one token.
                if (symbols_.size() + size >= kNone) {
                    throw std::invalid_argument("the different pre-tokens have more than 2^32 tokens; take less text");
                }
                const auto begin = static_cast<std::uint32_t>(symbols_.size());
                for (std::uint32_t i = 0; i < size; ++i) {
                    next_.push_back(i + 1 < size ? begin + i + 1 : kNone);
                    before_.push_back(i > 0 ? begin + i - 1 : kNone);
                }
                symbols_.insert(symbols_.end(), ids, ids + size);
                word_of_.insert(word_of_.end(), size, static_cast<std::uint32_t>(words_.size()));
                words_.push_back({pretoken.count, pretoken.count * factors[pretoken.group], pretoken.group});
            }
            ids += size;
        }
    }
}

void MergeLearner::count_pairs(const std::function<void()>& check) {
    // Each part looks at all places and counts the pairs that are its own: no part waits for another, and the places of
    // every pair are found in ascending order.
    const std::size_t num_parts = std::max<std::size_t>(rules_.threads, 1);
    std::vector<std::vector<Pair>> parts(num_parts);
    parallel_for<Nothing>(num_parts, num_parts, [&](std::size_t part, Nothing&) {
        PairMap numbers;
        std::vector<Pair>& pairs = parts[part];
        const auto for_each_place = [&](const auto& visit) {
            for (std::uint32_t place = 0; place < symbols_.size(); ++place) {
                if (place % kPlacesAtOnce == 0) {
                    check();
                }
                if (next_[place] != kNone) {
                    const std::uint32_t left = symbols_[place];
                    const std::uint32_t right = symbols_[next_[place]];
                    if ((mix64(pair_key(left, right)) >> 32) % num_parts == part) {
                        visit(place, left, right);
                    }
                }
            }
        };
        for_each_place([&](std::uint32_t place, std::uint32_t left, std::uint32_t right) {
            const auto fresh = static_cast<std::uint32_t>(pairs.size());
            const std::uint32_t number = numbers.insert(pair_key(left, right), fresh);
            if (number == fresh) {
                pairs.push_back({left, right, 0, 0, {}});
            }
            pairs[number].count += words_[word_of_[place]].count;
            pairs[number].weight += words_[word_of_[place]].weight;
        });
        // The places of the many pairs that are too rare are never kept.
        for_each_place([&](std::uint32_t place, std::uint32_t left, std::uint32_t right) {
            Pair& pair = pairs[numbers.find(pair_key(left, right))];
            if (pair.count >= rules_.min_count) {
                pair.places.push_back(place);
            }
        });
    });
    for (std::vector<Pair>& pairs : parts) {
        for (Pair& pair : pairs) {
            keep(std::move(pair));
        }
    }
}

// Makes a pair one of those that can be joined, unless it is too rare or too long. A pair is whole when it comes: its two
// symbols can only become neighbours while the newer one is made.
void MergeLearner::keep(Pair&& pair) {
    if (pair.count < rules_.min_count || lengths_[pair.left] + lengths_[pair.right] > rules_.max_token_bytes) {
        return;
    }
    const auto number = static_cast<std::uint32_t>(pairs_.size());
    numbers_.insert(pair_key(pair.left, pair.right), number);
    heap_.push_back({pair.weight, pair.left, pair.right, number});
    std::push_heap(heap_.begin(), heap_.end());
    pairs_.push_back(std::move(pair));
}

std::size_t MergeLearner::learn(std::size_t most) {
    std::size_t learned = 0;
    while (learned < most && !heap_.empty()) {
        std::pop_heap(heap_.begin(), heap_.end());
        Waiting& top = heap_.back();
        Pair& pair = pairs_[top.pair];
        if (pair.count >= rules_.min_count && pair.weight != top.weight) {
            top.weight = pair.weight;
            std::push_heap(heap_.begin(), heap_.end());
            continue;
        }
        heap_.pop_back();
        // Moved out either way: its places are never looked at again.
        Pair taken = std::move(pair);
        if (taken.count >= rules_.min_count) {
            join(std::move(taken));
            ++learned;
        }
    }
    return learned;
}

void MergeLearner::join(Pair pair) {
    const auto token = static_cast<std::uint32_t>(lengths_.size());
    lengths_.push_back(lengths_[pair.left] + lengths_[pair.right]);
    fresh_left_.push_back(kNone);
    fresh_right_.push_back(kNone);
    merges_.push_back({pair.left, pair.right, pair.count});
    // In ascending order, so that of occurrences that overlap the leftmost is joined, as an encoder does.
    for (const std::uint32_t place : pair.places) {
        const std::uint32_t right = symbols_[place] == pair.left ? next_[place] : kNone;
        if (right == kNone || symbols_[right] != pair.right) {
            continue;
        }
        const Word& word = words_[word_of_[place]];
        const std::uint32_t before = before_[place];
        const std::uint32_t behind = next_[right];
        symbols_[place] = token;
        symbols_[right] = kNone;
        next_[place] = behind;
        if (before != kNone) {
            lose(symbols_[before], pair.left, token, word);
            gain(fresh_left_, symbols_[before], symbols_[before], token, before);
        }
        if (behind != kNone) {
            before_[behind] = place;
            lose(pair.right, symbols_[behind], token, word);
            gain(fresh_right_, symbols_[behind], token, symbols_[behind], place);
        }
        num_tokens_[word.group] -= word.count;
    }
    for (Pair& fresh : fresh_) {
        fresh_left_[fresh.left] = kNone;
        fresh_right_[fresh.right] = kNone;
        keep(std::move(fresh));
    }
    fresh_.clear();
}

// One more place where the new token has this neighbour.
void MergeLearner::gain(std::vector<std::uint32_t>& numbers, std::uint32_t neighbour, std::uint32_t left,
                        std::uint32_t right, std::uint32_t place) {
    std::uint32_t& number = numbers[neighbour];
    if (number == kNone) {
        number = static_cast<std::uint32_t>(fresh_.size());
        fresh_.push_back({left, right, 0, 0, {}});
    }
    Pair& pair = fresh_[number];
    pair.count += words_[word_of_[place]].count;
    pair.weight += words_[word_of_[place]].weight;
    pair.places.push_back(place);
}

// One place less for a pair of which one symbol was joined to something else.
void MergeLearner::lose(std::uint32_t left, std::uint32_t right, std::uint32_t newest, const Word& word) {
    const bool is_fresh = left == newest;  // Joined a moment ago, just before this place.
    const std::uint32_t number = is_fresh ? fresh_right_[right] : numbers_.find(pair_key(left, right));
    if (number != kNone) {  // Pairs too rare to be joined are not known.
        Pair& pair = is_fresh ? fresh_[number] : pairs_[number];
        pair.count -= word.count;
        pair.weight -= word.weight;
    }
}

}  // namespace qwen_data
