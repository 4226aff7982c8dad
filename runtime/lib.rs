//! Runtimes that execute a model file and report outputs
