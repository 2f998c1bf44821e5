/* Errors, and what all objects of the C++ layer are made of. */
#ifndef GPUCONTAINER_HANDLE_HPP
#define GPUCONTAINER_HANDLE_HPP

#include <gpucontainer.h>

#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace gpucontainer {

/* What a call of the library failed with. what() is the whole story: what was wanted, which call failed on what, why. */
class Error : public std::runtime_error {
public:
    /* Takes an error of the C library over. */
    explicit Error(gpuc_error_t *error)
        : std::runtime_error(text(gpuc_error_message(error))), kind_(gpuc_error_kind(error)),
          error_number_(gpuc_error_errno(error)) {
        if (const char *path = gpuc_error_path(error)) path_ = path;
        gpuc_error_free(error);
    }

    /* What went wrong, in one word that a program can act on. */
    gpuc_error_kind_t kind() const noexcept { return kind_; }
    /* The error number of the system call that failed; 0 if none did. */
    int error_number() const noexcept { return error_number_; }
    /* The file that it is about; empty if it is about none. */
    const std::string &path() const noexcept { return path_; }

private:
    static const char *text(const char *message) noexcept { return message ? message : ""; }

    gpuc_error_kind_t kind_;
    int error_number_;
    std::string path_;
};

/* Gives events of the library up to a level to a function, which must throw nothing; see gpuc_set_log. */
inline void set_log(gpuc_log_level_t level, gpuc_log_t log, void *context = nullptr) {
    gpuc_error_t *error = nullptr;
    if (gpuc_set_log(static_cast<std::uint32_t>(level), log, context, &error) != 0) throw Error(error);
}

/* How long a call may take; none is for ever, zero only looks. */
using Timeout = std::optional<std::chrono::milliseconds>;

/* Words of a command, or names. */
using Words = std::vector<std::string>;

namespace detail {

inline std::int64_t milliseconds(const Timeout &timeout) noexcept {
    return timeout ? static_cast<std::int64_t>(timeout->count()) : -1;
}

/* Makes a call that takes `gpuc_error_t **` last, and throws what it fails with. */
template <class Call> auto checked(Call &&call) {
    gpuc_error_t *error = nullptr;
    auto result = call(&error);
    if (error) throw Error(error);
    return result;
}

/* Text of the library, freed after it was copied. */
inline std::string taken(char *text) {
    const std::unique_ptr<char, void (*)(char *)> owner(text, gpuc_string_free);
    return text ? std::string(text) : std::string();
}

/* A string that lives with its object; empty where there is none. */
inline std::string copied(const char *text) { return text ? std::string(text) : std::string(); }

/* The words as C wants them, with NULL after the last; they must live as long as this. */
class Pointers {
public:
    explicit Pointers(const Words &words) {
        pointers_.reserve(words.size() + 1);
        for (const std::string &word : words) pointers_.push_back(word.c_str());
        pointers_.push_back(nullptr);
    }
    const char *const *get() const noexcept { return pointers_.data(); }

private:
    std::vector<const char *> pointers_;
};

} // namespace detail

/* An object of the C library that is freed with this one. */
template <class Object, void (*Free)(Object *)> class Handle {
public:
    /* Takes an object of the C library over. */
    explicit Handle(Object *object) noexcept : object_(object) {}

    /* For functions of gpucontainer.h; it stays this one's. */
    Object *get() const noexcept { return object_.get(); }
    /* Gives the object away; the caller frees it. */
    Object *release_handle() noexcept { return object_.release(); }

private:
    struct Freer {
        void operator()(Object *object) const noexcept { Free(object); }
    };
    std::unique_ptr<Object, Freer> object_;
};

/* A switch that ends waits and transfers early, from any thread. */
class Cancel : public Handle<gpuc_cancel_t, gpuc_cancel_free> {
public:
    Cancel() : Handle(gpuc_cancel_new()) {}
    void cancel() const noexcept { gpuc_cancel_switch(get()); }
};

namespace detail {
inline const gpuc_cancel_t *pointer(const Cancel *cancel) noexcept { return cancel ? cancel->get() : nullptr; }
} // namespace detail

/* The version of the library that is linked. */
inline std::string version() { return detail::copied(gpuc_version()); }

/* What this host can do. */
class Host : public Handle<gpuc_host_t, gpuc_host_free> {
public:
    static Host probe() { return Host(detail::checked(gpuc_host_probe)); }

    bool has(const std::string &capability) const noexcept { return gpuc_host_has(get(), capability.c_str()); }
    std::size_t gpu_count() const noexcept { return gpuc_host_gpu_count(get()); }
    /* A table for people. */
    std::string text() const { return detail::copied(gpuc_host_text(get())); }
    std::string json() const { return detail::copied(gpuc_host_json(get())); }
    /* How near the GPUs are to each other, as a table for people. */
    std::string topology() const {
        return detail::taken(detail::checked([&](gpuc_error_t **e) { return gpuc_host_topology_text(get(), e); }));
    }

private:
    using Handle::Handle;
};

} // namespace gpucontainer

#endif
