//! How a subscriber shall be.

use core::marker::PhantomData;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::channel;

use zcmi_mem::ledger::Role;
use zcmi_mem::payload::Message;
use zcmi_ring::layout::HOLDS;

use super::{DEFAULT_SPIN, Event, NewSubscriber, Subscriber, SubscriberError, SubscriberShared, Wait};
use crate::audience::{Audience, Who};
use crate::control::Command;
use crate::name::ServiceName;
use crate::process::Process;

/// How a subscriber shall be; made by [`Service::subscriber`](crate::Service::subscriber).
#[derive(Clone, Debug)]
#[must_use = "options make no subscriber until `join`"]
pub struct SubscriberOptions<M: Message + ?Sized> {
    process: Process,
    service: ServiceName,
    drop_oldest: bool,
    history: u64,
    holds: u8,
    wait: Wait,
    accept: Audience,
    message: PhantomData<fn(&M)>,
}

impl<M: Message + ?Sized> SubscriberOptions<M> {
    pub(crate) fn new(process: Process, service: ServiceName) -> Self {
        let wait = Wait::SpinThenPark(DEFAULT_SPIN);
        Self {
            process,
            service,
            drop_oldest: false,
            history: u64::MAX,
            holds: HOLDS as u8,
            wait,
            accept: Audience::default(),
            message: PhantomData,
        }
    }

    /// Be overtaken instead of holding publishers up: the oldest messages are lost, and counted. Default: no.
    pub fn drop_oldest(mut self, allowed: bool) -> Self {
        self.drop_oldest = allowed;
        self
    }

    /// How many past messages to get at most, of those that the publisher retains. Default: all of them.
    pub fn history(mut self, messages: u64) -> Self {
        self.history = messages;
        self
    }

    /// How many samples of one publisher to keep at a time, at most 16; publishers of large messages grant 2. Default:
    /// 16.
    pub fn holds(mut self, samples: u8) -> Self {
        self.holds = samples.clamp(1, HOLDS as u8);
        self
    }

    /// How to wait. Default: spin for 50 µs, then sleep.
    pub fn wait(mut self, wait: Wait) -> Self {
        self.wait = wait;
        self
    }

    /// Reads what others publish, too; may be called several times. Default: only publishers of this process's own user
    /// are read, whoever else publishes under the name.
    ///
    /// Messages of strangers are copied when they are received. Unless the publisher grants it, they can be had with
    /// [`drop_oldest`](Self::drop_oldest) only. Needs a runtime directory that is shared.
    pub fn accept(mut self, who: Who) -> Self {
        self.accept.add(who);
        self
    }

    /// Joins the service, and waits until the publishers that are there have answered (a second at most; one that is
    /// stopped answers when it goes on). Publishers that come later are joined as they come.
    ///
    /// # Errors
    /// [`SubscriberError::Refused`] when publishers are there and every one refused; the first refusal is returned.
    pub fn join(self) -> Result<Subscriber<M>, SubscriberError> {
        let process = self.process;
        process.guard().check()?;
        let shared = Arc::new(SubscriberShared::new(process.ledger().control().clone())?);
        let endpoint = process.next_endpoint();
        let counts = process.ledger().open(endpoint, &self.service, Role::Subscriber, process.life());
        let new = NewSubscriber {
            endpoint,
            service: self.service.clone(),
            record: M::message_record(),
            shared: Arc::clone(&shared),
            drop_oldest: self.drop_oldest,
            history: self.history,
            holds: self.holds,
            accept: self.accept,
        };
        let (reply, answer) = channel();
        process.mailbox().send(Command::CreateSubscriber(Box::new(new), reply));
        answer.recv().map_err(|_| SubscriberError::NoControl)??;
        let mut subscriber = Subscriber {
            calm: shared.calm_view(),
            shared,
            lanes: Vec::new(),
            next: 0,
            life: process.life(),
            events: VecDeque::new(),
            events_lost: 0,
            wait: self.wait,
            waiter: None,
            counts,
            endpoint,
            service: self.service,
            process,
            message: PhantomData,
        };
        subscriber.attend();
        if subscriber.lanes.is_empty() {
            let refusal = subscriber.events.iter().find_map(|event| match event {
                Event::Refused(refusal) => Some(refusal.clone()),
                _ => None,
            });
            if let Some(refusal) = refusal {
                return Err(refusal.into());
            }
        }
        Ok(subscriber)
    }
}
