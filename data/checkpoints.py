"""Checkpoint and module files: written whole, and read without running code.

A checkpoint is a pickled dict of plain containers and NumPy arrays:
`{'format': 'dreamer-checkpoint-1', 'variables': {'reward/hout/bias': array},
'config': {...}, 'script': 'dreamer.py', 'step': 3000, 'action_dim': 3, ...}`. A
module file has the format 'dreamer-module-1', the variables of one module and,
under 'module', its name. The files of the public scripts, tuples of arrays
without names, are read as well.
"""

import contextlib
import pathlib

import numpy as np

from common import files, layers, terminal
from data import logdir, old_checkpoints, pickles

CHECKPOINT = 'dreamer-checkpoint-1'
MODULE = 'dreamer-module-1'


class Damaged(terminal.UserError):
  """A file that is there but holds no usable checkpoint."""

  def __init__(self, problem):
    super().__init__(
        f'{problem}; use another copy of it, or another checkpoint')
    self.problem = problem


### Whole checkpoints and single modules ###


def load(path):
  """A whole checkpoint in today's format, whatever the age of the file.

  An old file has arrays alone. Their shapes give `action_dim` and, of the
  config, `cnn_depth`, `deter_size`, `stoch_size`, `num_units`, `pcont` and
  `action_dist`; its script is None.

  Raises:
    Damaged: The file holds no whole checkpoint.
    UserError: There is no such file, or it cannot be read.
  """
  data = contents(path)
  with _reading(path):
    if not isinstance(data, dict):
      return {'format': CHECKPOINT, **old_checkpoints.agent(data)}
    if data['format'] == MODULE:
      raise pickles.Refused(
          f'holds only a module ({pickles.short(data["module"])}), '
          'a whole checkpoint is needed here')
    return data


def file_in(path):
  """The file that a path names: itself, or a log directory's checkpoint.

  Of two it is the newest complete one.
  """
  path = pathlib.Path(path)
  if not path.is_dir():
    return path
  file = logdir.Logdir(path).checkpoint
  return newest(file)[1] if previous(file).exists() else file


def newest(path):
  """The newest complete checkpoint of a run, and the file that it is in.

  The file is `path` or, where that is damaged or missing, `previous(path)`.
  Reads only. Raises `UserError` if neither holds a checkpoint.
  """
  path = pathlib.Path(path)
  older = previous(path)
  with files.reading(path):
    there, spare = path.exists(), older.exists()
  if not spare:
    if not there:
      raise terminal.UserError(
          f'{path.parent} holds no checkpoint ({path.name}).')
    return load(path), path
  if not there:
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
  """Path at which `save` with `keep` leaves the file that it replaces."""
  path = pathlib.Path(path)
  return path.with_name(f'{path.stem}.prev{path.suffix}')


def module(path, name):
  """Variables of one module, `{'reward/h0/kernel': array, ...}`.

  The file is a module file or a whole checkpoint, today's or old.
  """
  data = contents(path)
  with _reading(path):
    variables = (
        data['variables'] if isinstance(data, dict)
        else old_checkpoints.module(data, name))
    found = {
        key: value for key, value in variables.items()
        if key.startswith(f'{name}/')}
    if not found:
      held = sorted({key.split('/')[0] for key in variables})
      raise pickles.Refused(
          f'has no {name} module, it has {pickles.short(held)}')
    return found


def rssm_act(data):
  """Activation of the dynamics in a file's data.

  Files that do not say had that of all dense layers.
  """
  return data.get('rssm_act') or data.get('config', {}).get('dense_act', 'elu')


def save_module(path, name, variables, config, rssm_act='elu'):
  """Writes the variables of one module, named as in a checkpoint."""
  strangers = [key for key in variables if not key.startswith(f'{name}/')]
  if strangers or name not in layers.MODULES:
    raise ValueError(f'not variables of the {name} module: {strangers}')
  save(path, {
      'format': MODULE, 'module': name, 'variables': dict(variables),
      'config': dict(config), 'rssm_act': rssm_act})


def _check_format(data):
  kind = data.get('format') if isinstance(data, dict) else None
  fields = {'variables': dict, 'config': dict}
  if kind == CHECKPOINT:
    fields.update(script=str, step=int, action_dim=int)
  elif kind == MODULE:
    fields.update(module=str)
  else:
    raise pickles.Refused(
        f'is not a checkpoint: its format is {pickles.short(kind)}, '
        f'not {CHECKPOINT} or {MODULE}')
  for key, expected in fields.items():
    if not isinstance(data.get(key), expected):
      raise pickles.Refused(f'is not a checkpoint: it has no usable {key}')
  for key, value in data['variables'].items():
    if not isinstance(key, str) or not isinstance(value, np.ndarray):
      raise pickles.Refused(
          f'has no array for the variable {pickles.short(key)}')


### Writing ###


def save(path, data, keep=False):
  """Writes plain containers and numeric arrays; complete or not at all.

  With `keep` the file that was there stays as `previous(path)`, and at any
  moment one of the two names holds a complete file. If the disk is full, or
  `load` would refuse the file for its size, `path` keeps what it had.

  Raises:
    UserError: The file cannot be written, or would be too large.
  """
  path = pathlib.Path(path)
  files.make_directory(path.parent)
  with files.replacing(path, previous(path) if keep else None) as file:
    pickles.dump(data, file)
    size = file.tell()
    if size > pickles.MAX_BYTES:
      raise terminal.UserError(
          f'{path} cannot be written: it would have {size:,} bytes, and a '
          f'checkpoint of more than {pickles.MAX_BYTES:,} is not read again; '
          'choose smaller networks')


### Reading ###


def contents(path):
  """The dict of a checkpoint or a module file, or the arrays of an old file.

  Raises:
    Damaged: It is none of these.
    UserError: There is no such file, or it cannot be read.
  """
  data = read(path)
  if not isinstance(data, (list, tuple)):
    with _reading(path):
      _check_format(data)
  return data


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
  except pickles.Refused as refused:
    raise Damaged(f'{path} {refused}') from None


def _read(path):
  return pickles.loads(_content(pathlib.Path(path)))


def _content(path):
  with files.reading(path):
    if not path.exists():
      raise terminal.UserError(
          f'{path} does not exist; name a checkpoint such as '
          f'{logdir.CHECKPOINT}')
    if not path.is_file():
      raise terminal.UserError(
          f'{path} is not a file; name the checkpoint itself, such as '
          f'{logdir.Logdir(path).checkpoint}')
    if path.stat().st_size > pickles.MAX_BYTES:
      raise pickles.Refused(
          f'is not a checkpoint: it has more than {pickles.MAX_BYTES:,} bytes')
    try:
      return path.read_bytes()
    except MemoryError:
      raise pickles.Refused('does not fit in memory') from None
