"""Checkpoint and module files: written whole, and read without running code.

A checkpoint is a pickled dict of plain containers and NumPy arrays:
`{'format': 'dreamer-checkpoint-1', 'variables': {'reward/hout/bias': array},
'config': {...}, 'script': 'dreamer.py', 'step': 3000, 'action_dim': 3, ...}`. A
module file has the format 'dreamer-module-1', the variables of one module and,
under 'module', its name. The files of the public scripts, tuples of arrays
without names, are read as well.
"""

import contextlib
import math
import pathlib
import pickle
import pickletools
import struct

import numpy as np

from common import files, layers, terminal
from data import logdir

CHECKPOINT = 'dreamer-checkpoint-1'
MODULE = 'dreamer-module-1'

# Modules and layers in the order of the old files.
LAYERS = {name: layers.names(name) for name in layers.MODULES}

# What an agent needs is far below these; they bound what a bad file can cost.
MAX_BYTES = 2 ** 31
MAX_ITEMS = 30_000
MAX_OPCODES = 30 * MAX_ITEMS
MAX_DEPTH = 32


class Damaged(terminal.UserError):
  """A file that is there but holds no usable checkpoint."""

  def __init__(self, problem):
    super().__init__(
        f'{problem}; use another copy of it, or another checkpoint')
    self.problem = problem


class _Refused(ValueError):
  """What is wrong with a file's content, to follow the file's name."""


### Whole checkpoints and single modules ###


def load(path):
  """A whole checkpoint in today's format, whatever the age of the file.

  What an old file does not say is read off its array shapes: `action_dim`, and
  of the config `cnn_depth`, `deter_size`, `stoch_size`, `num_units`, `pcont`
  and `action_dist`. Its script is None.
  """
  with _reading(path):
    data = _read(path)
    if isinstance(data, (list, tuple)):
      return _from_positions(data)
    _check_format(data)
    if data['format'] == MODULE:
      raise _Refused(
          f'holds only a module ({_short(data["module"])}), '
          'a whole checkpoint is needed here')
    return data


def newest(path):
  """The newest complete checkpoint of a run, and the file that it is in.

  The file is `path` or, where that is damaged or missing, `previous(path)`.
  Reads only. Raises `UserError` if neither holds a checkpoint.
  """
  path = pathlib.Path(path)
  older = previous(path)
  if not older.exists():
    return load(path), path
  if not path.exists():
    terminal.warn(f'{path} is missing; {older} is taken in its place')
    return load(older), older
  try:
    return load(path), path
  except Damaged as error:
    problem = error.problem
  try:
    data = load(older)
  except Damaged as error:
    raise Damaged(f'{problem}, and {error.problem}') from None
  terminal.warn(f'{problem}; {older} is taken in its place')
  return data, older


def recover(path):
  """The newest complete checkpoint of a run, or None where there is none.

  A damaged file is put aside as e.g. `variables.damaged.pkl`: the next `save`
  must not put it in the place of the good previous one. For the process that
  has locked the run; others use `newest`.
  """
  path = pathlib.Path(path)
  if not path.exists() and not previous(path).exists():
    return None
  data, file = newest(path)
  if file == path or not path.exists():
    return data
  aside = path.with_name(f'{path.stem}.damaged{path.suffix}')
  with files.writing(path):
    path.replace(aside)
  terminal.warn(f'the damaged {path.name} is now {aside}')
  return data


def previous(path):
  """Where `save` with `keep` leaves the file that it replaces."""
  path = pathlib.Path(path)
  return path.with_name(f'{path.stem}.prev{path.suffix}')


def module(path, name):
  """Variables of one module, `{'reward/h0/kernel': array, ...}`.

  The file is a module file or a whole checkpoint, today's or old.
  """
  with _reading(path):
    data = _read(path)
    if isinstance(data, (list, tuple)):
      variables = _module_from_positions(data, name)
    else:
      _check_format(data)
      variables = data['variables']
    found = {
        key: value for key, value in variables.items()
        if key.startswith(f'{name}/')}
    if not found:
      held = sorted({key.split('/')[0] for key in variables})
      raise _Refused(f'has no {name} module, it has {_short(held)}')
    return found


