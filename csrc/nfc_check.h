// Whether a text is in Unicode normalisation form C.
#pragma once

#include <cstdint>
#include <vector>

#include "views.h"

namespace qwen_data {

// Knows most texts that are in form C at a look: characters that normalisation leaves alone, and marks that stand in
// canonical order. Source: Unicode Standard Annex 15, section 9 (quick check).
class NfcCheck {
  public:
    // A byte for each code point, built by data_tools.text.normalization: 0, or the combining class of a mark, for those
    // that form C leaves alone and that never compose with a character before them; kOpen for the others. Throws
    // std::invalid_argument if there are not as many.
    explicit NfcCheck(View<const std::uint8_t> classes);

    // True if [p, end), valid UTF-8, is in form C. False says nothing.
    bool is_normalized(const char* p, const char* end) const;

  private:
    static constexpr std::uint8_t kOpen = 255;

    std::vector<std::uint8_t> classes_;
};

}  // namespace qwen_data
