"""Bytes of tf.train.Example to arrays, a block of records at a time, without TensorFlow or protobuf.

Any Example is read: records of the usual form (packed lists) are decoded together, the rest (unpacked lists, other
orders of fields) one by one. example_writer.py is the way back.

Wire format: https://protobuf.dev/programming-guides/encoding ; messages:
    tensorflow/core/example/{example,feature}.proto

    Example  { Features features = 1; }
    Features { map<string, Feature> feature = 1; }        an entry is { string key = 1; Feature value = 2; }
    Feature  { BytesList = 1 | FloatList = 2 | Int64List = 3 }, each { repeated value = 1; }
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bert_jax.text.features import KINDS, NAMES, OURS, Records, RecordSpec


class BadRecord(ValueError):
    """Record `row` of the block cannot be decoded; `offset` is where in the record."""

    def __init__(self, row: int, offset: int, what: str) -> None:
        self.row, self.offset, self.what = row, offset, what
        super().__init__(f"record {row} at {offset}: {what}")


def decode(
    examples: Sequence[bytes],
    spec: RecordSpec,
    shared: bool = False,
    names: Sequence[str] = NAMES,
    narrow: bool = False,
) -> Records:
    """The features of a block of Examples. A thousand or more at once are fast.

    Args:
        examples: n Examples.
        spec: T and P; another number of values is refused.
        shared: leave out those of our own features that any record lacks, instead of filling them with 0 or -1.
        names: the features to decode; the others are not looked at.
        narrow: integers in the dtypes that they were decoded to, uint8 or uint16 where they fit: less to write and to
            pass over again. Who adds to them or changes their sign must take care.

    Returns:
        Records: those of the seven features that were asked for, and those of ours that any record has; new arrays in
        each call.

    Raises:
        BadRecord: with the row and the offset in the record.
    """
    blocks: list[tuple[int, Records]] = []
    heads: list[list[_EntryHead]] = []
    lacking: set[str] = set()
    for first in range(0, max(1, len(examples)), _BLOCK):
        block = examples[first : first + _BLOCK]
        try:
            blocks.append((len(block), _decode_block(block, spec, names, heads, lacking)))
        except BadRecord as error:
            raise BadRecord(first + error.row, error.offset, error.what) from None
    records: Records = {}
    for name in names:
        if shared and name in lacking or not any(name in block for _, block in blocks):
            continue
        parts = [block[name] if name in block else _absent(name, n, _width(name, spec)) for n, block in blocks]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        records[name] = whole if narrow else whole.astype(_DTYPES[name], copy=False)
    for name in ("next_sentence_labels", "relation"):
        if name in records:
            records[name] = records[name][:, 0]
    return records


def _absent(name: str, n: int, width: int) -> np.ndarray:
    return np.full((n, width), -1 if name == "documents" else 0, _DTYPES[name])


def _decode_block(
    examples: Sequence[bytes], spec: RecordSpec, names: Sequence[str], heads: list[list[_EntryHead]], lacking: set[str]
) -> Records:
    """The features that any of the Examples has, with values of any dtype; what some of them lack goes to `lacking`."""
    n = len(examples)
    ends = np.cumsum(np.fromiter(map(len, examples), np.int64, n))
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]]) if n else ends
    # Zeros behind the last one, so that no window ends beyond the buffer: none is wider than a record and _SPARE.
    spare = bytes(int((ends - starts).max(initial=0)) + _SPARE)
    buffer = np.frombuffer(b"".join([*examples, spare]), np.uint8)
    spans, slow = _spans(buffer, starts, ends, heads)
    lists = {int(row): _parse_slowly(examples[row], int(row)) for row in np.flatnonzero(slow)}
    records: Records = {}
    for name in names:
        span = spans.get(name) or _Span(n)
        present = (span.begin >= 0) & ~slow
        fast = np.flatnonzero(present)
        for row, found in lists.items():
            present[row] = name in found
        if not present.all():
            if name not in OURS:
                row = int(np.flatnonzero(~present)[0])
                raise BadRecord(row, 0, f"there is no feature {name}")
            lacking.add(name)
            if not present.any():
                continue
        wrong = fast[span.kind[fast] != KINDS[name]]
        if len(wrong):
            raise BadRecord(int(wrong[0]), int((span.begin - starts)[wrong[0]]), f"{name} is of another type")
        width = _width(name, spec)
        if len(fast) == n:
            records[name] = _values(buffer, span.begin, span.end, name, width, fast, starts)
            continue
        out = records[name] = _absent(name, n, width)
        out[fast] = _values(buffer, span.begin[fast], span.end[fast], name, width, fast, starts)
        for row, found in lists.items():
            if name in found:
                out[row] = _slow_values(found[name], name, width, row)
    return records


_SPARE = 192  # bytes, more than the head of an entry has
_BLOCK = 8192  # records whose entries are found together: many, because a search is many calls of NumPy
_VALUES = 1 << 16  # decoded at a time: what belongs to them stays in the processor's cache
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


class _Span:
    """Where the payload of one feature lies in each record (-1: nowhere), and the number of its list's type."""

    def __init__(self, n: int) -> None:
        self.begin = np.full(n, -1, np.int64)
        self.end = np.full(n, -1, np.int64)
        self.kind = np.zeros(n, np.int8)


