//! Building images from files, as C sees it.
#![allow(unsafe_code, reason = "exported names could clash with those of another library; C strings are pointers")]

use crate::boundary::{Fault, call, catch, given, path, strings, text};
use crate::error::Error;
use crate::image::{Image, ImageStore};
use crate::transfer::Cancel;
use gpucontainer::ErrorKind;
use std::ffi::{c_char, c_void};
use std::mem::MaybeUninit;
use std::time::{Duration, SystemTime};

/// What to build. A setter that is given something unusable makes gpuc_image_builder_commit fail.
#[derive(Debug)]
pub struct ImageBuilder {
    builder: gpucontainer::image::ImageBuilder,
    fault: Fault,
}

impl ImageBuilder {
    fn update(
        this: Option<&mut Self>,
        change: impl FnOnce(gpucontainer::image::ImageBuilder) -> gpucontainer::Result<gpucontainer::image::ImageBuilder>,
    ) {
        let Some(this) = this else { return };
        // Clones share the bytes of files; what is lost by a failing change is nothing.
        let changed = catch(|| change(this.builder.clone()));
        if let Some(changed) = this.fault.keep(changed) {
            this.builder = changed;
        }
    }
}

/// Starts an image from nothing, for this host's platform.
///
/// The same files and settings give the same image, bit by bit, on every host.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_image_builder_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_image_builder_new(
    store: Option<&ImageStore>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<ImageBuilder>> {
    call(error, None, || {
        let builder = given(store, "store")?.store.build();
        Ok(Some(Box::new(ImageBuilder { builder, fault: Fault::default() })))
    })
}

/// Starts from the layers and the configuration of an image of the same store.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_image_builder_set_base(builder: Option<&mut ImageBuilder>, image: Option<&Image>) {
    ImageBuilder::update(builder, |builder| Ok(builder.base(&given(image, "image")?.image)));
}

/// Copies a file or the contents of a directory of the host into the container. Permission bits are kept;
/// links below host_path stay links.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_image_builder_copy(
    builder: Option<&mut ImageBuilder>,
    host_path: *const c_char,
    container_path: *const c_char,
) {
    ImageBuilder::update(builder, |builder| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let host_path = unsafe { path(host_path, "host_path") }?;
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let container_path = unsafe { path(container_path, "container_path") }?;
        Ok(builder.copy(host_path, container_path))
    });
}

/// As gpuc_image_builder_copy, but links are replaced by what they lead to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_image_builder_copy_following_links(
    builder: Option<&mut ImageBuilder>,
    host_path: *const c_char,
    container_path: *const c_char,
) {
    ImageBuilder::update(builder, |builder| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let host_path = unsafe { path(host_path, "host_path") }?;
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let container_path = unsafe { path(container_path, "container_path") }?;
        Ok(builder.copy_following_links(host_path, container_path))
    });
}

/// Adds a file with these bytes and permission bits, for example 0644.
///
/// @param bytes  may be NULL if length is 0
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_image_builder_file(
    builder: Option<&mut ImageBuilder>,
    container_path: *const c_char,
    bytes: *const c_void,
    length: usize,
    mode: u32,
) {
    ImageBuilder::update(builder, |builder| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let container_path = unsafe { path(container_path, "container_path") }?;
        // SAFETY: the header asks for that many bytes.
        let bytes = unsafe { crate::boundary::bytes(bytes, length, "bytes") }?;
        Ok(builder.file(container_path, bytes, mode))
    });
}

/// Adds a directory with these permission bits; those above it are made as needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_image_builder_directory(
    builder: Option<&mut ImageBuilder>,
    container_path: *const c_char,
    mode: u32,
) {
    ImageBuilder::update(builder, |builder| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let container_path = unsafe { path(container_path, "container_path") }?;
        Ok(builder.directory(container_path, mode))
    });
}

/// Adds a symbolic link at container_path that says target.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_image_builder_symlink(
    builder: Option<&mut ImageBuilder>,
    target: *const c_char,
    container_path: *const c_char,
) {
    ImageBuilder::update(builder, |builder| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let target = unsafe { path(target, "target") }?;
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let container_path = unsafe { path(container_path, "container_path") }?;
        Ok(builder.symlink(target, container_path))
    });
}

