// Work on independent items by several threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace qwen_data {

// Calls body(item, scratch) for every item below `count`, on `threads` threads with one default-constructed Scratch each.
//
// Items are handed out one at a time, so long ones do not hold up the rest. The first exception of any thread is thrown
// again here, after all threads have ended.
template <typename Scratch, typename Body>
void parallel_for(std::size_t count, std::size_t threads, const Body& body) {
    std::atomic<std::size_t> next{0};
    std::exception_ptr failure;
    std::mutex failure_mutex;
    const auto work = [&] {
        try {
            Scratch scratch;
            for (std::size_t item = next++; item < count; item = next++) {
                body(item, scratch);
            }
        } catch (...) {
            next = count;
            const std::lock_guard<std::mutex> lock(failure_mutex);
            if (!failure) {
                failure = std::current_exception();
            }
        }
    };
    std::vector<std::thread> helpers;
    const std::size_t wanted = std::min(std::max<std::size_t>(threads, 1), std::max<std::size_t>(count, 1));
    for (std::size_t thread = 1; thread < wanted; ++thread) {
        try {
            helpers.emplace_back(work);
        } catch (const std::system_error&) {
            break;  // No more threads to be had: the ones there are do the work.
        }
    }
    work();
    for (std::thread& helper : helpers) {
        helper.join();
    }
    if (failure) {
        std::rethrow_exception(failure);
    }
}

}  // namespace qwen_data
