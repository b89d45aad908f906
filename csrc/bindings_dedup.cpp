// Bindings of what finds duplicates: hashes, shingles, MinHash, connected components.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "bindings.h"
#include "bindings_arguments.h"
#include "characters.h"
#include "disjoint_sets.h"
#include "minhash.h"
#include "parallel.h"
#include "shingles.h"
#include "text_hash.h"
#include "views.h"

namespace qwen_data::bindings {

namespace {

struct NormalizedScratch {
    std::string buffer;
    std::vector<std::uint64_t> words;
};

// Shingles are handed on in blocks that stay in the first cache, so that a long text's are never all in memory.
constexpr std::size_t kShingleBlock = 1024;

std::string_view normalized_text(const qwen_data::Characters& characters, std::string_view text, bool is_normalized,
                                 std::string& buffer) {
    if (is_normalized) {
        return text;
    }
    characters.normalize(text, buffer);
    return buffer;
}

// Calls take(view) with blocks of the shingles of `num_words` words; a shorter text is one shingle.
template <typename Take>
void for_each_shingle_block(const qwen_data::Characters& characters, std::string_view text, bool is_normalized,
                            std::size_t num_words, NormalizedScratch& scratch, const Take& take) {
    scratch.words.clear();
    qwen_data::append_word_hashes(characters, normalized_text(characters, text, is_normalized, scratch.buffer),
                                  scratch.words);
    std::uint64_t block[kShingleBlock];
    std::size_t filled = 0;
    qwen_data::for_each_shingle(scratch.words, std::min(num_words, scratch.words.size()),
                                [&](std::size_t, std::uint64_t hash) {
                                    block[filled++] = hash;
                                    if (filled == kShingleBlock) {
                                        take(View<const std::uint64_t>{block, filled});
                                        filled = 0;
                                    }
                                });
    take(View<const std::uint64_t>{block, filled});
}

Array<std::uint64_t> normalized_hashes(const qwen_data::Characters& characters, const py::sequence& sequence,
                                       const Flags& normalized, std::size_t threads) {
    const Texts texts(sequence);
    const auto flags = checked_flags(normalized, texts);
    Array<std::uint64_t> hashes({extent(texts.size()), py::ssize_t{2}});
    std::uint64_t* out = hashes.mutable_data();
    py::gil_scoped_release release;
    qwen_data::parallel_for<std::string>(texts.size(), threads, [&](std::size_t i, std::string& buffer) {
        const std::string_view text = normalized_text(characters, texts[i], flags[i], buffer);
        const auto hash = qwen_data::murmur3_128(text.data(), text.size());
        out[2 * i] = hash.first;
        out[2 * i + 1] = hash.second;
    });
    return hashes;
}

py::list shingles(const qwen_data::Characters& characters, const py::sequence& sequence, const Flags& normalized,
                  std::size_t num_words) {
    const Texts texts(sequence);
    const auto flags = checked_flags(normalized, texts);
    py::list out;
    NormalizedScratch scratch;
    for (std::size_t i = 0; i < texts.size(); ++i) {
        std::vector<std::uint64_t> hashes;
        for_each_shingle_block(
            characters, texts[i], flags[i], num_words, scratch,
            [&](View<const std::uint64_t> block) { hashes.insert(hashes.end(), block.begin(), block.end()); });
        out.append(Array<std::uint64_t>(extent(hashes.size()), hashes.data()));
    }
    return out;
}

Array<std::uint64_t> minhash_signatures(const qwen_data::Characters& characters, const py::sequence& sequence,
                                        const Flags& normalized, std::size_t num_words, std::size_t num_functions,
                                        std::uint64_t seed, std::size_t threads) {
    const Texts texts(sequence);
    const auto flags = checked_flags(normalized, texts);
    const qwen_data::HashFunctions functions(num_functions, seed);
    Array<std::uint64_t> signatures({extent(texts.size()), extent(num_functions)});
    std::uint64_t* out = signatures.mutable_data();
    py::gil_scoped_release release;
    qwen_data::parallel_for<NormalizedScratch>(texts.size(), threads, [&](std::size_t i, NormalizedScratch& scratch) {
        std::uint64_t* signature = out + i * num_functions;
        std::fill_n(signature, num_functions, qwen_data::kNoShingle);
        for_each_shingle_block(characters, texts[i], flags[i], num_words, scratch,
                               [&](View<const std::uint64_t> block) {
                                   qwen_data::lower_signature(block, functions, signature);
                               });
    });
    return signatures;
}

Array<std::uint64_t> band_keys(const Array<std::uint64_t>& signatures, std::size_t bands) {
    if (signatures.ndim() != 2 || bands == 0 || static_cast<std::size_t>(signatures.shape(1)) % bands != 0) {
        throw py::value_error("band_keys: signatures must be [n, bands * rows] with bands=" + std::to_string(bands));
    }
    const auto count = static_cast<std::size_t>(signatures.shape(0));
    const auto width = static_cast<std::size_t>(signatures.shape(1));
    Array<std::uint64_t> keys({extent(count), extent(bands)});
    const std::uint64_t* in = signatures.data();
    std::uint64_t* out = keys.mutable_data();
    py::gil_scoped_release release;
    for (std::size_t i = 0; i < count; ++i) {
        qwen_data::compute_band_keys(in + i * width, bands, width / bands, out + i * bands);
    }
    return keys;
}

void join_components(const Array<std::int64_t>& edges, Array<std::int64_t>& roots) {
    if (edges.ndim() != 2 || edges.shape(1) != 2) {
        throw py::value_error("join_components: edges must be [m, 2]");
    }
    const View<const std::int64_t> edges_view{edges.data(), static_cast<std::size_t>(edges.size())};
    const auto roots_view = writable_view(roots, "roots");
    py::gil_scoped_release release;
    qwen_data::join_components(edges_view, roots_view);
}

}  // namespace

void bind_dedup(py::module_& module) {
    module.def("normalized_hashes", &normalized_hashes, py::arg("characters"), py::arg("texts"),
               py::arg("normalized").noconvert(), py::arg("threads"),
               "[n, 2] MurmurHash3 x64 128 of each normalised text.");
    module.def("shingles", &shingles, py::arg("characters"), py::arg("texts"), py::arg("normalized").noconvert(),
               py::arg("num_words"), "For each text the hashes of its runs of num_words words.");
    module.def("minhash_signatures", &minhash_signatures, py::arg("characters"), py::arg("texts"),
               py::arg("normalized").noconvert(), py::arg("num_words"), py::arg("num_functions"), py::arg("seed"),
               py::arg("threads"), "[n, num_functions] minima of the hash functions over the shingles.");
    module.def("band_keys", &band_keys, py::arg("signatures").noconvert(), py::arg("bands"),
               "[n, bands] one 64-bit key for the values of each band.");
    module.def("join_components", &join_components, py::arg("edges").noconvert(), py::arg("roots").noconvert(),
               "Makes roots[v] the smallest vertex connected with v. Raises IndexError for an edge to no vertex.");
}

}  // namespace qwen_data::bindings
