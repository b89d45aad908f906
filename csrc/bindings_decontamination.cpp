// Bindings of the search for benchmark items.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "bindings.h"
#include "bindings_arguments.h"
#include "characters.h"
#include "ngram_index.h"
#include "parallel.h"

namespace qwen_data::bindings {

namespace {

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
    Array<std::int64_t> table({extent(total), py::ssize_t{4}});
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

}  // namespace

void bind_decontamination(py::module_& module) {
    using qwen_data::NgramIndex;
    py::class_<NgramIndex>(module, "NgramIndex", "n-grams of benchmark items.")
        .def(py::init<std::size_t, std::size_t, std::size_t>(), py::arg("n"), py::arg("min_words"), py::arg("short_n"))
        .def("add", &add_ngrams, py::arg("characters"), py::arg("normalized"), py::arg("item"),
             "Adds an item in normalised form; returns the number of its n-grams, 0 if it is too short.")
        .def("find", &find_ngrams, py::arg("characters"), py::arg("texts"), py::arg("normalized").noconvert(),
             py::arg("threads"), "[m, 4] text, item, first character, end character of every n-gram found.")
        .def("__len__", &NgramIndex::size);
}

}  // namespace qwen_data::bindings
