//! Work shared among processors.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

/// More threads than this only make more ahead that nobody wants.
const MOST_THREADS: usize = 8;

/// Makes something of each item, on as many processors as there are, and hands it over in the order of the items until
/// told to break, so what comes of it is the same on any machine. What was made of later items by then is dropped.
///
/// # Panics
/// Where `make` does.
pub fn in_order<T: Sync, R: Send, B>(
    items: &[T],
    make: impl Fn(&T) -> R + Sync,
    mut take: impl FnMut(&T, R) -> ControlFlow<B>,
) -> ControlFlow<B> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = processors.min(items.len()).min(MOST_THREADS);
    if threads < 2 {
        return items.iter().try_for_each(|item| take(item, make(item)));
    }
    let (next, enough) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..threads {
            let (sender, next, enough, make) = (sender.clone(), &next, &enough, &make);
            scope.spawn(move || {
                while !enough.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { break };
                    if sender.send((at, make(item))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut early = BTreeMap::new();
        let mut due = items.iter().enumerate();
        let mut waits_for = due.next();
        for (at, made) in receiver {
            early.insert(at, made);
            while let Some((at, item)) = waits_for
                && let Some(made) = early.remove(&at)
            {
                let answer = take(item, made);
                if answer.is_break() {
                    enough.store(true, Ordering::Relaxed);
                    return answer;
                }
                waits_for = due.next();
            }
        }
        ControlFlow::Continue(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_of_items_comes_in_their_order() {
        let items: Vec<u64> = (0..100).collect();
        let mut taken = Vec::new();
        // The first ones take longest.
        let make = |&n: &u64| (0..100_000 / (n + 1)).map(std::hint::black_box).fold(n, |n, _| n);
        let all = in_order(&items, make, |item, made| {
            assert_eq!(*item, made);
            taken.push(made);
            ControlFlow::<()>::Continue(())
        });
        assert_eq!((all, taken), (ControlFlow::Continue(()), items));
    }

    #[test]
    fn nothing_is_handed_over_after_a_break() {
        let items: Vec<u64> = (0..1000).collect();
        let mut count = 0;
        let broke = in_order(
            &items,
            |n| *n,
            |_, n| {
                count += 1;
                if n == 10 { ControlFlow::Break(n) } else { ControlFlow::Continue(()) }
            },
        );
        assert_eq!((broke, count), (ControlFlow::Break(10), 11));
    }

    #[test]
    #[should_panic]
    fn a_panic_does_not_get_lost() {
        let _ = in_order(&[1, 2, 3], |n| assert_ne!(*n, 2), |_, ()| ControlFlow::<()>::Continue(()));
    }
}
