//! A process that runs models, as the one sees it that started it.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, BufWriter, Read};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;

use super::wire::{Reply, Request, receive, send};
use super::{ARGUMENT, Processes, Which};
use crate::RuntimeError;

/// Lines of its last words that are kept.
const LAST_WORDS: usize = 4;

/// A process, which ends with the value.
pub(super) struct Process {
    child: Child,
    requests: BufWriter<ChildStdin>,
    replies: Receiver<io::Result<(Reply, Vec<Bytes>)>>,
    /// The end of what it says on standard error.
    words: Option<JoinHandle<Vec<String>>>,
    patience: Option<Duration>,
    /// True if it took longer than that.
    stopped: bool,
    runtime: &'static str,
}

impl Process {
    /// Starts one for this runtime.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`]: the program does not start.
    pub fn start(
        processes: &Processes,
        which: &Which,
        runtime: &'static str,
    ) -> Result<Process, RuntimeError> {
        let program = processes.program.display();
        let unavailable = |cause: io::Error| RuntimeError::Unavailable {
            runtime,
            reason: format!("no process for it could be started from {program}: {cause}"),
        };
        let mut command = Command::new(&processes.program);
        command.arg(ARGUMENT).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Its last words are to be those of the runtime.
        command.env("RUST_BACKTRACE", "0");
        // What a terminal sends to stop a command is for the one who started this: a runtime that dies of it would seem
        // to have died of the model.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(unavailable)?;
        let missing = || unavailable(io::ErrorKind::BrokenPipe.into());
        let requests = child.stdin.take().ok_or_else(missing)?;
        let mut answers = BufReader::new(child.stdout.take().ok_or_else(missing)?);
        let errors = child.stderr.take().ok_or_else(missing)?;
        let (say, replies) = channel();
        thread::spawn(move || {
            loop {
                let reply = receive(&mut answers);
                let last = reply.is_err();
                if say.send(reply).is_err() || last {
                    break;
                }
            }
        });
        let words = Some(thread::spawn(move || last_lines(errors)));
        let requests = BufWriter::new(requests);
        let patience = processes.patience;
        let mut process = Process { child, requests, replies, words, patience, stopped: false, runtime };
        process.tell(&Request::Begin(which.clone()));
        Ok(process)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// What the runtime says; how the process ended, if it did; that it takes too long, or did once.
    pub fn ask(
        &mut self,
        request: &Request,
        blobs: &[Cow<'_, [u8]>],
    ) -> Result<(Reply, Vec<Bytes>), RuntimeError> {
        if self.stopped {
            return Err(self.late());
        }
        // Who cannot be reached any more has died, which shows when the answer is waited for.
        let _ = send(&mut self.requests, request, blobs);
        let reply = match self.patience {
            Some(patience) => self.replies.recv_timeout(patience),
            None => self.replies.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match reply {
            Ok(Ok((Reply::Failed(failure), _))) => Err(failure.of(self.runtime)),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(cause)) if cause.kind() != io::ErrorKind::UnexpectedEof => Err(self.confused()),
            Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => Err(self.died()),
            Err(RecvTimeoutError::Timeout) => {
                let _ = self.child.kill();
                self.stopped = true;
                Err(self.late())
            }
        }
    }

    /// Says something that has no answer.
    pub fn tell(&mut self, request: &Request) {
        let _ = send(&mut self.requests, request, &[] as &[&[u8]]);
    }

    /// The error of an answer that makes no sense.
    pub fn confused(&self) -> RuntimeError {
        self.failed("its process gave an answer that makes no sense".to_string())
    }

    fn late(&self) -> RuntimeError {
        let seconds = self.patience.unwrap_or_default().as_secs_f64();
        self.failed(format!("it took more than {seconds} s and was stopped"))
    }

    fn failed(&self, reason: String) -> RuntimeError {
        RuntimeError::Failed { runtime: self.runtime, reason }
    }

    fn died(&mut self) -> RuntimeError {
        let how = self.child.wait().map_or_else(|cause| cause.to_string(), describe);
        let words = self.words.take().and_then(|words| words.join().ok()).unwrap_or_default();
        let words = if words.is_empty() { String::new() } else { format!(": {}", words.join("; ")) };
        self.failed(format!("its process {how}{words}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a process ended, as in `died of signal 8 (SIGFPE)`.
fn describe(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        let name = match signal {
            4 => " (SIGILL)",
            6 => " (SIGABRT)",
            7 => " (SIGBUS)",
            8 => " (SIGFPE)",
            // Nobody here sends it but to a process whose answer has come.
            9 => " (SIGKILL), as the system does when memory runs out",
            11 => " (SIGSEGV)",
            24 => " (SIGXCPU)",
            _ => "",
        };
        return format!("died of signal {signal}{name}");
    }
    format!("ended with {status}")
}

/// The last lines of a stream that ends some time.
fn last_lines(stream: impl Read) -> Vec<String> {
    let mut lines = VecDeque::new();
    for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).trim().to_string();
        if !line.is_empty() {
            lines.push_back(line);
        }
        if lines.len() > LAST_WORDS {
            lines.pop_front();
        }
    }
    lines.into()
}
