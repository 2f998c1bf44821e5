/* Images: the store, pulling, pushing and importing, building. */
#ifndef GPUCONTAINER_IMAGE_HPP
#define GPUCONTAINER_IMAGE_HPP

#include <gpucontainer/handle.hpp>

#include <exception>
#include <functional>
#include <string_view>

namespace gpucontainer {

/* Told of each step of a transfer: the item, its phase, bytes so far and in all (0 if unknown). */
using Progress = std::function<void(std::string_view item, gpuc_phase_t phase, std::uint64_t bytes, std::uint64_t total)>;

/* How to pull, push or import. */
class Transfer : public Handle<gpuc_transfer_t, gpuc_transfer_free> {
public:
    Transfer() : Handle(gpuc_transfer_new()) {}

    /* The name for what an archive holds. */
    Transfer &reference(const std::string &reference) { return gpuc_transfer_set_reference(get(), reference.c_str()), *this; }
    /* Which image of an archive that holds several. */
    Transfer &select(const std::string &name) { return gpuc_transfer_set_select(get(), name.c_str()), *this; }
    /* As in "linux/arm64"; this machine's by default. */
    Transfer &platform(const std::string &platform) { return gpuc_transfer_set_platform(get(), platform.c_str()), *this; }
    /* What it throws ends the transfer and comes out of the call that transfers. */
    Transfer &progress(Progress progress) {
        told_ = std::make_unique<Told>(Told{std::move(progress), stop_.get(), nullptr});
        gpuc_transfer_set_progress(get(), tell, told_.get());
        if (!cancel_) gpuc_transfer_set_cancel(get(), stop_.get());
        return *this;
    }
    /* The switch may be turned while the transfer runs, and must live until then. */
    Transfer &cancel(const Cancel &cancel) {
        cancel_ = &cancel;
        if (told_) told_->stop = cancel.get();
        return gpuc_transfer_set_cancel(get(), cancel.get()), *this;
    }
    /* How many layers at once. */
    Transfer &concurrency(std::size_t layers) { return gpuc_transfer_set_concurrency(get(), layers), *this; }
    Transfer &max_layer_bytes(std::uint64_t bytes) { return gpuc_transfer_set_max_layer_bytes(get(), bytes), *this; }
    Transfer &credentials(const std::string &user, const std::string &password) {
        return gpuc_transfer_set_credentials(get(), user.c_str(), password.c_str()), *this;
    }
    Transfer &identity_token(const std::string &token) {
        return gpuc_transfer_set_identity_token(get(), token.c_str()), *this;
    }
    Transfer &plain_http(bool plain) { return gpuc_transfer_set_plain_http(get(), plain), *this; }
    Transfer &certificate_authority(const std::string &pem) {
        return gpuc_transfer_add_certificate_authority(get(), pem.c_str()), *this;
    }
    Transfer &timeout(std::chrono::milliseconds timeout) {
        return gpuc_transfer_set_timeout(get(), static_cast<std::uint64_t>(timeout.count())), *this;
    }

    /* Runs a transfer; what the progress function threw comes before what the library says of it. */
    template <class Call> auto run(Call &&call) const {
        if (told_) told_->thrown = nullptr;
        try {
            return detail::checked(std::forward<Call>(call));
        } catch (const Error &) {
            if (told_ && told_->thrown) std::rethrow_exception(told_->thrown);
            throw;
        }
    }

private:
    struct Told {
        Progress progress;
        const gpuc_cancel_t *stop;
        std::exception_ptr thrown;
    };

    static void tell(void *context, const char *item, gpuc_phase_t phase, std::uint64_t bytes, std::uint64_t total) noexcept {
        Told &told = *static_cast<Told *>(context);
        if (told.thrown) return;
        try {
            told.progress(item ? item : "", phase, bytes, total);
        } catch (...) {
            told.thrown = std::current_exception();
            gpuc_cancel_switch(told.stop);
        }
    }

    std::unique_ptr<Told> told_;
    /* Ends the transfer when the progress function throws, unless the caller has a switch. */
    Cancel stop_;
    const Cancel *cancel_ = nullptr;
};

/* An image in a store. */
class Image : public Handle<gpuc_image_t, gpuc_image_free> {
public:
    using Handle::Handle;

    std::string reference() const { return detail::copied(gpuc_image_reference(get())); }
    /* The digest of the configuration. */
    std::string id() const { return detail::copied(gpuc_image_id(get())); }
    std::string manifest_digest() const { return detail::copied(gpuc_image_manifest_digest(get())); }
    std::string config_json() const { return detail::copied(gpuc_image_config_json(get())); }
};

/* What is known of an image in a list. */
struct ImageSummary {
    std::string reference;
    std::string id;
    std::string manifest_digest;
};

/* What a collection of garbage removed. */
struct Collected {
    std::uint64_t layers;
    std::uint64_t blobs;
};

/* Images on this host. Any number of processes may use one store. */
class ImageStore : public Handle<gpuc_image_store_t, gpuc_image_store_free> {
public:
    /* The user's. */
    static ImageStore open() { return ImageStore(detail::checked([](gpuc_error_t **e) { return gpuc_image_store_open(nullptr, e); })); }
    static ImageStore open(const std::string &path) {
        return ImageStore(detail::checked([&](gpuc_error_t **e) { return gpuc_image_store_open(path.c_str(), e); }));
    }

