// Bindings of the encoder: texts and lines of JSON to token ids.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "bindings.h"
#include "bindings_arguments.h"
#include "byte_runs.h"
#include "line_encoder.h"
#include "rank_file.h"
#include "spare_objects.h"
#include "text_encoder.h"

namespace qwen_data::bindings {

namespace {

template <typename Out, typename In>
Array<Out> copied(const In* data, std::size_t size) {
    static_assert(sizeof(Out) == sizeof(In), "the bytes are taken as they are");
    Array<Out> out(extent(size));
    std::copy_n(reinterpret_cast<const char*>(data), size * sizeof(Out), reinterpret_cast<char*>(out.mutable_data()));
    return out;
}

Array<std::int64_t> copied(const std::vector<std::int64_t>& values) {
    return copied<std::int64_t>(values.data(), values.size());
}

// The tokens of `buffer` where they are; the array gives their memory back.
Array<std::int32_t> handed_over(TokenBuffer& buffer) {
    static_assert(sizeof(std::int32_t) == sizeof(std::uint32_t), "the bytes are taken as they are");
    const std::size_t size = buffer.size();
    TokenBuffer::Tokens tokens = buffer.release();
    const py::capsule owner(tokens.get(), [](void* block) { std::free(block); });
    return Array<std::int32_t>(extent(size), reinterpret_cast<std::int32_t*>(tokens.release()), owner);
}

// `EncodedLines` as Python sees it.
struct Lines {
    explicit Lines(EncodedLines& lines)
        : tokens(handed_over(lines.tokens)),
          lengths(copied<std::int32_t>(lines.lengths.data(), lines.lengths.size())),
          starts(copied(lines.starts)),
          records(copied(lines.records)),
          lines(copied(lines.lines)),
          num_records(lines.num_records) {
        for (const OddLine& one : lines.odd) {
            odd.append(py::make_tuple(one.record, one.line, one.start, one.stop));
        }
    }

    Array<std::int32_t> tokens;
    Array<std::int32_t> lengths;
    Array<std::int64_t> starts;
    Array<std::int64_t> records;
    Array<std::int64_t> lines;
    py::list odd;
    std::int64_t num_records;
};

// A vocabulary, the tables that go with it, and what its threads work with.
class Encoder {
  public:
    Encoder(std::string_view ranks, View<const std::uint8_t> nfc_classes)
        : encoder_(make(ranks)), nfc_(nfc_classes) {}

    std::size_t size() const { return encoder_.ranks().size(); }

    py::tuple encode_batch(const py::sequence& sequence) {
        const Texts texts(sequence);
        return scratch_.with_one([&](LineEncoder::Scratch& scratch) {
            std::vector<std::int64_t> lengths;
            TokenBuffer tokens;
            {
                py::gil_scoped_release release;
                for (std::size_t i = 0; i < texts.size(); ++i) {
                    lengths.push_back(encode_text(texts[i], tokens, scratch));
                }
            }
            return py::make_tuple(handed_over(tokens), copied(lengths));
        });
    }

    Lines encode_lines(const py::bytes& block, const std::string& text_key, bool begins_file,
                       std::size_t max_line_bytes) {
        const std::string_view view(block);
        const LineEncoder lines(encoder_, nfc_, text_key);
        return scratch_.with_one([&](LineEncoder::Scratch& scratch) {
            EncodedLines encoded;
            {
                py::gil_scoped_release release;
                encoded = lines.encode(view, begins_file, max_line_bytes, scratch);
            }
            return Lines(encoded);
        });
    }

    std::uint64_t count_lookups(const py::str& text) {
        const Texts texts(py::make_tuple(text));
        LineEncoder::Scratch scratch;
        TokenBuffer tokens;
        encode_text(texts[0], tokens, scratch);
        return scratch.encoder.merger.num_lookups();
    }

  private:
    static TextEncoder make(std::string_view ranks) {
        py::gil_scoped_release release;
        const RankFile file(ranks);
        const std::vector<std::string_view> tokens = file.tokens();
        return TextEncoder({tokens.data(), tokens.size()});
    }

    std::int64_t encode_text(std::string_view text, TokenBuffer& tokens, LineEncoder::Scratch& scratch) const {
        scratch.text.resize(std::max(scratch.text.size(), text.size() + kPadding));
        std::copy(text.begin(), text.end(), scratch.text.begin());
        const char* const begin = scratch.text.data();
        std::uint32_t* const out = tokens.room(text.size() + TextEncoder::kSlack);
        const std::uint32_t* const stop = encoder_.encode(begin, begin + text.size(), out, scratch.encoder);
        tokens.keep(stop);
        return stop - out;
    }

    TextEncoder encoder_;
    NfcCheck nfc_;
    SpareObjects<LineEncoder::Scratch> scratch_;
};

}  // namespace

void bind_encoder(py::module_& module) {
    module.def(
        "count_line_ends",
        [](const py::bytes& piece) {
            const std::string_view view(piece);
            py::gil_scoped_release release;
            return count_byte(view.data(), view.data() + view.size(), '\n');
        },
        py::arg("piece"), "Line feeds in a piece of a file.");
    module.def(
        "count_records",
        [](const py::bytes& block, bool begins_file, std::size_t max_line_bytes) {
            const std::string_view view(block);
            LineCount count;
            {
                py::gil_scoped_release release;
                count = count_records(view, begins_file, max_line_bytes);
            }
            return py::make_tuple(count.lines, count.records);
        },
        py::arg("block"), py::arg("begins_file"), py::arg("max_line_bytes"),
        "(line ends, lines that are not blank) of whole lines, as TextEncoder.encode_lines counts them.");
    py::class_<Lines>(module, "EncodedLines", "What a block of lines of JSON gave.")
        .def_readonly("tokens", &Lines::tokens, "Ids of all documents.")
        .def_readonly("lengths", &Lines::lengths, "Tokens of each document.")
        .def_readonly("starts", &Lines::starts, "Byte of the block at which the line of each document begins.")
        .def_readonly("records", &Lines::records, "Number of its line among those that are not blank.")
        .def_readonly("lines", &Lines::lines, "Number of its line among all of the block.")
        .def_readonly("odd", &Lines::odd, "(record, line, start, stop) of lines that were left alone.")
        .def_readonly("num_records", &Lines::num_records, "Lines that are not blank.");
    py::class_<Encoder>(module, "TextEncoder", "Encodes with a vocabulary of tiktoken's form and Qwen's pattern.")
        .def(py::init([](const py::bytes& ranks, const Array<std::uint8_t>& nfc_classes) {
                 return std::make_unique<Encoder>(std::string_view(ranks), view(nfc_classes, "nfc_classes"));
             }),
             py::arg("ranks"), py::arg("nfc_classes").noconvert())
        .def("encode_batch", &Encoder::encode_batch, py::arg("texts"), "(ids of all texts, number of each one's ids).")
        .def("encode_lines", &Encoder::encode_lines, py::arg("block"), py::arg("text_key"), py::arg("begins_file"),
             py::arg("max_line_bytes"), "Encodes the texts of plain records, one a line.")
        .def("count_lookups", &Encoder::count_lookups, py::arg("text"),
             "Unions of byte pairs that are looked up to encode a text: work that does not depend on the machine.")
        .def("__len__", &Encoder::size);
}

}  // namespace qwen_data::bindings
