// The only file that knows pybind11: checks arrays, releases the GIL, turns errors into Python's.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "c4.h"
#include "characters.h"
#include "disjoint_sets.h"
#include "gather.h"
#include "index_writer.h"
#include "json_strings.h"
#include "minhash.h"
#include "ngram_index.h"
#include "output_file.h"
#include "parallel.h"
#include "quality.h"
#include "shingles.h"
#include "statistics.h"
#include "text_hash.h"
#include "utf8.h"
#include "words.h"

namespace py = pybind11;
using qwen_data::View;

namespace {

// No conversion: a wrong dtype or a strided array is a TypeError, never a silent copy.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
View<const T> view(const Array<T>& array, const char* name) {
    if (array.ndim() != 1) {
        throw py::value_error(std::string(name) + " must have one dimension, has " + std::to_string(array.ndim()));
    }
    return {array.data(), static_cast<std::size_t>(array.size())};
}

template <typename T>
View<T> writable_view(Array<T>& array, const char* name) {
    if (array.ndim() != 1) {
        throw py::value_error(std::string(name) + " must have one dimension, has " + std::to_string(array.ndim()));
    }
    return {array.mutable_data(), static_cast<std::size_t>(array.size())};
}

std::size_t gather_documents(const Array<std::int32_t>& spool, const Array<std::int64_t>& starts,
                             const Array<std::int32_t>& lengths, const Array<std::int64_t>& order,
                             std::int32_t end_of_document, Array<std::int32_t>& out) {
    const auto spool_view = view(spool, "spool");
    const auto starts_view = view(starts, "starts");
    const auto lengths_view = view(lengths, "lengths");
    const auto order_view = view(order, "order");
    const auto out_view = writable_view(out, "out");
    py::gil_scoped_release release;
    return qwen_data::gather_documents(spool_view, starts_view, lengths_view, order_view, end_of_document, out_view);
}

void write_index(const std::string& path, const Array<std::int32_t>& lengths, std::uint8_t dtype_code,
                 std::int64_t itemsize) {
    const auto lengths_view = view(lengths, "lengths");
    py::gil_scoped_release release;
    qwen_data::write_index(path, lengths_view, dtype_code, itemsize);
}

std::vector<std::pair<std::size_t, std::size_t>> json_strings(const py::buffer& text, std::size_t min_bytes) {
    const py::buffer_info info = text.request();
    if (info.itemsize != 1 || info.ndim != 1) {
        throw py::type_error("text must be bytes or a bytearray");
    }
    const std::string_view view(static_cast<const char*>(info.ptr), static_cast<std::size_t>(info.size));
    py::gil_scoped_release release;
    return qwen_data::json_strings(view, min_bytes);
}

// The UTF-8 of a sequence of str and bytes. Keeps the objects alive; copies nothing. bytes must be valid UTF-8.
class Texts {
  public:
    explicit Texts(const py::sequence& texts) : objects_(texts) {
        views_.reserve(objects_.size());
        for (const py::handle text : objects_) {
            views_.push_back(utf8(text));
        }
    }

    std::size_t size() const { return views_.size(); }
    std::string_view operator[](std::size_t index) const { return views_[index]; }

  private:
    std::string_view utf8(const py::handle& text) const {
        const std::string place = "text " + std::to_string(views_.size());
        if (PyUnicode_Check(text.ptr())) {
            Py_ssize_t size = 0;
            const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
            if (data == nullptr) {
                throw py::error_already_set();  // UnicodeEncodeError: a lone surrogate.
            }
            return {data, static_cast<std::size_t>(size)};
        }
        if (!PyBytes_Check(text.ptr())) {
            throw py::type_error(place + " is neither str nor bytes");
        }
        const std::string_view bytes(PyBytes_AS_STRING(text.ptr()),
                                     static_cast<std::size_t>(PyBytes_GET_SIZE(text.ptr())));
        const std::size_t invalid = qwen_data::first_invalid_utf8(bytes.data(), bytes.size());
        if (invalid != bytes.size()) {
            throw py::value_error(place + " is not valid UTF-8 at byte " + std::to_string(invalid));
        }
        return bytes;
    }

