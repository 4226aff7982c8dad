//! Work shared among processors.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{OnceLock, mpsc};
use std::thread;

use rayon::{ThreadPool, ThreadPoolBuilder};

/// More threads than this mostly make what nobody waits for.
const MOST_THREADS: usize = 8;

/// What the main thread of a process mostly has, in bytes: bodies may be nested deeply.
const STACK: usize = 8 << 20;

/// Threads that stay: new ones would begin with empty heaps, and what fills those is memory that the system clears first.
/// `None` where the system gives no threads.
static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();

fn pool_of(threads: usize) -> Option<ThreadPool> {
    ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK).build().ok()
}

/// How many threads can run at once, as the system says when it is asked for the first time: to ask takes as long as a small
/// piece of work.
pub fn processors() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| thread::available_parallelism().map_or(1, NonZero::get))
}

/// The threads that stay; `None` within one: what is shared within a share of work is not shared again.
fn shared() -> Option<&'static ThreadPool> {
    if rayon::current_thread_index().is_some() {
        return None;
    }
    POOL.get_or_init(|| pool_of(processors().min(MOST_THREADS))).as_ref()
}

/// Does one thing here and the other at the same time, if another processor is there for it.
///
/// # Panics
/// Where one of them does.
pub fn join<A, B: Send>(here: impl FnOnce() -> A, there: impl FnOnce() -> B + Send) -> (A, B) {
    let Some(pool) = (processors() > 1).then(shared).flatten() else { return (here(), there()) };
    let (sender, receiver) = mpsc::channel();
    let made = pool.in_place_scope(|scope| {
        // Who would receive it waits for this scope to end.
        scope.spawn(move |_| drop(sender.send(there())));
        here()
    });
    (made, receiver.recv().expect("a scope ends when all in it has"))
}

/// Makes something of each item, on several processors, and hands it over in the order of the items until told to break.
/// What was made of later items by then is dropped, so what comes of it is the same on any machine.
///
/// # Panics
/// Where `make` does.
pub fn in_order<T: Sync, R: Send, B>(
    items: &[T],
    make: impl Fn(&T) -> R + Sync,
    take: impl FnMut(&T, R) -> ControlFlow<B>,
) -> ControlFlow<B> {
    in_order_on(processors().min(MOST_THREADS), items, make, take)
}

/// The same on so many threads at most.
///
/// # Panics
/// Where `make` does.
pub fn in_order_on<T: Sync, R: Send, B>(
    threads: usize,
    items: &[T],
    make: impl Fn(&T) -> R + Sync,
    mut take: impl FnMut(&T, R) -> ControlFlow<B>,
) -> ControlFlow<B> {
    let threads = threads.min(items.len());
    let own;
    let pool = match (threads > 1).then(shared).flatten() {
        Some(pool) if threads > pool.current_num_threads() => {
            own = pool_of(threads);
            own.as_ref()
        }
        pool => pool,
    };
    let Some(pool) = pool else {
        return items.iter().try_for_each(|item| take(item, make(item)));
    };
    let (next, enough) = (AtomicUsize::new(0), AtomicBool::new(false));
    pool.in_place_scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..threads {
            let (sender, next, enough, make) = (sender.clone(), &next, &enough, &make);
            scope.spawn(move |_| {
                let _stop = StopInPanic(enough);
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

/// Stops the other threads where this one panics.
struct StopInPanic<'a>(&'a AtomicBool);

impl Drop for StopInPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_of_items_comes_in_their_order_on_any_number_of_threads() {
        let items: Vec<u64> = (0..100).collect();
        // The first ones take longest.
        let make = |&n: &u64| (0..100_000 / (n + 1)).map(std::hint::black_box).fold(n, |n, _| n);
        for threads in [1, 2, 8] {
            let mut taken = Vec::new();
            let all = in_order_on(threads, &items, make, |item, made| {
                assert_eq!(*item, made);
                taken.push(made);
                ControlFlow::<()>::Continue(())
            });
            assert_eq!((all, &taken), (ControlFlow::Continue(()), &items), "{threads}");
        }
    }

    #[test]
    fn nothing_is_handed_over_after_a_break() {
        let items: Vec<u64> = (0..1000).collect();
        for threads in [1, 2, 8] {
            let mut count = 0;
            let take = |_: &u64, n| {
                count += 1;
                if n == 10 { ControlFlow::Break(n) } else { ControlFlow::Continue(()) }
            };
            assert_eq!(in_order_on(threads, &items, |n| *n, take), ControlFlow::Break(10));
            assert_eq!(count, 11, "{threads}");
        }
    }

    #[test]
    fn what_is_shared_within_a_share_stays_in_its_thread() {
        let nested = |_: &()| {
            let here = thread::current().id();
            in_order_on(
                2,
                &[(); 4],
                |_| thread::current().id() == here,
                |_, is_here| match is_here {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                },
            )
        };
        assert_eq!(in_order_on(2, &[(); 2], nested, |_, inner| inner), ControlFlow::Continue(()));
    }

    #[test]
    fn two_things_are_done_here_and_elsewhere() {
        let here = thread::current().id();
        let (first, second) = join(|| thread::current().id(), || thread::current().id());
        assert_eq!(first, here);
        assert_eq!(second == here, processors() == 1);
    }

    #[test]
    #[should_panic(expected = "there")]
    fn a_panic_elsewhere_does_not_get_lost() {
        join(|| (), || panic!("there"));
    }

    #[test]
    #[should_panic]
    fn a_panic_does_not_get_lost() {
        let make = |n: &i32| assert_ne!(*n, 2);
        let _ = in_order_on(2, &[1, 2, 3], make, |_, ()| ControlFlow::<()>::Continue(()));
    }
}
