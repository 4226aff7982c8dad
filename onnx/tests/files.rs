//! Files in and out: nothing lost, nothing copied, nothing half written, and every refusal in one clear line.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use bytes::Bytes;
use dmopt_onnx::schema::*;
use dmopt_onnx::*;
use prost::Message;

const EVERYTHING: &[u8] = include_bytes!("data/everything.onnx");
const VALUES: &[u8] = include_bytes!("data/values.pb");

/// A model whose one initializer holds these elements.
fn model_with(weights: Vec<u8>) -> ModelProto {
    let tensor = TensorProto {
        name: Some("w".into()),
        dims: vec![weights.len() as i64],
        data_type: Some(DataType::Uint8.into()),
        raw_data: Some(weights.into()),
        ..Default::default()
    };
    ModelProto {
        ir_version: Some(8),
        graph: Some(GraphProto { initializer: vec![tensor], ..Default::default() }),
        ..Default::default()
    }
}

/// A model whose one initializer is a range of a file.
fn model_beside(location: &str, offset: u64, length: u64) -> ModelProto {
    let reference = Reference { location: location.into(), offset, length: Some(length) };
    let mut model = model_with(Vec::new());
    let tensor = first(&mut model);
    tensor.raw_data = None;
    tensor.data_location = Some(DataLocation::External.into());
    tensor.external_data = reference.entries();
    model
}

fn first(model: &mut ModelProto) -> &mut TensorProto {
    &mut model.graph.as_mut().unwrap().initializer[0]
}

fn reference(model: &mut ModelProto) -> Reference {
    Reference::of(first(model)).unwrap().unwrap()
}

fn joined(model: &ModelProto) -> Vec<u8> {
    encode(model).concat()
}

fn refusal(path: &Path) -> String {
    let file = path.display().to_string();
    let error = open(path).and_then(|bytes| decode(&file, bytes)).unwrap_err().to_string();
    assert!(error.starts_with(&file), "{error} does not begin with the file");
    assert!(!error.contains('\n'), "{error} is more than one line");
    error
}

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_field_of_the_standard_is_known_and_comes_back() {
    let model = ModelProto::decode(EVERYTHING).unwrap();
    let values = SequenceProto::decode(VALUES).unwrap();
    for text in [format!("{model:?}"), format!("{values:?}")] {
        assert_eq!(text.matches("unknown: [").count(), text.matches("unknown: []").count());
    }
    assert_eq!(joined(&model), EVERYTHING);
    assert_eq!(values.encode_to_vec(), VALUES);
}

#[test]
fn unknown_fields_of_every_wire_type_come_back() {
    // Field 99 as varint, 64 bits, string, group and 32 bits, inside the graph of a model.
    let graph = [
        &[0x98, 0x06, 0x80, 0x01][..],
        &[0x99, 0x06, 1, 2, 3, 4, 5, 6, 7, 8],
        &[0x9a, 0x06, 3, b'a', b'b', b'c'],
        &[0x9b, 0x06, 0x08, 0x01, 0x9c, 0x06],
        &[0x9d, 0x06, 1, 2, 3, 4],
    ]
    .concat();
    let file = [&[0x3a, graph.len() as u8], &graph[..]].concat();
    let model = decode("m", file.clone().into()).unwrap();
    assert_eq!(model.graph.as_ref().unwrap().unknown, graph);
    assert_eq!(joined(&model), file);
}

#[test]
fn explicitly_empty_fields_stay() {
    let node = NodeProto { name: Some(String::new()), domain: Some(String::new()), ..Default::default() };
    let bytes = node.encode_to_vec();
    assert_eq!(bytes, [0x1a, 0, 0x3a, 0]);
    assert_eq!(NodeProto::decode(&bytes[..]).unwrap(), node);
}

#[test]
fn packed_and_unpacked_lists_read_the_same() {
    // dims 2 and 3; float_data 1.0 twice: each once packed, once not.
    let packed = [&[0x0a, 2, 2, 3, 0x22, 8][..], &1f32.to_le_bytes(), &1f32.to_le_bytes()].concat();
    let single = [&[0x08, 2, 0x08, 3, 0x25][..], &1f32.to_le_bytes(), &[0x25], &1f32.to_le_bytes()].concat();
    let (packed, single) =
        (TensorProto::decode(&packed[..]).unwrap(), TensorProto::decode(&single[..]).unwrap());
    assert_eq!(packed, single);
    assert_eq!(packed.encode_to_vec(), [&[0x08, 2, 0x08, 3, 0x22, 8][..], &packed.float_data.0].concat());
}

