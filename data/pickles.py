"""Pickles of plain containers and numeric arrays, read without running code.

Python's unpickler calls what a file names, allocates what a file claims, and
hashes keys however deep or chosen they are. Here it therefore gets only what
`_check` has let through, and in place of NumPy's functions it finds stand-ins
that run nothing. Time and memory are proportional to the size of the file.
"""

import io
import math
import pickle
import pickletools

import numpy as np

# An agent needs far less than these; they bound the cost of a bad file.
MAX_BYTES = 2 ** 31
MAX_ITEMS = 30_000
MAX_OPCODES = 30 * MAX_ITEMS
MAX_DEPTH = 32


class Refused(ValueError):
  """Tells what is wrong with a file's content, to follow the file's name."""


def dump(data, file):
  """Writes plain containers and numeric arrays such as `loads` reads.

  Raises `Refused` before anything is written if `data` holds anything else.
  """
  pickle.dump(_plain(data), file, protocol=4)


def loads(content):
  """The plain containers and numeric arrays in the bytes of a pickle.

  Arrays come in this machine's byte order and may be written to. The protocol
  may be any; byte strings of Python 2 come as text. Raises `Refused`.
  """
  # Before protocol 2 anything may begin a pickle, even a line of text.
  perhaps_none = content[:1] != pickle.PROTO
  try:
    _check(content)
    perhaps_none = False
    unpickler = _Unpickler(io.BytesIO(content), encoding='latin1')
    return _plain(unpickler.load(), most=2 * len(content))
  except MemoryError:
    raise Refused('does not fit in memory') from None
  except (ArithmeticError, AttributeError, EOFError, LookupError, TypeError,
          ValueError, pickle.UnpicklingError) as error:
    if perhaps_none:
      raise Refused(
          'is not a checkpoint: it is no pickle, or one of protocol 0 or 1 '
          'that cannot be read here and should be saved with a later one'
      ) from None
    if isinstance(error, Refused):
      raise
    raise Refused('is damaged: its pickle makes no sense') from None


def short(value):
  """A value on one line of a message, however large it is."""
  return repr(value)[:200]


### Before unpickling ###

_ALLOWED = set(
    'PROTO FRAME STOP MARK GLOBAL STACK_GLOBAL REDUCE BUILD '
    'NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT '
    'BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE '
    'SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 '
    'BYTEARRAY8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST '
    'APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS PUT BINPUT LONG_BINPUT '
    'MEMOIZE GET BINGET LONG_BINGET'.split())


def _check(content):
  """Refuses what plain data does not need, and claims beyond the content.

  Follows the unpickler's stack, on which it has the set of its keys for a
  dict, the value for what may be a key, and None for everything else.
  """
  stack, marked, memo = [], [], {}
  for count, (opcode, argument) in enumerate(_opcodes(content)):
    name, before = opcode.name, opcode.stack_before
    if name not in _ALLOWED:
      raise Refused(
          f'is refused: its pickle uses {name}, which plain containers and '
          'numeric arrays do not need and which may run code')
    if count == MAX_OPCODES:
      raise Refused('is not a checkpoint: it has too many parts')
    if name == 'MARK':
      marked.append(stack)
      stack = []
      continue
    taken = []
    if pickletools.markobject in before:
      taken, stack = stack, marked.pop()
      before = before[:before.index(pickletools.markobject)]
    taken = [stack.pop() for _ in before][::-1] + taken
    made = None
    if name.endswith('PUT'):
      # The unpickler makes room for all indices up to this one.
      if argument > MAX_OPCODES:
        raise ValueError('memo index')
      memo[argument] = stack[-1]
    elif name == 'MEMOIZE':
      made = memo[len(memo)] = taken[0]
    elif name.endswith('GET'):
      made = memo[argument]
    elif name in ('EMPTY_DICT', 'DICT'):
      made = _with_keys(set(), taken)
    elif name in ('SETITEM', 'SETITEMS'):
      made = _with_keys(taken[0], taken[1:])
    elif name != 'GLOBAL' and _is_key(argument):
      made = argument
    if opcode.stack_after:
      stack.append(made)
  if stack or marked:
    raise Refused('is damaged: its parts do not make a whole')


def _opcodes(content):
  """Yields each opcode and its argument, to the last byte."""
  file = io.BytesIO(content)
  try:
    for opcode, argument, _ in pickletools.genops(file):
      if opcode.name == 'PROTO' and argument > pickle.HIGHEST_PROTOCOL:
        raise Refused(
            f'is in pickle protocol {argument}, not in 0 to '
            f'{pickle.HIGHEST_PROTOCOL}')
      yield opcode, argument
  except ValueError as error:
    if type(error) is ValueError and file.tell() == len(content):
      raise Refused(
          f'is truncated: {len(content):,} bytes are not all of it') from None
    raise
  if file.tell() != len(content):
    raise Refused(
        f'is damaged: it goes on after its end at byte {file.tell():,}')


def _with_keys(known, items):
  """The keys of a dict together with those of `[key, value, ...]`."""
  keys = items[::2]
  if type(known) is not set or len(items) % 2:
    raise Refused('is damaged: it sets items of what is no dict')
  if not all(map(_is_key, keys)):
    raise Refused('has a dict whose keys are not names or small integers')
  size = len(known) + len(keys)
  known.update(keys)
  if len(known) != size:
    raise Refused('is damaged: it has two items of one name')
  return known


def _is_key(key):
  # Numbers with large hashes could be chosen to make a dict slow.
  return type(key) is str or type(key) is int and abs(key) < 2 ** 31