def save_module(path, name, variables, config):
  """Writes the variables of one module, named as in a checkpoint."""
  strangers = [key for key in variables if not key.startswith(f'{name}/')]
  if strangers or name not in LAYERS:
    raise ValueError(f'not variables of the {name} module: {strangers}')
  save(path, {
      'format': MODULE, 'module': name, 'variables': dict(variables),
      'config': dict(config)})


def _check_format(data):
  kind = data.get('format') if isinstance(data, dict) else None
  fields = {'variables': dict, 'config': dict}
  if kind == CHECKPOINT:
    fields.update(script=str, step=int, action_dim=int)
  elif kind == MODULE:
    fields.update(module=str)
  else:
    raise _Refused(
        f'is not a checkpoint: its format is {_short(kind)}, '
        f'not {CHECKPOINT} or {MODULE}')
  for key, expected in fields.items():
    if not isinstance(data.get(key), expected):
      raise _Refused(f'is not a checkpoint: it has no usable {key}')
  for key, value in data['variables'].items():
    if not isinstance(key, str) or not isinstance(value, np.ndarray):
      raise _Refused(f'has no array for the variable {_short(key)}')


### The old format: arrays by position ###


def _from_positions(data):
  arrays = _arrays(data)
  if len(arrays) not in _AGENTS:
    raise _Refused(
        f'is not an old checkpoint: it holds {len(arrays)} arrays, '
        f'an agent has {" or ".join(map(str, _AGENTS))}')
  modules = _order(arrays)
  variables, sizes = {}, {}
  for name in modules:
    count = len(_names(name))
    found, measured = _named(name, arrays[:count])
    arrays = arrays[count:]
    variables.update(found)
    for size, value in measured.items():
      if sizes.setdefault(size, value) != value:
        raise _Refused(
            f'is not an old checkpoint: {size} is {sizes[size]} in its other '
            f'modules and {value} in its {name}')
  return {
      'format': CHECKPOINT, 'variables': variables,
      'config': _config(sizes, 'pcont' in modules),
      'action_dim': sizes['action_dim'], 'script': None, 'step': _step(data)}


def _module_from_positions(data, name):
  arrays = _arrays(data)
  if len(arrays) in _AGENTS:
    return _from_positions(data)['variables']
  if len(arrays) != len(_names(name)):
    raise _Refused(
        f'is not an old {name} module: it holds {len(arrays)} arrays, '
        f'such a module has {len(_names(name))}')
  return _named(name, arrays)[0]


def _arrays(data):
  """The variables of an old file; its scalars are the step and metric sums."""
  for item in data:
    if not isinstance(item, (int, float, np.generic, np.ndarray)):
      raise _Refused(
          f'is not an old checkpoint: it holds a {type(item).__name__} '
          'between its arrays')
  return [item for item in data if np.ndim(item)]


def _step(data):
  scalars = [np.asarray(item) for item in data if not np.ndim(item)]
  counts = [item for item in scalars if item.dtype.kind in 'iu']
  return int(counts[0]) if counts else 0


def _names(name):
  kernels = {'gru': ('kernel', 'recurrent_kernel')}
  return [
      f'{layer}/{variable}' for layer in LAYERS[name]
      for variable in (*kernels.get(layer, ('kernel',)), 'bias')]


_AGENTS = {
    sum(len(_names(name)) for name in modules): modules
    for modules in ([name for name in LAYERS if name != 'pcont'], [*LAYERS])}


def _order(arrays):
  """The modules of an old checkpoint.

  By name pcont comes before the reward, but in files that were written after
  the optimizer was made it follows: one hidden layer more tells them apart.
  """
  modules = _AGENTS[len(arrays)]
  start = sum(len(_names(name)) for name in modules[:4])
  ends_reward = arrays[start + len(_names('reward')) - 1].shape == (1,)
  if 'pcont' in modules and ends_reward:
    return [*modules[:4], 'reward', 'pcont', 'value']
  return modules


def _named(name, arrays):
  """The variables of a module and its sizes, if every shape fits them."""
  arrays = dict(zip(_names(name), arrays))
  sizes = _measure(name, arrays)
  shapes = _shapes(name, sizes)
  for key, array in arrays.items():
    if array.shape != shapes[key] or array.dtype.kind != 'f':
      raise _Refused(
          f'is no old checkpoint or {name} module: {name}/{key} would be '
          f'{array.dtype}{[*array.shape]}, and float{[*shapes[key]]} goes with '
          'the other arrays')
  named = {
      f'{name}/{key}': array.astype(np.float32)
      for key, array in arrays.items()}
  return named, sizes


