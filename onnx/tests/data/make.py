"""Writes everything.onnx and values.pb: every field of every message of the standard set, encoded by Google's library.

    pip install onnx==1.23.2 && python make.py

From the descriptors that the package ships, so that a field which the schema forgot shows as unknown in the tests.
"""

import pathlib

from onnx import onnx_data_pb2, onnx_ml_pb2

counter = 0


def scalar(field):
    global counter
    counter += 1
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING:
        return f"{field.name}-{counter}".encode() if field.type == field.TYPE_BYTES else f"{field.name}-é-{counter}"
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return counter / 8
    if kind == field.CPPTYPE_ENUM:
        return field.enum_type.values[-1].number
    negative = kind in (field.CPPTYPE_INT32, field.CPPTYPE_INT64)
    return -counter if negative and counter % 2 else counter * 1000


def fill(message, around=(), choice=0):
    """Sets every field; a message within one of its own kind gets no further messages, alternatives take turns."""
    name = message.DESCRIPTOR.full_name
    for field in message.DESCRIPTOR.fields:
        if field.containing_oneof and field.containing_oneof.fields[choice % len(field.containing_oneof.fields)] != field:
            continue
        value = getattr(message, field.name)
        nested = field.message_type
        if nested is None:
            value.extend([scalar(field), scalar(field)]) if field.is_repeated else setattr(message, field.name, scalar(field))
        elif name in around:
            continue
        elif field.is_repeated:
            for turn in range(max([1] + [len(group.fields) for group in nested.oneofs])):
                fill(value.add(), (*around, name), turn)
        else:
            value.SetInParent()
            fill(value, (*around, name), choice)
    return message


here = pathlib.Path(__file__).parent
model = onnx_ml_pb2.ModelProto()
values = onnx_data_pb2.SequenceProto()
here.joinpath("everything.onnx").write_bytes(fill(model).SerializeToString(deterministic=True))
here.joinpath("values.pb").write_bytes(fill(values).SerializeToString(deterministic=True))