def _spans(
    buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray, heads: list[list[_EntryHead]]
) -> tuple[dict[str, _Span], np.ndarray]:
    """Where the payload of each known feature lies.

    All records step over their map entries together. At each step the head of one record's entry is taken and found
    by comparison in all others; then that of one in which it was not, and so on. Records that were written by one
    program have one head a step, or a few where sizes differ in their number of bytes.

    Args:
        heads: of each step, as earlier blocks had them; new ones are added.

    Returns:
        The spans by name, and bool[n]: records that are not of the usual form and must be parsed one by one.
    """
    n = len(starts)
    spans: dict[str, _Span] = {}
    cursor, stop, fine = _field(buffer, starts, ends, 0x0A)
    slow = ~fine | (stop != ends)
    for step in range(_STEPS):
        rest = np.flatnonzero((cursor < stop) & ~slow)
        if not len(rest):
            return spans, slow
        if step == len(heads):
            heads.append([])
        for tried in range(_HEADS):
            if tried == len(heads[step]):
                head = _entry_head(buffer, int(cursor[rest[0]]), int(stop[rest[0]]))
                if head is None:
                    break
                heads[step].append(head)
            head = heads[step][tried]
            here = rest if len(rest) < n else slice(None)
            at = cursor[here]
            window = windows(buffer, at, 8 * len(head.mask))
            words = window.view(np.uint64)
            if (words & head.extent == head.bytes).all():  # sizes too, as most features have it
                end = at + head.size
                odd = end > stop[here]
                rest = rest[:0]
            else:
                other = (words & head.mask != head.bytes & head.mask).any(axis=1)
                if other.any():
                    window, at, here, rest = window[~other], at[~other], rest[~other], rest[other]
                else:
                    rest = rest[:0]
                # a varint of known form is a sum of its bytes, each times a power of 128
                said = head.factors @ (window[:, head.places] & 127).T.astype(np.int64)
                ends = at + (said + head.after[:, None])
                end = ends[0]
                odd = (ends != end).any(axis=0) | (end > stop[here]) | (end < at + head.length)
            if head.name is not None:
                span = spans.setdefault(head.name, _Span(n))
                span.begin[here], span.end[here], span.kind[here] = at + head.length, end, head.kind
            slow[here] |= odd
            cursor[here] = end
            if not len(rest):
                break
        slow[rest] = True
    slow |= cursor < stop
    return spans, slow


_STEPS = 64  # entries of a record
_HEADS = 16  # of one step: enough for ten features in any order


@dataclass(frozen=True)
class _EntryHead:
    """The bytes of a map entry up to its payload; or up to its value, where the name is unknown (None)."""

    name: str | None
    kind: int
    length: int
    size: int  # of the whole entry
    places: np.ndarray  # int64[b], of the bytes of the varints, each of which says where the entry ends
    factors: np.ndarray  # int64[v, b], what each byte counts in each varint
    after: np.ndarray  # int64[v], the place behind each varint
    bytes: np.ndarray  # uint64[w], the head filled up with zeros
    extent: np.ndarray  # uint64[w], ones where the head is
    mask: np.ndarray  # uint64[w], the same without the bits that say sizes


