//! The image store and its images, as C sees them.
#![allow(unsafe_code, reason = "exported names could clash with those of another library; C strings are pointers")]

use crate::boundary::{ErrorSlot, c_string, call, given, path, text};
use crate::error::Error;
use crate::transfer::{Cancel, Transfer};
use gpucontainer::image::{ImportOptions, PullOptions, PushOptions};
use serde_json::json;
use std::ffi::{CString, c_char, c_int};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;

/// A directory with images, which any number of processes and threads may use at the same time.
#[derive(Debug)]
pub struct ImageStore {
    pub(crate) store: gpucontainer::ImageStore,
    path: CString,
}

/// An image in a store. While it lives, garbage collection leaves it alone. Any number of threads may use it.
#[derive(Debug)]
pub struct Image {
    pub(crate) image: gpucontainer::Image,
    reference: CString,
    id: CString,
    manifest_digest: CString,
    config: CString,
}

/// A list of images.
#[derive(Debug)]
pub struct Images(Vec<Image>);

impl From<gpucontainer::Image> for Image {
    fn from(image: gpucontainer::Image) -> Self {
        let config = image.config();
        let json = json!({
            "entrypoint": config.entrypoint, "command": config.command, "env": config.env, "user": config.user,
            "working_dir": config.working_dir, "exposed_ports": config.exposed_ports, "labels": config.labels,
            "volumes": config.volumes, "stop_signal": config.stop_signal, "architecture": config.architecture,
            "os": config.os, "created": config.created,
        });
        Self {
            reference: c_string(image.reference().to_string().as_bytes()),
            id: c_string(image.id().to_string().as_bytes()),
            manifest_digest: c_string(image.manifest_digest().to_string().as_bytes()),
            config: c_string(json.to_string().as_bytes()),
            image,
        }
    }
}

/// Opens the store at a path, made if there is none. What processes that died left unfinished in it is
/// removed.
///
/// @param path   NULL for the user's default, which gpuc_image_store_path then tells
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_image_store_free; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_image_store_open(
    path: *const c_char,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<ImageStore>> {
    call(error, None, || {
        let store = if path.is_null() {
            gpucontainer::ImageStore::open_default()?
        } else {
            // SAFETY: the header asks for NULL or a string that ends with a zero byte.
            gpucontainer::ImageStore::open(unsafe { self::path(path, "path") }?)?
        };
        let path = c_string(store.path().as_os_str().as_bytes());
        Ok(Some(Box::new(ImageStore { store, path })))
    })
}

/// Where the store is.
///
/// @param store  may be NULL, which is an empty string
/// @return a string that lives as long as the object
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_image_store_path(store: Option<&ImageStore>) -> *const c_char {
    store.map_or(c"", |store| store.path.as_c_str()).as_ptr()
}

/// Frees a store object. The store stays on disk.
///
/// @param store  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_image_store_free(store: Option<Box<ImageStore>>) {
    drop(store);
}

/// The image that a reference stands for here. No registry is asked.
///
/// @param error  may be NULL; GPUC_ERROR_IMAGE_NOT_FOUND if there is none
/// @return the caller's, freed with gpuc_image_free; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_image_store_get(
    store: Option<&ImageStore>,
    reference: *const c_char,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<Image>> {
    call(error, None, || {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let reference = unsafe { text(reference, "reference") }?;
        let image = given(store, "store")?.store.image(reference)?;
        Ok(Some(Box::new(image.into())))
    })
}

/// All images, one for each reference, in the order of their references.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_images_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_image_store_list(
    store: Option<&ImageStore>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<Images>> {
    call(error, None, || {
        let images = given(store, "store")?.store.list()?;
        Ok(Some(Box::new(Images(images.into_iter().map(Image::from).collect()))))
    })
}

/// Pulls an image from its registry, and names it here as it is named there. Layers that are here already
/// are not fetched again.
///
/// @param options  NULL for the defaults
/// @param error    may be NULL
/// @return the caller's, freed with gpuc_image_free; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_image_store_pull(
    store: Option<&ImageStore>,
    reference: *const c_char,
    options: Option<&Transfer>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<Image>> {
    call(error, None, || {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let reference = unsafe { text(reference, "reference") }?;
        let options = options.map_or_else(|| Ok(PullOptions::new()), Transfer::pull)?;
        let image = given(store, "store")?.store.pull(reference, options)?;
        Ok(Some(Box::new(image.into())))
    })
}

/// Pushes an image of the store to the registry, repository and tag of `reference`. Layers that the registry has are not
/// sent; others are written again from the store and compressed, so the manifest may get another digest than
/// gpuc_image_manifest_digest says.
///
/// @param options  NULL for the defaults; a reference, an image to select, a platform or a largest layer in them is an error
/// @param error    may be NULL
/// @return the digest of the manifest in the registry, the caller's, freed with gpuc_string_free; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_image_store_push(
    store: Option<&ImageStore>,
    image: Option<&Image>,
    reference: *const c_char,
    options: Option<&Transfer>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> *mut c_char {
    call(error, std::ptr::null_mut(), || {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let reference = unsafe { text(reference, "reference") }?;
        let options = options.map_or_else(|| Ok(PushOptions::new()), Transfer::push)?;
        let digest = given(store, "store")?.store.push(&given(image, "image")?.image, reference, options)?;
        Ok(c_string(digest.to_string().as_bytes()).into_raw())
    })
}

