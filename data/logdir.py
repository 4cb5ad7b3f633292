"""The files of a log directory: their names, the configuration, the lock."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket

from common import files, terminal

CHECKPOINT = 'variables.pkl'
SOURCE = 'source.pkl'
CONFIG = 'config.json'
METRICS = 'metrics.jsonl'
EPISODES = 'episodes'
TRANSFER = 'transfer.txt'
LOCK = '.lock'


class Logdir:
  """The log directory of one run, which need not exist."""

  def __init__(self, path):
    self.path = pathlib.Path(path)

  def __str__(self):
    return str(self.path)

  @property
  def checkpoint(self):
    """Everything that continuing needs; the public scripts' agents too."""
    return self.path / CHECKPOINT

  @property
  def source(self):
    """The checkpoint of another run, from which this one began."""
    return self.path / SOURCE

  @property
  def config(self):
    """Flags, script and identity of the run, as JSON."""
    return self.path / CONFIG

  @property
  def metrics(self):
    """A line of JSON for each report."""
    return self.path / METRICS

  @property
  def episodes(self):
    """Directory of the episodes that replay draws from."""
    return self.path / EPISODES

  @property
  def transfer(self):
    """Report of what a transfer did to the variables."""
    return self.path / TRANSFER

  def worker(self, index):
    """Saved state of one of several machines that train together."""
    return self.path / f'worker{index}.pkl'

  def read_config(self):
    """The saved flags, script and identity of the run.

    Empty if there is no such file, or it does not hold a JSON object.

    Raises:
      UserError: The file is there but cannot be read.
    """
    try:
      values = json.loads(self.config.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
      return {}
    except OSError as error:
      raise terminal.UserError(
          f'{self.config} cannot be read: {error.strerror}; check its '
          'permissions and the disk.') from error
    return values if isinstance(values, dict) else {}

  def write_config(self, values):
    """Writes flags, script and identity of the run, whole or not at all."""
    files.write_text(self.config, json.dumps(values, indent=2) + '\n')

  def holder(self):
    """Who has locked the directory, `PID on MACHINE`; None if nobody has."""
    try:
      with (self.path / LOCK).open() as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      with contextlib.suppress(OSError):
        return (self.path / LOCK).read_text().strip() or 'unknown'
      return 'unknown'
    except OSError:  # There is none, or it cannot be locked.
      return None
    return None

  def lock(self):
    """Takes the directory for this process, and makes it if needed.

    Returns:
      An open file; the lock lasts until it is closed or the process ends.

    Raises:
      UserError: Another run, named with its process id, has the directory, or
        nothing can be written there.
    """
    files.make_directory(self.path)
    with files.writing(self.path):
      file = (self.path / LOCK).open('a+')
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.close()
      raise terminal.UserError(
          f'Another run (process {self.holder() or "unknown"}) uses {self.path}: '
          'wait for it, stop it, or choose another --logdir.') from None
    except OSError as error:
      terminal.warn(
          f'{self.path} cannot be locked against other runs: {error}.')
    # On a full disk the lock is held all the same, without a name in it.
    with contextlib.suppress(OSError):
      file.truncate(0)
      holder = f'{os.getpid()} on {socket.gethostname()}'
      os.write(file.fileno(), holder.encode())
    return file
