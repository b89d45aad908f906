#include "nfc_check.h"

#include <stdexcept>
#include <string>

#include "byte_runs.h"
#include "characters.h"
#include "utf8.h"

namespace qwen_data {

namespace {

// The first byte of U+0300; all that stands before it is left alone.
constexpr unsigned char kFirstLead = 0xCC;

}  // namespace

NfcCheck::NfcCheck(View<const std::uint8_t> classes) : classes_(classes.begin(), classes.end()) {
    if (classes_.size() != kCodePoints) {
        throw std::invalid_argument("classes has " + std::to_string(classes_.size()) +
                                    " bytes, not one for each of the " + std::to_string(kCodePoints) + " code points");
    }
}

bool NfcCheck::is_normalized(const char* p, const char* end) const {
    for (;;) {
        p = first_not_below(p, end, kFirstLead);
        std::uint8_t before = 0;  // combining class of the character before
        while (p != end && static_cast<unsigned char>(*p) >= kFirstLead) {
            const std::uint8_t here = classes_[next_code_point(p)];
            if (here == kOpen || (here != 0 && here < before)) {
                return false;
            }
            before = here;
        }
        if (p == end) {
            return true;
        }
    }
}

}  // namespace qwen_data
