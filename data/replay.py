"""Batches of sequences, sampled from the episodes on disk.

Sampling is uniform over everything on disk, so no cache can guess what comes
next and evicting gains nothing. Each episode is therefore decoded once and
then stays where it fits: in memory up to a bound, beyond that uncompressed in
a scratch file of which only the sampled windows are read, and when the disk
has no room for either, its file is decompressed each time. The scratch file
has no name: it cannot be stale after a crash, and its space is free again
when the process ends.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import datetime
import os
import pathlib
import shutil
import tempfile
import threading
import uuid

import numpy as np

from common import files, memory as free_memory, terminal
from data import episodes
from data.episodes import KEYS, NAME


@dataclasses.dataclass(eq=False, slots=True)
class _Episode:
  """Facts known without reading the file, and the place of its content."""
  name: str
  length: int
  task: int = 0
  place: object = None  # An array in memory, an offset in the scratch file.
  damaged: bool = False


class Replay:
  """The episodes of one directory, in the order in which they were added.

  A sequence is opened by an episode drawn uniformly; with several tasks a task
  is drawn uniformly first, so that all are seen equally often.
  - An episode of at least `batch_length` time steps gives a window that starts
    uniformly at any time step where it fits, the last such start included.
    With `balance`, the start is drawn from all windows that touch the episode
    and clipped to those that fit, so that no time step is seen less often than
    those in the middle.
  - A shorter episode is taken whole, followed by further short episodes of
    its task, drawn uniformly, until the sequence is full and the last one is
    cut off. Short ones follow only each other because long ones would
    otherwise be seen mostly at their beginnings.

  Files are not opened at the start, with several tasks but for the entry
  `task`. Damaged ones are named once when found and never drawn; everything
  else is drawn as if they had not been there. Counts are those of the names,
  damaged files included, so that they are the same in every run.

  Args:
    directory: Directory of the episodes; created if needed.
    batch_size: Sequences per batch, B.
    batch_length: Time steps per sequence, T.
    action_repeat: Environment steps per decision.
    seed: Fixes, with the number of a batch, what is drawn.
    balance: Draw windows towards the ends of episodes.
    memory: Bytes of decoded episodes in memory; default a quarter of what is
      available. A few batches on their way come on top.
    tasks: Names of the tasks; batches then have a `task`, an index into them.
    shard: `(index, number)` of the worker where several share the directory.
      Each sees the episodes whose uuid modulo `number` is `index`, as are
      those that it adds.
  """

  def __init__(
      self, directory, *, batch_size, batch_length, action_repeat=1, seed=0,
      balance=False, memory=None, tasks=None, shard=(0, 1)):
    self._directory = pathlib.Path(directory)
    self._size = batch_size
    self._length = batch_length
    self._repeat = action_repeat
    self._seed = seed
    self._balance = balance
    self._tasks = list(tasks or [])
    self._shard = shard
    self._pools = [[] for _ in self._tasks or [None]]
    self._episodes = 0
    self._steps = 0
    self._time = 0
    self._newest = None
    self._dtype = None
    self._lock = threading.Lock()
    if memory is None:
      memory = free_memory.available() // 4
    self._decoded = _Decoded(self._directory, int(memory))
    files.make_directory(self._directory)
    for name in self._scan():
      self._enlist(name)

  @property
  def episodes(self):
    """Number of episodes."""
    return self._episodes

  @property
  def steps(self):
    """Environment steps: `(length - 1) * action_repeat` of all episodes."""
    return self._steps

  def lengths(self, task=None):
    """Time steps of each episode, or of each episode of one task."""
    pools = self._pools
    if task is not None:
      pools = [pools[self._tasks.index(task)]]
    return [episode.length for pool in pools for episode in pool]

  @property
  def newest(self):
    """File name of the episode that was added last, or None."""
    return self._newest

  def files(self, after=None):
    """Paths of the episodes on disk, damaged ones included, oldest first.

    With `after`, the file name of an episode, which need not exist any more,
    those that were added after it.
    """
    return [
        path for path in episodes.paths(self._directory)
        if self._is_own(NAME.fullmatch(path.name))
        and (after is None or path.name > after)]

  def add(self, episode):
    """Writes an episode, whole or not at all, and returns its path.

    Args:
      episode: Arrays such as `episodes.load` returns, `task` only where there
        are several. Other keys are not kept.

    Raises:
      UserError: The arrays are not such an episode, have other shapes than
        the episodes already there, or cannot be written.
    """
    try:
      arrays = episodes.validated(episode)
      task = self._task(arrays)
    except ValueError as error:
      raise terminal.UserError(f'The episode cannot be stored: {error}.')
    content = _packed(arrays)
    self._settle_layout(content.dtype)
    if content.dtype != self._dtype:
      raise terminal.UserError(
          f'The episode does not fit those in {self._directory}: it has '
          f'{_layout(content.dtype)}, they have {_layout(self._dtype)}.')
    path = self._directory / self._new_name(len(content))
    episodes.write(path, arrays)
    added = self._enlist(path.name, task)
    with self._lock:
      added.place = self._decoded.keep(content)
    return path

  def sample(self, index):
    """Batch number `index`, the same whenever the same episodes are there.

    Returns:
      `image` uint8 [B, T, height, width, channels], `action` [B, T, actions],
      `reward` and `discount` [B, T] float32; `first` bool [B, T], true at the
      first time step of every episode, where the state is to be reset; `task`
      int32 [B, T] if the replay has tasks.

    Raises:
      UserError: There is no episode that can be read.
    """
    return self._load(index, self._candidates())

  def batches(self, start, count):
    """Iterates over batches `start` to `start + count - 1`.

    They are those of `sample()` with the episodes present at the call. A
    background thread loads up to two ahead; it ends with the iterator.
    """
    return self._ahead(range(start, start + count), self._candidates())

  def close(self):
    """Frees the memory and the scratch file; no sampling afterwards."""
    with self._lock:
      self._pools = [[] for _ in self._pools]
      self._decoded.close()

  # The list of episodes.

  def _scan(self):
    """Sorted names of the shard's episodes; cleans up, names what is bad."""
    names, foreign, empty = [], [], []
    with files.reading(self._directory), os.scandir(self._directory) as found:
      entries = [*found]
    for entry in entries:
      match = NAME.fullmatch(entry.name.removesuffix('.tmp'))
      if not match:
        if self._shard[0] == 0 and not entry.name.startswith('.'):
          foreign.append(entry.name)
      elif not self._is_own(match):
        continue
      elif entry.name.endswith('.tmp'):
        with contextlib.suppress(OSError):  # It is in nobody's way.
          os.remove(entry)
      elif not episodes.size(entry):
        empty.append(entry.name)
      else:
        names.append(entry.name)
    self._complain(foreign, 'not named {time}-{uuid}-{records}.npz')
    self._complain(empty, 'of length zero')
    return sorted(names)

  def _is_own(self, match):
    """Whether an episode of this name belongs to the shard."""
    index, number = self._shard
    return int(match['uuid'], 16) % number == index

  def _complain(self, names, reason):
    if names:
      terminal.warn(
          f'Left out in {self._directory}, {reason}: '
          f'{", ".join(sorted(names))}.')

  def _enlist(self, name, task=None):
    """Adds an episode to the list and to the counts."""
    match = NAME.fullmatch(name)
    episode = _Episode(name, int(match['records']))
    self._time = max(
        self._time, int(match['time'].replace('T', '').ljust(20, '0')))
    self._newest = max(self._newest or name, name)
    self._episodes += 1
    self._steps += (episode.length - 1) * self._repeat
    if task is None and len(self._tasks) > 1:
      task = self._peek_task(episode)
    episode.task = task or 0
    if not episode.damaged:
      self._pools[episode.task].append(episode)
    return episode

  def _peek_task(self, episode):
    """Reads only the task of an episode."""
    try:
      return self._task(episodes.read_task(self._directory / episode.name))
    except terminal.UserError:
      raise
    except Exception as error:  # As in `episodes.read`.
      self._reject(episode, error)

  def _task(self, arrays):
    """The index of an episode's task, which it has by name or by index."""
    if not self._tasks:
      return 0
    if 'task' not in arrays:
      if len(self._tasks) == 1:
        return 0
      raise ValueError("there is no entry 'task'")
    task = np.unique(arrays['task'])
    if len(task) == 1 and str(task[0]) in self._tasks:
      return self._tasks.index(str(task[0]))
    if len(task) == 1 and task.dtype.kind in 'iu':
      if 0 <= task[0] < len(self._tasks):
        return int(task[0])
    raise ValueError(f'its task {task} is not one of {self._tasks}')

  def _new_name(self, length):
    """A name behind all others, even if the clock was set back."""
    index, number = self._shard
    now = datetime.datetime.now(datetime.timezone.utc)
    time = max(int(now.strftime('%Y%m%d%H%M%S%f')), self._time + 1)
    identifier = uuid.uuid4().int
    identifier += index - identifier % number
    return f'{str(time)[:8]}T{str(time)[8:]}-{identifier:032x}-{length}.npz'

  # Drawing.

  def _candidates(self):
    """Per task, all episodes and the short ones among them."""
    self._settle_layout()
    return [
        (pool[:], [x for x in pool if x.length < self._length])
        for pool in self._pools]

  def _load(self, index, candidates):
    while True:
      rng = np.random.default_rng([self._seed, index, self._shard[0]])
      rows = [self._draw(rng, candidates) for _ in range(self._size)]
      with contextlib.suppress(_Damaged):
        return self._batch(rows)
      # Drawing again skips what was found damaged. The result depends on
      # what is in the directory only, not on when the damage was found.

  def _draw(self, rng, candidates):
    """Pieces of one sequence: (episode, start, length)."""
    candidates = [
        x for x in candidates if any(not y.damaged for y in x[0])]
    if not candidates:
      raise terminal.UserError(
          f'There is no episode to train on in {self._directory}.')
    every, short = candidates[rng.integers(len(candidates))]
    episode = _pick(rng, every)
    if episode.length >= self._length:
      return [(episode, self._start(rng, episode.length), self._length)]
    pieces, room = [], self._length
    while room:
      pieces.append((episode, 0, min(room, episode.length)))
      room -= pieces[-1][-1]
      episode = _pick(rng, short)
    return pieces

  def _start(self, rng, length):
    last = length - self._length
    if not self._balance:
      return int(rng.integers(last + 1))
    return int(np.clip(rng.integers(1 - self._length, length), 0, last))

  def _batch(self, rows):
    batch = np.empty((self._size, self._length), self._dtype)
    first = np.zeros(batch.shape, bool)
    for row, pieces in enumerate(rows):
      begin = 0
      for episode, start, length in pieces:
        self._read(episode, start, batch[row, begin:begin + length])
        first[row, begin] = start == 0
        begin += length
    result = {key: np.ascontiguousarray(batch[key]) for key in KEYS}
    if self._tasks:
      tasks = np.array([pieces[0][0].task for pieces in rows], np.int32)
      result['task'] = np.repeat(tasks[:, None], self._length, 1)
    return dict(result, first=first)

  def _ahead(self, indices, candidates):
    pending = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
      try:
        for index in indices:
          pending.append(executor.submit(self._load, index, candidates))
          if len(pending) > 2:
            yield pending.popleft().result()
        while pending:
          yield pending.popleft().result()
      finally:
        for future in pending:
          future.cancel()

  # Their content.

  def _read(self, episode, start, out):
    """Copies the content from time step `start` on into `out`."""
    with self._lock:
      content = episode.place
      if content is None:
        content = self._decode(episode)
        episode.place = self._decoded.keep(content)
    if not self._decoded.read(content, start, out):
      out[:] = self._decode(episode)[start:start + len(out)]

  def _settle_layout(self, default=None):
    """The newest episode that can be read says what all must look like."""
    with self._lock:
      if self._dtype is not None:
        return
      pools = sum(self._pools, [])
      for episode in sorted(pools, key=lambda x: x.name, reverse=True):
        with contextlib.suppress(_Damaged):
          self._dtype = self._decode(episode).dtype
          return
      self._dtype = default

  def _decode(self, episode):
    """Reads the file; raises `_Damaged` and remembers it if that fails."""
    if episode.damaged:
      raise _Damaged
    try:
      arrays = episodes.read(self._directory / episode.name)
      self._task(arrays)
      content = _packed(arrays)
      if self._dtype is not None and content.dtype != self._dtype:
        raise ValueError(
            f'it has {_layout(content.dtype)}, others have '
            f'{_layout(self._dtype)}')
    except ValueError as error:
      self._reject(episode, error)
      raise _Damaged from error
    return content

  def _reject(self, episode, error):
    episode.damaged = True
    terminal.warn(
        f'{self._directory / episode.name} is left out: '
        f'{episodes.reason(error)}.')


