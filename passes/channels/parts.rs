//! Computing a region part by part.

use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use dmopt_ir::{Dim, Graph, NewOp, OpId, Operand, Patch, Position, Safety, Tensor, Type, ValueId};

use super::layer::{Layer, weights};
use super::region::{Channelwise, Parts, Region, Role, Sink, concat_axis};
use crate::Miss;
use crate::linear::MAX_WEIGHT;

impl Region<'_> {
    /// The operands of a Concat, with those of Concats of Concats in their place.
    fn operands_of(&self, concat: OpId) -> Vec<ValueId> {
        let graph = self.graph;
        let inlined = |value: ValueId| {
            let by = graph.producer(value).filter(|_| graph.readers(value) == 1)?;
            (concat_axis(graph.op(by), self.rank) == Some(self.axis)).then_some(by)
        };
        let reversed = |concat: OpId| graph.op(concat).operands().collect::<Vec<_>>().into_iter().rev();
        let (mut operands, mut pending) = (Vec::new(), Vec::from_iter(reversed(concat)));
        while let Some(value) = pending.pop() {
            match inlined(value) {
                Some(by) => pending.extend(reversed(by)),
                None => operands.push(value),
            }
        }
        operands
    }

    /// Channels at which parts may begin: everywhere a group does, and where operands of Concats do.
    pub(crate) fn borders(&self) -> Vec<u64> {
        let mut borders: Vec<u64> = (0..=self.channels).filter(|at| at.is_multiple_of(self.grain)).collect();
        for source in self.sources.iter().filter(|source| !source.layer) {
            let parts = self.parts_of(source.op);
            let ends = parts.iter().map(|(_, range)| range.end);
            let own: Vec<u64> = std::iter::once(0).chain(ends).collect();
            borders.retain(|at| own.binary_search(at).is_ok());
        }
        borders
    }

    /// The operands of a Concat and the channels that each of them is.
    fn parts_of(&self, concat: OpId) -> Rc<Parts> {
        self.concats.borrow_mut().entry(concat).or_insert_with(|| self.find_parts(concat)).clone()
    }

    /// Those of them that lie within these channels.
    pub(super) fn parts_within(&self, concat: OpId, range: &Range<u64>) -> Vec<(ValueId, Range<u64>)> {
        let parts = self.parts_of(concat);
        let first = parts.partition_point(|(_, own)| own.start < range.start);
        parts[first..].iter().take_while(|(_, own)| own.end <= range.end).cloned().collect()
    }

    fn find_parts(&self, concat: OpId) -> Rc<Parts> {
        let mut at = 0;
        let size = |value| self.graph.tensor_type(value)?.shape.as_ref()?.get(self.axis)?.known();
        let parts = self.operands_of(concat).into_iter().map(|value| {
            let start = at;
            at += size(value).unwrap_or(0);
            (value, start..at)
        });
        parts.collect()
    }

    /// Writes the sinks as sums over these parts, added up in this order.
    ///
    /// # Errors
    /// Weights cannot be taken apart.
    pub(crate) fn in_parts(&self, parts: &[Range<u64>]) -> Result<Patch, Miss> {
        let mut patch = Patch::new(Safety::Reassociates);
        let mut sums: Vec<Option<Operand>> = vec![None; self.sinks.len()];
        let mut pieces: Vec<HashMap<ValueId, Operand>> = Vec::with_capacity(parts.len());
        for (number, range) in parts.iter().enumerate() {
            let mut part = Part { region: self, range, number, patch: &mut patch, values: HashMap::new() };
            for (sink, sum) in self.sinks.iter().zip(&mut sums) {
                match sink.layer {
                    Some(layer) => *sum = Some(part.add(sink, layer, *sum)?),
                    None => part.pieces(sink.op)?,
                }
            }
            pieces.push(part.values);
        }
        for (sink, sum) in self.sinks.iter().zip(sums) {
            let result = self.graph.op(sink.last()).output(0).ok_or(Miss::NoMatch)?;
            let whole = match sum {
                Some(sum) => sum,
                None => self.join(sink.op, parts, &pieces, &mut patch),
            };
            patch.replace_uses(result, whole);
        }
        Ok(patch)
    }

    /// A Concat that reads the parts of what it read.
    fn join(
        &self,
        concat: OpId,
        parts: &[Range<u64>],
        pieces: &[HashMap<ValueId, Operand>],
        patch: &mut Patch,
    ) -> Operand {
        // Parts may be added up in another order than they stand in.
        let mut in_place: Vec<usize> = (0..parts.len()).collect();
        in_place.sort_by_key(|&number| parts[number].start);
        let mut operands = Vec::new();
        for value in self.graph.op(concat).operands() {
            let by = self.graph.producer(value);
            match by.filter(|_| self.values.contains(&value)) {
                Some(by) if self.sources.iter().any(|source| source.op == by && !source.layer) => {
                    operands.extend(self.operands_of(by).into_iter().map(Operand::Value));
                }
                Some(_) => operands.extend(in_place.iter().filter_map(|&n| pieces[n].get(&value).copied())),
                None => operands.push(value.into()),
            }
        }
        patch.add_op(NewOp::like(self.graph, concat, operands.into_iter().map(Some).collect()))
    }
}

