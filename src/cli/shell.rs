//! `dmopt completions` and `dmopt man`: what shells and `man` know of the command line.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

const COMPLETIONS: &str = "\
Examples:
  dmopt completions bash > ~/.local/share/bash-completion/completions/dmopt
  dmopt completions zsh > \"${fpath[1]}/_dmopt\"
  dmopt completions fish > ~/.config/fish/completions/dmopt.fish";

const MAN: &str = "\
Examples:
  dmopt man ~/.local/share/man/man1    then `man dmopt` and `man dmopt-optimize`
  dmopt man | man -l -                 the first page alone";

/// Print what a shell needs to complete commands, flags and values
#[derive(Args)]
#[command(after_help = COMPLETIONS)]
pub struct Completions {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> anyhow::Result<()> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "dmopt", &mut text);
        std::io::stdout().write_all(&text).context("cannot print")
    }
}

/// Print the manual page, or write those of all commands into a folder
#[derive(Args)]
#[command(after_help = MAN)]
pub struct Man {
    /// The folder; it is made if it is not there
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

impl Man {
    pub fn run(self) -> anyhow::Result<()> {
        let Some(folder) = self.folder else {
            let mut text = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut text).context("cannot make the page")?;
            return std::io::stdout().write_all(&text).context("cannot print");
        };
        let cannot = || format!("{}: cannot write manual pages", folder.display());
        std::fs::create_dir_all(&folder).with_context(cannot)?;
        clap_mangen::generate_to(Cli::command(), &folder).with_context(cannot)
    }
}
