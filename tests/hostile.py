"""Pickles that no one should trust, and a program that survives them.

`python hostile.py FOLDER` reads every file of a folder in limited memory, and
`python hostile.py FOLDER COUNT SEED` that many mutations of real checkpoints.
"""

import copyreg
import io
import json
import os
import pathlib
import pickle
import pickletools
import resource
import struct
import sys
import time

import numpy as np

from common import terminal
from data import checkpoints

MEMORY = 2 ** 30  # Bytes.
ORACLE = pathlib.Path(__file__).parent / 'data' / 'oracle'


class Call:
  """Pickles as a call of a function."""

  def __init__(self, *parts):
    self.parts = parts

  def __reduce__(self):
    return self.parts


class Thing:
  """Pickles as an object of a class."""


def text(value):
  return b'\x8c' + bytes([len(value)]) + value


def raw(value):
  return b'B' + struct.pack('<I', len(value)) + value


def number(value):
  return b'J' + struct.pack('<i', value)


def dtype(code=b'f4', order=b'<', parts=b'NNN'):
  rest = number(-1) + number(-1) + number(0)
  return (
      b'cnumpy\ndtype\n' + text(code) + b'\x89\x88\x87R' +
      b'(K\3' + text(order) + parts + rest + b'tb')


EMPTY = (
    b'cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\n' +
    number(0) + b'\x85C\1b\x87R')


def array(shape, content, kind=dtype(), target=EMPTY):
  """The opcodes of an array; those of its parts are given."""
  return target + b'(K\1' + shape + kind + b'\x89' + content + b'tb'


def buffer(shape, content, kind=dtype(), order=text(b'C')):
  """The same in protocol 5."""
  return (
      b'cnumpy._core.numeric\n_frombuffer\n(' + content + kind + shape +
      order + b'tR')


def pickles():
  """Pickles that no one should trust, by name."""
  protocol = b'\x80\x04'
  return {
      **{name: protocol + opcodes + b'.' for name, opcodes in {
          **calls(), **claims(), **items(), **nests(), **copies(),
          **nonsense()}.items()},
      **wholes()}


def wholes():
  """Pickles as Python writes them."""
  canary = 'import pathlib; pathlib.Path("canary").touch()'
  copyreg.add_extension('posix', 'system', 240)
  try:
    extension = pickle.dumps(os.system)
  finally:
    copyreg.remove_extension('posix', 'system', 240)
  class Persistent(pickle.Pickler):
    def persistent_id(self, value):
      return 'x' if value == 'me' else None
  persistent = io.BytesIO()
  Persistent(persistent).dump(['me'])
  recursive = []
  recursive.append((recursive,))
  return {
      'function': pickle.dumps(Call(exec, (canary,))),
      'function 2': pickle.dumps([Call(eval, (f'exec({canary!r})',))], 2),
      'function in an array': pickle.dumps(
          np.array([Call(exec, (canary,))])),
      'function as state': pickle.dumps(
          Call(np.ndarray, ((1,),), {'x': Call(exec, (canary,))})),
      'object': pickle.dumps(Thing()),
      'class': pickle.dumps(Thing),
      'extension': extension,
      'persistent': persistent.getvalue(),
      'set': pickle.dumps({1}),
      'frozen set': pickle.dumps(frozenset([1])),
      'object array': pickle.dumps(np.array([[1], None], object)),
      'structured array': pickle.dumps(np.zeros(2, 'f4,O')),
      'datetime array': pickle.dumps(np.zeros(2, 'M8[s]')),
      'text array': pickle.dumps(np.array(['a'])),
      'complex array': pickle.dumps(np.zeros(2, complex)),
      'masked array': pickle.dumps(np.ma.ones(2)),
      'recursive tuple': pickle.dumps(recursive[0]),
      'large step': pickle.dumps((2 ** 2000,)),
      'infinite step': pickle.dumps((float('inf'), np.float32('nan'))),
      'instance 0': b'(S"touch canary"\nios\nsystem\n.',
      'other protocol': b'\x80\x09N.',
      'only a protocol': b'\x80\x04',
      'half a protocol': b'\x80'}