#[test]
fn half_a_float_is_an_error() {
    assert!(TensorProto::decode(&[0x22, 3, 1, 2, 3][..]).is_err());
    assert!(TensorProto::decode(&[0x25, 1, 2][..]).is_err());
    assert!(TensorProto::decode(&[0x52, 4, 1, 2, 3, 4][..]).is_err());
}

#[test]
fn text_that_is_not_utf8_is_named() {
    let mut file = joined(&model_with(vec![1]));
    let name = file.windows(3).position(|w| w == [0x42, 1, b'w']).unwrap();
    file[name + 2] = 0xff;
    let error = decode("m.onnx", file.into()).unwrap_err().to_string();
    assert!(error.contains("TensorProto.name") && error.contains("UTF-8"), "{error}");
}

#[test]
fn weights_are_slices_of_the_mapped_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let mut model = model_with(vec![7; 10_000]);
    first(&mut model).float_data = Fixed(Bytes::from(vec![1; 8_000]));
    write(model, &path, &WriteOptions::default()).unwrap();

    let mapped = open(&path).unwrap();
    let range = mapped.as_ptr_range();
    let mut model = decode("m", mapped.clone()).unwrap();
    let pieces = encode(&model);
    let tensor = first(&mut model);
    assert!(range.contains(&tensor.raw_data.as_ref().unwrap().as_ptr()));
    assert!(range.contains(&tensor.float_data.0.as_ptr()));
    let spliced: Vec<_> = pieces.iter().filter(|piece| piece.len() >= SPLICE).collect();
    assert_eq!(spliced.len(), 2);
    assert!(spliced.iter().all(|piece| range.contains(&piece.as_ptr())));
}

#[test]
fn an_input_can_be_replaced_by_its_own_output() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    write(model_with(vec![7; 100_000]), &path, &WriteOptions::default()).unwrap();
    let before = fs::read(&path).unwrap();
    let model = decode("m", open(&path).unwrap()).unwrap();
    write(model, &path, &WriteOptions::default()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(names_in(folder.path()), ["m.onnx"]);
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    fs::write(&path, "old").unwrap();
    let options = WriteOptions { limit: 10, ..Default::default() };
    let error = write(model_with(vec![7; 100]), &path, &options).unwrap_err().to_string();
    assert!(error.contains("more than one ONNX file can hold (10)"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names_in(folder.path()), ["m.onnx"]);
}

#[cfg(unix)]
#[test]
fn permissions_are_those_of_the_old_file_or_of_new_ones() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let (plain, path) = (folder.path().join("plain"), folder.path().join("m.onnx"));
    fs::write(&plain, "").unwrap();
    write(model_with(vec![1]), &path, &WriteOptions::default()).unwrap();
    assert_eq!(mode(&path), mode(&plain));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    write(model_with(vec![1]), &path, &WriteOptions::default()).unwrap();
    assert_eq!(mode(&path), 0o640);
}

#[cfg(unix)]
#[test]
fn a_linked_output_stays_a_link_and_a_device_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let (real, link) = (folder.path().join("real"), folder.path().join("link"));
    fs::write(&real, "old").unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    write(model_with(vec![1]), &link, &WriteOptions::default()).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&real).unwrap(), joined(&model_with(vec![1])));

    write(model_with(vec![1]), Path::new("/dev/null"), &WriteOptions::default()).unwrap();
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
}

