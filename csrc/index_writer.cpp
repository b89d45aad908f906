#include "index_writer.h"

#include <stdexcept>

#include "output_file.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the index is little-endian and is written from memory as it is"
#endif

namespace qwen_data {

namespace {
constexpr char kMagic[] = "MMIDIDX\0";  // The literal's own terminator is the ninth byte.
static_assert(sizeof kMagic == 9, "MMIDIDX and two zero bytes");
constexpr std::uint64_t kVersion = 1;
}  // namespace

void write_index(const std::string& path, View<const std::int32_t> lengths, std::uint8_t dtype_code,
                 std::int64_t itemsize) {
    OutputFile file(path);
    file.write(kMagic, sizeof kMagic);
    file.write_value<std::uint64_t>(kVersion);
    file.write_value<std::uint8_t>(dtype_code);
    file.write_value<std::uint64_t>(lengths.size);
    file.write_value<std::uint64_t>(lengths.size + 1);
    file.write(lengths.data, lengths.size * sizeof(std::int32_t));
    std::int64_t offset = 0;
    for (const std::int32_t length : lengths) {
        if (length < 0) {
            throw std::invalid_argument("write_index: negative length " + std::to_string(length));
        }
        file.write_value<std::int64_t>(offset);
        if (__builtin_add_overflow(offset, length * itemsize, &offset)) {
            throw std::overflow_error("write_index: byte offsets exceed 63 bits");
        }
    }
    for (std::size_t document = 0; document <= lengths.size; ++document) {
        file.write_value<std::int64_t>(static_cast<std::int64_t>(document));
    }
    file.commit();
}

}  // namespace qwen_data
