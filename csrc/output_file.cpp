#include "output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

namespace qwen_data {

namespace {
constexpr std::size_t kBufferBytes = 1 << 20;
}

FileError::FileError(const std::string& operation, std::string path, int error_number)
    : std::runtime_error(operation + ": " + std::strerror(error_number)),
      path_(std::move(path)),
      error_number_(error_number) {}

OutputFile::OutputFile(const std::string& path) : path_(path), temporary_(path + ".tmp"), descriptor_(-1) {
    buffer_.reserve(kBufferBytes);
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor_ < 0) {
        throw FileError("open", temporary_, errno);
    }
}

OutputFile::~OutputFile() {
    if (descriptor_ >= 0) {
        ::close(descriptor_);
        ::unlink(temporary_.c_str());
    }
}

void OutputFile::write(const void* data, std::size_t size) {
    const char* bytes = static_cast<const char*>(data);
    while (size > 0) {
        const std::size_t room = kBufferBytes - buffer_.size();
        const std::size_t taken = size < room ? size : room;
        buffer_.insert(buffer_.end(), bytes, bytes + taken);
        bytes += taken;
        size -= taken;
        if (buffer_.size() == kBufferBytes) {
            flush();
        }
    }
}

void OutputFile::flush() {
    std::size_t done = 0;
    while (done < buffer_.size()) {
        const ssize_t written = ::write(descriptor_, buffer_.data() + done, buffer_.size() - done);
        if (written < 0) {
            if (errno == EINTR) {
                continue;
            }
            throw FileError("write", temporary_, errno);
        }
        done += static_cast<std::size_t>(written);
    }
    buffer_.clear();
}

void OutputFile::commit() {
    flush();
    if (::fsync(descriptor_) != 0) {
        throw FileError("fsync", temporary_, errno);
    }
    const int closed = ::close(std::exchange(descriptor_, -1));
    if (closed != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) {
        const int error_number = errno;
        ::unlink(temporary_.c_str());
        throw FileError(closed != 0 ? "close" : "rename", temporary_, error_number);
    }
}

}  // namespace qwen_data