def calls():
  """Opcodes that call, or find what could be called."""
  command = text(b'touch canary')
  return {
      'instance': b'(' + command + b'ios\nsystem\n',
      'object of a class': b'(cos\nsystem\n' + command + b'o',
      'reduce': b'cos\nsystem\n' + command + b'\x85R',
      'global': b'cos\nsystem\n',
      'stack global': text(b'os') + text(b'system') + b'\x93',
      'new object': b'cpathlib\nPath\n)\x81',
      'new object with names': b'cpathlib\nPath\n)}\x92',
      'dotted name': text(b'numpy') + text(b'_core.multiarray.scalar') +
                     b'\x93',
      'name below': text(b'numpy') + text(b'dtype.__class__') + b'\x93',
      'other encoding': b'c_codecs\nencode\n' + text(b'a') + text(b'idna') +
                        b'\x86R',
      'stand-in of a function': b'cnumpy\ndtype\n',
      'stand-in of a dtype': dtype(),
      'stand-in of an array': EMPTY,
      'build on a function': b'cnumpy\ndtype\n}' + text(b'x') + b'K\1sb',
      'build on a list': b']}b',
      'slots set on a list': b'](N}' + text(b'append') + b'K\1stb',
      'append to bytes': b'\x96\1' + bytes(8) + b'K\1a',
      'array filled twice': array(
          b'K\2\x85', raw(bytes(8)),
          target=array(b'K\2\x85', raw(bytes(8)))),
      'array in itself': array(
          b'K\2\x85', b'h\0', target=EMPTY + b'\x94'),
      'call of bytes': b'C\1bC\1b\x85R',
      'extension 2': b'\x83\1\1',
      'extension 4': b'\x84\1\1\1\1',
      'persistent text': b'Pme\n',
      'call of a call': array(b'K\2\x85', raw(bytes(8)), target=(
          EMPTY + b'cnumpy\nndarray\n' + number(0) + b'\x85C\1b\x87R')),
      'state of a function': array(
          b'K\2\x85', raw(bytes(8)),
          target=b'cnumpy._core.multiarray\n_reconstruct\n'),
      'values set on a function': (
          b'cnumpy\ndtype\n(N}' + text(b'name') + text(b'scalar') + b'stb'),
      'buffers': b'\x97\x98'}


def claims():
  """Opcodes that claim more than there is."""
  huge = b'\x8a\x09' + b'\xff' * 8 + b'\0'
  most = number(2 ** 31 - 1)
  return {
      'huge shape': array(most + most + b'\x86', raw(b'')),
      'huge empty shape': array(b'K\0' + most + most + b'\x87', raw(b'')),
      'huge sizes': array(huge + huge + b'\x86', raw(b'')),
      'sizes that overflow': array(
          b'(' + number(65536) * 16 + b't', raw(b'')),
      'negative shape': array(number(-1) + number(-2) + b'\x86', raw(bytes(8))),
      'many dimensions': array(b'(' + b'K\1' * 100_000 + b't', raw(bytes(4))),
      'huge buffer shape': buffer(most + b'\x85', raw(b'')),
      'large memo index': b'Nr\xff\xff\xff\xff',
      'missing memo index': b'j\xff\xff\xff\xff',
      'large memo indices': b'N' + b''.join(
          b'r' + struct.pack('<I', 2 ** 32 - 1 - index * 40_000_000)
          for index in range(100)),
      'huge frame': b'\x95' + b'\xff' * 7 + b'\x7fN',
      'huge text': b'X\xff\xff\xff\xff',
      'huge text 8': b'\x8d' + b'\xff' * 8,
      'huge bytes': b'B\xff\xff\xff\xff',
      'huge bytes 8': b'\x8e' + b'\xff' * 7 + b'\x7f',
      'huge byte array': b'\x96' + b'\xff' * 7 + b'\x7f',
      'huge integer': b'\x8b\xff\xff\xff\x7f',
      'slow integer': b'L' + b'9' * 1_000_000 + b'L\n',
      'slow small integer': b'I' + b'9' * 1_000_000 + b'\n'}


def items():
  """Arrays of other items than numbers."""
  pair = b'K\2\x85'
  return {
      'objects in a list': array(pair, b']', dtype(b'O8', b'|')),
      'objects as bytes': array(
          b'K\1\x85', raw(b'A' * 8), dtype(b'O8', b'|')),
      'objects in a buffer': buffer(
          b'K\1\x85', raw(b'A' * 8), dtype(b'O8', b'|')),
      'parts': array(pair, raw(bytes(8)), dtype(
          parts=text(b'f4') + pair + b'\x86NN')),
      'other order': array(pair, raw(bytes(8)), dtype(order=b'(2,)')),
      'strange truth': array(pair, raw(b'\2\xff'), dtype(b'b1', b'|')),
      'no dtype': array(pair, raw(bytes(8)), b'N'),
      'no bytes': array(pair, number(8)),
      'too few bytes': array(pair, raw(bytes(7))),
      'no shape': array(b'K\2', raw(bytes(8))),
      'shape of truth': array(b'\x88\x85', raw(bytes(4))),
      'shape of arrays': array(
          array(pair, raw(bytes(8))) + b'\x85', raw(b'')),
      'other layout': buffer(pair, raw(bytes(8)), order=text(b'Z')),
      'wrong axes': buffer(pair, raw(bytes(8)), order=text(b'K') + b'K\7\x85'),
      'deep axes': buffer(
          pair, raw(bytes(8)), order=text(b'K') + tuples(200_000)),
      'deep dtype': b'cnumpy\ndtype\n' + tuples(200_000) + b'\x89\x88\x87R'}


