// Bindings of what reads text: characters, words, statistics, C4's rules, strings in JSON.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings.h"
#include "bindings_arguments.h"
#include "c4.h"
#include "characters.h"
#include "code_marks.h"
#include "json_strings.h"
#include "parallel.h"
#include "statistics.h"
#include "utf8.h"
#include "views.h"
#include "words.h"

namespace qwen_data::bindings {

namespace {

std::vector<std::pair<std::size_t, std::size_t>> json_strings(const py::buffer& text, std::size_t min_bytes) {
    const py::buffer_info info = text.request();
    if (info.itemsize != 1 || info.ndim != 1) {
        throw py::type_error("text must be bytes or a bytearray");
    }
    const std::string_view view(static_cast<const char*>(info.ptr), static_cast<std::size_t>(info.size));
    py::gil_scoped_release release;
    return qwen_data::json_strings(view, min_bytes);
}

qwen_data::Characters make_characters(const Array<std::uint8_t>& classes, const Array<std::uint32_t>& mapped,
                                      const Array<std::uint32_t>& form_starts, const std::string& forms) {
    return {view(classes, "classes"), view(mapped, "mapped_code_points"), view(form_starts, "form_starts"), forms};
}

Array<bool> needs_context(const qwen_data::Characters& characters, const py::sequence& sequence, std::size_t threads) {
    const Texts texts(sequence);
    Array<bool> flags(extent(texts.size()));
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
    Array<std::int64_t> table({extent(texts.size()), columns});
    std::int64_t* out = table.mutable_data();
    py::gil_scoped_release release;
    qwen_data::parallel_for<qwen_data::StatisticsScratch>(
        texts.size(), threads, [&](std::size_t i, qwen_data::StatisticsScratch& scratch) {
            qwen_data::compute_statistics(characters, texts[i], options, scratch, out + i * qwen_data::kNumStatistics);
        });
    return table;
}

Array<std::int64_t> code_marks(const qwen_data::Characters& characters, const py::sequence& sequence,
                               const std::vector<std::string>& keywords, const std::vector<std::string>& function_words,
                               const std::vector<std::string>& openers, std::int64_t max_characters,
                               std::size_t threads) {
    const Texts texts(sequence);
    const qwen_data::CodeMarkWords words{qwen_data::WordSet(keywords), qwen_data::WordSet(function_words),
                                         qwen_data::WordSet(openers)};
    Array<std::int64_t> table({extent(texts.size()), static_cast<py::ssize_t>(qwen_data::kNumCodeMarks)});
    std::int64_t* out = table.mutable_data();
    py::gil_scoped_release release;
    qwen_data::parallel_for<int>(texts.size(), threads, [&](std::size_t i, int&) {
        qwen_data::count_code_marks(characters, texts[i], words, max_characters, out + i * qwen_data::kNumCodeMarks);
    });
    return table;
}

py::tuple clean_c4(const qwen_data::Characters& characters, const py::sequence& sequence,
                   std::uint32_t min_words_per_line, std::uint32_t max_word_length, const std::string& page_phrase,
                   const std::vector<std::string>& line_phrases, bool want_kept, std::size_t threads) {
    const Texts texts(sequence);
    const qwen_data::C4Options options{min_words_per_line, max_word_length, page_phrase, line_phrases};
    Array<std::int64_t> table({extent(texts.size()), py::ssize_t{3}});
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

}  // namespace

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
               "[n, 34] counts; the columns are those of data_tools.text.statistics.COLUMNS.");
    module.def("code_marks", &code_marks, py::arg("characters"), py::arg("texts"), py::arg("keywords"),
               py::arg("function_words"), py::arg("openers"), py::arg("max_characters"), py::arg("threads"),
               "[n, 34] counts; the columns are those of data_tools.text.code_marks.MARKS.");
    module.def("clean_c4", &clean_c4, py::arg("characters"), py::arg("texts"), py::arg("min_words_per_line"),
               py::arg("max_word_length"), py::arg("page_phrase"), py::arg("line_phrases"), py::arg("want_kept"),
               py::arg("threads"),
               "[n, 3] page phrase found, curly bracket found, sentences kept; and the kept lines if wanted.");
    module.def("json_strings", &json_strings, py::arg("text"), py::arg("min_bytes"),
               "(start, stop), without quotes, of every string of at least min_bytes bytes in a JSON text.");
}

}  // namespace qwen_data::bindings
