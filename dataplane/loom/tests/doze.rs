//! No message is left lying while its reader sleeps.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;
use slipway_loom::doze::Doze;

/// A mailbox with just a count of messages: its queue orders no more than a queue must.
#[derive(Debug, Default)]
struct Mailbox {
    messages: AtomicUsize,
    doze: Doze,
    signalled: AtomicBool,
}

impl Mailbox {
    fn leave(&self) {
        self.messages.fetch_add(1, Ordering::Release);
        if self.doze.must_wake() {
            self.signalled.store(true, Ordering::Relaxed);
        }
    }

    fn has_messages(&self) -> bool {
        self.messages.load(Ordering::Acquire) > 0
    }
}

#[test]
fn a_message_is_seen_before_the_sleep_or_wakes_from_it() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::default());
        let control = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || mailbox.leave())
        };
        let sleeps = mailbox.doze.fall_asleep(|| mailbox.has_messages());
        control.join().unwrap();
        let is_signalled = mailbox.signalled.load(Ordering::Relaxed);
        assert!(!sleeps || is_signalled, "asleep for good, with a message waiting");
    });
}

#[test]
fn the_end_is_seen_before_the_sleep_or_wakes_from_it() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::default());
        let control = {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || mailbox.doze.stop())
        };
        let sleeps = mailbox.doze.fall_asleep(|| mailbox.has_messages());
        let is_signalled = control.join().unwrap();
        assert!(!sleeps || is_signalled, "asleep for good, though it shall end");
        assert!(mailbox.doze.stopping());
    });
}