#[test]
fn above_the_limit_weights_move_to_one_aligned_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("big.onnx");
    let mut model = model_with(vec![7; 5_000]);
    let graph = model.graph.as_mut().unwrap();
    let mut second = graph.initializer[0].clone();
    second.name = Some("v".into());
    second.data_type = Some(DataType::Float.into());
    second.raw_data = None;
    second.float_data = Fixed(Bytes::from(vec![9; 2_000]));
    let mut shape = graph.initializer[0].clone();
    shape.raw_data = Some(vec![1; SMALL - 1].into());
    graph.initializer.extend([second, shape]);

    let written = write(model, &path, &WriteOptions { limit: 4_000, ..Default::default() }).unwrap();
    assert_eq!(written.weights.unwrap(), folder.path().join("big.onnx.data"));
    assert_eq!(names_in(folder.path()), ["big.onnx", "big.onnx.data"]);

    let model = decode("big", open(&path).unwrap()).unwrap();
    let beside = Folder::of(&path);
    let [w, v, shape] = &model.graph.unwrap().initializer[..] else { panic!("three initializers") };
    for (tensor, expected) in [(w, vec![7; 5_000]), (v, vec![9; 2_000])] {
        let reference = Reference::of(tensor).unwrap().unwrap();
        assert_eq!(reference.offset % ALIGNMENT, 0);
        assert_eq!(beside.read(&reference).unwrap(), expected);
        assert_eq!((tensor.raw_data.as_ref(), tensor.float_data.0.len()), (None, 0));
    }
    assert_eq!(shape.raw_data.as_ref().unwrap().len(), SMALL - 1);
}

#[test]
#[cfg(unix)]
fn both_files_have_the_permissions_that_are_asked_for() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let permissions = Some(fs::Permissions::from_mode(0o600));
    let options = WriteOptions { limit: 4_000, permissions, ..Default::default() };
    let weights = write(model_with(vec![7; 5_000]), &path, &options).unwrap().weights.unwrap();
    for file in [path, weights] {
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
}

#[test]
fn the_weights_of_a_model_do_not_overwrite_a_file_that_it_refers_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    fs::write(folder.path().join("m.onnx.data"), [3; 16]).unwrap();
    let mut model = model_beside("m.onnx.data", 0, 16);
    model.graph.as_mut().unwrap().initializer.extend(model_with(vec![7; 5_000]).graph.unwrap().initializer);
    let options = WriteOptions { limit: 4_000, ..Default::default() };
    let written = write(model, &path, &options).unwrap();
    assert_eq!(written.weights.unwrap(), folder.path().join("m.onnx.2.data"));
    assert_eq!(fs::read(folder.path().join("m.onnx.data")).unwrap(), [3; 16]);
}

#[test]
fn the_weights_of_a_model_do_not_overwrite_those_of_the_model_that_it_replaces() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let options = WriteOptions { limit: 4_000, ..Default::default() };
    let put = |value: u8| write(model_with(vec![value; 5_000]), &path, &options).unwrap().weights.unwrap();
    let (first, second) = (put(1), put(2));
    assert_eq!((fs::read(&first).unwrap()[0], fs::read(&second).unwrap()[0]), (1, 2));
    // By then, nothing refers to the first any more.
    assert_eq!(put(3), first);
    let avoid = ["m.onnx.data".to_string(), "m.onnx.2.data".to_string()];
    let options = WriteOptions { avoid: &avoid, ..options };
    let third = write(model_with(vec![4; 5_000]), &path, &options).unwrap().weights.unwrap();
    assert_eq!(third, folder.path().join("m.onnx.3.data"));
}

#[test]
fn a_stream_takes_a_model_within_the_limit() {
    let mut sent = Vec::new();
    let model = model_with(vec![7; 100]);
    write_stream(&model, "<stdout>", &mut sent, PROTOBUF_LIMIT).unwrap();
    assert_eq!(sent, joined(&model));
    let error = write_stream(&model, "<stdout>", &mut sent, 50).unwrap_err().to_string();
    assert!(error.contains("write to a file instead"), "{error}");
}

#[test]
fn external_data_are_read_by_range_and_bounds() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("w"), [1, 2, 3, 4]).unwrap();
    let beside = Folder::new(folder.path());
    assert_eq!(beside.read(&reference(&mut model_beside("w", 1, 2))).unwrap()[..], [2, 3]);
    let open_ended = Reference { location: "./w".into(), offset: 3, length: None };
    assert_eq!(beside.read(&open_ended).unwrap()[..], [4]);
    for (offset, length) in [(3, 2), (5, 0), (u64::MAX, 2)] {
        let error = beside.read(&reference(&mut model_beside("w", offset, length))).unwrap_err();
        assert!(error.to_string().contains("it has 4"), "{error}");
    }
    let error = beside.read(&reference(&mut model_beside("absent", 0, 1))).unwrap_err();
    assert!(error.to_string().contains("absent"), "{error}");
}

