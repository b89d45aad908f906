// Bindings of the quality model: features, scores, the loss it is trained with.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "bindings_arguments.h"
#include "characters.h"
#include "parallel.h"
#include "quality.h"
#include "views.h"

namespace qwen_data::bindings {

namespace {

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
        Array<double> gradient(extent(loss_.num_columns() + 1));
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
    Array<std::int64_t> offsets(extent(rows.size() + 1));
    std::int64_t* end = offsets.mutable_data();
    *end = 0;
    for (const auto& row : rows) {
        end[1] = end[0] + static_cast<std::int64_t>(row.size());
        ++end;
    }
    Array<std::uint32_t> columns(extent(static_cast<std::size_t>(*end)));
    Array<float> values(extent(static_cast<std::size_t>(*end)));
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
    Array<double> scores(extent(texts.size()));
    double* out = scores.mutable_data();
    py::gil_scoped_release release;
    qwen_data::parallel_for<qwen_data::NgramCounts>(
        texts.size(), threads, [&](std::size_t i, qwen_data::NgramCounts& counts) {
            counts.count(characters, texts[i], max_ngram, bits);
            out[i] = qwen_data::score_ngrams(counts, weights_view.data);
        });
    return scores;
}

}  // namespace

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

}  // namespace qwen_data::bindings