    py::list objects_;
    std::vector<std::string_view> views_;
};

// Flags of texts that are in normalised form already.
using Flags = Array<bool>;

View<const bool> checked_flags(const Flags& normalized, const Texts& texts) {
    const auto flags = view(normalized, "normalized");
    if (flags.size != texts.size()) {
        throw py::value_error("normalized has " + std::to_string(flags.size) + " flags for " +
                              std::to_string(texts.size()) + " texts");
    }
    return flags;
}

qwen_data::Characters make_characters(const Array<std::uint8_t>& classes, const Array<std::uint32_t>& mapped,
                                      const Array<std::uint32_t>& form_starts, const std::string& forms) {
    return {view(classes, "classes"), view(mapped, "mapped_code_points"), view(form_starts, "form_starts"), forms};
}

Array<bool> needs_context(const qwen_data::Characters& characters, const py::sequence& sequence, std::size_t threads) {
    const Texts texts(sequence);
    Array<bool> flags(static_cast<py::ssize_t>(texts.size()));
    bool* out = flags.mutable_data();
    py::gil_scoped_release release;
    qwen_data::parallel_for<int>(texts.size(), threads, [&](std::size_t i, int&) {
        out[i] = characters.needs_context(texts[i]);
    });
    return flags;
}

std::string normalize(const qwen_data::Characters& characters, const std::string& text) {
    if (qwen_data::first_invalid_utf8(text.data(), text.size()) != text.size() || characters.needs_context(text)) {
        throw py::value_error("normalize: the text needs the context of its characters");
    }
    std::string out;
    characters.normalize(text, out);
    return out;
}

py::list words(const qwen_data::Characters& characters, const py::str& text) {
    py::list out;
    const Texts texts(py::make_tuple(text));
    qwen_data::for_each_word(characters, texts[0], [&](const qwen_data::Word& word) {
        out.append(py::str(word.begin, static_cast<std::size_t>(word.end - word.begin)));
    });
    return out;
}

Array<std::int64_t> statistics(const qwen_data::Characters& characters, const py::sequence& sequence,
                               const std::vector<std::string>& stop_words, std::uint32_t short_line_length,
                               std::size_t threads) {
    const Texts texts(sequence);
    const qwen_data::StatisticsOptions options(stop_words, short_line_length);
    constexpr auto columns = static_cast<py::ssize_t>(qwen_data::kNumStatistics);
    Array<std::int64_t> table({static_cast<py::ssize_t>(texts.size()), columns});
    std::int64_t* out = table.mutable_data();
    py::gil_scoped_release release;
    qwen_data::parallel_for<qwen_data::StatisticsScratch>(
        texts.size(), threads, [&](std::size_t i, qwen_data::StatisticsScratch& scratch) {
            qwen_data::compute_statistics(characters, texts[i], options, scratch, out + i * qwen_data::kNumStatistics);
        });
    return table;
}

py::tuple clean_c4(const qwen_data::Characters& characters, const py::sequence& sequence,
                   std::uint32_t min_words_per_line, std::uint32_t max_word_length, const std::string& page_phrase,
                   const std::vector<std::string>& line_phrases, bool want_kept, std::size_t threads) {
    const Texts texts(sequence);
    const qwen_data::C4Options options{min_words_per_line, max_word_length, page_phrase, line_phrases};
    Array<std::int64_t> table({static_cast<py::ssize_t>(texts.size()), py::ssize_t{3}});
    std::int64_t* out = table.mutable_data();
    std::vector<std::string> kept(want_kept ? texts.size() : 0);
    {
        py::gil_scoped_release release;
        qwen_data::parallel_for<qwen_data::C4Page>(texts.size(), threads, [&](std::size_t i, qwen_data::C4Page& page) {
            qwen_data::clean_c4(characters, texts[i], options, page);
            out[3 * i] = page.has_page_phrase;
            out[3 * i + 1] = page.has_curly_bracket;
            out[3 * i + 2] = page.num_sentences;
            if (want_kept) {
                kept[i] = page.kept;
            }
        });
    }
    return py::make_tuple(table, kept);
}

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
    Array<std::uint64_t> hashes({static_cast<py::ssize_t>(texts.size()), py::ssize_t{2}});
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
        out.append(Array<std::uint64_t>(static_cast<py::ssize_t>(hashes.size()), hashes.data()));
    }
    return out;
}