/// Sets an environment variable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_image_builder_env(
    builder: Option<&mut ImageBuilder>,
    name: *const c_char,
    value: *const c_char,
) {
    ImageBuilder::update(builder, |builder| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let name = unsafe { text(name, "name") }?;
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let value = unsafe { text(value, "value") }?;
        Ok(builder.env(name, value))
    });
}

/// Sets the program and its first arguments. A command of the base is dropped.
///
/// @param arguments  strings, and NULL after the last
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_image_builder_set_entrypoint(
    builder: Option<&mut ImageBuilder>,
    arguments: *const *const c_char,
) {
    ImageBuilder::update(builder, |builder| {
        // SAFETY: the header asks for NULL or strings with NULL after the last.
        let arguments = unsafe { strings(arguments, "arguments") }?;
        Ok(builder.entrypoint(arguments))
    });
}

/// Sets the default command, or the arguments of the entrypoint if there is one.
///
/// @param arguments  strings, and NULL after the last
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_image_builder_set_command(
    builder: Option<&mut ImageBuilder>,
    arguments: *const *const c_char,
) {
    ImageBuilder::update(builder, |builder| {
        // SAFETY: the header asks for NULL or strings with NULL after the last.
        let arguments = unsafe { strings(arguments, "arguments") }?;
        Ok(builder.command(arguments))
    });
}

/// Sets the user, and the group after a colon, by name or by number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_image_builder_set_user(builder: Option<&mut ImageBuilder>, user: *const c_char) {
    ImageBuilder::update(builder, |builder| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let user = unsafe { text(user, "user") }?;
        Ok(builder.user(user))
    });
}

/// Sets the directory where the program starts: an absolute path.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_image_builder_set_working_dir(builder: Option<&mut ImageBuilder>, path: *const c_char) {
    ImageBuilder::update(builder, |builder| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let path = unsafe { text(path, "path") }?;
        Ok(builder.working_dir(path))
    });
}

/// Sets the signal that asks the program to end, as in "SIGINT".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_image_builder_set_stop_signal(builder: Option<&mut ImageBuilder>, signal: *const c_char) {
    ImageBuilder::update(builder, |builder| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let signal = unsafe { text(signal, "signal") }?;
        Ok(builder.stop_signal(signal))
    });
}

/// Notes that the program expects to write to this directory: an absolute path.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_image_builder_volume(builder: Option<&mut ImageBuilder>, path: *const c_char) {
    ImageBuilder::update(builder, |builder| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let path = unsafe { text(path, "path") }?;
        Ok(builder.volume(path))
    });
}

/// Sets a label.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_image_builder_label(
    builder: Option<&mut ImageBuilder>,
    name: *const c_char,
    value: *const c_char,
) {
    ImageBuilder::update(builder, |builder| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let name = unsafe { text(name, "name") }?;
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let value = unsafe { text(value, "value") }?;
        Ok(builder.label(name, value))
    });
}

/// Notes that the program listens on this TCP port. It is published only by who runs the image.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_image_builder_expose(builder: Option<&mut ImageBuilder>, port: u16) {
    ImageBuilder::update(builder, |builder| Ok(builder.expose(port)));
}

/// Sets the time of the image and of all files in it, in seconds since the start of 1970.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_image_builder_set_created(builder: Option<&mut ImageBuilder>, seconds: u64) {
    ImageBuilder::update(builder, |builder| {
        let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        let time = time.ok_or_else(|| gpucontainer::Error::new(ErrorKind::InvalidArgument, "seconds is too large"))?;
        Ok(builder.created(time))
    });
}

/// Sets the switch that ends the build early.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_image_builder_set_cancel(builder: Option<&mut ImageBuilder>, cancel: Option<&Cancel>) {
    ImageBuilder::update(builder, |builder| Ok(builder.cancel(given(cancel, "cancel")?.0.clone())));
}

/// Makes the image and names it. The builder can be used again.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_image_free; NULL on failure, and the store is as before
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_image_builder_commit(
    builder: Option<&ImageBuilder>,
    reference: *const c_char,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<Image>> {
    call(error, None, || {
        let this = given(builder, "builder")?;
        this.fault.check()?;
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let reference = unsafe { text(reference, "reference") }?;
        let image = this.builder.clone().commit(reference)?;
        Ok(Some(Box::new(image.into())))
    })
}

/// Frees a builder.
///
/// @param builder  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_image_builder_free(builder: Option<Box<ImageBuilder>>) {
    drop(builder);
}
