// What all bindings ask of their arguments: contiguous arrays of the right type, valid UTF-8, sizes that fit.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "utf8.h"
#include "views.h"

namespace qwen_data::bindings {

namespace py = pybind11;

// No conversion: a wrong dtype or a strided array is a TypeError, never a silent copy.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
std::size_t checked_size(const Array<T>& array, const char* name) {
    if (array.ndim() != 1) {
        throw py::value_error(std::string(name) + " must have one dimension, has " + std::to_string(array.ndim()));
    }
    return static_cast<std::size_t>(array.size());
}

template <typename T>
View<const T> view(const Array<T>& array, const char* name) {
    return {array.data(), checked_size(array, name)};
}

template <typename T>
View<T> writable_view(Array<T>& array, const char* name) {
    return {array.mutable_data(), checked_size(array, name)};
}

// A size as numpy counts.
inline py::ssize_t extent(std::size_t size) {
    if (size > static_cast<std::size_t>(std::numeric_limits<py::ssize_t>::max())) {
        throw py::value_error(std::to_string(size) + " is more than an array can have");
    }
    return static_cast<py::ssize_t>(size);
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
        const std::size_t invalid = first_invalid_utf8(bytes.data(), bytes.size());
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

inline View<const bool> checked_flags(const Flags& normalized, const Texts& texts) {
    const auto flags = view(normalized, "normalized");
    if (flags.size != texts.size()) {
        throw py::value_error("normalized has " + std::to_string(flags.size) + " flags for " +
                              std::to_string(texts.size()) + " texts");
    }
    return flags;
}

}  // namespace qwen_data::bindings