#[test]
fn external_data_outside_of_the_folder_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).unwrap();
    fs::write(folder.path().join("secret"), "secret").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(folder.path().join("secret"), inner.join("link")).unwrap();
    let beside = Folder::new(&inner);
    let absolute = folder.path().join("secret").display().to_string();
    for (location, reason) in [
        ("../secret", "leaves the model's folder"),
        (&absolute, "absolute"),
        ("", "names no file"),
        (".", "names no file"),
        #[cfg(unix)]
        ("link", "symbolic link"),
    ] {
        let error =
            beside.read(&Reference { location: location.into(), offset: 0, length: None }).unwrap_err();
        assert!(error.to_string().contains(reason), "{location}: {error}");
    }
}

#[test]
fn missing_and_short_external_data_are_noticed_without_reading_them() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("w"), [1, 2, 3, 4]).unwrap();
    fs::create_dir(folder.path().join("sub")).unwrap();
    let beside = Folder::new(folder.path());
    let told = |model: &ModelProto| beside.check(model).unwrap_err().to_string();

    assert_eq!(beside.check(&model_with(vec![7; 5])), Ok(()));
    assert_eq!(beside.check(&model_beside("w", 1, 3)), Ok(()));
    assert!(told(&model_beside("w", 2, 3)).ends_with("w: bytes 2..5 are wanted, it has 4"));
    assert!(told(&model_beside("w", u64::MAX, 3)).contains("it has 4"));
    assert!(told(&model_beside("absent", 0, 1)).starts_with("tensor 'w': external data file "));
    assert!(told(&model_beside("sub", 0, 1)).ends_with("not a regular file"));
    assert!(told(&model_beside("../w", 0, 1)).contains("leaves the model's folder"));

    // Without a length, type and dimensions tell it.
    let mut open_ended = model_beside("w", 0, 0);
    let tensor = first(&mut open_ended);
    tensor.external_data.truncate(2);
    tensor.dims = vec![4];
    assert_eq!(beside.check(&open_ended), Ok(()));
    first(&mut open_ended).dims = vec![5];
    assert!(told(&open_ended).ends_with("bytes 0..5 are wanted, it has 4"));
}

#[test]
fn external_data_in_attributes_and_functions_are_named_with_their_place() {
    let tensor = first(&mut model_beside("absent", 0, 4)).clone();
    let attribute = |tensor| AttributeProto {
        name: Some("value".into()),
        t: Some(Box::new(TensorProto { name: None, ..tensor })),
        ..Default::default()
    };
    let node = |name: Option<&str>| NodeProto {
        op_type: Some("Constant".into()),
        name: name.map(String::from),
        attribute: vec![attribute(tensor.clone())],
        ..Default::default()
    };
    let beside = Folder::new("nowhere");
    let told = |model: &ModelProto| beside.check(model).unwrap_err().to_string();

    let mut model = model_with(vec![7; 5]);
    model.graph.as_mut().unwrap().node = vec![NodeProto::default(), node(None)];
    let place = "node 1 (Constant): attribute 'value': external data file ";
    assert!(told(&model).starts_with(place), "{}", told(&model));

    let mut model = model_with(vec![7; 5]);
    model.functions = vec![FunctionProto {
        domain: Some("d".into()),
        name: Some("f".into()),
        node: vec![node(Some("c"))],
        ..Default::default()
    }];
    let place = "function d::f: Constant 'c': attribute 'value': external data file ";
    assert!(told(&model).starts_with(place), "{}", told(&model));
}

#[test]
fn external_references_are_understood_or_named() {
    let mut model = model_beside("w", 1, 2);
    let tensor = first(&mut model);
    tensor.external_data[1].value = Some("-1".into());
    let error = Reference::of(tensor).unwrap_err().to_string();
    assert!(error.contains("\"w\"") && error.contains("offset is \"-1\""), "{error}");
    tensor.external_data.clear();
    assert!(Reference::of(tensor).unwrap_err().to_string().contains("no location"));
    tensor.data_location = None;
    assert_eq!(Reference::of(tensor).unwrap(), None);
}

