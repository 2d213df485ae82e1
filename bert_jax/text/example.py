"""tf.train.Example to arrays and back, a block of records at a time, without TensorFlow or protobuf.

Writing gives the canonical bytes: map entries in the order of their names, packed lists, shortest varints, as
protobuf's deterministic serialisation does. Reading takes any Example: records of the usual form (packed
lists) are decoded together, the rest (unpacked lists, other orders of fields) one by one.

Wire format: https://protobuf.dev/programming-guides/encoding ; messages:
    tensorflow/core/example/{example,feature}.proto

    Example  { Features features = 1; }
    Features { map<string, Feature> feature = 1; }        an entry is { string key = 1; Feature value = 2; }
    Feature  { BytesList = 1 | FloatList = 2 | Int64List = 3 }, each { repeated value = 1; }
"""

from __future__ import annotations

import numpy as np

from bert_jax.text.features import NAMES, Records, RecordSpec

_KINDS = {name: 3 for name in NAMES} | {"masked_lm_weights": 2, "word_starts": 1}
# A ragged column: bytes uint8[n,w] and which of them exist bool[n,w].
Column = tuple[np.ndarray, np.ndarray]


class BadRecord(ValueError):
    """Record `row` of the block cannot be decoded; `offset` is where in the record."""

    def __init__(self, row: int, offset: int, what: str) -> None:
        self.row, self.offset, self.what = row, offset, what
        super().__init__(f"record {row} at {offset}: {what}")


# ------------------------------------------------------------------------------------------------------------
# Writing