def _measure(name, arrays):
  """The sizes that shape a module, each read off one of its arrays."""
  def rows(key):
    return arrays[key].shape[0]
  def columns(key):
    return arrays[key].shape[-1]
  if name == 'encoder':
    return {'cnn_depth': columns('h1/kernel')}
  if name == 'decoder':
    return {'features': rows('h1/kernel'), 'cnn_depth': columns('h5/kernel')}
  if name == 'dynamics':
    deter = rows('gru/recurrent_kernel')
    stoch = rows('img3/bias') // 2
    return {
        'deter_size': deter, 'stoch_size': stoch, 'features': deter + stoch,
        'cnn_depth': (rows('obs1/kernel') - deter) // layers.embed_size(1),
        'action_dim': rows('img1/kernel') - stoch}
  sizes = {'features': rows('h0/kernel'), 'num_units': columns('h0/kernel')}
  if name == 'actor':
    sizes['action_outputs'] = columns('hout/kernel')
  return sizes


def _shapes(name, sizes):
  """The shape of each variable of a module of the given sizes."""
  kernels = _kernels(name, sizes)
  shapes = {}
  for layer, kernel in kernels.items():
    transposed = name == 'decoder' and len(kernel) == 4
    shapes[f'{layer}/kernel'] = shapes[f'{layer}/recurrent_kernel'] = kernel
    shapes[f'{layer}/bias'] = (kernel[-2] if transposed else kernel[-1],)
  if name == 'dynamics':
    shapes['gru/bias'] = (2, *shapes['gru/bias'])
  return shapes


def _kernels(name, sizes):
  if name == 'encoder':
    return layers.encoder(sizes['cnn_depth'])
  if name == 'decoder':
    return layers.decoder(sizes['features'], sizes['cnn_depth'])
  if name == 'dynamics':
    return layers.dynamics(
        sizes['stoch_size'], sizes['deter_size'], sizes['action_dim'],
        layers.embed_size(sizes['cnn_depth']))
  outputs = sizes['action_outputs'] if name == 'actor' else 1
  return layers.head(
      sizes['features'], [sizes['num_units']] * layers.HIDDEN[name], outputs)


def _config(sizes, pcont):
  actions, outputs = sizes['action_dim'], sizes['action_outputs']
  if outputs not in (actions, 2 * actions):
    raise _Refused(
        f'is not an old checkpoint: its actor has {outputs} outputs for '
        f'{actions} actions')
  keys = ('cnn_depth', 'deter_size', 'stoch_size', 'num_units')
  return {
      **{key: sizes[key] for key in keys}, 'pcont': pcont,
      'action_dist': 'onehot' if outputs == actions else 'tanh_normal'}


### Writing ###


def save(path, data, keep=False):
  """Writes plain containers and numeric arrays; complete or not at all.

  With `keep` the file that was there stays as `previous(path)`. Whatever stops
  the program, one of the two names holds a complete file. If the disk is full,
  `path` keeps what it had.
  """
  path = pathlib.Path(path)
  data = _plain(data)
  with files.writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path, previous(path) if keep else None) as file:
    pickle.dump(data, file, protocol=4)


### Reading ###


def read(path):
  """The plain containers and numeric arrays of a file.

  Raises `UserError` if the file holds anything else, is damaged or is missing.
  """
  with _reading(path):
    return _read(path)


@contextlib.contextmanager
def _reading(path):
  try:
    yield
  except _Refused as refused:
    raise Damaged(f'{path} {refused}') from None


def _read(path):
  try:
    return _plain(_Unpickler(_content(pathlib.Path(path))).run())
  except _Refused:
    raise
  # What bytes that are no pickle, or not a whole one, run into.
  except (ArithmeticError, LookupError, TypeError, ValueError, struct.error):
    raise _Refused('is damaged: its pickle makes no sense') from None
  except MemoryError:
    raise _Refused('does not fit in memory') from None


