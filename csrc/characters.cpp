#include "characters.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "utf8.h"

namespace qwen_data {

Characters::Characters(View<const std::uint8_t> classes, View<const std::uint32_t> mapped_code_points,
                       View<const std::uint32_t> form_starts, std::string_view forms)
    : classes_(classes.begin(), classes.end()),
      mapped_code_points_(mapped_code_points.begin(), mapped_code_points.end()),
      form_starts_(form_starts.begin(), form_starts.end()),
      forms_(forms) {
    if (classes.size != kCodePoints || form_starts.size != mapped_code_points.size + 1 ||
        form_starts_.back() != forms.size() || !std::is_sorted(form_starts_.begin(), form_starts_.end()) ||
        !std::is_sorted(mapped_code_points_.begin(), mapped_code_points_.end()) ||
        first_invalid_utf8(forms.data(), forms.size()) != forms.size()) {
        throw std::invalid_argument("Characters: the arrays do not describe one table");
    }
    for (std::uint32_t c = 0; c < kCodePoints; ++c) {
        const bool listed = std::binary_search(mapped_code_points_.begin(), mapped_code_points_.end(), c);
        if (listed != (form(c) == Form::mapped) || (classes_[c] & 7) > 5) {
            throw std::invalid_argument("Characters: code point " + std::to_string(c) + " contradicts its class");
        }
    }
}

std::string_view Characters::mapped(std::uint32_t c) const {
    const auto found = std::lower_bound(mapped_code_points_.begin(), mapped_code_points_.end(), c);
    const auto index = static_cast<std::size_t>(found - mapped_code_points_.begin());
    return std::string_view(forms_).substr(form_starts_[index], form_starts_[index + 1] - form_starts_[index]);
}

bool Characters::needs_context(std::string_view text) const {
    const char* p = text.data();
    const char* end = p + text.size();
    bool after_kept = false;
    while (p != end) {
        if (end - p >= 8) {
            std::uint64_t word;
            std::memcpy(&word, p, 8);
            if ((word & 0x8080808080808080ULL) == 0) {
                p += 8;
                after_kept = true;
                continue;
            }
        }
        const Form form_here = form(next_code_point(p));
        if (form_here == Form::context || (form_here == Form::lone_mark && !after_kept)) {
            return true;
        }
        // A capital ASCII letter is mapped to one starter, but other mapped forms may end in marks.
        after_kept = form_here == Form::kept || static_cast<unsigned char>(p[-1]) < 0x80;
    }
    return false;
}

void Characters::normalize(std::string_view text, std::string& out, std::vector<std::uint32_t>* sources) const {
    // Room for every byte that is still to be read: a space is written only after one was read.
    out.resize(text.size() + 1);
    if (sources != nullptr) {
        sources->clear();
    }
    const char* p = text.data();
    const char* const end = p + text.size();
    std::size_t written = 0;
    bool pending_space = false;
    std::uint32_t number = 0;
    const auto note_source = [&](std::size_t count) {
        if (sources != nullptr) {
            sources->insert(sources->end(), count, number);
        }
    };
    const auto append = [&](const char* bytes, std::size_t size) {
        const std::size_t needed = written + size + 1 + static_cast<std::size_t>(end - p);
        if (needed > out.size()) {
            out.resize(2 * needed);
        }
        if (pending_space && written != 0) {
            out[written++] = ' ';
            note_source(1);
        }
        pending_space = false;
        std::memcpy(&out[written], bytes, size);
        written += size;
        note_source(size);
    };
    for (; p != end; ++number) {
        const char* start = p;
        const std::uint32_t c = next_code_point(p);
        if (c < 0x80) {
            if (is_space(c)) {
                pending_space = true;
                continue;
            }
            if (pending_space && written != 0) {
                out[written++] = ' ';
                note_source(1);
            }
            pending_space = false;
            out[written++] = static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
            note_source(1);
        } else if (form(c) == Form::mapped) {
            const std::string_view replacement = mapped(c);
            const char* q = replacement.data();
            const char* const replacement_end = q + replacement.size();
            while (q != replacement_end) {
                const char* part = q;
                if (is_space(next_code_point(q))) {
                    pending_space = true;
                } else {
                    append(part, static_cast<std::size_t>(q - part));
                }
            }
        } else if (is_space(c)) {
            pending_space = true;
        } else {
            append(start, static_cast<std::size_t>(p - start));
        }
    }
    out.resize(written);
}

}  // namespace qwen_data