def encode(records: Records, room: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The Examples of a block of records.

    Args:
        records: arrays by feature name; all with n rows; `word_starts` bool[n,T], the rest numbers.
        room: bytes left free before each Example and 4 after it where room is not 0 (for the framing).

    Returns:
        The concatenated bytes uint8[m], and the length of each Example (without room) int64[n].
    """
    n = len(records["input_ids"])
    columns: list[Column] = []
    for name in sorted(records):
        columns += _entry(name, records[name], n)
    columns = _tagged(b"\x0a", columns, n)
    lengths = _size(columns)
    if room:
        columns = [_constant(bytes(room), n), *columns, _constant(bytes(4), n)]
    matrix = np.concatenate([column for column, _ in columns], axis=1)
    keep = np.concatenate([exists for _, exists in columns], axis=1)
    return matrix[keep], lengths


def _entry(name: str, values: np.ndarray, n: int) -> list[Column]:
    """The map entry of one feature as columns."""
    kind = _KINDS.get(name, 3)
    if kind == 1:
        packed = np.packbits(values, axis=1, bitorder="little")
        payload = (packed, np.ones(packed.shape, bool))
    elif kind == 2:
        packed = np.ascontiguousarray(values.reshape(n, -1), "<f4").view(np.uint8).reshape(n, -1)
        payload = (packed, np.ones(packed.shape, bool))
    else:
        payload = _varints(values.reshape(n, -1))
    listed = _tagged(b"\x0a", [payload], n)
    feature = _tagged(bytes([kind << 3 | 2]), listed, n)
    key = name.encode()
    return _tagged(b"\x0a", [_constant(b"\x0a" + bytes([len(key)]) + key, n), *_tagged(b"\x12", feature, n)], n)


def _tagged(tag: bytes, columns: list[Column], n: int) -> list[Column]:
    """A length-delimited field around columns."""
    return [_constant(tag, n), _varints(_size(columns)[:, None]), *columns]


def _size(columns: list[Column]) -> np.ndarray:
    # A column of which all exists needs no counting: most do.
    return np.sum([keep.sum(1) for _, keep in columns], axis=0, dtype=np.int64)


def _constant(text: bytes, n: int) -> Column:
    row = np.frombuffer(text, np.uint8)
    return np.broadcast_to(row, (n, len(row))), np.ones((n, len(row)), bool)


def _varints(values: np.ndarray) -> Column:
    """Integers [n,k] as varints; negative ones take ten bytes, as protobuf's int64 does."""
    n, k = values.shape
    top = int(values.max(initial=0))
    width = 10 if values.min(initial=0) < 0 else max(1, -(-top.bit_length() // 7))
    rest = (
        values.astype(np.int64).view(np.uint64) if width == 10 else values.astype(np.uint32 if width < 5 else np.uint64)
    )
    column = np.empty((n, k, width), np.uint8)
    keep = np.ones((n, k, width), bool)
    for place in range(width):
        column[:, :, place] = rest & rest.dtype.type(0x7F)
        rest = rest >> rest.dtype.type(7)
        more = rest > 0
        if place + 1 < width:
            column[:, :, place] |= more.astype(np.uint8) << 7
            keep[:, :, place + 1] = more
    return column.reshape(n, -1), keep.reshape(n, -1)


# ------------------------------------------------------------------------------------------------------------
# Reading


def decode(data: np.ndarray, starts: np.ndarray, ends: np.ndarray, spec: RecordSpec) -> Records:
    """The features of a block of Examples.

    Args:
        data: uint8[m], holding the Examples anywhere.
        starts, ends: int64[n], where each Example lies.
        spec: T and P; another number of values is refused.

    Returns:
        Records: the seven features, and those of ours that the first record has.

    Raises:
        BadRecord: with the row and the offset in the record.
    """
    buffer = np.concatenate([data, np.zeros(16, np.uint8)])
    spans, kinds, slow = _spans(buffer, starts, ends)
    records: Records = {}
    lists: dict[int, dict[str, np.ndarray]] = {}
    for row in np.flatnonzero(slow):
        lists[int(row)] = _parse_slowly(buffer[starts[row] : ends[row]].tobytes(), int(row))
    fast = np.flatnonzero(~slow)
    for name in NAMES:
        present = np.zeros(len(starts), bool)
        if name in spans:
            present[fast] = spans[name][0][fast] >= 0
        for row, found in lists.items():
            present[row] = name in found
        width = _width(name, spec)
        if not present.all():
            if name not in ("word_starts", "documents", "relation"):
                row = int(np.flatnonzero(~present)[0])
                raise BadRecord(row, 0, f"there is no feature {name}")
            if not present.any():
                continue
        out = np.full((len(starts), width), -1 if name == "documents" else 0, _DTYPES[name])
        rows = fast[present[fast]]
        if len(rows):
            begin, stop = (side[rows] for side in spans[name])
            wrong = kinds[name][rows] != _KINDS[name]
            if wrong.any():
                row = int(rows[np.flatnonzero(wrong)[0]])
                raise BadRecord(row, int(begin[np.flatnonzero(wrong)[0]] - starts[row]), f"{name} is of another type")
            out[rows] = _values(buffer, begin, stop, name, width, rows, starts, spec)
        for row, found in lists.items():
            if name in found:
                out[row] = _slow_values(found[name], name, width, row, spec)
        records[name] = out
    records["next_sentence_labels"] = records["next_sentence_labels"][:, 0]
    if "relation" in records:
        records["relation"] = records["relation"][:, 0]
    return records


_DTYPES = {name: np.int32 for name in NAMES} | {
    "masked_lm_weights": np.float32,
    "word_starts": np.bool_,
    "documents": np.int64,
}


def _width(name: str, spec: RecordSpec) -> int:
    if name.startswith("masked_lm"):
        return spec.predictions
    return {"next_sentence_labels": 1, "relation": 1, "documents": 2}.get(name, spec.length)


def _read_varints(buffer: np.ndarray, at: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Varints of up to five bytes at many places: values, the places after them, and which were in order."""
    value = np.zeros(len(at), np.int64)
    position = at.copy()
    open_ = np.ones(len(at), bool)
    for shift in range(0, 35, 7):
        byte = buffer[np.minimum(position, len(buffer) - 1)].astype(np.int64)
        value += np.where(open_, (byte & 0x7F) << shift, 0)
        position += open_
        open_ &= byte >= 128
        if not open_.any():
            break
    return value, position, ~open_ & (position <= stop)


def _field(buffer: np.ndarray, at: np.ndarray, stop: np.ndarray, tag: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A length-delimited field with the given tag: start and end of its content, and where it was found."""
    fine = (at < stop) & (buffer[np.minimum(at, len(buffer) - 1)] == tag)
    length, begin, whole = _read_varints(buffer, at + 1, stop)
    end = begin + length
    return begin, end, fine & whole & (end <= stop)


def _spans(buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray):
    """Where the payload of each known feature lies, all records stepping over their map entries together.

    Returns:
        spans {name: (begin int64[n], end int64[n])} (-1 where absent), kinds {name: int8[n]}, and bool[n]:
        the records that are not of the usual form and must be parsed one by one.
    """
    n = len(starts)
    spans: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    kinds: dict[str, np.ndarray] = {}
    cursor, stop, fine = _field(buffer, starts, ends, 0x0A)
    slow = ~fine | (stop != ends)
    rows = np.flatnonzero(~slow & (cursor < stop))
    while len(rows):
        begin, end, found = _field(buffer, cursor[rows], stop[rows], 0x0A)
        slow[rows[~found]] = True
        rows, begin, end = rows[found], begin[found], end[found]
        cursor[rows] = end
        key, value, found = _field(buffer, begin, end, 0x0A)
        slow[rows[~found]] = True
        for name in NAMES:
            here = np.flatnonzero(found & (value - key == len(name)))
            if not len(here):
                continue
            text = np.frombuffer(name.encode(), np.uint8)
            here = here[(buffer[key[here][:, None] + np.arange(len(text))] == text).all(1)]
            if not len(here):
                continue
            at, who = value[here], rows[here]
            feature, feature_end, fits = _field(buffer, at, end[here], 0x12)
            fits &= feature_end == end[here]
            kind = buffer[np.minimum(feature, len(buffer) - 1)]
            listed, listed_end, inner = _field(buffer, feature, feature_end, kind)
            payload, payload_end, packed = _field(buffer, listed, listed_end, 0x0A)
            fits &= inner & packed & (listed_end == feature_end) & (payload_end == listed_end)
            slow[who[~fits]] = True
            if name not in spans:
                spans[name] = (np.full(n, -1, np.int64), np.full(n, -1, np.int64))
                kinds[name] = np.zeros(n, np.int8)
            spans[name][0][who], spans[name][1][who] = payload, payload_end
            kinds[name][who] = kind >> 3
        rows = rows[~slow[rows] & (cursor[rows] < stop[rows])]
    return spans, kinds, slow


def _values(buffer, begin, end, name, width, rows, starts, spec) -> np.ndarray:
    """Payloads to values, all rows together: [len(rows), width]."""
    sizes = end - begin

    def wrong(where: np.ndarray, what: str) -> BadRecord:
        first = int(np.flatnonzero(where)[0])
        return BadRecord(int(rows[first]), int(begin[first] - starts[rows[first]]), what)

    fixed = {1: -(-width // 8), 2: 4 * width}.get(_KINDS[name])
    if fixed is not None:
        if (sizes != fixed).any():
            raise wrong(sizes != fixed, f"{name} has not the {fixed} bytes that it should have")
        raw = _windows(buffer, begin, fixed)
        if _KINDS[name] == 1:
            return np.unpackbits(raw, axis=1, count=width, bitorder="little").view(bool)
        return raw.view("<f4").reshape(-1, width)
    # Usually one byte a value (masks, segments): the payload is the list.
    if (sizes == width).all():
        raw = _windows(buffer, begin, width)
        if (raw < 128).all():
            return raw
    widest = int(sizes.max(initial=0))
    if widest == 0:
        raise wrong(sizes != width, f"{name} is empty, {width} values are expected")
    flat = _windows(buffer, begin, widest)[np.arange(widest) < sizes[:, None]]
    last = np.flatnonzero(flat < 128)
    edges = np.cumsum(sizes)
    counted = np.searchsorted(last, edges - 1, side="right")
    counts = np.diff(counted, prepend=0)
    unfinished = (sizes > 0) & (flat[np.maximum(edges - 1, 0)] >= 128)
    if unfinished.any() or (counts != width).any():
        bad = unfinished | (counts != width)
        found = int(counts[np.flatnonzero(bad)[0]])
        raise wrong(bad, f"{name} has {found} values where {width} are expected")
    first = np.concatenate([[0], last[:-1] + 1])
    spread = last - first + 1
    if spread.max() > 10:
        raise wrong(np.ones(len(rows), bool), f"{name} holds a varint of more than ten bytes")
    value = np.zeros(len(first), np.uint64)
    padded = np.concatenate([flat, np.zeros(10, np.uint8)])
    for place in range(int(spread.max())):
        byte = (padded[first + place] & 0x7F).astype(np.uint64) << np.uint64(7 * place)
        value |= np.where(place < spread, byte, np.uint64(0))
    return _narrow(value.view(np.int64), name).reshape(-1, width)


def _narrow(value: np.ndarray, name: str) -> np.ndarray:
    # Out-of-range values must stay out of range in int32, for `check` to find them.
    return value if _DTYPES[name] == np.int64 else np.clip(value, -(2**31), 2**31 - 1)


def _windows(buffer: np.ndarray, begin: np.ndarray, width: int) -> np.ndarray:
    """Copies `width` bytes at each place: uint8[n,width]."""
    if len(buffer) < int(begin.max(initial=0)) + width:
        buffer = np.concatenate([buffer, np.zeros(width, np.uint8)])
    view = np.lib.stride_tricks.as_strided(buffer, (len(buffer) - width + 1, width), (1, 1), writeable=False)
    return view[begin]  # indexing copies the rows asked for; np.take would first copy the whole view


# ------------------------------------------------------------------------------------------------------------
# One record at a time: whatever protobuf allows


def _parse_slowly(data: bytes, row: int) -> dict[str, tuple[int, list]]:
    """All known features of one Example: name to (kind, values)."""
    found: dict[str, tuple[int, list]] = {}
    for number, wire, features, _ in _fields(data, 0, len(data), row):
        if number != 1 or wire != 2:
            continue
        for number, wire, entry, _ in _fields(data, *features, row):
            if number != 1 or wire != 2:
                continue
            key, feature = b"", (0, 0)
            for number, wire, content, _ in _fields(data, *entry, row):
                if number == 1 and wire == 2:
                    key = data[slice(*content)]
                elif number == 2 and wire == 2:
                    feature = content
            name = key.decode("utf-8", "replace")
            if name in NAMES:
                found[name] = _parse_feature(data, feature, row)
    return found


def _parse_feature(data: bytes, span: tuple[int, int], row: int) -> tuple[int, list]:
    kind, values = 0, []
    for number, wire, content, _ in _fields(data, *span, row):
        if wire != 2 or number not in (1, 2, 3):
            continue
        if number != kind:
            kind, values = number, []
        for inner, wire, payload, value in _fields(data, *content, row):
            if inner != 1:
                continue
            if kind == 1 and wire == 2:
                values.append(data[slice(*payload)])
            elif kind == 2 and wire in (2, 5):
                values += np.frombuffer(data[slice(*payload)], "<f4").tolist() if _fours(payload, row) else []
            elif kind == 3 and wire == 0:
                values.append(value)
            elif kind == 3 and wire == 2:
                at, stop = payload
                while at < stop:
                    value, at = _varint(data, at, stop, row)
                    values.append(value)
    return kind, values


def _fours(span: tuple[int, int], row: int) -> bool:
    if (span[1] - span[0]) % 4:
        raise BadRecord(row, span[0], "a list of floats is cut")
    return True


def _fields(data: bytes, at: int, stop: int, row: int):
    """Yields (field number, wire type, (start, end) of the content, value of a varint)."""
    while at < stop:
        tag, at = _varint(data, at, stop, row)
        number, wire, value = tag >> 3, tag & 7, 0
        begin = at
        if wire == 0:
            value, at = _varint(data, at, stop, row)
        elif wire == 1:
            at += 8
        elif wire == 5:
            at += 4
        elif wire == 2:
            size, begin = _varint(data, at, stop, row)
            at = begin + size
        else:
            raise BadRecord(row, begin, f"this is not a tf.train.Example (wire type {wire})")
        if number == 0 or at > stop or at < begin:
            raise BadRecord(row, begin, "this is not a tf.train.Example (a field goes beyond its message)")
        yield number, wire, (begin, at), value


def _varint(data: bytes, at: int, stop: int, row: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            raise BadRecord(row, at, "a number is cut")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 128:
            value &= 2**64 - 1
            return (value - 2**64 if value >= 2**63 else value), at
    raise BadRecord(row, at, "a varint of more than ten bytes")


def _slow_values(found: tuple[int, list], name: str, width: int, row: int, spec: RecordSpec) -> np.ndarray:
    kind, values = found
    if kind != _KINDS[name]:
        raise BadRecord(row, 0, f"{name} is of another type")
    if kind == 1:
        if len(values) != 1 or len(values[0]) != -(-width // 8):
            raise BadRecord(row, 0, f"{name} has not the {-(-width // 8)} bytes that it should have")
        return np.unpackbits(np.frombuffer(values[0], np.uint8), count=width, bitorder="little").view(bool)
    if len(values) != width:
        raise BadRecord(row, 0, f"{name} has {len(values)} values where {width} are expected")
    return np.array(values) if kind == 2 else _narrow(np.array(values, np.int64), name)


def sizes_of(data: bytes) -> RecordSpec:
    """The T and P of one Example, from its `input_ids` and `masked_lm_ids`.

    Raises:
        BadRecord: it is not an Example, or lacks one of them.
    """
    found = _parse_slowly(data, 0)
    for name in ("input_ids", "masked_lm_ids"):
        if name not in found:
            raise BadRecord(0, 0, f"there is no feature {name}: these are not BERT pretraining records")
    return RecordSpec(len(found["input_ids"][1]), len(found["masked_lm_ids"][1]))
