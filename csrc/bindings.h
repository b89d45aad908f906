// Each subject puts its functions and classes into the module; only the files named bindings* know pybind11.
#pragma once

#include <pybind11/pybind11.h>

namespace qwen_data::bindings {

void bind_corpus(pybind11::module_& module);
void bind_text(pybind11::module_& module);
void bind_dedup(pybind11::module_& module);
void bind_decontamination(pybind11::module_& module);
void bind_language(pybind11::module_& module);
void bind_quality(pybind11::module_& module);
void bind_tokenizer(pybind11::module_& module);
void bind_encoder(pybind11::module_& module);

}  // namespace qwen_data::bindings