def tuples(depth):
  return b')' + b'\x85' * depth


def nests():
  """Containers that are deep, endless or slow."""
  deep = 10_000
  laughs = b''.join(
      b']q' + bytes([level + 1]) + b'(' + (b'h' + bytes([level])) * 10 + b'e'
      for level in range(30))
  keys = b''.join(
      b'\x8a\x0d' + (index * (2 ** 61 - 1)).to_bytes(13, 'little') + b'N'
      for index in range(20_000))
  return {
      'deep lists': b']' * deep + b'a' * (deep - 1),
      'deep marked lists': b'](' * deep + b'e' * deep,
      'deep tuples': tuples(deep),
      'deeper tuples': tuples(300_000),
      'deep dicts': b'}K\0' * deep + b'N' + b's' * deep,
      'deep key': b'}' + tuples(200_000) + b'Ns',
      'deep name': tuples(200_000) + text(b'x') + b'\x93',
      'deep marks': b'(' * 300_000,
      'billion laughs': b'(]q\0' + laughs + b't',
      'recursive list': b']\x94h\0a',
      'recursive dict': b'}\x94K\1h\0s',
      'colliding keys': b'}(' + keys + b'u',
      'array as key': b'}' + array(b'K\1\x85', raw(bytes(4))) + b'Ns',
      'key twice': b'}(K\1NK\1Nu',
      'half an item': b'}(K\1NK\2u',
      'many items': b'](' + b'N' * 300_000 + b'e',
      'many opcodes': b'N' + b'\x94' * 5_000_000}


def copies():
  """Files that name the same megabyte two thousand times."""
  size, times = 10 ** 6, 2000
  shape = number(size) + b'\x85'
  kind = dtype(b'u1', b'|')
  letters = b'X' + struct.pack('<I', size) + b'a' * size
  encode = b'c_codecs\nencode\nh\0' + text(b'latin1') + b'\x86R'
  return {
      'many arrays': b'(' + raw(bytes(size)) + b'\x94' +
                     array(shape, b'h\0', kind) * times + b't',
      'many buffers': b'(' + raw(bytes(size)) + b'\x94' +
                      buffer(shape, b'h\0', kind) * times + b't',
      'many texts': b'(' + letters + b'\x94' + encode * times + b't'}


def nonsense():
  """Opcodes that do not go together."""
  return {
      'empty stack': b'\x85', 'no mark': b'Nt', 'open mark': b'(N',
      'nothing': b'', 'too much': b'NN', 'append to nothing': b'Na',
      'items of nothing': b'NNNs', 'bad text': b'X\2\0\0\0\xff\xff',
      'name without end': b'cnumpy', 'unknown opcode': b'\xff',
      'pop': b'NN0', 'name of bytes': b'C\1aC\1b\x93',
      'reduce nothing': b'NNR', 'build nothing': b'NNb'}


def today(step=7):
  """A checkpoint such as a small agent writes."""
  data = checkpoints.load(ORACLE / 'b' / 'variables.pkl')
  random = np.random.default_rng(0)
  moments = {
      name: random.normal(size=value.shape).astype(np.float32)
      for name, value in data['variables'].items()
      if name.startswith('reward/')}
  return {
      **data, 'script': 'dreamer-FTL.py', 'step': step,
      'optimizers': {'model': {
          'count': np.int64(300), 'scale': np.float32(2 ** 15),
          'm': moments, 'v': moments}},
      'schedule': [0.3, None, (1, True, b'\x00\xff')],
      'random': random.bit_generator.state}


def real_files():
  """Checkpoints and modules, today's and old, by each protocol."""
  whole = today()
  variables = {
      key: value for key, value in whole['variables'].items()
      if key.split('/')[0] in ('pcont', 'reward')}
  few = {**whole, 'variables': variables, 'optimizers': {}}
  single = {
      'format': checkpoints.MODULE, 'module': 'reward', 'config': {},
      'variables': checkpoints.module(ORACLE / 'a' / 'variables.pkl', 'reward')}
  return [
      (ORACLE / 'a' / 'variables.pkl').read_bytes(),
      (ORACLE / 'b' / 'variables.pkl').read_bytes(),
      pickle.dumps(whole, 4), pickle.dumps(few, 4), pickle.dumps(few, 2),
      pickle.dumps(few, 1), pickle.dumps(few, 0),
      pickle.dumps(few, 5), pickle.dumps(single, 4),
      pickle.dumps(tuple(single['variables'].values()), 4)]


