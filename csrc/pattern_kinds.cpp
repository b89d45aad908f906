#include "pattern_kinds.h"

#include <vector>

#include "characters.h"
#include "pattern_ranges.h"

namespace qwen_data {

namespace {

std::vector<PatternKind> make_table() {
    std::vector<PatternKind> kinds(kCodePoints, PatternKind::other);
    const auto fill = [&](const auto& ranges, PatternKind kind) {
        for (const CodePointRange& range : ranges) {
            for (std::uint32_t c = range.first; c <= range.last; ++c) {
                kinds[c] = kind;
            }
        }
    };
    fill(kSpaces, PatternKind::space);
    fill(kLetters, PatternKind::letter);
    fill(kNumbers, PatternKind::number);
    return kinds;
}

}  // namespace

const PatternKind* pattern_kinds() {
    static const std::vector<PatternKind> kinds = make_table();
    return kinds.data();
}

}  // namespace qwen_data