Array<std::uint64_t> minhash_signatures(const qwen_data::Characters& characters, const py::sequence& sequence,
                                        const Flags& normalized, std::size_t num_words, std::size_t num_functions,
                                        std::uint64_t seed, std::size_t threads) {
    const Texts texts(sequence);
    const auto flags = checked_flags(normalized, texts);
    const qwen_data::HashFunctions functions(num_functions, seed);
    Array<std::uint64_t> signatures(
        {static_cast<py::ssize_t>(texts.size()), static_cast<py::ssize_t>(num_functions)});
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
    Array<std::uint64_t> keys({static_cast<py::ssize_t>(count), static_cast<py::ssize_t>(bands)});
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

Array<std::int64_t> find_ngrams(const qwen_data::NgramIndex& index, const qwen_data::Characters& characters,
                                const py::sequence& sequence, const Flags& normalized, std::size_t threads) {
    const Texts texts(sequence);
    const auto flags = checked_flags(normalized, texts);
    std::vector<std::vector<qwen_data::NgramMatch>> found(texts.size());
    std::size_t total = 0;
    {
        py::gil_scoped_release release;
        qwen_data::parallel_for<qwen_data::MatchScratch>(
            texts.size(), threads, [&](std::size_t i, qwen_data::MatchScratch& scratch) {
                index.find(characters, texts[i], flags[i], scratch, found[i]);
            });
        for (const auto& matches : found) {
            total += matches.size();
        }
    }
    Array<std::int64_t> table({static_cast<py::ssize_t>(total), py::ssize_t{4}});
    std::int64_t* out = table.mutable_data();
    for (std::size_t i = 0; i < found.size(); ++i) {
        for (const auto& match : found[i]) {
            *out++ = static_cast<std::int64_t>(i);
            *out++ = match.item;
            *out++ = match.first_character;
            *out++ = match.end_character;
        }
    }
    return table;
}

std::size_t add_ngrams(qwen_data::NgramIndex& index, const qwen_data::Characters& characters, const py::str& normalized,
                       std::uint32_t item) {
    const Texts texts(py::make_tuple(normalized));
    return index.add(characters, texts[0], item);
}

// Rows of one matrix of features in arrays that Python owns.
class OwnedLogisticLoss {
  public:
    OwnedLogisticLoss(Array<std::int64_t> offsets, Array<std::uint32_t> columns, Array<float> values,
                      Array<std::uint8_t> labels, std::size_t num_columns)
        : offsets_(std::move(offsets)), columns_(std::move(columns)), values_(std::move(values)),
          labels_(std::move(labels)),
          loss_({view(offsets_, "offsets"), view(columns_, "columns"), view(values_, "values")},
                view(labels_, "labels"), num_columns) {}

    py::tuple evaluate(const Array<double>& weights, std::size_t threads) const {
        const auto weights_view = view(weights, "weights");
        Array<double> gradient(static_cast<py::ssize_t>(loss_.num_columns() + 1));
        const auto gradient_view = writable_view(gradient, "gradient");
        double loss = 0;
        {
            py::gil_scoped_release release;
            loss = loss_.evaluate(weights_view, gradient_view, threads);
        }
        return py::make_tuple(loss, gradient);
    }

  private:
    Array<std::int64_t> offsets_;
    Array<std::uint32_t> columns_;
    Array<float> values_;
    Array<std::uint8_t> labels_;
    qwen_data::LogisticLoss loss_;
};

void check_ngrams(std::size_t max_ngram, unsigned bits) {
    if (max_ngram < 1 || max_ngram > qwen_data::kLongestNgram || bits < 1 || bits > qwen_data::kMostBits) {
        throw py::value_error("max_ngram=" + std::to_string(max_ngram) + ", bits=" + std::to_string(bits) +
                              " must be from 1 to " + std::to_string(qwen_data::kLongestNgram) + " and from 1 to " +
                              std::to_string(qwen_data::kMostBits));
    }
}

py::tuple ngram_features(const qwen_data::Characters& characters, const py::sequence& sequence, std::size_t max_ngram,
                         unsigned bits, std::size_t threads) {
    check_ngrams(max_ngram, bits);
    const Texts texts(sequence);
    std::vector<std::vector<std::pair<std::uint32_t, float>>> rows(texts.size());
    {
        py::gil_scoped_release release;
        qwen_data::parallel_for<qwen_data::NgramCounts>(
            texts.size(), threads, [&](std::size_t i, qwen_data::NgramCounts& counts) {
                counts.count(characters, texts[i], max_ngram, bits);
                rows[i].reserve(counts.size());
                counts.for_each([&](std::uint32_t bucket, float value) { rows[i].emplace_back(bucket, value); });
            });
    }
    Array<std::int64_t> offsets(static_cast<py::ssize_t>(rows.size() + 1));
    std::int64_t* end = offsets.mutable_data();
    *end = 0;
    for (const auto& row : rows) {
        end[1] = end[0] + static_cast<std::int64_t>(row.size());
        ++end;
    }
    Array<std::uint32_t> columns(static_cast<py::ssize_t>(*end));
    Array<float> values(static_cast<py::ssize_t>(*end));
    std::uint32_t* column = columns.mutable_data();
    float* value = values.mutable_data();
    for (const auto& row : rows) {
        for (const auto& feature : row) {
            *column++ = feature.first;
            *value++ = feature.second;
        }
    }
    return py::make_tuple(offsets, columns, values);
}

Array<double> ngram_scores(const qwen_data::Characters& characters, const py::sequence& sequence,
                           const Array<float>& weights, std::size_t max_ngram, unsigned bits, std::size_t threads) {
    check_ngrams(max_ngram, bits);
    const auto weights_view = view(weights, "weights");
    if (weights_view.size != std::size_t{1} << bits) {
        throw py::value_error("weights has " + std::to_string(weights_view.size) + " values, not 2^" +
                              std::to_string(bits));
    }
    const Texts texts(sequence);
    Array<double> scores(static_cast<py::ssize_t>(texts.size()));
    double* out = scores.mutable_data();
    py::gil_scoped_release release;
    qwen_data::parallel_for<qwen_data::NgramCounts>(
        texts.size(), threads, [&](std::size_t i, qwen_data::NgramCounts& counts) {
            counts.count(characters, texts[i], max_ngram, bits);
            out[i] = qwen_data::score_ngrams(counts, weights_view.data);
        });
    return scores;
}

void bind_text(py::module_& module) {
    using qwen_data::Characters;
    py::class_<Characters>(module, "Characters", "Kinds and normalised forms of all code points.")
        .def(py::init(&make_characters), py::arg("classes").noconvert(), py::arg("mapped_code_points").noconvert(),
             py::arg("form_starts").noconvert(), py::arg("forms"));
    module.def("needs_context", &needs_context, py::arg("characters"), py::arg("texts"), py::arg("threads"),
               "Says of each text whether normalize() must leave it to unicodedata.");
    module.def("normalize", &normalize, py::arg("characters"), py::arg("text"),
               "NFKC(case fold(NFKC(text))) with white space collapsed, of a text that needs no context.");
    module.def("words", &words, py::arg("characters"), py::arg("text"), "The words of a text.");
    module.def("statistics", &statistics, py::arg("characters"), py::arg("texts"), py::arg("stop_words"),
               py::arg("short_line_length"), py::arg("threads"),
               "[n, 32] counts; the columns are those of data_tools.text.statistics.COLUMNS.");
    module.def("clean_c4", &clean_c4, py::arg("characters"), py::arg("texts"), py::arg("min_words_per_line"),
               py::arg("max_word_length"), py::arg("page_phrase"), py::arg("line_phrases"), py::arg("want_kept"),
               py::arg("threads"),
               "[n, 3] page phrase found, curly bracket found, sentences kept; and the kept lines if wanted.");
    module.def("normalized_hashes", &normalized_hashes, py::arg("characters"), py::arg("texts"),
               py::arg("normalized").noconvert(), py::arg("threads"),
               "[n, 2] MurmurHash3 x64 128 of each normalised text.");
}

void bind_duplicates(py::module_& module) {
    using qwen_data::NgramIndex;
    module.def("shingles", &shingles, py::arg("characters"), py::arg("texts"), py::arg("normalized").noconvert(),
               py::arg("num_words"), "For each text the hashes of its runs of num_words words.");
    module.def("minhash_signatures", &minhash_signatures, py::arg("characters"), py::arg("texts"),
               py::arg("normalized").noconvert(), py::arg("num_words"), py::arg("num_functions"), py::arg("seed"),
               py::arg("threads"), "[n, num_functions] minima of the hash functions over the shingles.");
    module.def("band_keys", &band_keys, py::arg("signatures").noconvert(), py::arg("bands"),
               "[n, bands] one 64-bit key for the values of each band.");
    module.def("join_components", &join_components, py::arg("edges").noconvert(), py::arg("roots").noconvert(),
               "Makes roots[v] the smallest vertex connected with v. Raises IndexError for an edge to no vertex.");
    py::class_<NgramIndex>(module, "NgramIndex", "n-grams of benchmark items.")
        .def(py::init<std::size_t, std::size_t>(), py::arg("n"), py::arg("min_words"))
        .def("add", &add_ngrams, py::arg("characters"), py::arg("normalized"), py::arg("item"),
             "Adds an item in normalised form; returns the number of its n-grams, 0 if it is too short.")
        .def("find", &find_ngrams, py::arg("characters"), py::arg("texts"), py::arg("normalized").noconvert(),
             py::arg("threads"), "[m, 4] text, item, first character, end character of every n-gram found.")
        .def("__len__", &NgramIndex::size);
}

void bind_quality(py::module_& module) {
    module.def("ngram_features", &ngram_features, py::arg("characters"), py::arg("texts"), py::arg("max_ngram"),
               py::arg("bits"), py::arg("threads"),
               "Row offsets [n + 1], buckets and values of the hashed n-grams of each text.");
    module.def("ngram_scores", &ngram_scores, py::arg("characters"), py::arg("texts"), py::arg("weights").noconvert(),
               py::arg("max_ngram"), py::arg("bits"), py::arg("threads"),
               "[n] sum of the weights of each text's n-grams times their values.");
    py::class_<OwnedLogisticLoss>(module, "LogisticLoss", "The logistic loss of labelled rows of features.")
        .def(py::init<Array<std::int64_t>, Array<std::uint32_t>, Array<float>, Array<std::uint8_t>, std::size_t>(),
             py::arg("offsets").noconvert(), py::arg("columns").noconvert(), py::arg("values").noconvert(),
             py::arg("labels").noconvert(), py::arg("num_columns"))
        .def("evaluate", &OwnedLogisticLoss::evaluate, py::arg("weights").noconvert(), py::arg("threads"),
             "The loss summed over the rows, and its gradient [num_columns + 1], the intercept last.");
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "C++ kernels of data_tools.";

    py::register_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) {
                std::rethrow_exception(pointer);
            }
        } catch (const qwen_data::FileError& error) {
            // OSError picks the subclass (PermissionError, ...) by errno.
            errno = error.error_number();
            PyErr_SetFromErrnoWithFilename(PyExc_OSError, error.path().c_str());
        }
    });

    module.def("gather_documents", &gather_documents, py::arg("spool").noconvert(), py::arg("starts").noconvert(),
               py::arg("lengths").noconvert(), py::arg("order").noconvert(), py::arg("end_of_document"),
               py::arg("out").noconvert(),
               "Copies documents `order` from the spool into `out`, each followed by end_of_document; returns the "
               "number of tokens written. Raises IndexError if a document leaves the spool or `out` is too small.");
    module.def("write_index", &write_index, py::arg("path"), py::arg("lengths").noconvert(), py::arg("dtype_code"),
               py::arg("itemsize"),
               "Writes Megatron's .idx for documents of one sequence each, lying back to back, atomically. Raises "
               "OSError with errno and file name.");
    module.def("json_strings", &json_strings, py::arg("text"), py::arg("min_bytes"),
               "(start, stop), without quotes, of every string of at least min_bytes bytes in a JSON text.");

    bind_text(module);
    bind_duplicates(module);
    bind_quality(module);
}
