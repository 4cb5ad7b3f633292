"""Episodes on disk, and the batches of sequences sampled from them.

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
import re
import shutil
import tempfile
import threading
import uuid

import numpy as np

from common import files, terminal

KEYS = ('image', 'action', 'reward', 'discount')
NAME = re.compile(
    r'(?P<time>\d{8}T\d{6,12})-(?P<uuid>[0-9a-f]+)-(?P<records>[1-9]\d*)\.npz')


@dataclasses.dataclass(eq=False, slots=True)
class _Episode:
  """What is known without reading the file, and where its records are."""
  name: str
  records: int
  task: int = 0
  place: object = None  # An array in memory, an offset in the scratch file.
  damaged: bool = False


class Replay:
  """The episodes of one directory, in the order in which they were added.

  A sequence is opened by an episode drawn uniformly; with several tasks a task
  is drawn uniformly first, so that all are seen equally often.
  - An episode of at least `batch_length` records gives a window that starts
    uniformly at any record where it fits, the last such start included. With
    `balance`, the start is drawn from all windows that touch the episode and
    clipped to those that fit, so that no record is seen less often than those
    in the middle.
  - A shorter episode is taken whole, followed by further short episodes of
    its task, drawn uniformly, until the sequence is full and the last one is
    cut off. Short ones follow only each other because long ones would
    otherwise be seen mostly at their beginnings.

  Files are not opened at the start, with several tasks but for the entry
  `task`. Damaged ones are named once when found and never drawn; everything
  else is drawn as if they had not been there. Counts are those of the names,
  damaged files included, so that they are the same in every run.

  Args:
    directory: Where the episodes are; created if needed.
    batch_size: Sequences per batch, B.
    batch_length: Records per sequence, T.
    action_repeat: Environment steps per record.
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
    self._memory = available_memory() // 4 if memory is None else int(memory)
    self._tasks = list(tasks or [])
    self._shard = shard
    self._pools = [[] for _ in self._tasks or [None]]
    self._episodes = 0
    self._steps = 0
    self._time = 0
    self._newest = None
    self._dtype = None
    self._lock = threading.Lock()
    self._scratch = None
    self._used = dict(memory=0, scratch=0, decoded=0)
    self._crowded = False
    self._directory.mkdir(parents=True, exist_ok=True)
    for name in self._scan():
      self._enlist(name)

  @property
  def episodes(self):
    """Number of episodes."""
    return self._episodes

  @property
  def steps(self):
    """Environment steps: `(records - 1) * action_repeat` of all episodes."""
    return self._steps

  @property
  def statistics(self):
    """Bytes in `memory` and in `scratch`; files `decoded` so far."""
    return dict(self._used)

  def records(self, task=None):
    """Number of records of each episode, or of each episode of one task."""
    pools = self._pools
    if task is not None:
      pools = [pools[self._tasks.index(task)]]
    return [episode.records for pool in pools for episode in pool]

  @property
  def newest(self):
    """File name of the episode that was added last, or None."""
    return self._newest

  def files(self, after=None):
    """Paths of the episodes on disk, damaged ones included, oldest first.

    With `after`, the file name of an episode, which need not exist any more,
    those that were added after it.
    """
    index, number = self._shard
    matches = [NAME.fullmatch(name) for name in os.listdir(self._directory)]
    return [
        self._directory / match[0]
        for match in sorted(filter(None, matches), key=lambda x: x[0])
        if int(match['uuid'], 16) % number == index and
        (after is None or match[0] > after) and
        (self._directory / match[0]).stat().st_size]

  def add(self, episode):
    """Writes an episode, whole or not at all, and returns its path.

    Args:
      episode: Arrays `image` uint8 [records, height, width, channels],
        `action` [records, actions], `reward` and `discount` [records], and
        `task`, a name, where there are several. Other keys are not kept.

    Raises:
      UserError: The arrays are not such an episode, have other shapes than
        the episodes already there, or cannot be written.
    """
    try:
      arrays = _validated(episode)
      task = self._task(arrays)
    except ValueError as error:
      raise terminal.UserError(f'The episode cannot be stored: {error}.')
    records = _packed(arrays)
    self._settle_layout(records.dtype)
    if records.dtype != self._dtype:
      raise terminal.UserError(
          f'The episode does not fit those in {self._directory}: it has '
          f'{_layout(records.dtype)}, they have {_layout(self._dtype)}.')
    path = self._directory / self._new_name(len(records))
    with files.replacing(path) as file:
      np.savez_compressed(file, **arrays)
    added = self._enlist(path.name, task)
    with self._lock:
      added.place = self._keep(records)
    return path

  def sample(self, index):
    """Batch number `index`, the same whenever the same episodes are there.

    Returns:
      `image` uint8 [B, T, height, width, channels], `action` [B, T, actions],
      `reward` and `discount` [B, T] float32; `first` bool [B, T], true at the
      first record of every episode, where the state is to be reset; `task`
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
      if self._scratch:
        self._scratch.close()

  # The list of episodes.

  def _scan(self):
    """Sorted names of the shard's episodes; cleans up, names what is bad."""
    index, number = self._shard
    names, foreign, empty = [], [], []
    for entry in os.scandir(self._directory):
      match = NAME.fullmatch(entry.name.removesuffix('.tmp'))
      if not match:
        if index == 0 and not entry.name.startswith('.'):
          foreign.append(entry.name)
      elif int(match['uuid'], 16) % number != index:
        continue
      elif entry.name.endswith('.tmp'):
        os.remove(entry)
      elif not entry.stat().st_size:
        empty.append(entry.name)
      else:
        names.append(entry.name)
    self._complain(foreign, 'not named {time}-{uuid}-{records}.npz')
    self._complain(empty, 'of length zero')
    return sorted(names)

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
    self._steps += (episode.records - 1) * self._repeat
    if task is None and len(self._tasks) > 1:
      task = self._peek_task(episode)
    episode.task = task or 0
    if not episode.damaged:
      self._pools[episode.task].append(episode)
    return episode

  def _peek_task(self, episode):
    """Reads only the task of an episode."""
    try:
      with np.load(self._directory / episode.name) as file:
        return self._task({key: file[key] for key in file if key == 'task'})
    except Exception as error:  # As in `_read_file`.
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

  def _new_name(self, records):
    """A name behind all others, even if the clock was set back."""
    index, number = self._shard
    now = datetime.datetime.now(datetime.timezone.utc)
    time = max(int(now.strftime('%Y%m%d%H%M%S%f')), self._time + 1)
    identifier = uuid.uuid4().int
    identifier += index - identifier % number
    return f'{str(time)[:8]}T{str(time)[8:]}-{identifier:032x}-{records}.npz'

  # Drawing.

  def _candidates(self):
    """Per task, all episodes and the short ones among them."""
    self._settle_layout()
    return [
        (pool[:], [x for x in pool if x.records < self._length])
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
    if episode.records >= self._length:
      return [(episode, self._start(rng, episode.records), self._length)]
    pieces, room = [], self._length
    while room:
      pieces.append((episode, 0, min(room, episode.records)))
      room -= pieces[-1][-1]
      episode = _pick(rng, short)
    return pieces

  def _start(self, rng, records):
    last = records - self._length
    if not self._balance:
      return int(rng.integers(last + 1))
    return int(np.clip(rng.integers(1 - self._length, records), 0, last))

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

  # Where the records are.

  def _find(self, episode):
    """Records of an episode, or their offset in the scratch file."""
    with self._lock:
      if episode.place is not None:
        return episode.place
      records = self._decode(episode)
      episode.place = self._keep(records)
      return records

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
      arrays = _read_file(self._directory / episode.name)
      self._task(arrays)
      records = _packed(arrays)
      if self._dtype is not None and records.dtype != self._dtype:
        raise ValueError(
            f'it has {_layout(records.dtype)}, others have '
            f'{_layout(self._dtype)}')
    except ValueError as error:
      self._reject(episode, error)
      raise _Damaged from error
    self._used['decoded'] += 1
    return records

  def _reject(self, episode, error):
    episode.damaged = True
    terminal.warn(
        f'{self._directory / episode.name} is left out: {_reason(error)}.')

  def _keep(self, records):
    """Array in memory, or offset in the scratch file, or None: no room."""
    if self._used['memory'] + records.nbytes <= self._memory:
      self._used['memory'] += records.nbytes
      return records
    offset = self._used['scratch']
    free = shutil.disk_usage(self._directory).free
    # Half of the disk is left to checkpoints and to the episodes themselves.
    if free - records.nbytes >= offset + records.nbytes:
      with contextlib.suppress(OSError):
        if not self._scratch:
          self._scratch = tempfile.TemporaryFile(dir=self._directory)
        if os.pwrite(self._scratch.fileno(), records, offset) == records.nbytes:
          self._used['scratch'] += records.nbytes
          return offset
    if not self._crowded:
      self._crowded = True
      terminal.warn(
          f'No room beside {self._directory} for decoded episodes: some are '
          'decompressed for every batch, which is slow.')

  def _read(self, episode, start, out):
    """Copies the records from `start` on into `out`."""
    place = self._find(episode)
    if isinstance(place, np.ndarray):
      out[:] = place[start:start + len(out)]
      return
    offset = place + start * out.itemsize
    if os.preadv(self._scratch.fileno(), [out], offset) != out.nbytes:
      raise OSError(f'The scratch file in {self._directory} was cut off.')


class _Damaged(Exception):
  """An episode turned out to be unreadable."""


def load_episode(path):
  """Reads one episode: `image, action, reward, discount` and maybe `task`.

  Returns:
    Arrays [records, ...] as described at `Replay.add`.

  Raises:
    UserError: There is no such file, or it is not a whole episode.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise terminal.UserError(f'There is no episode {path}.')
  try:
    return _read_file(path)
  except ValueError as error:
    raise terminal.UserError(
        f'{path} is not a whole episode: {error}.') from error


def available_memory():
  """Bytes that this process can still use, control groups considered."""
  try:
    text = pathlib.Path('/proc/meminfo').read_text()
    free = int(re.search(r'MemAvailable:\s+(\d+)', text)[1]) * 1024
  except (OSError, TypeError):
    free = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  return max(0, min([free, *_group_memory()]))


def _group_memory(root='/sys/fs/cgroup', membership='/proc/self/cgroup'):
  """Bytes left in each control group around this process that has a limit."""
  try:
    lines = pathlib.Path(membership).read_text().splitlines()
  except OSError:
    return
  for line in lines:
    _, controllers, group = line.split(':', 2)
    if controllers not in ('', 'memory'):
      continue
    top = pathlib.Path(root, controllers)
    names = ('memory.limit_in_bytes', 'memory.usage_in_bytes')
    names = names if controllers else ('memory.max', 'memory.current')
    inner = top / group.lstrip('/')
    for path in (inner, *inner.parents):
      if path.is_relative_to(top):
        # Groups without a limit have no such file, or say 'max' in it.
        with contextlib.suppress(OSError, ValueError):
          limit, used = (int((path / name).read_text()) for name in names)
          yield limit - used + _file_cache(path)


def _file_cache(group):
  """Bytes of a control group that are given back when needed."""
  text = (group / 'memory.stat').read_text()
  match = re.search(r'^(?:total_)?inactive_file (\d+)$', text, re.MULTILINE)
  return int(match[1]) if match else 0


_KNOWN = (*KEYS, 'task')


def _read_file(path):
  """Arrays of an episode; a `ValueError` says what is wrong with the file."""
  match = NAME.fullmatch(path.name)
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = _validated({key: file[key] for key in file if key in _KNOWN})
  # What NumPy, zipfile and zlib raise for damaged files is not documented.
  except Exception as error:
    raise ValueError(_reason(error)) from error
  if match and int(match['records']) != len(arrays['reward']):
    raise ValueError(f'it has {len(arrays["reward"])} records')
  return arrays


def _reason(error):
  """The message of an error in one line."""
  return ' '.join(str(error).split()).rstrip('.') or type(error).__name__


def _validated(episode):
  """Arrays of an episode in their types; a `ValueError` says what is wrong."""
  arrays = {key: np.asarray(episode[key]) for key in _KNOWN if key in episode}
  for key, ndim in zip(KEYS, (4, 2, 1, 1)):
    if key not in arrays:
      raise ValueError(f"there is no entry '{key}'")
    value = arrays[key]
    if value.ndim != ndim or not value.size:
      raise ValueError(f"'{key}' has shape {value.shape}")
    if len(value) != len(arrays['image']):
      raise ValueError(f"'{key}' has {len(value)} records")
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


def _packed(arrays):
  """One structured array [records] of the entries that batches are made of."""
  records = np.empty(len(arrays['image']), [
      (key, arrays[key].dtype, arrays[key].shape[1:]) for key in KEYS])
  for key in KEYS:
    records[key] = arrays[key]
  return records


def _layout(dtype):
  return ', '.join(f'{key} {dtype[key].shape}' for key in KEYS[:2])


def _pick(rng, episodes):
  """One uniformly among those not damaged."""
  while True:
    episode = episodes[rng.integers(len(episodes))]
    if not episode.damaged:
      return episode
