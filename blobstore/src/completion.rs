//! One value handed from one thread to a future on another; a plain `std` future, without a runtime.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::sync::{Arc, Mutex, lock};

/// Makes a pair. Dropping the [`Completer`] unused ends the [`Completion`] with `None`.
pub(crate) fn completion<T>() -> (Completer<T>, Completion<T>) {
    let slot = Arc::new(Mutex::new(Slot::Waiting(None)));
    (Completer { slot: Some(Arc::clone(&slot)) }, Completion { slot })
}

enum Slot<T> {
    Waiting(Option<Waker>),
    Done(Option<T>),
}

/// The sending half.
pub(crate) struct Completer<T> {
    slot: Option<Arc<Mutex<Slot<T>>>>,
}

impl<T> Completer<T> {
    /// Hands the value over. It is lost when the receiving half is gone.
    pub(crate) fn complete(mut self, value: T) {
        self.finish(Some(value));
    }

    fn finish(&mut self, value: Option<T>) {
        if let Some(slot) = self.slot.take() {
            let before = std::mem::replace(&mut *lock(&slot), Slot::Done(value));
            if let Slot::Waiting(Some(waker)) = before {
                waker.wake();
            }
        }
    }
}

impl<T> Drop for Completer<T> {
    fn drop(&mut self) {
        self.finish(None);
    }
}

/// The receiving half; `None` when the sender vanished, which happens only when the store is being torn down.
pub(crate) struct Completion<T> {
    slot: Arc<Mutex<Slot<T>>>,
}

impl<T> Completion<T> {
    /// Whether the value is yet to come.
    pub(crate) fn is_pending(&self) -> bool {
        matches!(&*lock(&self.slot), Slot::Waiting(_))
    }
}

impl<T> Future for Completion<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        match &mut *lock(&self.slot) {
            Slot::Done(value) => Poll::Ready(value.take()),
            Slot::Waiting(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll<T>(completion: &mut Completion<T>) -> Poll<Option<T>> {
        Pin::new(completion).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_value_arrives_and_a_vanished_sender_is_noticed() {
        let (completer, mut waiting) = completion();
        assert!(waiting.is_pending());
        assert_eq!(poll(&mut waiting), Poll::Pending);
        completer.complete(5);
        assert!(!waiting.is_pending());
        assert_eq!(poll(&mut waiting), Poll::Ready(Some(5)));
        let (completer, mut waiting) = completion::<u8>();
        drop(completer);
        assert_eq!(poll(&mut waiting), Poll::Ready(None));
    }
}
