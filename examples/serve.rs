//! Runs a model in the low-memory session of ONNX Runtime, with the code that `dmopt session --language rust` prints.
//!
//! ```text
//! ORT_DYLIB_PATH=libonnxruntime.so cargo run --example serve -- model.opt.onnx
//! ```

use ort::ep::CPU;
use ort::session::{Session, builder::GraphOptimizationLevel};
use ort::value::{Tensor, ValueType};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("which model?")?;
    let environment = ort::init().build()?;
    let mut session = Session::builder(&environment)?
        .with_memory_pattern(false)?
        .with_optimization_level(GraphOptimizationLevel::Level1)?
        .with_execution_providers([CPU::default().with_arena_allocator(false).build()])?
        .commit_from_file(path)?;

    let mut inputs = Vec::new();
    for input in session.inputs() {
        let ValueType::Tensor { shape, .. } = input.dtype() else {
            return Err("an input is no tensor".into());
        };
        let shape: Vec<usize> = shape.iter().map(|&size| size.max(1) as usize).collect();
        let zeros = vec![0f32; shape.iter().product()];
        inputs.push((input.name().to_string(), Tensor::from_array((shape, zeros))?.into_dyn()));
    }
    for (name, value) in &session.run(inputs)? {
        println!("{name}: {}", value.dtype());
    }
    Ok(())
}