class _Decoded:
  """Decoded episodes, in memory up to a bound and then in a scratch file."""

  def __init__(self, directory, memory):
    self._directory = directory
    self._memory = memory
    self._scratch = None
    self._used = 0
    self._crowded = False
    self._full = False

  def keep(self, content):
    """Array in memory, or offset in the scratch file, or None: no room."""
    if content.nbytes <= self._memory:
      self._memory -= content.nbytes
      return content
    offset = self._used
    # What the file system cannot do is done without.
    with contextlib.suppress(OSError):
      free = shutil.disk_usage(self._directory).free
      # Half of the disk is left to checkpoints and to the episodes themselves.
      room = not self._full and free - content.nbytes >= offset + content.nbytes
      if room:
        if not self._scratch:
          self._scratch = tempfile.TemporaryFile(dir=self._directory)
        if self._write(content, offset):
          self._used += content.nbytes
          return offset
    if not self._crowded:
      self._crowded = True
      terminal.warn(
          f'No room beside {self._directory} for decoded episodes: some are '
          'decompressed for every batch, which is slow.')

  def _write(self, content, offset):
    """Whether it could be written; else its room is given to other files.

    A quota may be used up long before the disk is.
    """
    with contextlib.suppress(OSError):
      if os.pwrite(self._scratch.fileno(), content, offset) == content.nbytes:
        return True
    self._full = True
    self._scratch.truncate(0)
    return False

  def read(self, place, start, out):
    """Copies from time step `start` on into `out`; returns whether it could."""
    if isinstance(place, np.ndarray):
      out[:] = place[start:start + len(out)]
      return True
    with contextlib.suppress(OSError):
      offset = place + start * out.itemsize
      return os.preadv(self._scratch.fileno(), [out], offset) == out.nbytes
    return False

  def close(self):
    if self._scratch:
      self._scratch.close()


class _Damaged(Exception):
  """An episode turned out to be unreadable."""


def _packed(arrays):
  """One structured array [T] of the entries that batches are made of."""
  content = np.empty(len(arrays['image']), [
      (key, arrays[key].dtype, arrays[key].shape[1:]) for key in KEYS])
  for key in KEYS:
    content[key] = arrays[key]
  return content


def _layout(dtype):
  return ', '.join(f'{key} {dtype[key].shape}' for key in KEYS[:2])


def _pick(rng, episodes):
  """One uniformly among those not damaged."""
  while True:
    episode = episodes[rng.integers(len(episodes))]
    if not episode.damaged:
      return episode
