//! The messages of an ONNX file: IR version 14, operator set 28, and the test data that goes with models.
//!
//! Names and numbers are those of the standard; a field's presence is kept (`Some("")` is not `None`), and fields
//! that newer versions add survive in `unknown`. Alternatives of which a file holds at most one (the kinds of a
//! type, the two forms of a dimension) are separate `Option`s, which loses nothing and reads the same.
//!
//! Raw bytes are [`Bytes`]: decoding from a mapped file copies no weights.

use bytes::Bytes;

use crate::Data;
use crate::wire::{Fixed, Packed, messages};

/// The newest IR version that this schema covers.
pub const IR_VERSION: i64 = 14;

/// The newest version of the default operator set (`ai.onnx`) that goes with [`IR_VERSION`].
pub const OPSET_VERSION: i64 = 28;

messages! {
    /// A whole file.
    ModelProto {
        /// Version of the file format.
        1 => ir_version: Option<i64>,
        /// Tool that wrote the file.
        2 => producer_name: Option<String>,
        /// Version of that tool.
        3 => producer_version: Option<String>,
        /// Reverse-DNS namespace of the model.
        4 => domain: Option<String>,
        /// Version of the model itself.
        5 => model_version: Option<i64>,
        /// Description for people.
        6 => doc_string: Option<String>,
        /// What inference runs.
        7 => graph: Option<GraphProto>,
        /// Operator sets that the graph and its bodies use.
        8 => opset_import: Vec<OperatorSetIdProto>,
        /// Free key-value pairs.
        14 => metadata_props: Vec<StringStringEntryProto>,
        /// Extra graphs for training.
        20 => training_info: Vec<TrainingInfoProto>,
        /// Functions local to the model.
        25 => functions: Vec<FunctionProto>,
        /// Groups of devices that nodes may refer to.
        26 => configuration: Vec<DeviceConfigurationProto>,
    }

    /// Version of one operator set.
    OperatorSetIdProto {
        /// Namespace; empty or `ai.onnx` is the default one.
        1 => domain: Option<String>,
        /// Version, from 1.
        2 => version: Option<i64>,
    }

    /// A key and its value.
    StringStringEntryProto {
        /// The key.
        1 => key: Option<String>,
        /// The value.
        2 => value: Option<String>,
    }

    /// Nodes between inputs and outputs: a model's graph or a body of a control-flow node.
    GraphProto {
        /// Operations; the standard wants them in an order that can run.
        1 => node: Vec<NodeProto>,
        /// Name of the graph.
        2 => name: Option<String>,
        /// Named constants. Listed among `input` too, one is a default that a caller may replace.
        5 => initializer: Vec<TensorProto>,
        /// Description for people.
        10 => doc_string: Option<String>,
        /// Inputs in order.
        11 => input: Vec<ValueInfoProto>,
        /// Outputs in order.
        12 => output: Vec<ValueInfoProto>,
        /// Types of values in between.
        13 => value_info: Vec<ValueInfoProto>,
        /// Which tensors hold the quantization parameters of which.
        14 => quantization_annotation: Vec<TensorAnnotation>,
        /// Named constants in coordinate form.
        15 => sparse_initializer: Vec<SparseTensorProto>,
        /// Free key-value pairs.
        16 => metadata_props: Vec<StringStringEntryProto>,
    }

    /// One operation or function call.
    NodeProto {
        /// Names of operands; an empty one is an absent optional operand.
        1 => input: Vec<String>,
        /// Names of results; an empty one is not wanted.
        2 => output: Vec<String>,
        /// Name of the node itself, for people and messages.
        3 => name: Option<String>,
        /// Which operator of `domain`.
        4 => op_type: Option<String>,
        /// Compile-time arguments.
        5 => attribute: Vec<AttributeProto>,
        /// Description for people.
        6 => doc_string: Option<String>,
        /// Namespace of the operator; empty is the default one.
        7 => domain: Option<String>,
        /// Which overload of a function.
        8 => overload: Option<String>,
        /// Free key-value pairs.
        9 => metadata_props: Vec<StringStringEntryProto>,
        /// How to place and split the node over devices.
        10 => device_configurations: Vec<NodeDeviceConfigurationProto>,
    }

    /// A named argument of a node, of the kind that `type` says.
    AttributeProto {
        /// Name, unique in its node.
        1 => name: Option<String>,
        /// A float.
        2 => f: Option<f32>,
        /// An integer.
        3 => i: Option<i64>,
        /// A string, in UTF-8 by convention only.
        4 => s: Option<Bytes>,
        /// A tensor.
        5 => t: Option<Box<TensorProto>>,
        /// A body.
        6 => g: Option<Box<GraphProto>>,
        /// Floats.
        7 => floats: Vec<f32>,
        /// Integers.
        8 => ints: Vec<i64>,
        /// Strings.
        9 => strings: Vec<Bytes>,
        /// Tensors.
        10 => tensors: Vec<TensorProto>,
        /// Bodies.
        11 => graphs: Vec<GraphProto>,
        /// Description for people.
        13 => doc_string: Option<String>,
        /// A type.
        14 => tp: Option<Box<TypeProto>>,
        /// Types.
        15 => type_protos: Vec<TypeProto>,
        /// An [`AttributeType`], by number.
        20 => r#type: Option<i32>,
        /// In a function body: the function's attribute that gives the value.
        21 => ref_attr_name: Option<String>,
        /// A sparse tensor.
        22 => sparse_tensor: Option<Box<SparseTensorProto>>,
        /// Sparse tensors.
        23 => sparse_tensors: Vec<SparseTensorProto>,
    }

    /// A name and what is known of its value.
    ValueInfoProto {
        /// The name.
        1 => name: Option<String>,
        /// The type, where known.
        2 => r#type: Option<TypeProto>,
        /// Description for people.
        3 => doc_string: Option<String>,
        /// Free key-value pairs.
        4 => metadata_props: Vec<StringStringEntryProto>,
    }

    /// A dense tensor. One of the data fields holds its elements in row-major order, or a file beside the model does.
    TensorProto {
        /// Shape; none for a scalar.
        1 => dims: Vec<i64>,
        /// Element type, a [`DataType`] by number.
        2 => data_type: Option<i32>,
        /// Which part of a larger tensor this is; no known runtime supports it.
        3 => segment: Option<Segment>,
        /// Elements of `FLOAT`; real and imaginary parts of `COMPLEX64`.
        4 => float_data: Fixed<4>,
        /// Elements of the types of 32 bits and less, one (or for the packed ones, one byte) per entry.
        5 => int32_data: Packed<i32>,
        /// Elements of `STRING`.
        6 => string_data: Vec<Bytes>,
        /// Elements of `INT64`.
        7 => int64_data: Packed<i64>,
        /// Name, for an initializer.
        8 => name: Option<String>,
        /// Elements as little-endian bytes, for every type but `STRING`.
        9 => raw_data: Option<Data>,
        /// Elements of `DOUBLE`; real and imaginary parts of `COMPLEX128`.
        10 => double_data: Fixed<8>,
        /// Elements of `UINT32` and `UINT64`.
        11 => uint64_data: Packed<u64>,
        /// Description for people.
        12 => doc_string: Option<String>,
        /// Where the elements are when `data_location` says outside: `location`, `offset`, `length`, `checksum`.
        13 => external_data: Vec<StringStringEntryProto>,
        /// A [`DataLocation`], by number.
        14 => data_location: Option<i32>,
        /// Free key-value pairs.
        16 => metadata_props: Vec<StringStringEntryProto>,
    }

    /// A range of elements.
    Segment {
        /// First element.
        1 => begin: Option<i64>,
        /// One past the last.
        2 => end: Option<i64>,
    }

    /// A tensor in coordinate form.
    SparseTensorProto {
        /// The elements that are not the default; carries the name of an initializer.
        1 => values: Option<TensorProto>,
        /// Where they are: linear, or one row of coordinates per element.
        2 => indices: Option<TensorProto>,
        /// Shape of the dense equivalent.
        3 => dims: Vec<i64>,
    }

    /// Shape of a tensor: a list of dimensions, each known, symbolic or neither.
    TensorShapeProto {
        /// Dimensions, outermost first.
        1 => dim: Vec<Dimension>,
    }

    /// One dimension of a shape.
    Dimension {
        /// Its size.
        1 => dim_value: Option<i64>,
        /// Its symbol, when the size is not fixed.
        2 => dim_param: Option<String>,
        /// Its standard meaning, such as `DATA_BATCH`.
        3 => denotation: Option<String>,
    }

    /// The type of a value: one of the kinds.
    TypeProto {
        /// A dense tensor.
        1 => tensor_type: Option<TensorType>,
        /// A list of values of one type.
        4 => sequence_type: Option<SequenceType>,
        /// A map from a scalar to values of one type.
        5 => map_type: Option<MapType>,
        /// Its standard meaning, such as `TENSOR` or `IMAGE`.
        6 => denotation: Option<String>,
        /// A type that only its domain understands.
        7 => opaque_type: Option<OpaqueType>,
        /// A tensor in coordinate form.
        8 => sparse_tensor_type: Option<SparseTensorType>,
        /// A value or nothing.
        9 => optional_type: Option<OptionalType>,
    }

    /// A dense tensor's type.
    TensorType {
        /// Element type, a [`DataType`] by number.
        1 => elem_type: Option<i32>,
        /// Shape; absent when even the rank is unknown.
        2 => shape: Option<TensorShapeProto>,
    }

    /// A list's type.
    SequenceType {
        /// Type of each element.
        1 => elem_type: Option<Box<TypeProto>>,
    }

    /// A map's type.
    MapType {
        /// Type of the keys, a [`DataType`] by number: an integer or `STRING`.
        1 => key_type: Option<i32>,
        /// Type of the values.
        2 => value_type: Option<Box<TypeProto>>,
    }

    /// The type of a value that may be missing.
    OptionalType {
        /// Type of what is there, if anything is.
        1 => elem_type: Option<Box<TypeProto>>,
    }

    /// A sparse tensor's type.
    SparseTensorType {
        /// Element type, a [`DataType`] by number.
        1 => elem_type: Option<i32>,
        /// Shape of the dense equivalent.
        2 => shape: Option<TensorShapeProto>,
    }

    /// A type known by name only.
    OpaqueType {
        /// Namespace.
        1 => domain: Option<String>,
        /// Name in the namespace.
        2 => name: Option<String>,
    }

    /// A function local to the model: a body that nodes call by domain, name and overload.
    FunctionProto {
        /// Name.
        1 => name: Option<String>,
        /// Formal inputs.
        4 => input: Vec<String>,
        /// Formal outputs.
        5 => output: Vec<String>,
        /// Attributes that a call must give.
        6 => attribute: Vec<String>,
        /// The body.
        7 => node: Vec<NodeProto>,
        /// Description for people.
        8 => doc_string: Option<String>,
        /// Operator sets that the body uses.
        9 => opset_import: Vec<OperatorSetIdProto>,
        /// Namespace.
        10 => domain: Option<String>,
        /// Attributes that have a default.
        11 => attribute_proto: Vec<AttributeProto>,
        /// Types of values in the body.
        12 => value_info: Vec<ValueInfoProto>,
        /// Which of several functions of one name.
        13 => overload: Option<String>,
        /// Free key-value pairs.
        14 => metadata_props: Vec<StringStringEntryProto>,
    }

    /// Graphs that training runs besides the model's own.
    TrainingInfoProto {
        /// Gives initial values to state.
        1 => initialization: Option<GraphProto>,
        /// One step of training.
        2 => algorithm: Option<GraphProto>,
        /// Which initializer takes which output of `initialization`.
        3 => initialization_binding: Vec<StringStringEntryProto>,
        /// Which initializer takes which output of `algorithm`.
        4 => update_binding: Vec<StringStringEntryProto>,
    }

    /// The quantization parameters of one tensor.
    TensorAnnotation {
        /// The tensor.
        1 => tensor_name: Option<String>,
        /// Role (such as `SCALE_TENSOR`) to the name of the tensor that plays it.
        2 => quant_parameter_tensor_names: Vec<StringStringEntryProto>,
    }

    /// A named group of devices.
    DeviceConfigurationProto {
        /// Name.
        1 => name: Option<String>,
        /// How many devices.
        2 => num_devices: Option<i32>,
        /// Their names.
        3 => device: Vec<String>,
    }

    /// How one node uses one group of devices.
    NodeDeviceConfigurationProto {
        /// Name of a [`DeviceConfigurationProto`].
        1 => configuration_id: Option<String>,
        /// How operands and results are split.
        2 => sharding_spec: Vec<ShardingSpecProto>,
        /// Stage of a pipeline.
        3 => pipeline_stage: Option<i32>,
    }

    /// How one tensor is split over devices.
    ShardingSpecProto {
        /// Operand or result of the node.
        1 => tensor_name: Option<String>,
        /// Devices, or groups of them where the map below has an entry.
        2 => device: Vec<i64>,
        /// Groups by number.
        3 => index_to_device_group_map: Vec<IntIntListEntryProto>,
        /// The dimensions that are split.
        4 => sharded_dim: Vec<ShardedDimProto>,
    }

    /// A number to a list of numbers.
    IntIntListEntryProto {
        /// The key.
        1 => key: Option<i64>,
        /// The list.
        2 => value: Vec<i64>,
    }

    /// How one dimension is split.
    ShardedDimProto {
        /// The dimension; negative counts from the end.
        1 => axis: Option<i64>,
        /// Its parts.
        2 => simple_sharding: Vec<SimpleShardedDimProto>,
    }

    /// One part of a split dimension.
    SimpleShardedDimProto {
        /// Size of the part.
        1 => dim_value: Option<i64>,
        /// Symbol of that size.
        2 => dim_param: Option<String>,
        /// Into how many shards the part is cut.
        3 => num_shards: Option<i64>,
    }

    /// Test data: a list of values of one kind.
    SequenceProto {
        /// Name.
        1 => name: Option<String>,
        /// Which list is used: 1 tensors, 2 sparse tensors, 3 sequences, 4 maps, 5 optionals.
        2 => elem_type: Option<i32>,
        /// Tensors.
        3 => tensor_values: Vec<TensorProto>,
        /// Sparse tensors.
        4 => sparse_tensor_values: Vec<SparseTensorProto>,
        /// Sequences.
        5 => sequence_values: Vec<SequenceProto>,
        /// Maps.
        6 => map_values: Vec<MapProto>,
        /// Optionals.
        7 => optional_values: Vec<OptionalProto>,
    }

    /// Test data: keys and their values.
    MapProto {
        /// Name.
        1 => name: Option<String>,
        /// Type of the keys, a [`DataType`] by number.
        2 => key_type: Option<i32>,
        /// Integer keys.
        3 => keys: Vec<i64>,
        /// String keys.
        4 => string_keys: Vec<Bytes>,
        /// Values in the order of the keys.
        5 => values: Option<SequenceProto>,
    }

    /// Test data: a value or nothing.
    OptionalProto {
        /// Name.
        1 => name: Option<String>,
        /// Which field is used; numbered as in [`SequenceProto`].
        2 => elem_type: Option<i32>,
        /// A tensor.
        3 => tensor_value: Option<TensorProto>,
        /// A sparse tensor.
        4 => sparse_tensor_value: Option<SparseTensorProto>,
        /// A sequence.
        5 => sequence_value: Option<SequenceProto>,
        /// A map.
        6 => map_value: Option<Box<MapProto>>,
        /// An optional.
        7 => optional_value: Option<Box<OptionalProto>>,
    }
}

