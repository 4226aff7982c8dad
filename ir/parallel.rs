//! Work shared among processors.

use std::cell::Cell;
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

/// Threads that stay, one for each processor beside that of the caller: new ones would begin with empty heaps, and what fills
/// those is memory that the system clears first. `None` where there is no other processor, or the system gives no threads.
static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();

thread_local! {
    /// True while this thread, which asked for shared work and is none of the threads that stay, does its share.
    static SHARES: Cell<bool> = const { Cell::new(false) };
}

fn pool_of(threads: usize) -> Option<ThreadPool> {
    ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK).build().ok()
}

/// How many threads can run at once, as the system says when it is asked for the first time: to ask takes as long as a small
/// piece of work.
pub fn processors() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| thread::available_parallelism().map_or(1, NonZero::get))
}

/// True within a share of work: it is not shared again.
fn is_share() -> bool {
    rayon::current_thread_index().is_some() || SHARES.get()
}

fn shared() -> Option<&'static ThreadPool> {
    POOL.get_or_init(|| {
        let others = processors().min(MOST_THREADS) - 1;
        (others > 0).then(|| pool_of(others)).flatten()
    })
    .as_ref()
}

/// Does one thing here and the other at the same time, if another processor is there for it.
///
/// # Panics
/// Where one of them does.
pub fn join<A, B: Send>(here: impl FnOnce() -> A, there: impl FnOnce() -> B + Send) -> (A, B) {
    let Some(pool) = (!is_share()).then(shared).flatten() else { return (here(), there()) };
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

/// The same on so many threads at most, of which this is one.
///
/// # Panics
/// Where `make` does.
pub fn in_order_on<T: Sync, R: Send, B>(
    threads: usize,
    items: &[T],
    make: impl Fn(&T) -> R + Sync,
    mut take: impl FnMut(&T, R) -> ControlFlow<B>,
) -> ControlFlow<B> {
    let others = threads.min(items.len()).saturating_sub(1);
    let own;
    let pool = match (others > 0 && !is_share()).then(shared) {
        None => None,
        Some(Some(pool)) if others <= pool.current_num_threads() => Some(pool),
        Some(_) => {
            own = pool_of(others);
            own.as_ref()
        }
    };
    let Some(pool) = pool else {
        return items.iter().try_for_each(|item| take(item, make(item)));
    };
    let (next, enough) = (AtomicUsize::new(0), AtomicBool::new(false));
    let make_next = || {
        let at = (!enough.load(Ordering::Relaxed)).then(|| next.fetch_add(1, Ordering::Relaxed))?;
        items.get(at).map(|item| (at, make(item)))
    };
    pool.in_place_scope(|scope| {
        let _stop = StopInPanic(&enough);
        let (sender, receiver) = mpsc::channel();
        for _ in 0..others {
            let (sender, enough, make_next) = (sender.clone(), &enough, &make_next);
            scope.spawn(move |_| {
                let _stop = StopInPanic(enough);
                while let Some(made) = make_next() {
                    if sender.send(made).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut early = BTreeMap::new();
        for (due, item) in items.iter().enumerate() {
            let made = loop {
                early.extend(receiver.try_iter());
                if let Some(made) = early.remove(&due) {
                    break made;
                }
                // All are begun, or none is to be: what is missing comes from the others, or from one that panicked.
                let Some((at, made)) = doing_a_share(make_next).or_else(|| receiver.recv().ok()) else {
                    return ControlFlow::Continue(());
                };
                early.insert(at, made);
            };
            let answer = take(item, made);
            if answer.is_break() {
                enough.store(true, Ordering::Relaxed);
                return answer;
            }
        }
        ControlFlow::Continue(())
    })
}

/// Runs this as one of those that share work.
fn doing_a_share<R>(f: impl FnOnce() -> R) -> R {
    struct Shares;
    impl Drop for Shares {
        fn drop(&mut self) {
            SHARES.set(false);
        }
    }
    SHARES.set(true);
    let _until_the_end = Shares;
    f()
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
    use std::time::{Duration, Instant};

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

    /// Two items, each made by a thread of its own.
    fn on_two_threads<R: Send>(make: impl Fn() -> R + Sync) -> Vec<R> {
        let (begun, patience) = (AtomicUsize::new(0), Duration::from_secs(20));
        let both_make = |_: &()| {
            begun.fetch_add(1, Ordering::Relaxed);
            let since = Instant::now();
            while begun.load(Ordering::Relaxed) < 2 && since.elapsed() < patience {
                thread::yield_now();
            }
            make()
        };
        let mut all = Vec::new();
        let take = |_: &(), made| {
            all.push(made);
            ControlFlow::<()>::Continue(())
        };
        assert_eq!(in_order_on(2, &[(); 2], both_make, take), ControlFlow::Continue(()));
        all
    }

    #[test]
    fn who_asks_does_a_share() {
        let makers = on_two_threads(|| thread::current().id());
        assert_eq!(makers.iter().filter(|&&maker| maker == thread::current().id()).count(), 1);
    }

    #[test]
    fn no_share_is_shared_again() {
        assert_eq!(on_two_threads(is_share), [true, true]);
        assert!(!is_share());
    }

    #[test]
    #[should_panic(expected = "here")]
    fn a_panic_here_does_not_get_lost() {
        let here = thread::current().id();
        on_two_threads(|| assert_ne!(thread::current().id(), here, "here"));
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
