//! Options of pulls, imports and pushes, progress and cancellation, as C sees them.
#![allow(unsafe_code, reason = "exported names could clash with those of another library; C strings are pointers")]

use crate::boundary::{Fault, c_string, text};
use gpucontainer::image::{Credentials, ImportOptions, Platform, PullOptions, PushOptions};
use gpucontainer::{Error, ErrorKind, Phase, Progress};
use std::ffi::{c_char, c_void};
use std::time::Duration;

/// A switch that ends long work early with GPUC_ERROR_CANCELLED. Any number of threads may use it at once.
#[derive(Debug, Default)]
pub struct Cancel(pub(crate) gpucontainer::Cancel);

/// Makes a switch that is off.
///
/// @return the caller's, freed with gpuc_cancel_free
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_cancel_new() -> Option<Box<Cancel>> {
    Some(Box::default())
}

/// Ends the work that was given this switch. May be called from any thread and from a signal handler.
///
/// @param cancel  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_cancel_switch(cancel: Option<&Cancel>) {
    if let Some(cancel) = cancel {
        cancel.0.cancel();
    }
}

/// Frees a switch. Work that was given it goes on.
///
/// @param cancel  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_cancel_free(cancel: Option<Box<Cancel>>) {
    drop(cancel);
}

/// What is being done with an item of a transfer.
#[allow(non_camel_case_types, reason = "the names are those of C, so that one search finds both")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub enum gpuc_phase_t {
    /// A phase that this header does not know.
    GPUC_PHASE_UNKNOWN = 0,
    /// Waiting for another process that works on the same item.
    GPUC_PHASE_WAITING = 1,
    /// Downloaded, checked and unpacked, all in one stream.
    GPUC_PHASE_PULLING = 2,
    /// Read from a local archive or directory, checked and unpacked.
    GPUC_PHASE_IMPORTING = 3,
    /// Ready.
    GPUC_PHASE_DONE = 4,
    /// It was there already: in the store, or in the registry.
    GPUC_PHASE_PRESENT = 5,
    /// Written again from the store and compressed, before it is pushed. The bytes are those read.
    GPUC_PHASE_COMPRESSING = 6,
    /// Sent to a registry.
    GPUC_PHASE_PUSHING = 7,
}

impl From<Phase> for gpuc_phase_t {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Waiting => Self::GPUC_PHASE_WAITING,
            Phase::Pulling => Self::GPUC_PHASE_PULLING,
            Phase::Importing => Self::GPUC_PHASE_IMPORTING,
            Phase::Compressing => Self::GPUC_PHASE_COMPRESSING,
            Phase::Pushing => Self::GPUC_PHASE_PUSHING,
            Phase::Done => Self::GPUC_PHASE_DONE,
            Phase::Present => Self::GPUC_PHASE_PRESENT,
            _ => Self::GPUC_PHASE_UNKNOWN,
        }
    }
}

/// A report of a transfer: the item, for example a layer's digest; the bytes done so far, and in all, 0 if
/// that is not known. Called from threads of the library, one call at a time. `item` lives as long as the
/// call.
#[allow(non_camel_case_types, reason = "the name is that of C, so that one search finds both")]
pub type gpuc_progress_t =
    Option<extern "C" fn(context: *mut c_void, item: *const c_char, phase: gpuc_phase_t, bytes: u64, total: u64)>;

