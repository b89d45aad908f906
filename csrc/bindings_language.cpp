// Bindings of language identification.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "bindings.h"
#include "bindings_arguments.h"
#include "language_model.h"
#include "parallel.h"

namespace qwen_data::bindings {

namespace {

qwen_data::LanguageModel make_model(const py::bytes& content) {
    const std::string_view view = content;
    py::gil_scoped_release release;
    return qwen_data::LanguageModel(view);
}

py::tuple predict(const qwen_data::LanguageModel& model, const py::sequence& sequence, std::size_t threads) {
    const Texts texts(sequence);
    Array<std::int32_t> labels(extent(texts.size()));
    Array<float> probabilities(extent(texts.size()));
    std::int32_t* label = labels.mutable_data();
    float* probability = probabilities.mutable_data();
    {
        py::gil_scoped_release release;
        using Hidden = std::vector<float>;
        qwen_data::parallel_for<Hidden>(texts.size(), threads, [&](std::size_t i, Hidden& hidden) {
            const auto answer = model.predict(texts[i], hidden);
            label[i] = answer.label;
            probability[i] = answer.probability;
        });
    }
    return py::make_tuple(labels, probabilities);
}

}  // namespace

void bind_language(py::module_& module) {
    using qwen_data::LanguageModel;
    py::class_<LanguageModel>(module, "LanguageModel", "A quantised model of fastText with a tree of labels.")
        .def(py::init(&make_model), py::arg("content"))
        .def_property_readonly("labels", &LanguageModel::labels)
        .def("predict", &predict, py::arg("texts"), py::arg("threads"),
             "[n] number of the most probable label of each line, -1 if there is none, and [n] its probability.");
}

}  // namespace qwen_data::bindings