/// Imports an image from an OCI layout directory, an archive of one, or what `docker save` writes.
///
/// @param options  NULL for the defaults
/// @param error    may be NULL
/// @return the caller's, freed with gpuc_image_free; NULL on failure, and the store is as before
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_image_store_import(
    store: Option<&ImageStore>,
    path: *const c_char,
    options: Option<&Transfer>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<Image>> {
    call(error, None, || {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let path = unsafe { self::path(path, "path") }?;
        let options = options.map_or_else(|| Ok(ImportOptions::new()), Transfer::import)?;
        let image = given(store, "store")?.store.import(path, options)?;
        Ok(Some(Box::new(image.into())))
    })
}

/// Forgets a reference. The data goes with the next gpuc_image_store_collect_garbage, unless another
/// reference, a living object or a running container has it too.
///
/// @param error  may be NULL
/// @return 0, or -1 on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_image_store_remove(
    store: Option<&ImageStore>,
    reference: *const c_char,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let reference = unsafe { text(reference, "reference") }?;
        given(store, "store")?.store.remove(reference)?;
        Ok(0)
    })
}

/// Gives an image one more name, or moves the name to it.
///
/// @param error  may be NULL
/// @return the image under that name, the caller's, freed with gpuc_image_free; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_image_store_tag(
    store: Option<&ImageStore>,
    image: Option<&Image>,
    reference: *const c_char,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<Image>> {
    call(error, None, || {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let reference = unsafe { text(reference, "reference") }?;
        let image = given(store, "store")?.store.tag(&given(image, "image")?.image, reference)?;
        Ok(Some(Box::new(image.into())))
    })
}

/// Removes what no reference and no living object leads to. Waits for pulls, imports and builds under way.
///
/// @param layers  set to how many layers were removed; may be NULL
/// @param blobs   set to how many manifests and configurations were removed; may be NULL
/// @param error   may be NULL
/// @return 0, or -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_image_store_collect_garbage(
    store: Option<&ImageStore>,
    layers: Option<&mut MaybeUninit<u64>>,
    blobs: Option<&mut MaybeUninit<u64>>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    collect(store, &gpucontainer::Cancel::new(), layers, blobs, error)
}

/// As gpuc_image_store_collect_garbage, until the switch is thrown: what was removed by then stays removed.
///
/// @param cancel  may be NULL
/// @param layers  set to how many layers were removed; may be NULL
/// @param blobs   set to how many manifests and configurations were removed; may be NULL
/// @param error   may be NULL
/// @return 0, or -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_image_store_collect_garbage_cancellable(
    store: Option<&ImageStore>,
    cancel: Option<&Cancel>,
    layers: Option<&mut MaybeUninit<u64>>,
    blobs: Option<&mut MaybeUninit<u64>>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    let cancel = cancel.map_or_else(gpucontainer::Cancel::new, |cancel| cancel.0.clone());
    collect(store, &cancel, layers, blobs, error)
}

fn collect(
    store: Option<&ImageStore>,
    cancel: &gpucontainer::Cancel,
    layers: Option<&mut MaybeUninit<u64>>,
    blobs: Option<&mut MaybeUninit<u64>>,
    error: ErrorSlot<'_>,
) -> c_int {
    call(error, -1, || {
        let collected = given(store, "store")?.store.collect_garbage_cancellable(cancel)?;
        if let Some(layers) = layers {
            layers.write(collected.layers);
        }
        if let Some(blobs) = blobs {
            blobs.write(collected.blobs);
        }
        Ok(0)
    })
}

/// How many images are in a list.
///
/// @param images  may be NULL, which has none
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_images_count(images: Option<&Images>) -> usize {
    images.map_or(0, |images| images.0.len())
}

/// An image of a list.
///
/// @param images  may be NULL
/// @return the list's, never freed; NULL beyond its end
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_images_at(images: Option<&Images>, index: usize) -> Option<&Image> {
    images?.0.get(index)
}

/// Frees a list and its images.
///
/// @param images  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_images_free(images: Option<Box<Images>>) {
    drop(images);
}

/// The name under which the image was asked for, in full.
///
/// @param image  may be NULL, which is an empty string
/// @return a string that lives as long as the image
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_image_reference(image: Option<&Image>) -> *const c_char {
    image.map_or(c"", |image| image.reference.as_c_str()).as_ptr()
}

/// The digest of the image's configuration: the same for the same content, wherever it came from.
///
/// @param image  may be NULL, which is an empty string
/// @return a string that lives as long as the image
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_image_id(image: Option<&Image>) -> *const c_char {
    image.map_or(c"", |image| image.id.as_c_str()).as_ptr()
}

/// The digest of the manifest of the image's platform.
///
/// @param image  may be NULL, which is an empty string
/// @return a string that lives as long as the image
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_image_manifest_digest(image: Option<&Image>) -> *const c_char {
    image.map_or(c"", |image| image.manifest_digest.as_c_str()).as_ptr()
}

/// What the image says about how to run it, as one JSON object: entrypoint, command, env, user, working_dir,
/// exposed_ports, labels, volumes, stop_signal, architecture, os, created.
///
/// @param image  may be NULL, which is an empty string
/// @return a string that lives as long as the image
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_image_config_json(image: Option<&Image>) -> *const c_char {
    image.map_or(c"", |image| image.config.as_c_str()).as_ptr()
}

/// Frees an image object. The image stays in the store.
///
/// @param image  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_image_free(image: Option<Box<Image>>) {
    drop(image);
}