/// Declares an enum over the numbers of the standard, with the way there and back.
macro_rules! numbered {
    ($(#[$attr:meta])* $name:ident { $($variant:ident = $number:literal,)* }) => {
        $(#[$attr])*
        #[allow(missing_docs)] // The names are the documentation.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($variant = $number,)* }

        impl TryFrom<i32> for $name {
            /// A number that the standard does not define.
            type Error = i32;
            fn try_from(number: i32) -> Result<Self, i32> {
                match number {
                    $($number => Ok(Self::$variant),)*
                    other => Err(other),
                }
            }
        }

        impl From<$name> for i32 {
            fn from(value: $name) -> i32 {
                value as i32
            }
        }
    };
}

numbered! {
    /// Element types.
    DataType {
        Undefined = 0,
        Float = 1,
        Uint8 = 2,
        Int8 = 3,
        Uint16 = 4,
        Int16 = 5,
        Int32 = 6,
        Int64 = 7,
        String = 8,
        Bool = 9,
        Float16 = 10,
        Double = 11,
        Uint32 = 12,
        Uint64 = 13,
        Complex64 = 14,
        Complex128 = 15,
        Bfloat16 = 16,
        Float8E4M3Fn = 17,
        Float8E4M3Fnuz = 18,
        Float8E5M2 = 19,
        Float8E5M2Fnuz = 20,
        Uint4 = 21,
        Int4 = 22,
        Float4E2M1 = 23,
        Float8E8M0 = 24,
        Uint2 = 25,
        Int2 = 26,
        Float6E2M3 = 27,
        Float6E3M2 = 28,
    }
}

numbered! {
    /// Kinds of attributes.
    AttributeType {
        Undefined = 0,
        Float = 1,
        Int = 2,
        String = 3,
        Tensor = 4,
        Graph = 5,
        Floats = 6,
        Ints = 7,
        Strings = 8,
        Tensors = 9,
        Graphs = 10,
        SparseTensor = 11,
        SparseTensors = 12,
        TypeProto = 13,
        TypeProtos = 14,
    }
}

numbered! {
    /// Where a tensor's elements are.
    DataLocation {
        Default = 0,
        External = 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::random::Random;
    use prost::Message;

    fn round_trips<M: Message + Random + Default>() {
        arbtest::arbtest(|u| {
            let bytes = M::random(u, 0)?.encode_to_vec();
            let again = M::decode(&bytes[..]).map(|message| message.encode_to_vec());
            assert_eq!(again, Ok(bytes));
            Ok(())
        })
        .size_min(1 << 10)
        .size_max(1 << 14)
        .budget_ms(500);
    }

    #[test]
    fn any_model_comes_back_byte_for_byte() {
        round_trips::<ModelProto>();
    }

    #[test]
    fn any_tensor_and_any_type_come_back_byte_for_byte() {
        round_trips::<TensorProto>();
        round_trips::<TypeProto>();
        round_trips::<OptionalProto>();
    }

    #[test]
    fn pieces_are_the_encoding_and_its_length() {
        arbtest::arbtest(|u| {
            let model = ModelProto::random(u, 0)?;
            let bytes = model.encode_to_vec();
            assert_eq!(model.encoded_len(), bytes.len());
            assert_eq!(crate::encode(&model).concat(), bytes);
            Ok(())
        })
        .size_min(1 << 10)
        .size_max(1 << 14)
        .budget_ms(500);
    }

    #[test]
    fn any_bytes_are_a_model_or_an_error() {
        arbtest::arbtest(|u| {
            let bytes: Vec<u8> = u.arbitrary()?;
            let _ = crate::decode("any", bytes.into());
            Ok(())
        })
        .budget_ms(300);
    }

    #[test]
    fn numbers_of_element_types_are_known() {
        assert_eq!(DataType::try_from(28), Ok(DataType::Float6E3M2));
        assert_eq!(DataType::try_from(29), Err(29));
        assert_eq!(i32::from(AttributeType::TypeProtos), 14);
    }
}