def _entry_head(buffer: np.ndarray, at: int, stop: int) -> _EntryHead | None:
    """The head of the map entry at a place; None if its form is unusual."""
    data = buffer[at : min(at + _SPARE, stop)].tobytes() + bytes(2)
    mask = bytearray()
    sizes: list[tuple[int, int]] = []
    ends: set[int] = set()

    def literal(text: bytes) -> bool:
        fits = data.startswith(text, len(mask))
        mask.extend(b"\xff" * len(text))
        return fits

    def size() -> None:
        place, value = len(mask), 0
        while data[len(mask)] > 127 and len(mask) - place < 4:
            value |= (data[len(mask)] & 127) << 7 * (len(mask) - place)
            mask.append(128)
        value |= data[len(mask)] << 7 * (len(mask) - place)
        mask.append(128)
        sizes.append((place, len(mask) - place))
        ends.add(len(mask) + value)

    if not literal(b"\x0a"):
        return None
    size()
    if not literal(b"\x0a"):
        return None
    key = data[len(mask) + 1 : len(mask) + 1 + data[len(mask)]]
    if data[len(mask)] > 127 or not literal(bytes([len(key)]) + key):
        return None
    name, kind = key.decode("latin-1"), 0
    if name in NAMES:
        if not literal(b"\x12"):
            return None
        size()
        kind = data[len(mask)] >> 3
        if not literal(bytes([kind << 3 | 2])):
            return None
        size()
        if not literal(b"\x0a"):
            return None
        size()
    length, end = len(mask), min(ends)
    if len(ends) > 1 or length > end or at + end > stop:
        return None
    fill = bytes(-length % 8)
    factors = np.zeros((len(sizes), sum(width for _, width in sizes)), np.int64)
    for number, (_, width) in enumerate(sizes):
        first = sum(width for _, width in sizes[:number])
        factors[number, first : first + width] = 128 ** np.arange(width)
    return _EntryHead(
        name=name if name in NAMES else None,
        kind=kind,
        length=length,
        size=end,
        places=np.concatenate([np.arange(place, place + width) for place, width in sizes]),
        factors=factors,
        after=np.array([place + width for place, width in sizes]),
        bytes=np.frombuffer(data[:length] + fill, np.uint64),
        extent=np.frombuffer(b"\xff" * length + fill, np.uint64),
        mask=np.frombuffer(bytes(mask) + fill, np.uint64),
    )


