// A file that appears whole or not at all.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace qwen_data {

// A failed system call on a file: which call, which file, errno.
class FileError : public std::runtime_error {
  public:
    FileError(const std::string& operation, std::string path, int error_number);

    const std::string& path() const { return path_; }
    int error_number() const { return error_number_; }

  private:
    std::string path_;
    int error_number_;
};

// Buffers what is written into `<path>.tmp` and gives it the name `path` in commit(), after fsync.
//
// Destruction without commit() removes the temporary file. Every failure throws FileError. The caller sees to it that
// no other process writes the same path (the corpus lock).
class OutputFile {
  public:
    explicit OutputFile(const std::string& path);
    ~OutputFile();
    OutputFile(const OutputFile&) = delete;
    OutputFile& operator=(const OutputFile&) = delete;

    void write(const void* data, std::size_t size);

    template <typename T>
    void write_value(T value) {
        static_assert(std::is_trivially_copyable<T>::value, "only plain values have a byte form");
        write(&value, sizeof value);
    }

    void commit();

  private:
    void flush();

    std::string path_;
    std::string temporary_;
    int descriptor_;
    std::vector<char> buffer_;
};

}  // namespace qwen_data
