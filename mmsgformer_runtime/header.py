"""What stands in an ONNX file beside its graph: the opset and the metadata; the graph is not read.

An ONNX file is one message of Protocol Buffers: fields, each a number and a type in a variable-length
integer, then a value or a length and that many bytes. OpenVINO gives no access to the metadata, and a file
that ends too early is found here before a runtime's parser gives up without a reason.
"""

import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mmsgformer_runtime.errors import ModelError

# Field numbers of onnx.proto: of ModelProto, OperatorSetIdProto and StringStringEntryProto.
_GRAPH, _OPSET_IMPORT, _METADATA = 7, 8, 14
_DOMAIN, _VERSION = 1, 2
_KEY, _VALUE = 1, 2
_VARINT, _BITS_64, _BYTES, _BITS_32 = 0, 1, 2, 5


class Header(NamedTuple):
    """Of an ONNX file."""

    opset: int
    """Of ONNX's own operators; 0: the file says none."""
    metadata: dict[str, str]


def read_header(path: str | Path) -> Header:
    """The header of an ONNX file.

    Raises:
        ModelError: There is no such file, it is no ONNX file, or it ends too early.
    """
    opset, metadata, has_graph = 0, {}, False
    try:
        with Path(path).open('rb') as file:
            for field, value in _fields(file, os.fstat(file.fileno()).st_size):
                has_graph |= field == _GRAPH
                if field == _OPSET_IMPORT:
                    entry = _message(value)
                    if entry.get(_DOMAIN, b'').decode() in ('', 'ai.onnx'):
                        opset = entry.get(_VERSION, 0)
                elif field == _METADATA:
                    entry = _message(value)
                    metadata[entry.get(_KEY, b'').decode()] = entry.get(_VALUE, b'').decode()
    except OSError as error:
        raise ModelError(f'{path} cannot be read: {error.strerror}') from error
    except (EOFError, ValueError, AttributeError) as error:
        raise ModelError(f'{path} is truncated or no ONNX file; copy or export it again') from error
    if not has_graph:
        raise ModelError(f'{path} is truncated or no ONNX file: it has no graph; copy or export it again')
    return Header(opset, metadata)


def _fields(file: BinaryIO, size: int) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field; of the graph's an empty one."""
    while file.tell() < size:
        key = _varint(file)
        field, kind = key >> 3, key & 7
        if kind == _VARINT:
            yield field, _varint(file)
        elif kind in (_BITS_32, _BITS_64):
            file.seek(4 if kind == _BITS_32 else 8, os.SEEK_CUR)
        elif kind == _BYTES:
            length = _varint(file)
            if file.tell() + length > size:
                raise EOFError
            if field == _GRAPH:
                file.seek(length, os.SEEK_CUR)
                yield field, b''
            else:
                yield field, file.read(length)
        else:
            raise ValueError(f'no field of Protocol Buffers has type {kind}')


def _message(data: bytes) -> dict[int, int | bytes]:
    """The fields of a message within the file's."""
    return dict(_fields(BytesIO(data), len(data)))


def _varint(file: BinaryIO) -> int:
    """An integer of seven bits a byte, lowest first."""
    number = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            raise EOFError
        number |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return number
    raise ValueError('an integer of more than 64 bits')