def structure(content):
  """Places of a pickle that are not inside of its long strings."""
  starts = [place for _, _, place in pickletools.genops(content)]
  return [
      place for start, end in zip(starts, starts[1:] + [len(content)])
      for place in range(start, min(end, start + 40))]


def mutate(content, places, random):
  """One to eight changes, nine of ten where the pickle has its structure."""
  mutant = bytearray(content)
  def place():
    if random.random() < 0.9:
      return min(int(random.choice(places)), len(mutant))
    return int(random.integers(len(mutant) + 1))
  for _ in range(random.choice([1, 1, 1, 2, 3, 8])):
    start, other, length = place(), place(), int(random.integers(1, 30))
    kind = random.integers(8)
    if kind < 3:
      mutant[start: start + 1] = random.bytes(1)
    elif kind == 3:
      if start < len(mutant):
        mutant[start] ^= 1 << int(random.integers(8))
    elif kind == 4:
      mutant[start: start + 1] = random.choice(list(OPCODES)).tobytes()[:1]
    elif kind == 5:
      del mutant[start: start + length]
    elif kind == 6:
      mutant[start: start] = mutant[other: other + length]
    else:
      mutant[start: start + length] = mutant[other: other + length]
  if random.random() < 0.02:
    del mutant[place():]
  return bytes(mutant)


OPCODES = ''.join(pickletools.code2op).encode('latin1')


def readings(path):
  """Answers of each reader of the project for a file, by its name.

  Values, or the message of a `UserError`; any other failure is raised.
  """
  readers = {
      'read': checkpoints.read, 'recover': checkpoints.recover,
      'module': lambda path: checkpoints.module(path, 'reward')}
  found = {}
  for name, reader in readers.items():
    try:
      found[name] = reader(path)
      check_plain(found[name], path.stat().st_size)
    except terminal.UserError as error:
      found[name] = str(error)
      assert str(path) in found[name] and len(found[name]) < 1000, found[name]
      assert found[name].isprintable(), found[name]
  return found


def check_plain(value, room):
  """Asserts plain containers, and arrays no larger than the file."""
  if type(value) is dict:
    assert all(type(key) in (str, int) for key in value)
    value = list(value.values())
  if type(value) in (list, tuple):
    for item in value:
      check_plain(item, room)
  elif isinstance(value, (np.ndarray, np.generic)):
    assert value.dtype.kind in 'biuf' and value.dtype.isnative
    assert value.nbytes == value.size * value.itemsize <= room
    value.copy()
  else:
    assert type(value) in (str, int, float, bool, bytes, type(None))


def shapes(found):
  """Shapes of the variables that a file gave."""
  values = [found['module']]
  if isinstance(found['recover'], dict):
    values.append(found['recover']['variables'])
  return {
      key: array.shape for value in values if isinstance(value, dict)
      for key, array in value.items()}


def survey(folder):
  """Per file of a folder, the message of each reader, or None."""
  return {
      path.name: {
          key: value if isinstance(value, str) else None
          for key, value in readings(path).items()}
      for path in sorted(folder.iterdir())}


def chaos(folder, count, seed):
  """Reads mutations of real files; arrays that load have their own shapes."""
  random = np.random.default_rng(seed)
  path = folder / 'mutant.pkl'
  originals = []
  for content in real_files():
    path.write_bytes(content)
    originals.append((content, structure(content), shapes(readings(path))))
  loaded, slowest = 0, 0
  for index in range(count):
    content, places, truth = originals[index % len(originals)]
    path.write_bytes(mutate(content, places, random))
    began = time.process_time()
    try:
      found = readings(path)
      for key, shape in shapes(found).items():
        assert truth.get(key, shape) == shape, (key, shape)
    except BaseException:
      print(f'mutation {index} of seed {seed}', file=sys.stderr)
      raise
    slowest = max(slowest, time.process_time() - began)
    loaded += not isinstance(found['read'], str)
  return {'loaded': loaded, 'refused': count - loaded, 'slowest': slowest}


if __name__ == '__main__':
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
  directory = pathlib.Path(sys.argv[1])
  terminal.warn = lambda message: None
  report = (
      chaos(directory, *map(int, sys.argv[2:])) if sys.argv[2:]
      else survey(directory))
  print(json.dumps(report))
