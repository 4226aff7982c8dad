//! What happens while it happens: a bar on a terminal, plain lines elsewhere. Always on standard error.

use std::cell::Cell;
use std::io::{IsTerminal, stderr};

use dmopt::Stage;
use indicatif::{ProgressBar, ProgressStyle};

/// Shows stages.
pub enum Progress {
    /// Not at all.
    Silent,
    /// As a bar that disappears at the end.
    Bar(ProgressBar),
    /// As lines: stages, and each pass too where `every_pass` says so.
    Lines {
        /// Whether passes get a line each.
        every_pass: bool,
        /// The last round that was mentioned.
        round: Cell<usize>,
    },
}

impl Progress {
    /// Chooses by what standard error is.
    pub fn new(quiet: bool, verbose: bool) -> Progress {
        if quiet {
            Progress::Silent
        } else if stderr().is_terminal() {
            let bar = ProgressBar::new(dmopt::passes::PIPELINE.len() as u64);
            if let Ok(style) = ProgressStyle::with_template("{bar:20} {msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(std::time::Duration::from_millis(100));
            Progress::Bar(bar)
        } else {
            Progress::Lines { every_pass: verbose, round: Cell::new(0) }
        }
    }

    /// Shows a stage.
    pub fn tell(&self, stage: Stage<'_>) {
        match self {
            Progress::Silent => {}
            Progress::Bar(bar) => {
                let place = |name| dmopt::passes::PIPELINE.iter().position(|pass| pass.name() == name);
                match stage {
                    Stage::Pass { name, .. } => bar.set_position(place(name).unwrap_or(0) as u64),
                    Stage::Read => bar.set_position(0),
                    Stage::Measure | Stage::Write | Stage::Validate => {
                        bar.set_position(bar.length().unwrap_or(0))
                    }
                }
                bar.set_message(describe(stage));
            }
            Progress::Lines { every_pass, round: last } => match stage {
                Stage::Pass { round, .. } if !every_pass => {
                    if last.replace(round) != round {
                        super::say(format_args!("rewriting, round {round}\n"));
                    }
                }
                stage => super::say(format_args!("{}\n", describe(stage))),
            },
        }
    }

    /// Clears the bar.
    pub fn finish(&self) {
        if let Progress::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn describe(stage: Stage<'_>) -> String {
    match stage {
        Stage::Read => "reading".to_string(),
        Stage::Pass { name, round } => format!("round {round}: {name}"),
        Stage::Measure => "measuring".to_string(),
        Stage::Write => "writing".to_string(),
        Stage::Validate => "validating".to_string(),
    }
}