    std::string path() const { return detail::copied(gpuc_image_store_path(get())); }
    Image image(const std::string &reference) const {
        return Image(detail::checked([&](gpuc_error_t **e) { return gpuc_image_store_get(get(), reference.c_str(), e); }));
    }
    std::vector<ImageSummary> images() const {
        const Handle<gpuc_images_t, gpuc_images_free> list(
            detail::checked([&](gpuc_error_t **e) { return gpuc_image_store_list(get(), e); }));
        std::vector<ImageSummary> images;
        for (std::size_t index = 0; index < gpuc_images_count(list.get()); index++) {
            const gpuc_image_t *image = gpuc_images_at(list.get(), index);
            images.push_back({detail::copied(gpuc_image_reference(image)), detail::copied(gpuc_image_id(image)),
                              detail::copied(gpuc_image_manifest_digest(image))});
        }
        return images;
    }
    Image pull(const std::string &reference, const Transfer &options = Transfer()) const {
        return Image(options.run(
            [&](gpuc_error_t **e) { return gpuc_image_store_pull(get(), reference.c_str(), options.get(), e); }));
    }
    /* To the registry, repository and tag of the reference; the digest of the manifest there. */
    std::string push(const Image &image, const std::string &reference, const Transfer &options = Transfer()) const {
        return detail::taken(options.run([&](gpuc_error_t **e) {
            return gpuc_image_store_push(get(), image.get(), reference.c_str(), options.get(), e);
        }));
    }
    /* An OCI layout or a Docker archive, as a file or a directory. */
    Image import(const std::string &path, const Transfer &options = Transfer()) const {
        return Image(options.run(
            [&](gpuc_error_t **e) { return gpuc_image_store_import(get(), path.c_str(), options.get(), e); }));
    }
    Image tag(const Image &image, const std::string &reference) const {
        return Image(detail::checked(
            [&](gpuc_error_t **e) { return gpuc_image_store_tag(get(), image.get(), reference.c_str(), e); }));
    }
    /* Forgets a reference. What no reference needs is freed by collect_garbage. */
    void remove(const std::string &reference) const {
        detail::checked([&](gpuc_error_t **e) { return gpuc_image_store_remove(get(), reference.c_str(), e); });
    }
    Collected collect_garbage(const Cancel *cancel = nullptr) const {
        Collected collected{};
        detail::checked([&](gpuc_error_t **e) {
            return gpuc_image_store_collect_garbage_cancellable(get(), detail::pointer(cancel), &collected.layers,
                                                                &collected.blobs, e);
        });
        return collected;
    }
    /* Removes what sandboxes left whose hosts died. */
    void collect_abandoned() const {
        detail::checked([&](gpuc_error_t **e) { return gpuc_collect_abandoned(get(), e); });
    }

private:
    using Handle::Handle;
};

/* Builds an image from files of the host. */
class ImageBuilder : public Handle<gpuc_image_builder_t, gpuc_image_builder_free> {
public:
    explicit ImageBuilder(const ImageStore &store)
        : Handle(detail::checked([&](gpuc_error_t **e) { return gpuc_image_builder_new(store.get(), e); })) {}

    ImageBuilder &base(const Image &image) { return gpuc_image_builder_set_base(get(), image.get()), *this; }
    ImageBuilder &copy(const std::string &host_path, const std::string &container_path) {
        return gpuc_image_builder_copy(get(), host_path.c_str(), container_path.c_str()), *this;
    }
    ImageBuilder &copy_following_links(const std::string &host_path, const std::string &container_path) {
        return gpuc_image_builder_copy_following_links(get(), host_path.c_str(), container_path.c_str()), *this;
    }
    ImageBuilder &file(const std::string &container_path, std::string_view bytes, std::uint32_t mode = 0644) {
        return gpuc_image_builder_file(get(), container_path.c_str(), bytes.data(), bytes.size(), mode), *this;
    }
    ImageBuilder &directory(const std::string &container_path, std::uint32_t mode = 0755) {
        return gpuc_image_builder_directory(get(), container_path.c_str(), mode), *this;
    }
    ImageBuilder &symlink(const std::string &target, const std::string &container_path) {
        return gpuc_image_builder_symlink(get(), target.c_str(), container_path.c_str()), *this;
    }
    ImageBuilder &env(const std::string &name, const std::string &value) {
        return gpuc_image_builder_env(get(), name.c_str(), value.c_str()), *this;
    }
    ImageBuilder &entrypoint(const Words &arguments) {
        return gpuc_image_builder_set_entrypoint(get(), detail::Pointers(arguments).get()), *this;
    }
    ImageBuilder &command(const Words &arguments) {
        return gpuc_image_builder_set_command(get(), detail::Pointers(arguments).get()), *this;
    }
    ImageBuilder &user(const std::string &user) { return gpuc_image_builder_set_user(get(), user.c_str()), *this; }
    ImageBuilder &working_dir(const std::string &path) {
        return gpuc_image_builder_set_working_dir(get(), path.c_str()), *this;
    }
    ImageBuilder &stop_signal(const std::string &signal) {
        return gpuc_image_builder_set_stop_signal(get(), signal.c_str()), *this;
    }
    ImageBuilder &volume(const std::string &path) { return gpuc_image_builder_volume(get(), path.c_str()), *this; }
    ImageBuilder &label(const std::string &name, const std::string &value) {
        return gpuc_image_builder_label(get(), name.c_str(), value.c_str()), *this;
    }
    ImageBuilder &expose(std::uint16_t port) { return gpuc_image_builder_expose(get(), port), *this; }
    /* Seconds since 1970. */
    ImageBuilder &created(std::uint64_t seconds) { return gpuc_image_builder_set_created(get(), seconds), *this; }
    /* The switch must live until commit has returned. */
    ImageBuilder &cancel(const Cancel &cancel) { return gpuc_image_builder_set_cancel(get(), cancel.get()), *this; }

    Image commit(const std::string &reference) const {
        return Image(detail::checked(
            [&](gpuc_error_t **e) { return gpuc_image_builder_commit(get(), reference.c_str(), e); }));
    }
};

} // namespace gpucontainer

#endif