/// One part of a region, on its way into a patch.
struct Part<'a, 'g> {
    region: &'a Region<'g>,
    range: &'a Range<u64>,
    number: usize,
    patch: &'a mut Patch,
    /// What is computed already.
    values: HashMap<ValueId, Operand>,
}

impl Part<'_, '_> {
    fn graph(&self) -> &Graph {
        self.region.graph
    }

    /// What the layer gives for this part, added to the sum so far.
    fn add(&mut self, sink: &Sink, layer: Layer, sum: Option<Operand>) -> Result<Operand, Miss> {
        let graph = self.region.graph;
        let op = graph.op(sink.op);
        let result = op.output(0).ok_or(Miss::NoMatch)?;
        let name = &graph.value(result).name;
        let piece = self.value(op.input(0).ok_or(Miss::NoMatch)?)?;
        let weight = self.slice(weights(graph, sink.op)?, layer.weight_axes(op).0)?;
        let mut operands = vec![Some(piece), Some(weight)];
        let new = match sum {
            None => {
                operands.extend(op.inputs.iter().skip(2).map(|bias| bias.map(Operand::Value)));
                NewOp::like(graph, sink.op, operands)
            }
            Some(sum) if layer.is_matrix() && self.region.rank == 2 => {
                // A product of matrices takes a summand.
                operands.push(Some(sum));
                let like = NewOp::like(graph, sink.op, operands.clone()).attribute("beta", 1.0f32);
                let gemm = || NewOp::with_optional("Gemm", operands);
                let new = if layer == Layer::Gemm { like } else { gemm() };
                let new = self.name_after(sink.op, "", new);
                return Ok(self.emit(new, &format!("{name}_sum")));
            }
            Some(_) => NewOp::like(graph, sink.op, operands),
        };
        let new = self.name_after(sink.op, "", new);
        let own = self.emit(new, &format!("{name}_part"));
        let add = match (sum, sink.residual) {
            (Some(sum), _) => self.name_after(sink.op, "sum_", NewOp::new("Add", [own, sum])),
            (None, Some((add, residual))) => NewOp::like(graph, add, vec![Some(own), Some(residual.into())]),
            (None, None) => return Ok(own),
        };
        Ok(self.emit(add, &format!("{name}_sum")))
    }

    /// Computes what a Concat reads of this part.
    fn pieces(&mut self, concat: OpId) -> Result<(), Miss> {
        let region = self.region;
        for value in region.graph.op(concat).operands() {
            let by = region.graph.producer(value);
            let joins = by.is_some_and(|by| region.sources.iter().any(|s| s.op == by && !s.layer));
            if region.values.contains(&value) && !joins {
                self.value(value)?;
            }
        }
        Ok(())
    }

    /// This part of a value of the region.
    fn value(&mut self, value: ValueId) -> Result<Operand, Miss> {
        if let Some(&done) = self.values.get(&value) {
            return Ok(done);
        }
        let region = self.region;
        let by = region.graph.producer(value).ok_or(Miss::NoMatch)?;
        let source = region.sources.iter().find(|source| source.op == by);
        let operand = match source {
            Some(source) if source.layer => self.of_layer(by, value)?,
            Some(_) => self.of_concat(by, value)?,
            None => self.of_inner(by, value)?,
        };
        self.values.insert(value, operand);
        Ok(operand)
    }