def _values(
    buffer: np.ndarray,
    begin: np.ndarray,
    end: np.ndarray,
    name: str,
    width: int,
    rows: np.ndarray,
    starts: np.ndarray,
) -> np.ndarray:
    """Payloads to values, all rows together: [len(rows), width]."""
    sizes = end - begin

    def wrong(where: np.ndarray, what: str) -> BadRecord:
        first = int(np.flatnonzero(where)[0])
        return BadRecord(int(rows[first]), int(begin[first] - starts[rows[first]]), what)

    fixed = {1: -(-width // 8), 2: 4 * width}.get(KINDS[name])
    if fixed is not None:
        if (sizes != fixed).any():
            raise wrong(sizes != fixed, f"{name} has not the {fixed} bytes that it should have")
        raw = windows(buffer, begin, fixed)
        if KINDS[name] == 1:
            return np.unpackbits(raw, axis=1, count=width, bitorder="little").view(bool)
        return raw.view("<f4")
    # Usually one byte a value (masks, segments): the payload is the list.
    if (sizes == width).all():
        raw = windows(buffer, begin, width)
        if raw.max(initial=0) < 128:
            return raw
    step = max(1, _VALUES // max(1, width))
    if len(rows) > step:
        parts = (slice(first, first + step) for first in range(0, len(rows), step))
        return np.concatenate([_values(buffer, begin[p], end[p], name, width, rows[p], starts) for p in parts])
    raw = windows(buffer, begin, int(sizes.max()) + _LONGEST)
    raw[:, -2:] = 0  # so that nothing behind a list seems to go on in the next row
    small = np.uint16 if raw.shape[1] < 1 << 16 else np.int64  # several times faster
    # A value begins at the first byte of the list and behind each that is below 128.
    begins, more = np.arange(raw.shape[1], dtype=small) < sizes.astype(small)[:, None], raw > 127
    np.greater(begins[:, 1:], more[:, :-1], out=begins[:, 1:])
    first = np.flatnonzero(begins)
    bases = raw.shape[1] * np.arange(len(rows))
    closed = ~more.reshape(-1)[bases + np.maximum(sizes - 1, 0)] | (sizes == 0)
    # Each row has `width` values if all together have so many and each row's share begins where the row does.
    if len(first) != len(rows) * width or (first[::width] != bases).any() or not closed.all():
        counts = begins.sum(1) - ~closed
        bad = (counts != width) | ~closed
        raise wrong(bad, f"{name} has {int(counts[bad][0])} values where {width} are expected")
    value = _short_varints(raw.reshape(-1), more.reshape(-1), first)
    if value is None:
        size = np.diff(first, append=0)
        size[width - 1 :: width] = bases + sizes - first[width - 1 :: width]
        if size.max() > _LONGEST:
            longest = size.reshape(-1, width).max(axis=1)
            raise wrong(longest > _LONGEST, f"{name} holds a varint of more than ten bytes")
        value = _narrow(_long_varints(raw.reshape(-1), first, size - 1, int(size.max())), name)
    return value.reshape(-1, width)


_LONGEST = 10  # bytes of a varint


def _short_varints(data: np.ndarray, more: np.ndarray, first: np.ndarray) -> np.ndarray | None:
    """The varints that begin at these places of uint8[m]: uint16 or int32; None if one has more than three bytes.

    `more` bool[m] says which bytes another one follows; _LONGEST bytes must follow the last place. For each byte is
    computed what it would begin, because that is done many bytes at once, and taking single ones is not.
    """
    more, low = more.view(np.uint8), data & np.uint8(127)
    second = low[1:-1] * more[:-2]
    third = data[2:] * (more[:-2] & more[1:-1])  # 0, as the second, where the value has ended before
    most = int(third.max(initial=0))
    if most < 4:  # so all are below 65,536; products, because NumPy shifts take twice as long
        second |= third * np.uint8(1 << 7)  # its lowest bit: the second has seven
        value = np.multiply(second, np.uint16(1 << 7), dtype=np.uint16)
        value += low[:-2]
        if most > 1:
            value += np.multiply(third & np.uint8(2), np.uint16(1 << 14), dtype=np.uint16)
        return value.take(first)
    third = third.take(first).astype(np.int32)
    if third.max() > 127:
        return None
    return low.take(first) + (second.take(first).astype(np.int32) << 7) + (third << 14)


def _long_varints(data: np.ndarray, first: np.ndarray, further: np.ndarray, longest: int) -> np.ndarray:
    """The same for any, with `further` bytes after the first and `longest` in all at most: int64."""
    value = np.zeros(first.shape, np.uint64)
    for place in range(longest):
        byte = (data[place:][first] & np.uint8(127)).astype(np.uint64) << np.uint64(7 * place)
        value |= np.where(place <= further, byte, np.uint64(0))
    return value.view(np.int64)


def _narrow(value: np.ndarray, name: str) -> np.ndarray:
    # Out-of-range values must stay out of range in int32, for `check` to find them.
    return value if _DTYPES[name] == np.int64 else np.clip(value, -(2**31), 2**31 - 1)


def windows(buffer: np.ndarray, begin: np.ndarray, width: int) -> np.ndarray:
    """Copies `width` bytes at each place, all within the buffer: uint8[n,width]."""
    # As single items of so many bytes they are copied twice as fast as rows of bytes are.
    view = np.ndarray(len(buffer) - width + 1, f"V{width}", buffer, 0, (1,))
    return view[begin].view(np.uint8).reshape(len(begin), width)  # np.take would first copy the whole view


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


def _slow_values(found: tuple[int, list], name: str, width: int, row: int) -> np.ndarray:
    kind, values = found
    if kind != KINDS[name]:
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