def _content(path):
  try:
    if not path.exists():
      raise terminal.UserError(
          f'{path} does not exist; name a checkpoint such as '
          f'{logdir.CHECKPOINT}')
    if not path.is_file():
      raise terminal.UserError(
          f'{path} is not a file; name the checkpoint itself, such as '
          f'{logdir.Logdir(path).checkpoint}')
    if path.stat().st_size > MAX_BYTES:
      raise _Refused(
          f'is not a checkpoint: it has more than {MAX_BYTES:,} bytes')
    return path.read_bytes()
  except OSError as error:
    raise terminal.UserError(
        f'{path} cannot be read: {error.strerror}; check its permissions and '
        'the disk') from None


def _short(value):
  """A value on one line of a message, however large it is."""
  return repr(value)[:200]


### The pickles that are read: plain containers and numeric arrays ###
#
# Python's own unpickler runs what a file asks for, and reserves what a file
# claims. This one knows the opcodes that plain data needs, and stands in for
# the few functions that NumPy's arrays name.

_CONSTANTS = {
    pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False}
_EMPTY = {
    pickle.EMPTY_TUPLE: tuple, pickle.EMPTY_LIST: list,
    pickle.EMPTY_DICT: dict}
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
_NUMBERS = {
    pickle.BININT: '<i', pickle.BININT1: '<B', pickle.BININT2: '<H',
    pickle.BINFLOAT: '>d', pickle.PROTO: '<B', pickle.FRAME: '<Q',
    pickle.BINPUT: '<B', pickle.LONG_BINPUT: '<I', pickle.BINGET: '<B',
    pickle.LONG_BINGET: '<I'}


def _text(raw):
  # File names that are no text are kept in this way.
  return raw.decode('utf-8', 'surrogatepass')


# The format of the length, and what the bytes that follow it mean.
_COUNTED = {
    pickle.LONG1: ('<B', pickle.decode_long),
    pickle.SHORT_BINUNICODE: ('<B', _text),
    pickle.BINUNICODE: ('<I', _text), pickle.BINUNICODE8: ('<Q', _text),
    pickle.SHORT_BINBYTES: ('<B', bytes), pickle.BINBYTES: ('<I', bytes),
    pickle.BINBYTES8: ('<Q', bytes), pickle.BYTEARRAY8: ('<Q', bytes)}
_BARE = {
    pickle.STOP, pickle.MARK, pickle.TUPLE, pickle.APPEND, pickle.APPENDS,
    pickle.SETITEM, pickle.SETITEMS, pickle.MEMOIZE, pickle.GLOBAL,
    pickle.STACK_GLOBAL, pickle.REDUCE, pickle.BUILD,
    *_CONSTANTS, *_EMPTY, *_TUPLES}

_GLOBALS = {
    'numpy.dtype', 'numpy.ndarray', '_codecs.encode', '__builtin__.bytes',
    *(f'numpy.{core}.{name}' for core in ('core', '_core') for name in (
        'multiarray._reconstruct', 'multiarray.scalar',
        'numeric._frombuffer'))}
_DTYPES = {
    'b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8'}


class _Global:
  """Stands in for a function or class, by the last part of its name."""

  def __init__(self, name):
    self.name = name


class _Dtype:
  """Stands in for a dtype until its byte order is known."""

  def __init__(self, code):
    if type(code) is not str or code not in _DTYPES:
      raise _Refused('holds an array that is not numeric')
    self.code = code
    self.order = '='

  def build(self, state):
    version, self.order, *rest = state
    if self.order not in ('<', '>', '|', '=') or any(rest[:3]):
      raise _Refused('holds an array whose items have parts')


class _Array:
  """Stands in for an array until its content is known."""

  def __init__(self, value=None):
    self.value = value