/// How to pull, import or push an image. A setter that is given something unusable makes the transfer fail.
#[derive(Debug, Default)]
pub struct Transfer {
    fault: Fault,
    reference: Option<String>,
    select: Option<String>,
    platform: Option<Platform>,
    progress: Option<Callback>,
    cancel: gpucontainer::Cancel,
    concurrency: Option<usize>,
    max_layer_bytes: Option<u64>,
    credentials: Option<Credentials>,
    plain_http: Option<bool>,
    authorities: Vec<String>,
    timeout: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Callback {
    function: extern "C" fn(*mut c_void, *const c_char, gpuc_phase_t, u64, u64),
    context: *mut c_void,
}

// SAFETY: the pointer is handed back to the caller's own function alone, and the header says that this
// happens on other threads.
unsafe impl Send for Callback {}

impl Callback {
    fn report(&self, progress: &Progress) {
        let item = c_string(progress.item.as_bytes());
        let phase = progress.phase.into();
        (self.function)(self.context, item.as_ptr(), phase, progress.bytes, progress.total.unwrap_or(0));
    }
}

/// Says to options how the registry is reached.
macro_rules! reaching {
    ($self:ident, $options:ident) => {{
        if let Some(credentials) = &$self.credentials {
            $options = $options.credentials(credentials.clone());
        }
        if let Some(plain) = $self.plain_http {
            $options = $options.plain_http(plain);
        }
        for pem in &$self.authorities {
            $options = $options.certificate_authority(pem.as_bytes());
        }
        if let Some(silence) = $self.timeout {
            $options = $options.timeout(silence);
        }
        $options
    }};
}

impl Transfer {
    pub(crate) fn import(&self) -> gpucontainer::Result<ImportOptions<'static>> {
        self.fault.check()?;
        let mut options = ImportOptions::new().cancel(self.cancel.clone());
        if let Some(reference) = &self.reference {
            options = options.reference(reference);
        }
        if let Some(name) = &self.select {
            options = options.select(name);
        }
        if let Some(platform) = &self.platform {
            options = options.platform(platform.clone());
        }
        if let Some(callback) = self.progress {
            options = options.progress(move |progress| callback.report(&progress));
        }
        if let Some(layers) = self.concurrency {
            options = options.concurrency(layers);
        }
        if let Some(bytes) = self.max_layer_bytes {
            options = options.max_layer_bytes(bytes);
        }
        Ok(options)
    }

    pub(crate) fn pull(&self) -> gpucontainer::Result<PullOptions<'static>> {
        self.fault.check()?;
        let mut options = PullOptions::new().cancel(self.cancel.clone());
        if let Some(platform) = &self.platform {
            options = options.platform(platform.clone());
        }
        if let Some(callback) = self.progress {
            options = options.progress(move |progress| callback.report(&progress));
        }
        if let Some(layers) = self.concurrency {
            options = options.concurrency(layers);
        }
        if let Some(bytes) = self.max_layer_bytes {
            options = options.max_layer_bytes(bytes);
        }
        Ok(reaching!(self, options))
    }

    pub(crate) fn push(&self) -> gpucontainer::Result<PushOptions<'static>> {
        self.fault.check()?;
        for (name, is_set) in [
            ("reference", self.reference.is_some()),
            ("select", self.select.is_some()),
            ("platform", self.platform.is_some()),
            ("max_layer_bytes", self.max_layer_bytes.is_some()),
        ] {
            if is_set {
                return Err(Error::new(ErrorKind::InvalidArgument, format!("{name} says nothing about a push")));
            }
        }
        let mut options = PushOptions::new().cancel(self.cancel.clone());
        if let Some(callback) = self.progress {
            options = options.progress(move |progress| callback.report(&progress));
        }
        if let Some(layers) = self.concurrency {
            options = options.concurrency(layers);
        }
        Ok(reaching!(self, options))
    }
}

/// Makes the defaults: this host's platform, three layers at a time, at most 64 GiB in each.
///
/// @return the caller's, freed with gpuc_transfer_free
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_transfer_new() -> Option<Box<Transfer>> {
    Some(Box::default())
}

/// Sets what to call an imported image here, instead of what the archive calls it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_transfer_set_reference(transfer: Option<&mut Transfer>, reference: *const c_char) {
    let Some(transfer) = transfer else { return };
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    let reference = unsafe { text(reference, "reference") };
    transfer.reference = transfer.fault.keep(reference).map(str::to_owned);
}

/// Sets which image of an archive to import, if there are several: its name there, or its digest.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_transfer_set_select(transfer: Option<&mut Transfer>, name: *const c_char) {
    let Some(transfer) = transfer else { return };
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    let name = unsafe { text(name, "name") };
    transfer.select = transfer.fault.keep(name).map(str::to_owned);
}

