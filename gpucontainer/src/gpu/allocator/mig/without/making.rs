//! In place of `making` where the driver's management library is not used: no MIG devices are made.

use crate::gpu::allocator::choice::candidates::{Candidates, Host};
use crate::gpu::allocator::choice::decide::Claim;
use crate::gpu::inventory::{Gpu, MigDevice};
use crate::gpu::request::GpuRequest;
use crate::gpu::select::Choice;

/// What can be made of MIG devices.
#[derive(Clone, Debug)]
pub(crate) enum Making {
    /// Somebody else may be able to make some.
    Unknown,
    /// None, and why.
    No(String),
}

/// There never is one.
#[derive(Clone, Debug)]
pub(crate) enum Plan {}

/// No room.
#[derive(Clone, Debug)]
pub(crate) struct Room;

impl Making {
    pub(crate) fn ever(&self, _gpus: &[&Gpu], request: &GpuRequest, _host: &Host<'_>) -> usize {
        if matches!(self, Self::Unknown) && request.makes().is_some() { usize::MAX } else { 0 }
    }

    pub(crate) fn is_temporary(&self, _gpu: &Gpu, _slice: &MigDevice) -> bool {
        false
    }

    pub(crate) fn why_none(&self, gpus: &[&Gpu], _request: &GpuRequest, _host: &Host<'_>) -> Vec<String> {
        match self {
            Self::No(why) if !gpus.is_empty() => vec![why.clone()],
            _ => Vec::new(),
        }
    }

    pub(crate) fn of_others(&self, makes: bool) -> Self {
        if makes { Self::Unknown } else { Self::No(String::new()) }
    }

    pub(crate) fn makes(&self) -> bool {
        false
    }
}

impl Plan {
    pub(crate) fn has(&self, _uuid: &str) -> bool {
        match *self {}
    }
}

impl Room {
    pub(crate) fn of(_making: &Making, _claims: &[Claim]) -> Self {
        Self
    }

    pub(crate) fn has_leftovers(&self) -> bool {
        false
    }

    pub(crate) fn keep(&mut self, _gpus: &[&Gpu], _request: &GpuRequest, _host: &Host<'_>, _holder: &str) {}

    pub(crate) fn take(&mut self, plan: &Plan) {
        match *plan {}
    }

    pub(crate) fn plan<'a>(
        &self,
        _candidates: &Candidates<'a>,
        _free: &[Choice<'a>],
        _wanted: (&GpuRequest, &Host<'a>),
        _claims: &[Claim],
    ) -> Option<Plan> {
        None
    }

    pub(crate) fn why_none(&self, gpus: &[&Gpu], request: &GpuRequest, host: &Host<'_>) -> Vec<String> {
        host.making.why_none(gpus, request, host)
    }
}
