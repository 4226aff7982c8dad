//! The process that runs a model for another one.

use std::io::{self, BufReader, BufWriter, Write};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use bytes::Bytes;

use super::Which;
use super::wire::{Failure, Loaded, Ports, Ran, Reply, Request, decode, encode, receive, send};
use crate::{Backend, ModelFile, Named, RuntimeError, Session};

/// Answers requests on standard input until nobody is there to ask. A process that gets [`ARGUMENT`](super::ARGUMENT)
/// calls this and nothing else.
///
/// # Errors
/// Standard output cannot be had.
pub fn host() -> io::Result<()> {
    confine();
    let answers = answers()?;
    let (put, requests) = channel();
    // Beside the work, so that a process whose owner has gone ends in the middle of it.
    thread::spawn(move || {
        let mut input = BufReader::new(io::stdin());
        while let Ok(request) = receive(&mut input) {
            if put.send(request).is_err() {
                break;
            }
        }
        vanish()
    });
    serve(&requests, &mut BufWriter::new(answers));
    Ok(())
}

/// Until one side has gone.
fn serve(requests: &Receiver<(Request, Vec<Bytes>)>, answers: &mut impl Write) {
    let mut backend: Result<Box<dyn Backend>, RuntimeError> =
        Err(RuntimeError::Unsupported { runtime: "none", reason: "no runtime was named".to_string() });
    let mut session: Option<Box<dyn Session>> = None;
    for (request, blobs) in requests {
        let mut blobs = blobs.into_iter();
        let reply = match request {
            Request::Begin(which) => {
                backend = find(which);
                continue;
            }
            Request::Watch { names, budget } => {
                session.iter_mut().for_each(|session| session.watch(&names, budget));
                continue;
            }
            Request::Load { exact, folder } => ready(&backend).and_then(|backend| {
                let model = model(folder, &mut blobs)?;
                let loaded = if exact { backend.load_exact(&model)? } else { backend.load(&model)? };
                let reply = Loaded {
                    interface: Ports::encode(loaded.interface()),
                    values: loaded.values().to_vec(),
                    elsewhere: loaded.elsewhere().to_vec(),
                };
                session = Some(loaded);
                Ok(Reply::Loaded(reply))
            }),
            Request::Run { inputs } => match (&mut session, decode(&inputs, &mut blobs)) {
                (Some(session), Some(inputs)) => match ran(session.as_mut(), &inputs, answers) {
                    Ok(()) => continue,
                    Err(error) => Err(error),
                },
                _ => Err(garbled()),
            },
            Request::Memory { folder, inputs } => ready(&backend).and_then(|backend| {
                let model = model(folder, &mut blobs)?;
                let inputs = decode(&inputs, &mut blobs).ok_or_else(garbled)?;
                backend.memory(&model, &inputs).map(Reply::Memory)
            }),
            Request::Peak { folder, inputs } => ready(&backend).and_then(|backend| {
                let model = model(folder, &mut blobs)?;
                let inputs = decode(&inputs, &mut blobs).ok_or_else(garbled)?;
                backend.peak(&model, &inputs).map(Reply::Peak)
            }),
        };
        let reply = reply.unwrap_or_else(|error| Reply::Failed(Failure::new(error)));
        if send(answers, &reply, &[] as &[&[u8]]).is_err() {
            break;
        }
    }
}

/// Runs a model, and sends what comes of it.
fn ran(session: &mut dyn Session, inputs: &[Named], answers: &mut impl Write) -> Result<(), RuntimeError> {
    let outputs = session.run(inputs)?;
    let (tensors, mut blobs) = encode(&outputs.tensors)?;
    let (watched, inside) = encode(&outputs.watched)?;
    blobs.extend(inside);
    // Nobody to send it to is nobody who would want to know.
    let _ = send(answers, &Reply::Ran(Ran { tensors, watched, wall: outputs.wall }), &blobs);
    Ok(())
}

fn ready(backend: &Result<Box<dyn Backend>, RuntimeError>) -> Result<&dyn Backend, RuntimeError> {
    match backend {
        Ok(backend) => Ok(backend.as_ref()),
        Err(cause) => Err(RuntimeError::Unsupported { runtime: "none", reason: cause.to_string() }),
    }
}

fn model(
    folder: Option<std::path::PathBuf>,
    blobs: &mut impl Iterator<Item = Bytes>,
) -> Result<ModelFile, RuntimeError> {
    Ok(ModelFile { bytes: blobs.next().ok_or_else(garbled)?, folder })
}

fn garbled() -> RuntimeError {
    RuntimeError::Failed { runtime: "none", reason: "a request made no sense".to_string() }
}

fn find(which: Which) -> Result<Box<dyn Backend>, RuntimeError> {
    match which {
        #[cfg(feature = "tract")]
        Which::Embedded => Ok(Box::new(crate::tract::Tract)),
        #[cfg(feature = "ort")]
        Which::OnnxRuntime { library, settings, ep } => {
            Ok(Box::new(crate::ort::OnnxRuntime::load(&library)?.backend(settings, ep)))
        }
        #[allow(unreachable_patterns, reason = "which runtimes there are depends on features")]
        _ => Err(RuntimeError::Unsupported { runtime: "none", reason: "it was not built in".to_string() }),
    }
}

/// What this process may take is what the machine has left: a runtime that asks for more is told so, where one that is
/// given it takes everybody else down. Where memory runs out nevertheless, this process goes first. It leaves no core
/// file.
fn confine() {
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let lower = |resource, most: u64| {
            let mut limit = getrlimit(resource);
            limit.current = Some(limit.current.map_or(most, |current| current.min(most)));
            let _ = setrlimit(resource, limit);
        };
        lower(Resource::Core, 0);
        if let Some(available) = crate::available() {
            lower(Resource::Data, available);
        }
    }
}

/// Standard output, for answers alone: what runtimes print goes to standard error from now on.
fn answers() -> io::Result<impl Write> {
    #[cfg(unix)]
    {
        let answers = rustix::io::dup(io::stdout())?;
        rustix::stdio::dup2_stdout(io::stderr())?;
        Ok(std::fs::File::from(answers))
    }
    #[cfg(not(unix))]
    Ok(io::stdout())
}

/// Ends this process at once, whatever it is doing.
fn vanish() -> ! {
    #[cfg(unix)]
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::exit(0)
}