#[test]
fn external_files_come_along_to_another_folder() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(from.path().join("sub")).unwrap();
    fs::write(from.path().join("sub/w"), [1, 2, 3, 4]).unwrap();
    let source = Folder::new(from.path());
    let options = WriteOptions { source: Some(&source), ..Default::default() };
    let out = to.path().join("m.onnx");

    let written = write(model_beside("sub/w", 0, 4), &out, &options).unwrap();
    assert!(matches!(written.brought[..], [(_, Brought::Copied)]));
    assert_eq!(fs::read(to.path().join("sub/w")).unwrap(), [1, 2, 3, 4]);

    let again = write(model_beside("sub/w", 0, 4), &out, &options).unwrap();
    assert!(matches!(again.brought[..], [(_, Brought::Present)]));

    fs::remove_file(to.path().join("sub/w")).unwrap();
    fs::write(to.path().join("sub/w"), [1, 2, 3, 5]).unwrap();
    let error = write(model_beside("sub/w", 0, 4), &out, &options).unwrap_err().to_string();
    assert!(error.contains("in the way"), "{error}");
    assert_eq!(fs::read(to.path().join("sub/w")).unwrap(), [1, 2, 3, 5]);
}

#[test]
fn external_files_that_came_along_go_again_when_the_model_cannot_be_written() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(from.path().join("w"), [1, 2, 3, 4]).unwrap();
    let out = to.path().join("m.onnx");
    fs::create_dir(&out).unwrap();
    let source = Folder::new(from.path());
    let options = WriteOptions { source: Some(&source), ..Default::default() };
    write(model_beside("w", 0, 4), &out, &options).unwrap_err();
    assert_eq!(names_in(to.path()), ["m.onnx"]);
}

#[test]
fn external_files_need_not_be_there_to_write_next_to_them() {
    let folder = tempfile::tempdir().unwrap();
    let source = Folder::new(folder.path());
    let options = WriteOptions { source: Some(&source), ..Default::default() };
    let written = write(model_beside("absent", 0, 4), &folder.path().join("m.onnx"), &options).unwrap();
    assert!(matches!(written.brought[..], [(_, Brought::Present)]));
    let elsewhere = folder.path().join("sub");
    fs::create_dir(&elsewhere).unwrap();
    let error = write(model_beside("absent", 0, 4), &elsewhere.join("m.onnx"), &options).unwrap_err();
    assert!(error.to_string().contains("absent"), "{error}");
    assert_eq!(names_in(&elsewhere), [""; 0]);
}

#[test]
fn what_is_no_model_is_named_for_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        refusal(&path)
    };
    assert!(refusal(&folder.path().join("missing.onnx")).contains("No such file"));
    assert!(refusal(folder.path()).contains("is a directory"));
    assert!(file("empty.onnx", b"").contains("empty"));
    assert!(file("a.txt", "hello wörld\nmore".as_bytes()).contains("text, beginning \"hello wörld\""));
    assert!(file("lfs", b"version https://git-lfs.github.com/spec/v1\n").contains("Git LFS"));
    assert!(file("pt", b"PK\x03\x04rest").contains("zip"));
    assert!(
        file("headless", &ModelProto { ir_version: Some(8), ..Default::default() }.encode_to_vec())
            .contains("no graph")
    );
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = joined(&model_with(vec![7; 300]));
    for end in 1..whole.len() {
        // Cut right after a field of the model itself, what is left is a smaller message without a graph.
        let error = decode("m", Bytes::copy_from_slice(&whole[..end])).unwrap_err();
        assert!(matches!(error, Error::Truncated { .. }) || end == 2, "{end}: {error}");
    }
}

#[test]
fn damage_inside_is_not_called_truncation() {
    let mut file = joined(&model_with(vec![7; 300]));
    assert_eq!(file[5], 0x2a, "the first field of the graph is the initializer");
    file[6] ^= 1; // Its length is now off by one.
    let error = decode("m", file.into()).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
}

#[test]
fn bodies_nested_too_deep_are_a_clean_error() {
    let mut graph = GraphProto::default();
    for _ in 0..40 {
        let attribute = AttributeProto { g: Some(Box::new(graph)), ..Default::default() };
        let node = NodeProto { attribute: vec![attribute], ..Default::default() };
        graph = GraphProto { node: vec![node], ..Default::default() };
    }
    let file = joined(&ModelProto { graph: Some(graph), ..Default::default() });
    let error = decode("deep", file.into()).unwrap_err().to_string();
    assert!(error.contains("nested more than 100 deep"), "{error}");
}