### Unpickling ###

_CORES = 'numpy.core', 'numpy._core'
_FUNCTIONS = {
    'numpy.dtype', 'numpy.ndarray', '_codecs.encode', '__builtin__.bytes',
    *(f'{core}.{name}' for core in _CORES for name in (
        'multiarray._reconstruct', 'multiarray.scalar',
        'numeric._frombuffer'))}
_CODES = {
    'b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8'}


class _Unpickler(pickle.Unpickler):
  """Finds stand-ins for the few functions that NumPy's arrays name."""

  def find_class(self, owner, name):
    if f'{owner}.{name}' not in _FUNCTIONS:
      raise Refused(
          f'is refused: it asks for {short(f"{owner}.{name}")}, a checkpoint '
          'holds nothing but plain containers and numeric arrays')
    return _Call(name.split('.')[-1])


class _Call:
  """Stands in for a function, and for what a call of it gives."""

  __slots__ = 'name', 'arguments', 'state'

  def __init__(self, name, arguments=None):
    self.name = name
    self.arguments = arguments
    self.state = None

  def __call__(self, *arguments):
    if self.arguments is not None:
      raise Refused('is damaged: it calls what is no function')
    return _Call(self.name, arguments)

  def __setstate__(self, state):
    if self.arguments is None or self.state is not None:
      raise Refused('is damaged: it fills what is no new array')
    self.state = state


def _value(call):
  """The array, number or bytes that a call stands for."""
  if call.name == '_reconstruct' and call.state:
    version, shape, dtype, fortran, raw = call.state
    return _array(raw, dtype, shape, 'F' if fortran else 'C')
  if call.name == 'scalar' and call.arguments:
    dtype, raw = call.arguments
    return _array(raw, dtype, ())[()]
  if call.name == '_frombuffer' and call.arguments:
    raw, dtype, shape, order, *axes = call.arguments
    if order in ('C', 'F'):
      return _array(raw, dtype, shape, order)
    if order == 'K' and all(map(_is_shape, axes)):
      return _array(raw, dtype, shape).transpose(*axes)
  if call.name in ('encode', 'bytes') and call.arguments is not None:
    return _bytes(call)
  raise Refused('is damaged: it calls what no array needs')


def _array(raw, dtype, shape, order='C'):
  """An array of this machine's byte order from all of `raw`."""
  raw, dtype = _bytes(raw), _dtype(dtype)
  if not _is_shape(shape):
    raise Refused('is damaged: an array has no usable shape')
  # Empty arrays must not claim huge shapes either.
  claimed = math.prod(size or 1 for size in shape) * dtype.itemsize
  if (math.prod(shape) * dtype.itemsize != len(raw)
      or claimed > max(len(raw), 2 ** 16)):
    raise Refused(
        f'is damaged: an array of shape {short(shape)} has {len(raw)} bytes')
  if dtype.kind == 'b' and raw.translate(None, b'\0\1'):
    raise Refused('is damaged: a truth value is neither true nor false')
  array = np.ndarray(shape, dtype, raw, order=order)
  return array.astype(dtype.newbyteorder('='), order='C')


def _bytes(value):
  """Bytes; older protocols have them as text, Python 3 with a call."""
  if type(value) is _Call and value.name == 'bytes' and not value.arguments:
    value = b''
  elif type(value) is _Call and value.name == 'encode':
    value, encoding = value.arguments
    if type(value) is not str or encoding != 'latin1':
      raise Refused('is damaged: it calls what no array needs')
  if type(value) is str:
    value = value.encode('latin1')
  if type(value) not in (bytes, bytearray):
    raise Refused('is damaged: an array has no content')
  return value


def _dtype(call):
  if type(call) is not _Call or call.name != 'dtype':
    raise Refused('is damaged: an array has no dtype')
  code, order, parts = call.arguments[0], '=', ()
  if call.state is not None:
    version, order, *parts = call.state
  if type(code) is not str or code not in _CODES:
    raise Refused('holds an array that is not numeric')
  if order not in ('<', '>', '|', '=') or any(parts[:3]):
    raise Refused('holds an array whose items have parts')
  return np.dtype(order + code)


def _is_shape(value):
  return type(value) is tuple and len(value) <= 16 and all(
      type(size) is int and 0 <= size <= MAX_BYTES for size in value)


### Plain values ###


def _plain(data, most=math.inf):
  """A copy of nested containers that holds plain values and arrays only.

  A file may name the same bytes many times; `most` bytes are made of calls.
  """
  items = copied = 0
  def copy(value, depth):
    nonlocal items, copied
    items += 1
    if items > MAX_ITEMS or depth > MAX_DEPTH:
      raise Refused('is nested too deeply or holds too many items')
    if type(value) is _Call:
      value = _value(value)
      copied += len(value) if type(value) is bytes else value.nbytes
      if copied > most:
        raise Refused('is not a checkpoint: it copies its bytes many times')
    kind = type(value)
    if kind in (list, tuple):
      return kind([copy(item, depth + 1) for item in value])
    if kind is dict and all(map(_is_key, value)):
      return {key: copy(item, depth + 1) for key, item in value.items()}
    if kind in (str, int, float, bool, bytes, type(None)):
      return value
    if kind is np.ndarray or isinstance(value, np.generic):
      if value.dtype.str[1:] in _CODES:
        return value
    raise Refused(f'holds a {kind.__name__}, not a plain value or an array')
  return copy(data, 1)