/// Sets the platform, as in "linux/arm64".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_transfer_set_platform(transfer: Option<&mut Transfer>, platform: *const c_char) {
    let Some(transfer) = transfer else { return };
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    let platform = unsafe { text(platform, "platform") }.and_then(str::parse);
    transfer.platform = transfer.fault.keep(platform);
}

/// Sets what is called with what is being done. It must not call longjmp or throw.
///
/// @param progress  NULL for nothing
/// @param context   handed to it as it is
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_transfer_set_progress(
    transfer: Option<&mut Transfer>,
    progress: gpuc_progress_t,
    context: *mut c_void,
) {
    if let Some(transfer) = transfer {
        transfer.progress = progress.map(|function| Callback { function, context });
    }
}

/// Sets the switch that ends the transfer early. The transfer keeps what it needs of it.
///
/// @param cancel  NULL for none
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_transfer_set_cancel(transfer: Option<&mut Transfer>, cancel: Option<&Cancel>) {
    if let Some(transfer) = transfer {
        transfer.cancel = cancel.map(|cancel| cancel.0.clone()).unwrap_or_default();
    }
}

/// Sets how many layers are worked on at a time, at least 1.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_transfer_set_concurrency(transfer: Option<&mut Transfer>, layers: usize) {
    if let Some(transfer) = transfer {
        transfer.concurrency = Some(layers);
    }
}

/// Refuses a layer that unpacks to more than this.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_transfer_set_max_layer_bytes(transfer: Option<&mut Transfer>, bytes: u64) {
    if let Some(transfer) = transfer {
        transfer.max_layer_bytes = Some(bytes);
    }
}

/// Sets who is asking the registry. By default what `docker login` or `podman login` left for it, else nobody.
///
/// @param user      NULL for nobody, also where there are credentials in the user's files
/// @param password  NULL if user is
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_transfer_set_credentials(
    transfer: Option<&mut Transfer>,
    user: *const c_char,
    password: *const c_char,
) {
    let Some(transfer) = transfer else { return };
    if user.is_null() && password.is_null() {
        transfer.credentials = Some(Credentials::anonymous());
        return;
    }
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    let user = unsafe { text(user, "user") };
    // SAFETY: likewise.
    let password = unsafe { text(password, "password") };
    let credentials = user.and_then(|user| Ok(Credentials::password(user, password?)));
    transfer.credentials = transfer.fault.keep(credentials);
}

/// Sets an identity token, which a token server exchanges for an access token.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_transfer_set_identity_token(transfer: Option<&mut Transfer>, token: *const c_char) {
    let Some(transfer) = transfer else { return };
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    let token = unsafe { text(token, "token") }.map(Credentials::identity_token);
    transfer.credentials = transfer.fault.keep(token);
}

/// Sets whether the registry is asked without encryption. By default only if it is on this machine.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_transfer_set_plain_http(transfer: Option<&mut Transfer>, plain: bool) {
    if let Some(transfer) = transfer {
        transfer.plain_http = Some(plain);
    }
}

/// Trusts one more certificate authority, or a few, beside those that the host trusts.
///
/// @param pem  certificates in PEM form
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_transfer_add_certificate_authority(transfer: Option<&mut Transfer>, pem: *const c_char) {
    let Some(transfer) = transfer else { return };
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    let pem = unsafe { text(pem, "pem") };
    transfer.authorities.extend(transfer.fault.keep(pem).map(str::to_owned));
}

/// Gives up on a registry that says nothing for so long, at least 1. By default 30,000.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_transfer_set_timeout(transfer: Option<&mut Transfer>, milliseconds: u64) {
    if let Some(transfer) = transfer {
        transfer.timeout = Some(Duration::from_millis(milliseconds));
    }
}

/// Frees options.
///
/// @param transfer  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_transfer_free(transfer: Option<Box<Transfer>>) {
    drop(transfer);
}
