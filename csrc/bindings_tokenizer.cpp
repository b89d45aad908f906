// Bindings of the tokenizer's vocabulary: pre-tokens, byte pairs, merges that are learned.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <thread>
#include <tuple>
#include <vector>

#include "bindings.h"
#include "bindings_arguments.h"
#include "byte_pairs.h"
#include "characters.h"
#include "merge_learner.h"
#include "pattern_kinds.h"
#include "pretoken_counts.h"
#include "pretokens.h"
#include "rank_file.h"
#include "views.h"

namespace qwen_data::bindings {

namespace {

View<const std::string_view> view_of(const std::vector<std::string_view>& strings) {
    return {strings.data(), strings.size()};
}

py::list pretokens(const py::str& text) {
    const Texts texts(py::make_tuple(text));
    py::list out;
    qwen_data::for_each_pretoken(qwen_data::PretokenPattern(), texts[0], [&](std::string_view pretoken) {
        out.append(py::str(pretoken.data(), pretoken.size()));
    });
    return out;
}

py::list rank_tokens(const py::bytes& content) {
    const std::string_view view(content);
    std::vector<std::string_view> tokens;
    std::optional<qwen_data::RankFile> file;
    {
        py::gil_scoped_release release;
        tokens = file.emplace(view).tokens();
    }
    py::list out(tokens.size());
    for (std::size_t rank = 0; rank < tokens.size(); ++rank) {
        out[rank] = py::bytes(tokens[rank].data(), tokens[rank].size());
    }
    return out;
}

Array<std::uint8_t> pattern_kinds() {
    Array<std::uint8_t> out(extent(qwen_data::kCodePoints));
    std::transform(qwen_data::pattern_kinds(), qwen_data::pattern_kinds() + qwen_data::kCodePoints, out.mutable_data(),
                   [](qwen_data::PatternKind kind) { return static_cast<std::uint8_t>(kind); });
    return out;
}

void add_texts(qwen_data::PretokenCounts& counts, const py::sequence& sequence, std::uint32_t group) {
    const Texts texts(sequence);
    std::vector<std::string_view> strings;
    strings.reserve(texts.size());
    for (std::size_t i = 0; i < texts.size(); ++i) {
        strings.push_back(texts[i]);
    }
    py::gil_scoped_release release;
    counts.add(view_of(strings), group);
}

qwen_data::BytePairs byte_pairs(const py::list& tokens) {
    std::vector<std::string_view> strings;
    strings.reserve(tokens.size());
    for (const py::handle token : tokens) {
        if (!PyBytes_Check(token.ptr())) {
            throw py::type_error("a token is not bytes");
        }
        strings.emplace_back(PyBytes_AS_STRING(token.ptr()), static_cast<std::size_t>(PyBytes_GET_SIZE(token.ptr())));
    }
    py::gil_scoped_release release;
    return qwen_data::BytePairs(view_of(strings));
}

std::vector<std::uint32_t> encode(const qwen_data::BytePairs& pairs, const py::bytes& pretoken) {
    std::vector<std::uint32_t> ids;
    qwen_data::BytePairs::Scratch scratch;
    pairs.encode(std::string_view(pretoken), ids, scratch);
    return ids;
}

qwen_data::MergeLearner merge_learner(const qwen_data::BytePairs& base, const qwen_data::PretokenCounts& counts,
                                      const Array<std::uint64_t>& factors, std::uint64_t min_count,
                                      std::size_t max_token_bytes, std::size_t threads) {
    const auto factors_view = view(factors, "factors");
    if (min_count == 0) {
        throw py::value_error("min_count must be at least 1");
    }
    // Ctrl-C, which Python only hears of on the thread that it called from.
    const auto check = [caller = std::this_thread::get_id()] {
        if (std::this_thread::get_id() == caller) {
            const py::gil_scoped_acquire acquire;
            if (PyErr_CheckSignals() != 0) {
                throw py::error_already_set();
            }
        }
    };
    py::gil_scoped_release release;
    return {base, counts, factors_view, {min_count, max_token_bytes, threads}, check};
}

std::vector<std::tuple<std::uint32_t, std::uint32_t, std::uint64_t>> merges(const qwen_data::MergeLearner& learner) {
    std::vector<std::tuple<std::uint32_t, std::uint32_t, std::uint64_t>> out;
    for (const auto& merge : learner.merges()) {
        out.emplace_back(merge.left, merge.right, merge.count);
    }
    return out;
}

}  // namespace

void bind_tokenizer(py::module_& module) {
    module.def("rank_tokens", &rank_tokens, py::arg("content"),
               "The tokens of a rank file in the order of their ranks. ValueError names a wrong line.");
    module.def("pretokens", &pretokens, py::arg("text"), "The pre-tokens of a text by Qwen's pattern.");
    module.def("pattern_kinds", &pattern_kinds,
               "For each code point 1 if it is white space to the pattern, 2 a letter, 3 a number, 0 none of them.");
    py::class_<qwen_data::PretokenCounts>(module, "PretokenCounts", "How often each pre-token occurs in each group.")
        .def(py::init<std::size_t>(), py::arg("threads"))
        .def("add", &add_texts, py::arg("texts"), py::arg("group"), "Counts the pre-tokens of texts of one group.");
    py::class_<qwen_data::BytePairs>(module, "BytePairs", "A vocabulary of byte pairs, its tokens by rank.")
        .def(py::init(&byte_pairs), py::arg("tokens"))
        .def("encode", &encode, py::arg("pretoken"), "The ids of one pre-token.")
        .def("__len__", &qwen_data::BytePairs::size);
    py::class_<qwen_data::MergeLearner>(module, "MergeLearner", "Learns merges on top of a vocabulary.")
        .def(py::init(&merge_learner), py::arg("base"), py::arg("counts"), py::arg("factors").noconvert(),
             py::arg("min_count"), py::arg("max_token_bytes"), py::arg("threads"))
        .def("learn", &qwen_data::MergeLearner::learn, py::arg("most"), py::call_guard<py::gil_scoped_release>(),
             "Learns up to so many merges; returns how many.")
        .def("merges", &merges, "(left id, right id, occurrences) of each merge so far.")
        .def("num_tokens", &qwen_data::MergeLearner::num_tokens, "Tokens of the texts of each group, as of now.");
}

}  // namespace qwen_data::bindings
