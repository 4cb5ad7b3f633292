"""Episodes on disk, one `.npz` file each: their names, reading and writing.

An episode has T time steps, the first of which is the reset: no action led to
it and it has no reward. Entry t of `action` led to image t. Files are named
`{time}-{uuid}-{records}.npz`, where the last number is T.
"""

import errno
import os
import pathlib
import re
import time

import numpy as np

from common import files, terminal

NAME = re.compile(
    r'(?P<time>\d{8}T\d{6,12})-(?P<uuid>[0-9a-f]+)-(?P<records>[1-9]\d*)\.npz')
# Dimensions of each array that batches are made of, the time steps included.
DIMENSIONS = {'image': 4, 'action': 2, 'reward': 1, 'discount': 1}
KEYS = tuple(DIMENSIONS)
_KNOWN = (*KEYS, 'task')
# Errors of the system, not of a file, and seconds to wait after each of them.
_PASSING = {
    errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    errno.EAGAIN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN}
_PAUSES = 1, 4, 16, 0


def load(path):
  """Reads one episode.

  Returns:
    `image` uint8 [T, height, width, channels]; `action` [T, actions],
    `reward` [T] and `discount` [T] float32; where there are several tasks also
    `task`, a name or an index, alone or for each time step.

  Raises:
    UserError: There is no such file, or it is not a whole episode.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise terminal.UserError(f'There is no episode {path}.')
  try:
    return read(path)
  except ValueError as error:
    raise terminal.UserError(
        f'{path} is not a whole episode: {error}.') from error


def paths(directory):
  """Paths of the episodes in a directory, oldest first, without empty files.

  Raises:
    UserError: The directory cannot be read.
  """
  found = []
  with files.reading(directory), os.scandir(directory) as entries:
    for entry in entries:
      if NAME.fullmatch(entry.name) and size(entry):
        found.append(pathlib.Path(entry))
  return sorted(found, key=lambda path: path.name)


def write(path, arrays):
  """Writes the arrays of an episode, whole or not at all."""
  files.make_directory(path.parent)
  with files.replacing(path) as file:
    np.savez_compressed(file, **arrays)


def read(path):
  """Arrays of an episode; a `ValueError` says what is wrong with the file."""
  match = NAME.fullmatch(path.name)
  try:
    arrays = validated(_arrays(path, _KNOWN))
  except terminal.UserError:
    raise
  # What NumPy, zipfile and zlib raise for damaged files is not documented.
  except Exception as error:
    raise ValueError(reason(error)) from error
  if match and int(match['records']) != len(arrays['reward']):
    raise ValueError(f'it has {len(arrays["reward"])} time steps')
  return arrays


def read_task(path):
  """Reads only the entry `task`, as `{'task': array}`, empty without it."""
  return _arrays(path, ['task'])


def _arrays(path, keys):
  """Arrays of a file; what may pass, as on a network, is waited for.

  Raises:
    UserError: It has not passed.
  """
  for seconds in _PAUSES:
    try:
      with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file if key in keys}
    except OSError as error:
      if error.errno not in _PASSING:
        raise
      problem = error.strerror
    time.sleep(seconds)
  raise terminal.UserError(
      f'{path} cannot be read: {problem}; the same command continues when it '
      'can, or without it when it has been removed.')


def validated(episode):
  """Arrays of an episode in their types; a `ValueError` says what is wrong."""
  arrays = {key: np.asarray(episode[key]) for key in _KNOWN if key in episode}
  for key, dimensions in DIMENSIONS.items():
    if key not in arrays:
      raise ValueError(f"there is no entry '{key}'")
    value = arrays[key]
    if value.ndim != dimensions or not value.size:
      raise ValueError(f"'{key}' has shape {value.shape}")
    if len(value) != len(arrays['image']):
      raise ValueError(
          f"'{key}' has {len(value)} time steps, 'image' has "
          f"{len(arrays['image'])}")
    if key == 'image':
      if value.dtype != np.uint8:
        raise ValueError(f"'{key}' is {value.dtype}, not uint8")
    elif value.dtype.kind != 'f':
      raise ValueError(f"'{key}' is {value.dtype}, not float32")
    elif not np.isfinite(value).all():
      raise ValueError(f"'{key}' has NaN or infinite values")
    else:
      arrays[key] = value.astype(np.float32)
  return arrays


def reason(error):
  """The message of an error in one line."""
  return ' '.join(str(error).split()).rstrip('.') or type(error).__name__


def size(entry):
  """Bytes of a directory's entry; 0 if it has gone meanwhile."""
  try:
    return entry.stat().st_size
  except FileNotFoundError:
    return 0
