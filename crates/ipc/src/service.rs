//! A service: a name, a pattern and a layout, by which publishers and subscribers find each other.

use core::fmt;
use core::marker::PhantomData;

use zcmi_mem::payload::Message;

use crate::name::{InvalidName, ServiceName};
use crate::process::{Process, ProcessError};
use crate::publisher::PublisherOptions;
use crate::subscriber::SubscriberOptions;

/// Why a service could not be named.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The name is none.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// This process could not become a participant.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Slots are aligned to 64 bytes, and the message needs more.
    #[error("the message is aligned to {align} bytes; at most 64 are possible")]
    Align {
        /// What it needs.
        align: usize,
    },
}

/// A service that carries `M`: one payload (`Service<Tick>`) or a slice of them (`Service<[u8]>` for bytes).
///
/// It is a description; nothing exists until somebody publishes or subscribes.
pub struct Service<M: Message + ?Sized> {
    name: ServiceName,
    process: Process,
    message: PhantomData<fn(&M)>,
}

impl<M: Message + ?Sized> Clone for Service<M> {
    fn clone(&self) -> Self {
        Self { name: self.name.clone(), process: self.process.clone(), message: PhantomData }
    }
}

impl<M: Message + ?Sized> fmt::Debug for Service<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<M: Message + ?Sized> Service<M> {
    /// Names a service in the default runtime directory.
    ///
    /// # Errors
    /// [`ServiceError`]: a bad name, or a runtime directory that cannot be used.
    pub fn new(name: &str) -> Result<Self, ServiceError> {
        let name = ServiceName::new(name)?;
        Self::with(name, Process::current()?)
    }

    /// Names a service for the given participant.
    ///
    /// # Errors
    /// [`ServiceError::Align`].
    pub fn with(name: ServiceName, process: Process) -> Result<Self, ServiceError> {
        if M::ELEMENT_ALIGN > zcmi_mem::pool::SLOT_ALIGN {
            return Err(ServiceError::Align { align: M::ELEMENT_ALIGN });
        }
        Ok(Self { name, process, message: PhantomData })
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &ServiceName {
        &self.name
    }

    /// Begins to describe a publisher.
    pub fn publisher(&self) -> PublisherOptions<M> {
        PublisherOptions::new(self.process.clone(), self.name.clone())
    }

    /// Begins to describe a subscriber.
    pub fn subscriber(&self) -> SubscriberOptions<M> {
        SubscriberOptions::new(self.process.clone(), self.name.clone())
    }
}