def _array(raw, dtype, shape, order='C'):
  """An array of this machine's byte order from all of `raw`."""
  if type(raw) is not bytes or type(dtype) is not _Dtype:
    raise _Refused('is damaged: an array has no content')
  if not _is_shape(shape):
    raise _Refused('is damaged: an array has no usable shape')
  dtype = np.dtype(dtype.order + dtype.code)
  # Empty arrays must not claim huge shapes either.
  claimed = math.prod(size or 1 for size in shape) * dtype.itemsize
  if (math.prod(shape) * dtype.itemsize != len(raw)
      or claimed > max(len(raw), 2 ** 16)):
    raise _Refused(
        f'is damaged: an array of shape {_short(shape)} has {len(raw)} bytes')
  if dtype.kind == 'b' and raw.translate(None, b'\0\1'):
    raise _Refused('is damaged: a truth value is neither true nor false')
  array = np.ndarray(shape, dtype, raw, order=order)
  return array.astype(dtype.newbyteorder('='), order='C')


def _is_shape(value):
  return type(value) is tuple and len(value) <= 16 and all(
      type(size) is int and 0 <= size <= MAX_BYTES for size in value)


class _Unpickler:
  """Runs one pickle, in time and memory proportional to its size."""

  def __init__(self, data):
    self._data = data
    self._stack = []
    self._marked = []
    self._memo = {}
    # A file may refer to its bytes many times; copies of them are limited.
    self._unused = 2 * len(data)

  def run(self):
    if self._data[:1] != pickle.PROTO:
      raise _Refused('is not a checkpoint: it is no pickle')
    for count, (code, argument) in enumerate(_opcodes(self._data)):
      if count == MAX_OPCODES:
        raise _Refused('is not a checkpoint: it has too many parts')
      self._step(code, argument)
    if len(self._stack) != 1 or self._marked:
      raise _Refused('is damaged: its parts do not make a whole')
    return self._stack[0]

  def _step(self, code, argument):
    stack = self._stack
    if code in _CONSTANTS:
      stack.append(_CONSTANTS[code])
    elif code in _EMPTY:
      stack.append(_EMPTY[code]())
    elif code in _COUNTED or code in (
        pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.BINFLOAT):
      stack.append(argument)
    elif code in (pickle.BINPUT, pickle.LONG_BINPUT):
      self._memo[argument] = stack[-1]
    elif code == pickle.MEMOIZE:
      self._memo[len(self._memo)] = stack[-1]
    elif code in (pickle.BINGET, pickle.LONG_BINGET):
      stack.append(self._memo[argument])
    elif code == pickle.MARK:
      self._marked.append(stack)
      self._stack = []
    elif code in _TUPLES:
      count = _TUPLES[code]
      stack.append(tuple(self._pop() for _ in range(count))[::-1])
    elif code == pickle.TUPLE:
      self._stack = self._marked.pop()
      self._stack.append(tuple(stack))
    elif code == pickle.APPEND:
      self._extend([self._pop()])
    elif code == pickle.APPENDS:
      self._stack = self._marked.pop()
      self._extend(stack)
    elif code == pickle.SETITEM:
      self._update([self._pop(), self._pop()][::-1])
    elif code == pickle.SETITEMS:
      self._stack = self._marked.pop()
      self._update(stack)
    elif code == pickle.GLOBAL:
      stack.append(_global(*argument))
    elif code == pickle.STACK_GLOBAL:
      name, owner = self._pop(), self._pop()
      stack.append(_global(owner, name))
    elif code == pickle.REDUCE:
      arguments, function = self._pop(), self._pop()
      stack.append(self._reduce(function, arguments))
    elif code == pickle.BUILD:
      self._build(self._pop())

  def _pop(self):
    return self._stack.pop()

  def _extend(self, items):
    if type(self._stack[-1]) is not list:
      raise _Refused('is damaged: it appends to what is no list')
    self._stack[-1].extend(items)

  def _update(self, items):
    if type(self._stack[-1]) is not dict or len(items) % 2:
      raise _Refused('is damaged: it sets items of what is no dict')
    keys = items[::2]
    if not all(map(_is_key, keys)):
      raise _Refused('has a dict whose keys are not names or small integers')
    size = len(self._stack[-1]) + len(keys)
    self._stack[-1].update(zip(keys, items[1::2]))
    if len(self._stack[-1]) != size:
      raise _Refused('is damaged: it has two items of one name')

  def _reduce(self, function, arguments):
    name = function.name if type(function) is _Global else None
    if name == 'dtype':
      return _Dtype(arguments[0])
    if name == '_reconstruct':
      return _Array()
    if name == 'scalar':
      dtype, raw = arguments
      return _array(raw, dtype, ())[()]
    if name == '_frombuffer':
      raw, dtype, shape, order, *axes = arguments
      self._use(raw)
      if order in ('C', 'F'):
        return _Array(_array(raw, dtype, shape, order))
      if order == 'K' and all(map(_is_shape, axes)):
        return _Array(_array(raw, dtype, shape).transpose(*axes))
    if name == 'encode':
      text, encoding = arguments
      if type(text) is str and encoding == 'latin1':
        self._use(text)
        return text.encode('latin1')
    if name == 'bytes' and arguments == ():
      return b''
    raise _Refused('is damaged: it calls what no array needs')

  def _build(self, state):
    target = self._stack[-1]
    if type(target) is _Dtype:
      target.build(state)
    elif type(target) is _Array and target.value is None:
      version, shape, dtype, fortran, raw = state
      self._use(raw)
      target.value = _array(raw, dtype, shape, 'F' if fortran else 'C')
    else:
      raise _Refused('is damaged: it fills what is no new array')

  def _use(self, raw):
    self._unused -= len(raw)
    if self._unused < 0:
      raise _Refused('is not a checkpoint: it copies its bytes many times')


