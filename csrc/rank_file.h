// tiktoken's form of a byte-pair vocabulary: a line for each token, its bytes in base64 and its rank.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace qwen_data {

// The tokens of a rank file in the order of their ranks.
class RankFile {
  public:
    // Throws std::invalid_argument, naming the line, if one is not `BASE64 RANK` with the next rank from 0 on.
    explicit RankFile(std::string_view content);

    // Views into this object.
    std::vector<std::string_view> tokens() const;

  private:
    std::string text_;
    std::vector<std::size_t> starts_;  // one more for the end
};

}  // namespace qwen_data
