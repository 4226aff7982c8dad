//! How long two models take, side by side.

use std::time::Duration;

use crate::{Named, RuntimeError, Session};

/// Times of two models that ran in turns, so that whatever else the machine does hits both.
#[derive(Clone, PartialEq, Debug)]
pub struct Latency {
    /// Number of runs of each model.
    pub runs: usize,
    /// Median time of the reference.
    pub reference: Duration,
    /// Median time of the candidate.
    pub candidate: Duration,
    /// Median over the pairs of neighbouring runs of the candidate's time divided by the reference's.
    pub ratio: f64,
    /// First and third quartile of the same: half of all pairs lie between.
    pub spread: (f64, f64),
}

/// Runs both models in turns, `runs` times each, once before as a warm-up. Who goes first alternates.
///
/// # Errors
/// One of them does not run.
pub fn latency(
    reference: &mut dyn Session,
    candidate: &mut dyn Session,
    inputs: &[Named],
    runs: usize,
) -> Result<Latency, RuntimeError> {
    let runs = runs.max(1);
    let mut times = Vec::with_capacity(runs);
    for turn in 0..=runs {
        let (a, b) = if turn % 2 == 0 {
            let a = reference.run(inputs)?.wall;
            (a, candidate.run(inputs)?.wall)
        } else {
            let b = candidate.run(inputs)?.wall;
            (reference.run(inputs)?.wall, b)
        };
        if turn > 0 {
            times.push((a, b));
        }
    }
    Ok(summary(&times))
}

fn summary(times: &[(Duration, Duration)]) -> Latency {
    let seconds = |side: fn(&(Duration, Duration)) -> Duration| {
        sorted(times.iter().map(|pair| side(pair).as_secs_f64()).collect())
    };
    // A clock that did not move stands for the shortest time that it tells.
    let tick = |time: Duration| time.max(Duration::from_nanos(1)).as_secs_f64();
    let ratios = sorted(times.iter().map(|&(a, b)| tick(b) / tick(a)).collect());
    Latency {
        runs: times.len(),
        reference: Duration::from_secs_f64(quantile(&seconds(|pair| pair.0), 0.5)),
        candidate: Duration::from_secs_f64(quantile(&seconds(|pair| pair.1), 0.5)),
        ratio: quantile(&ratios, 0.5),
        spread: (quantile(&ratios, 0.25), quantile(&ratios, 0.75)),
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// Linear interpolation between the two nearest of the sorted values; 0 without any.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = part * last as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Interface, Outputs};

    /// Takes as long as it is told, in turn.
    struct Clock(Vec<u64>);

    impl Session for Clock {
        fn interface(&self) -> &Interface {
            const { &Interface { inputs: Vec::new(), outputs: Vec::new() } }
        }

        fn run(&mut self, _: &[Named]) -> Result<Outputs, RuntimeError> {
            let wall = Duration::from_millis(self.0.remove(0));
            Ok(Outputs { tensors: Vec::new(), watched: Vec::new(), wall })
        }
    }

    #[test]
    fn medians_leave_out_the_warm_up_and_outliers() {
        let (mut a, mut b) = (Clock(vec![500, 10, 10, 90]), Clock(vec![900, 20, 30, 20]));
        let found = latency(&mut a, &mut b, &[], 3).unwrap();
        assert_eq!((found.runs, found.reference.as_millis(), found.candidate.as_millis()), (3, 10, 20));
        assert_eq!(found.ratio, 2.0);
        assert!(found.spread.0 < 2.0 && found.spread.1 == 2.5, "{found:?}");
    }

    #[test]
    fn quartiles_are_interpolated() {
        assert_eq!(quantile(&[1.0, 2.0], 0.5), 1.5);
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.25), 2.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
