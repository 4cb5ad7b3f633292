"""The root of the program, and the one way in which files are written whole."""

import contextlib
import os
import pathlib

from common import terminal

ROOT = pathlib.Path(__file__).parent.parent


@contextlib.contextmanager
def replacing(path, keep=None):
  """Opens a binary file that takes the place of `path` when the block ends.

  It is written beside it, with `.tmp` behind the name. Whatever stops the
  program or the machine, `path` holds all of the old content or all of the
  new. After an error in the block it holds the old.

  Args:
    path: file to write.
    keep: path under which the file that was there stays, if any. One of the
      two names always holds a complete file.

  Raises:
    UserError: The file cannot be written.
  """
  path = pathlib.Path(path)
  beside = path.with_name(f'{path.name}.tmp')
  with writing(path):
    try:
      with beside.open('wb') as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
      if keep is not None and path.exists():
        _keep(path, pathlib.Path(keep))
      os.replace(beside, path)
    finally:
      with contextlib.suppress(OSError):
        beside.unlink(missing_ok=True)
    sync_directory(path.parent)


def write_text(path, text):
  """Writes a text file as `replacing` does."""
  with replacing(path) as file:
    file.write(text.encode())


def make_directory(path):
  """Makes a directory and those around it where they are missing."""
  with writing(path):
    pathlib.Path(path).mkdir(parents=True, exist_ok=True)


def sync_directory(path):
  """Makes renamed files stay when the machine stops, where that can be asked.

  Some network and FUSE file systems refuse it; the files are there all the
  same.
  """
  with contextlib.suppress(OSError):
    number = os.open(path, os.O_RDONLY)
    try:
      os.fsync(number)
    finally:
      os.close(number)


@contextlib.contextmanager
def writing(path):
  """In this context an `OSError` becomes a `UserError` that names `path`."""
  try:
    yield
  except OSError as error:
    raise terminal.UserError(
        f'{path} cannot be written: {error.strerror or error}; nothing that '
        'was there before is lost. Make room, or choose a directory that you '
        'may write to.') from error


@contextlib.contextmanager
def reading(path):
  """In this context an `OSError` becomes a `UserError` that names `path`."""
  try:
    yield
  except OSError as error:
    raise terminal.UserError(
        f'{path} cannot be read: {error.strerror or error}; check its '
        'permissions and the disk.') from error


def _keep(path, other):
  """Gives a file a second name, in place of the file of that name."""
  spare = other.with_name(f'{other.name}.tmp')
  spare.unlink(missing_ok=True)
  try:
    os.link(path, spare)
  except OSError:  # This file system has no hard links.
    os.replace(path, other)
    return
  os.replace(spare, other)
  # A rename does nothing if an interrupted call made the two one file.
  spare.unlink(missing_ok=True)