    fn of_layer(&mut self, id: OpId, value: ValueId) -> Result<Operand, Miss> {
        let graph = self.region.graph;
        let op = graph.op(id);
        let layer = Layer::of(graph, id).ok_or(Miss::NoMatch)?;
        let weight = self.slice(weights(graph, id)?, layer.weight_axes(op).1)?;
        let mut operands = vec![op.input(0).map(Operand::Value), Some(weight)];
        if let Some(bias) = op.input(2) {
            let dims = graph.tensor_type(bias).and_then(|ty| ty.dims()).ok_or(Miss::NoMatch)?;
            // The summand of a Gemm may be one number for all.
            operands.push(Some(match dims.last() {
                None | Some(1) if layer == Layer::Gemm => bias.into(),
                Some(_) => self.slice(bias, dims.len() - 1)?,
                None => return Err(Miss::NoMatch),
            }));
        }
        Ok(self.emit_part(NewOp::like(graph, id, operands), id, value))
    }

    fn of_concat(&mut self, id: OpId, value: ValueId) -> Result<Operand, Miss> {
        let region = self.region;
        let (mut own, mut at) = (Vec::new(), self.range.start);
        for (part, range) in region.parts_within(id, self.range) {
            if range.start == at {
                own.push(Operand::from(part));
                at = range.end;
            }
        }
        if at != self.range.end {
            return Err(Miss::refused("a part ends within an operand of the Concat"));
        }
        Ok(match own[..] {
            [single] => single,
            _ => {
                self.emit_part(NewOp::like(region.graph, id, own.into_iter().map(Some).collect()), id, value)
            }
        })
    }

    fn of_inner(&mut self, id: OpId, value: ValueId) -> Result<Operand, Miss> {
        let region = self.region;
        let op = region.graph.op(id);
        let kind = Channelwise::of(region.graph, id, region.axis).ok_or(Miss::NoMatch)?;
        let mut operands = Vec::with_capacity(op.inputs.len());
        for (slot, &operand) in op.inputs.iter().enumerate() {
            let Some(operand) = operand else {
                operands.push(None);
                continue;
            };
            operands.push(Some(match region.role(kind, slot, operand).ok_or(Miss::NoMatch)? {
                Role::Whole => operand.into(),
                Role::Part { axis } if region.graph.constant(operand).is_some() => {
                    self.slice(operand, axis)?
                }
                Role::Part { .. } => self.value(operand)?,
            }));
        }
        let mut new = NewOp::like(region.graph, id, operands);
        if let Channelwise::Grouped { channels_each } = kind {
            new = new.attribute("group", ((self.range.end - self.range.start) / channels_each) as i64);
        }
        Ok(self.emit_part(new, id, value))
    }

    /// This part of a constant, along an axis of it.
    fn slice(&mut self, value: ValueId, axis: usize) -> Result<Operand, Miss> {
        let name = self.graph().value(value).name.clone();
        let constant = self.graph().constant(value);
        let constant = constant.ok_or_else(|| Miss::Refused(format!("'{name}' is not a constant")))?;
        if constant.dims.get(axis) != Some(&self.region.channels) {
            return Err(Miss::Refused(format!("'{name}' is not one number for each channel")));
        }
        let copies = constant.dims[..axis].iter().any(|&dim| dim != 1) || !constant.is_resident();
        if copies && constant.byte_len().is_none_or(|bytes| bytes > MAX_WEIGHT) {
            return Err(Miss::Refused(format!("the weights '{name}' are too large")));
        }
        let part: Result<Tensor, _> = constant.slice(axis, self.range.clone());
        let part = part.map_err(|error| Miss::Refused(format!("the weights '{name}': {error}")))?;
        Ok(self.patch.constant(&format!("{name}_{}", self.number), part))
    }

    /// Adds an operator that computes this part of a value.
    fn emit_part(&mut self, new: NewOp, like: OpId, value: ValueId) -> Operand {
        let graph = self.region.graph;
        let mut ty = graph.tensor_type(value).cloned();
        let axis = self.region.axis;
        if let Some(dim) = ty.as_mut().and_then(|ty| ty.shape.as_mut()?.get_mut(axis)) {
            *dim = Dim::Known(self.range.end - self.range.start);
        }
        let name = &graph.value(value).name;
        let new = self.name_after(like, "", new.typed(ty.map(Type::Tensor)));
        self.emit(new, name)
    }

    /// Names an operator of this part after one of the region.
    fn name_after(&self, like: OpId, what: &str, new: NewOp) -> NewOp {
        new.named_after(self.region.graph, like, &format!("{what}{}", self.number))
    }

    fn emit(&mut self, new: NewOp, name: &str) -> Operand {
        let name = format!("{name}_{}", self.number);
        self.patch.add_op(new.at(Position::AfterOperands).result_named(&name))
    }
}
