// What tells program text from prose, counted in one document.
#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "characters.h"

namespace qwen_data {

// Order of the columns; names and definitions stand in data_tools/text/code_marks.py.
enum CodeMark : std::size_t {
    kMarkCharacters,
    kMarkLetters,
    kMarkCjk,
    kMarkBraces,
    kMarkParentheses,
    kMarkBrackets,
    kMarkEquals,
    kMarkSemicolons,
    kMarkAngles,
    kMarkOperators,
    kMarkQuotes,
    kMarkUnderscores,
    kMarkLines,
    kMarkIndentedLines,
    kMarkCodeEnds,
    kMarkListEnds,
    kMarkSentenceEnds,
    kMarkTagLines,
    kMarkClosingTags,
    kMarkBulletLines,
    kMarkWords,
    kMarkWordPairs,
    kMarkKeywords,
    kMarkFunctionWords,
    kMarkJoinedNames,
    kMarkCalls,
    kMarkMembers,
    kMarkNumbers,
    kMarkCommentLines,
    kMarkKeyLines,
    kMarkAssignments,
    kMarkOpeners,
    kMarkProseLines,
    kMarkCodeLines,
    kNumCodeMarks,
};

// A set of words, asked for in constant time.
class WordSet {
  public:
    explicit WordSet(const std::vector<std::string>& words);
    // `hash` is hash_bytes of the word.
    bool holds(std::uint64_t hash) const;

  private:
    std::vector<std::uint64_t> hashes_;  // Ascending.
    std::bitset<4096> may_hold_;         // By the lowest bits of the hash.
};

struct CodeMarkWords {
    WordSet keywords;
    WordSet function_words;
    WordSet openers;
};

// Fills `out` with the counts of `text`, which must be valid UTF-8, up to the line with which `max_characters` are
// reached. Comments, and listings between fences of Markdown, are passed over unless there is nothing else.
void count_code_marks(const Characters& characters, std::string_view text, const CodeMarkWords& words,
                      std::int64_t max_characters, std::int64_t* out);

}  // namespace qwen_data