def _opcodes(data):
  """Yields each opcode with its argument; all that plain pickles need."""
  position = 0
  def take(count):
    nonlocal position
    position += count
    if position > len(data):
      raise _Refused(f'is truncated: {len(data):,} bytes are not all of it')
    return data[position - count: position]
  def number(form):
    return struct.unpack(form, take(struct.calcsize(form)))[0]
  def line():
    end = data.index(b'\n', position, position + 200)
    return take(end + 1 - position)[:-1].decode()
  code = None
  while code != pickle.STOP:
    code = take(1)
    if code in _NUMBERS:
      argument = number(_NUMBERS[code])
    elif code in _COUNTED:
      form, decode = _COUNTED[code]
      argument = decode(take(number(form)))
    elif code == pickle.GLOBAL:
      argument = line(), line()
    elif code in _BARE:
      argument = None
    else:
      raise _Refused(_unknown(code))
    if code == pickle.PROTO and argument not in (2, 3, 4, 5):
      raise _Refused(f'is in pickle protocol {argument}, not in 2 to 5')
    if code == pickle.FRAME and argument > len(data) - position:
      raise _Refused(f'is truncated: {len(data):,} bytes are not all of it')
    yield code, argument
  if position != len(data):
    raise _Refused(f'is damaged: it goes on after its end at byte {position:,}')


def _unknown(code):
  opcode = pickletools.code2op.get(code.decode('latin1'))
  if opcode is None:
    return 'is damaged: its pickle makes no sense'
  return (
      f'is refused: its pickle uses {opcode.name}, which plain containers and '
      'numeric arrays do not need and which may run code')


def _global(owner, name):
  if type(owner) is not str or type(name) is not str:
    raise _Refused('is damaged: it names what is no name')
  if f'{owner}.{name}' not in _GLOBALS:
    raise _Refused(
        f'is refused: it asks for {_short(owner + "." + name)}, a checkpoint '
        'holds nothing but plain containers and numeric arrays')
  return _Global(name.split('.')[-1])


def _is_key(key):
  # Numbers with large hashes could be chosen to make a dict slow.
  return type(key) is str or type(key) is int and abs(key) < 2 ** 31


def _plain(data):
  """A copy of nested containers that holds plain values and arrays only."""
  items = 0
  def copy(value, depth):
    nonlocal items
    items += 1
    if items > MAX_ITEMS or depth > MAX_DEPTH:
      raise _Refused('is nested too deeply or holds too many items')
    kind = type(value)
    if kind in (list, tuple):
      return kind([copy(item, depth + 1) for item in value])
    if kind is dict and all(map(_is_key, value)):
      return {key: copy(item, depth + 1) for key, item in value.items()}
    if kind is _Array and value.value is not None:
      return value.value
    if kind in (str, int, float, bool, bytes, type(None)):
      return value
    if kind is np.ndarray or isinstance(value, np.generic):
      if value.dtype.str[1:] in _DTYPES:
        return value
    raise _Refused(
        f'holds a {kind.__name__.strip("_")}, not a plain value or an array')
  return copy(data, 1)
