// Work arrays. What is freed is kept for the thread's next call: glibc maps a large array anew each time, and its pages
// take as long to clear as what is done with them.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

// Not of one file alone: all of them share a thread's pool.
namespace work {

class Pool {
    struct Slot {
        void* data;
        long size;  // bytes
    };
    static constexpr long LARGEST = 32 << 20;  // of an array that is kept
    Slot slots[8] = {};

    static void release(void* data) { ::operator delete[](data, std::align_val_t{64}); }

  public:
    // An array of that size in bytes, which becomes the one that it has.
    void* take(long& size) {
        Slot* best = nullptr;
        for (Slot& slot : slots)
            if (slot.data && slot.size >= size && slot.size / 2 <= size && (!best || slot.size < best->size))
                best = &slot;
        if (!best) return ::operator new[](size, std::align_val_t{64});
        size = best->size;
        return std::exchange(best->data, nullptr);
    }

    void give(void* data, long size) {
        for (Slot& slot : slots)
            if (data && size <= LARGEST && (!slot.data || slot.size < size)) {
                std::swap(slot.data, data);
                std::swap(slot.size, size);
            }
        if (data) release(data);
    }

    ~Pool() {
        for (Slot& slot : slots)
            if (slot.data) release(slot.data);
    }
};

[[gnu::visibility("hidden")]] inline Pool& pool() {
    thread_local Pool kept;
    return kept;
}

}  // namespace work

namespace {

struct Free {
    long size;

    void operator()(void* data) const { work::pool().give(data, size); }
};
template <typename Number>
using ArrayOf = std::unique_ptr<Number[], Free>;
using Array = ArrayOf<float>;

template <typename Number = float>
ArrayOf<Number> allocate(long count) {
    long size = count * sizeof(Number);
    void* data = work::pool().take(size);
    return ArrayOf<Number>(static_cast<Number*>(data), Free{size});
}

template <typename Number = float>
ArrayOf<Number> zeros(long count) {
    ArrayOf<Number> array = allocate<Number>(count);
    std::memset(array.get(), 0, count * sizeof(Number));
    return array;
}

}  // namespace
