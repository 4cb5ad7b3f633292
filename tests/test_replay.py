"""Replay: nothing is lost, and what is sampled is what was written."""

import collections
import contextlib
import errno
import gc
import os
import pathlib
import pickle
import resource
import shutil
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import scipy.stats

from data import episodes, replay
from common import files, memory, terminal

ROOT = pathlib.Path(__file__).parent.parent


def make_episode(number, records, actions=2, task=None):
  """Episode whose every entry tells its number and the record's."""
  index = np.arange(records)
  image = np.zeros((records, 4, 4, 3), np.uint8)
  image[..., 0] = number % 256
  image[..., 1] = (index // 256)[:, None, None]
  image[..., 2] = (index % 256)[:, None, None]
  episode = dict(
      image=image, reward=(number * 1000 + index).astype(np.float32),
      action=np.repeat(index[:, None], actions, 1).astype(np.float32),
      discount=np.ones(records, np.float32))
  return episode if task is None else dict(episode, task=np.array(task))


def make_replay(directory, lengths=(), **kwargs):
  kwargs = dict(dict(batch_size=8, batch_length=10), **kwargs)
  store = replay.Replay(directory, **kwargs)
  for number, records in enumerate(lengths):
    store.add(make_episode(number, records))
  return store


def origin(batch):
  """Episode numbers and record numbers [B, T], checked for all entries."""
  number, record = np.divmod(batch['reward'].astype(int), 1000)
  image = batch['image'].astype(int)
  assert (image[..., 0] == number[..., None, None] % 256).all()
  assert (image[..., 1] * 256 + image[..., 2] ==
          record[..., None, None]).all()
  assert (batch['action'] == record[..., None]).all()
  assert (batch['discount'] == 1).all()
  return number, record


def assert_equal(left, right):
  assert left.keys() == right.keys()
  for key in left:
    np.testing.assert_array_equal(left[key], right[key])


def scratch(directory):
  """Bytes of the open files in a directory that have no name any more."""
  found = {}
  for number in os.listdir('/proc/self/fd'):
    with contextlib.suppress(OSError):
      path = os.readlink(f'/proc/self/fd/{number}')
      if path.startswith(str(directory)) and path.endswith('(deleted)'):
        found[path] = os.fstat(int(number)).st_size
  return sum(found.values())


def warnings(capsys):
  return capsys.readouterr().err.splitlines()


def paths(directory):
  return sorted(pathlib.Path(directory).iterdir())


# Files.


def test_files_hold_what_was_added(tmp_path):
  store = make_replay(tmp_path / 'new' / 'episodes', [12, 30, 3])
  files = paths(tmp_path / 'new' / 'episodes')
  assert len(files) == 3
  for number, (path, records) in enumerate(zip(files, [12, 30, 3])):
    time_, identifier, count = path.stem.split('-')
    time.strptime(time_[:15], '%Y%m%dT%H%M%S')
    assert len(identifier) == 32 and int(count) == records
    assert_equal(episodes.load(path), make_episode(number, records))
    with np.load(path, allow_pickle=False) as file:
      assert set(file) == {'image', 'action', 'reward', 'discount'}
      assert file['image'].dtype == np.uint8
      assert file['reward'].dtype == np.float32
  assert store.lengths() == [12, 30, 3]


def test_counts_come_from_the_names(tmp_path, monkeypatch):
  make_replay(tmp_path, [12, 30, 3], action_repeat=2)
  monkeypatch.setattr(np, 'load', None)
  store = make_replay(tmp_path, action_repeat=2)
  assert store.episodes == 3
  assert store.steps == 2 * (11 + 29 + 2)
  assert store.lengths() == [12, 30, 3]


def test_episodes_after_one_are_found_by_its_name(tmp_path):
  store = make_replay(tmp_path)
  assert store.newest is None and store.files() == []
  made = [store.add(make_episode(number, 12)) for number in range(4)]
  assert store.newest == made[3].name
  # By number, a file that was removed would shift what follows.
  made[0].unlink()
  made[1].unlink()
  for reader in store, make_replay(tmp_path):
    assert reader.newest == made[3].name
    assert reader.files() == made[2:]
    assert reader.files(after=made[1].name) == made[2:]
    assert reader.files(after=made[2].name) == made[3:]
    assert reader.files(after=made[3].name) == []


def test_names_stay_in_order_when_the_clock_is_set_back(tmp_path):
  identifier = 32 * 'a'
  make_replay(tmp_path, [12])
  path, = paths(tmp_path)
  future = f'20991231T235959-{identifier}-12.npz'
  path.rename(tmp_path / future)
  store = make_replay(tmp_path)
  names = [future] + [
      store.add(make_episode(number, 12)).name for number in range(50)]
  assert names == sorted(names) == [x.name for x in paths(tmp_path)]


def test_wide_floats_are_stored_as_float32(tmp_path):
  store = make_replay(tmp_path)
  episode = make_episode(1, 12)
  path = store.add({
      key: value if key == 'image' else value.astype(np.float64)
      for key, value in episode.items()})
  assert_equal(episodes.load(path), episode)


@pytest.mark.parametrize('change, words', [
    (dict(reward=np.full(12, np.nan, np.float32)), 'NaN'),
    (dict(action=np.full((12, 2), np.inf, np.float32)), 'infinite'),
    (dict(reward=np.zeros(11, np.float32)), '11 time steps'),
    (dict(reward=np.zeros((12, 1), np.float32)), 'shape'),
    (dict(image=np.zeros((12, 4, 4, 3), np.float32)), 'uint8'),
    (dict(discount=np.ones(12, int)), 'float32'),
    (dict(action=np.zeros((12, 3), np.float32)), r'action \(3,\)'),
])
def test_bad_episodes_are_not_written(tmp_path, change, words):
  store = make_replay(tmp_path, [12])
  with pytest.raises(terminal.UserError, match=words):
    store.add(dict(make_episode(1, 12), **change))
  assert store.episodes == len(paths(tmp_path)) == 1
  assert set(origin(store.sample(0))[0].ravel()) == {0}


def test_failed_writing_leaves_nothing(tmp_path):
  store = make_replay(tmp_path, [12])
  episode = make_episode(1, 900)
  noise = np.random.default_rng(0).integers(0, 256, (900, 4, 4, 3), np.uint8)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
  try:
    with pytest.raises(terminal.UserError, match='cannot be written'):
      store.add(dict(episode, image=noise))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert len(paths(tmp_path)) == store.episodes == 1
  store.add(episode)
  assert store.episodes == 2


WRITER = '''
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import numpy as np
from data import replay; import test_replay
store = replay.Replay({directory!r}, batch_size=1, batch_length=10)
noise = np.random.default_rng(0).integers(0, 256, (900, 4, 4, 3), np.uint8)
print('ready', flush=True)
for number in range(100_000):
  store.add(dict(test_replay.make_episode(number, 900), image=noise))
  print(number, flush=True)
'''


def refuse_to_sync_directories(monkeypatch):
  real = os.fsync
  def fsync(number):
    if stat.S_ISDIR(os.fstat(number).st_mode):
      raise OSError(errno.EINVAL, 'Invalid argument')
    real(number)
  monkeypatch.setattr(os, 'fsync', fsync)


def test_file_systems_that_cannot_sync_a_directory(tmp_path, monkeypatch):
  refuse_to_sync_directories(monkeypatch)
  store = make_replay(tmp_path, [12, 12])
  assert store.episodes == len(paths(tmp_path)) == 2
  assert set(origin(store.sample(0))[0].flat) == {0, 1}


def test_an_episode_makes_its_directory_anew(tmp_path):
  store = make_replay(tmp_path / 'episodes', [12])
  shutil.rmtree(tmp_path / 'episodes')
  path = store.add(make_episode(1, 12))
  assert paths(tmp_path / 'episodes') == [path]


def test_kill_loses_no_finished_episode(tmp_path):
  code = WRITER.format(
      root=str(ROOT), tests=str(ROOT / 'tests'), directory=str(tmp_path))
  delays = np.random.default_rng(0).uniform(0, 0.2, 5)
  before, cut = 0, 0
  for delay in delays:
    process = subprocess.Popen(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'ready\n'
    time.sleep(delay)
    process.kill()
    done = len(process.communicate()[0].split())
    cut += any(path.suffix == '.tmp' for path in paths(tmp_path))
    store = make_replay(tmp_path)
    assert before + done <= store.episodes <= before + done + 1
    before = store.episodes
    assert {path.suffix for path in paths(tmp_path)} <= {'.npz'}
    for path in paths(tmp_path):
      assert len(episodes.load(path)['reward']) == 900
  assert before and cut  # Some kills came in the middle of writing.


# Sampling.


@pytest.mark.parametrize('memory', [1e9, 3000, 0])
def test_windows_are_continuous(tmp_path, memory):
  lengths = [10, 11, 50, 300]
  store = make_replay(tmp_path, lengths, memory=memory)
  for reopened in (False, True):
    store = make_replay(tmp_path, memory=memory) if reopened else store
    for index in range(50):
      batch = store.sample(index)
      number, record = origin(batch)
      assert record.shape == (8, 10)
      assert (number == number[:, :1]).all()
      assert (np.diff(record) == 1).all()
      assert (record[:, -1] < np.array(lengths)[number[:, -1]]).all()
      assert (batch['first'] == (record == 0)).all()
      assert batch['first'].dtype == bool
      assert all(value.flags.c_contiguous for value in batch.values())
    assert (scratch(tmp_path) > 0) == (memory < 1e9)


def test_episodes_and_starts_are_uniform(tmp_path):
  lengths = [10, 13, 40]
  store = make_replay(tmp_path, lengths, batch_size=200)
  counts = collections.Counter()
  for index in range(30):
    number, record = origin(store.sample(index))
    counts.update(zip(number[:, 0].tolist(), record[:, 0].tolist()))
  drawn = [sum(v for k, v in counts.items() if k[0] == n) for n in range(3)]
  assert scipy.stats.chisquare(drawn).pvalue > 0.01
  for number, records in enumerate(lengths):
    starts = [counts[number, start] for start in range(records - 9)]
    assert sum(starts) == drawn[number]  # None behind the last that fits.
    assert min(starts) > 0  # The last included.
    if len(starts) > 1:
      assert scipy.stats.chisquare(starts).pvalue > 0.01


def test_balance_sees_the_ends_as_often_as_the_middle(tmp_path):
  store = make_replay(tmp_path, [100], batch_size=500, balance=True)
  seen, starts = np.zeros(100), np.zeros(91)
  for index in range(20):
    _, record = origin(store.sample(index))
    np.add.at(seen, record, 1)
    np.add.at(starts, record[:, 0], 1)
  expected = np.ones(91)
  expected[[0, -1]] = 10  # All windows that touch an end are moved to it.
  expected *= starts.sum() / expected.sum()
  assert scipy.stats.chisquare(starts, expected).pvalue > 0.01
  assert seen[:10].min() > 0.9 * seen[20:80].mean()
  assert seen[-10:].min() > 0.9 * seen[20:80].mean()


def test_short_episodes_cross_with_resets(tmp_path):
  lengths = [1, 3, 9, 10, 60]
  store = make_replay(tmp_path, lengths, batch_size=100)
  opened, followed = collections.Counter(), collections.Counter()
  for index in range(30):
    batch = store.sample(index)
    number, record = origin(batch)
    assert (batch['first'] == (record == 0)).all()
    for row in range(100):
      begins = np.flatnonzero(batch['first'][row])
      opened[number[row, 0]] += 1
      if number[row, 0] > 2:
        assert (number[row] == number[row, 0]).all()
        assert (np.diff(record[row]) == 1).all()
        continue
      assert begins[0] == 0
      ends = [*begins[1:], 10]
      for begin, end in zip(begins, ends):
        piece = number[row, begin]
        assert (number[row, begin:end] == piece).all()
        assert (record[row, begin:end] == np.arange(end - begin)).all()
        assert end - begin == min(lengths[piece], 10 - begin)
      followed.update(number[row, begins[1:]].tolist())
  assert scipy.stats.chisquare(list(opened.values())).pvalue > 0.01
  assert set(followed) == {0, 1, 2}
  assert scipy.stats.chisquare(list(followed.values())).pvalue > 0.01


def test_one_short_episode_is_enough(tmp_path):
  store = make_replay(tmp_path, [4])
  number, record = origin(store.sample(0))
  assert (record == np.tile(np.arange(4), 3)[:10]).all()


def test_every_record_is_reached_and_none_twice(tmp_path):
  lengths = [5, 25, 11, 10]
  store = make_replay(tmp_path, lengths, batch_size=50)
  seen = set()
  for index in range(20):
    number, record = origin(store.sample(index))
    seen |= set(zip(number.ravel().tolist(), record.ravel().tolist()))
  assert seen == {(n, r) for n, x in enumerate(lengths) for r in range(x)}


def test_sampling_repeats(tmp_path):
  store = make_replay(tmp_path, [30, 5, 12, 40, 7], seed=3)
  batches = [store.sample(index) for index in range(5)]
  fresh = make_replay(tmp_path, seed=3, memory=2000)
  for index in reversed(range(5)):
    assert_equal(fresh.sample(index), batches[index])
  assert (batches[0]['reward'] != batches[1]['reward']).any()
  other = make_replay(tmp_path, seed=4)
  assert (other.sample(0)['reward'] != batches[0]['reward']).any()


def test_new_episodes_are_drawn_in_order_of_names(tmp_path):
  """Fresh identifiers do not matter: a repeated run draws the same."""
  left = make_replay(tmp_path / 'left', [30, 5, 12, 40, 7])
  right = make_replay(tmp_path / 'right', [30, 5, 12, 40, 7])
  assert_equal(left.sample(2), right.sample(2))


def test_no_episode_is_an_error(tmp_path):
  store = make_replay(tmp_path)
  with pytest.raises(terminal.UserError, match=str(tmp_path)):
    store.sample(0)
  with pytest.raises(terminal.UserError, match=str(tmp_path)):
    next(store.batches(0, 1))


# Batches in the background.


def test_batches_are_those_of_sample(tmp_path):
  store = make_replay(tmp_path, [30, 5, 12], memory=500)
  expected = [store.sample(index) for index in range(3, 13)]
  batches = store.batches(3, 10)
  for number, batch in enumerate(batches):
    assert_equal(batch, expected[number])
    if number == 2:  # What is added meanwhile is for the next call.
      store.add(make_episode(3, 30))
  assert number == 9
  later = [origin(x)[0] for x in store.batches(3, 10)]
  assert 3 in np.unique(later)


def test_abandoned_batches_leave_no_thread(tmp_path):
  store = make_replay(tmp_path, [30, 5, 12])
  before = threading.active_count()
  batches = store.batches(0, 1000)
  next(batches)
  assert threading.active_count() == before + 1
  del batches
  gc.collect()
  assert threading.active_count() == before
  with pytest.raises(ZeroDivisionError):
    for _ in store.batches(0, 1000):
      1 / 0
  gc.collect()
  assert threading.active_count() == before
  store.batches(0, 10)
  assert threading.active_count() == before


def test_errors_reach_the_consumer(tmp_path, monkeypatch):
  store = make_replay(tmp_path, [30])
  original = store._batch
  def fail(rows):
    if fail.calls == 3:
      raise RuntimeError('the disk is gone')
    fail.calls += 1
    return original(rows)
  fail.calls = 0
  monkeypatch.setattr(store, '_batch', fail)
  received = []
  with pytest.raises(RuntimeError, match='the disk is gone'):
    for batch in store.batches(0, 10):
      received.append(batch)
  assert len(received) == 3


# Tasks and shards.


def test_tasks_are_balanced(tmp_path):
  tasks = ['Hopper', 'Ant']
  store = make_replay(tmp_path, tasks=tasks, batch_size=200)
  for number in range(12):
    task = tasks[number % 6 == 0]
    store.add(make_episode(number, [20, 6][number % 2], task=task))
  assert store.lengths('Ant') == [20, 20]
  assert len(store.lengths('Hopper')) == 10
  assert len(store.lengths()) == store.episodes == 12
  fresh = make_replay(tmp_path, tasks=tasks, batch_size=200)
  assert fresh.lengths('Ant') == [20, 20]
  counts = np.zeros(2)
  for index in range(10):
    batch = store.sample(index)
    assert_equal(fresh.sample(index), batch)
    number, _ = origin(batch)
    assert batch['task'].dtype == np.int32
    assert (batch['task'] == (number % 6 == 0)).all()
    counts += np.bincount(batch['task'][:, 0])
  assert scipy.stats.chisquare(counts).pvalue > 0.01


def test_task_by_index_and_by_name_are_the_same(tmp_path, capsys):
  tasks = ['Hopper', 'Ant']
  store = make_replay(tmp_path, tasks=tasks)
  store.add(make_episode(0, 20, task=np.full(20, 1, np.int32)))
  path = store.add(make_episode(1, 20, task='Ant'))
  assert episodes.load(path)['task'] == 'Ant'
  fresh = make_replay(tmp_path, tasks=tasks)
  assert fresh.lengths('Ant') == [20, 20] and not fresh.lengths('Hopper')
  assert (fresh.sample(0)['task'] == 1).all()
  for task in ('Walker', np.int32(2), np.arange(20)):
    with pytest.raises(terminal.UserError, match='task'):
      store.add(make_episode(2, 20, task=task))
  with pytest.raises(terminal.UserError, match='task'):
    store.add(make_episode(2, 20))
  assert not warnings(capsys)
  other = make_replay(tmp_path, tasks=['Ant', 'Walker'])
  assert other.lengths('Ant') == [20]  # Index 1 is the Walker there.
  other = make_replay(tmp_path, tasks=['Walker', 'Hopper'])
  assert len(warnings(capsys)) == 1
  assert 'task' not in make_replay(tmp_path).sample(0)


def test_shards_divide_the_directory(tmp_path):
  whole = make_replay(tmp_path, [12] * 10)
  shards = [make_replay(tmp_path, shard=(n, 3)) for n in range(3)]
  assert sum(shard.episodes for shard in shards) == 10
  added = [
      shard.add(make_episode(10 + n, 12)) for n, shard in enumerate(shards)]
  assert sum(shard.episodes for shard in shards) == 13
  fresh = [make_replay(tmp_path, shard=(n, 3)) for n in range(3)]
  drawn = []
  for n in range(3):
    assert fresh[n].episodes == shards[n].episodes
    assert_equal(fresh[n].sample(0), shards[n].sample(0))
    drawn.append(set(np.unique([
        origin(fresh[n].sample(index))[0] for index in range(20)])))
    assert 10 + n in drawn[n]
  assert set.union(*drawn) == set(range(13)) and sum(map(len, drawn)) == 13
  assert len(added) == 3 and whole.episodes == 10


def test_a_shard_keeps_what_others_are_writing(tmp_path):
  store = make_replay(tmp_path, shard=(1, 2))
  path = store.add(make_episode(0, 12))
  beside = path.rename(path.with_name(path.name + '.tmp'))
  make_replay(tmp_path, shard=(0, 2))
  assert beside.exists()
  make_replay(tmp_path, shard=(1, 2))
  assert not beside.exists()


# Bad files.


def damage(path, kind):
  """Damages an episode of 12 records; returns the word in the warning."""
  data = path.read_bytes()
  episode = make_episode(1, 12)
  changes = dict(
      missing=(dict(reward=None), "'reward'"),
      shape=(dict(action=np.zeros(12, np.float32)), 'shape'),
      dtype=(dict(image=np.zeros((12, 4, 4, 3), np.int16)), 'uint8'),
      nan=(dict(reward=np.full(12, np.nan, np.float32)), 'NaN'),
      objects=(dict(reward=np.array([{}] * 12)), 'pickle'),
      layout=(dict(action=np.zeros((12, 5), np.float32)), '(5,)'),
      short=({k: v[:11] for k, v in episode.items()}, '11 time steps'))
  if kind in changes:
    change, word = changes[kind]
    episode = dict(episode, **change)
    np.savez_compressed(path, **{
        key: value for key, value in episode.items() if value is not None})
    return word
  path.write_bytes(dict(
      truncated=data[:len(data) // 2], cut=data[:-1],
      flipped=data[:400] + bytes(100) + data[500:], text=b'hello\n',
      pickle=pickle.dumps(episode))[kind])
  return str(path)


KINDS = [
    'missing', 'shape', 'dtype', 'nan', 'objects', 'layout', 'short',
    'truncated', 'cut', 'flipped', 'text', 'pickle']


@pytest.mark.parametrize('kind', KINDS)
def test_damaged_files_are_named_once_and_left_out(tmp_path, capsys, kind):
  make_replay(tmp_path, [12] * 4)
  word = damage(paths(tmp_path)[1], kind)
  store = make_replay(tmp_path, memory=0)
  assert not warnings(capsys)
  batches = [store.sample(index) for index in range(20)]
  warning, = warnings(capsys)
  assert str(paths(tmp_path)[1]) in warning and word in warning
  drawn = np.unique([origin(batch)[0] for batch in batches])
  assert drawn.tolist() == [0, 2, 3]
  assert store.episodes == 4 and store.steps == 44
  # What is drawn does not depend on when the damage was found.
  for index, batch in enumerate(store.batches(0, 20)):
    assert_equal(batch, batches[index])
  assert_equal(make_replay(tmp_path).sample(19), batches[19])
  if kind != 'layout':
    with pytest.raises(terminal.UserError, match='not a whole episode'):
      episodes.load(paths(tmp_path)[1])


def test_a_vanished_file_is_left_out(tmp_path, capsys):
  make_replay(tmp_path, [12] * 3)
  store = make_replay(tmp_path)
  paths(tmp_path)[0].unlink()
  assert 0 not in np.unique([origin(x)[0] for x in store.batches(0, 20)])
  assert len(warnings(capsys)) == 1


def test_only_damaged_files_end_in_an_error(tmp_path, capsys):
  make_replay(tmp_path, [12, 5])
  for path in paths(tmp_path):
    path.write_bytes(b'nothing')
  with pytest.raises(terminal.UserError, match='no episode'):
    make_replay(tmp_path).sample(0)
  assert len(warnings(capsys)) == 2


def test_foreign_empty_and_leftover_files(tmp_path, capsys):
  store = make_replay(tmp_path, [12, 12, 12])
  empty, leftover, _ = paths(tmp_path)
  empty.write_bytes(b'')
  beside = leftover.rename(leftover.with_name(leftover.name + '.tmp'))
  (tmp_path / 'notes.txt').write_text('mine')
  (tmp_path / '20200101T000000-abc-0.npz').write_text('no records')
  (tmp_path / '.hidden').write_text('')
  store = make_replay(tmp_path)
  foreign, zero = warnings(capsys)
  assert 'notes.txt' in foreign and 'abc-0.npz' in foreign
  assert empty.name in zero
  assert store.episodes == 1 and set(origin(store.sample(0))[0].flat) == {2}
  assert not beside.exists() and (tmp_path / 'notes.txt').exists()


def test_damaged_task_is_found_at_the_start(tmp_path, capsys):
  store = make_replay(tmp_path, tasks=['a', 'b'])
  for number in range(4):
    store.add(make_episode(number, 12, task='ab'[number % 2]))
  paths(tmp_path)[1].write_bytes(b'x')
  store = make_replay(tmp_path, tasks=['a', 'b'])
  assert len(warnings(capsys)) == 1
  assert store.episodes == 4 and store.lengths('b') == [12]
  drawn = np.unique([origin(x)[0] for x in store.batches(0, 20)])
  assert drawn.tolist() == [0, 2, 3]


def test_load_episode_of_nothing(tmp_path):
  with pytest.raises(terminal.UserError, match='no episode'):
    episodes.load(tmp_path / 'a.npz')


# Memory and disk.


MEASURE = '''
import re, sys
sys.path[:0] = [{root!r}]
import numpy as np
from data import episodes, replay
def peak():
  text = open('/proc/self/status').read()
  return int(re.search(r'VmHWM:\\s+(\\d+)', text)[1]) * 1024
episode = dict(
    image=np.zeros((100, 64, 64, 3), np.uint8),
    action=np.zeros((100, 2), np.float32),
    reward=np.zeros(100, np.float32), discount=np.ones(100, np.float32))
before = peak()
options = dict(batch_size=32, batch_length=5, memory={memory})
store = replay.Replay({directory!r}, **options)
for _ in range({count}):
  store.add(episode)
store.close()
store = replay.Replay({directory!r}, **options)
for _ in store.batches(0, 200):
  pass
print(peak() - before)
'''


def test_memory_is_bounded(tmp_path):
  grown = {}
  for memory in (8_000_000, 200_000_000):
    directory = tmp_path / str(memory)
    code = MEASURE.format(
        root=str(ROOT), directory=str(directory), memory=memory, count=80)
    grown[memory] = int(subprocess.run(
        [sys.executable, '-c', code], check=True, capture_output=True
    ).stdout)
  # 98 MB of episodes; a batch is 2 MB and decoding one episode takes 4 MB.
  assert grown[8_000_000] < 8_000_000 + 25_000_000
  assert grown[200_000_000] > 60_000_000


def test_scratch_leaves_no_file(tmp_path):
  store = make_replay(tmp_path, [20, 30], memory=0)
  store.sample(0)
  assert scratch(tmp_path) > 0
  assert len(paths(tmp_path)) == 2
  store.close()


def test_full_disk_falls_back_to_the_files(tmp_path, monkeypatch, capsys):
  expected = make_replay(tmp_path, [20, 30, 5]).sample(3)
  usage = collections.namedtuple('Usage', 'total used free')(1, 1, 0)
  monkeypatch.setattr(replay.shutil, 'disk_usage', lambda path: usage)
  store = make_replay(tmp_path, memory=2000)
  assert_equal(store.sample(3), expected)
  assert_equal(store.sample(3), expected)
  assert scratch(tmp_path) == 0
  warning, = warnings(capsys)
  assert str(tmp_path) in warning


@pytest.mark.parametrize('name', ['pwrite', 'preadv'])
def test_a_scratch_file_that_fails_is_done_without(
    tmp_path, monkeypatch, name):
  expected = make_replay(tmp_path, [20, 30, 5]).sample(3)
  def fail(*_):
    raise OSError(errno.EIO, 'Input/output error')
  monkeypatch.setattr(os, name, fail)
  assert_equal(make_replay(tmp_path, memory=0).sample(3), expected)


def test_a_quota_that_is_used_up_is_left_to_the_episodes(
    tmp_path, monkeypatch):
  expected = make_replay(tmp_path, [20, 30, 5]).sample(3)
  store = make_replay(tmp_path, memory=0)
  assert_equal(store.sample(3), expected)
  assert scratch(tmp_path) > 0
  write, calls = os.pwrite, []
  def fail(*_):
    calls.append(1)
    raise OSError(errno.EDQUOT, 'Disk quota exceeded')
  monkeypatch.setattr(os, 'pwrite', fail)
  store.add(make_episode(3, 20))
  assert scratch(tmp_path) == 0  # What was there is given back.
  monkeypatch.setattr(os, 'pwrite', write)
  store.add(make_episode(4, 20))
  assert scratch(tmp_path) == 0 and len(calls) == 1
  assert_equal(store.sample(3), make_replay(tmp_path).sample(3))


@pytest.mark.parametrize('times', [2, 9])
@pytest.mark.parametrize('tasks', [None, ['a', 'b']])
def test_errors_of_the_system_damage_no_episode(
    tmp_path, monkeypatch, capsys, times, tasks):
  """As of a network file system that is away for a while."""
  paused, load, left = [], np.load, [times]
  for number in range(4):
    write = make_replay(tmp_path / 'a', tasks=tasks)
    write.add(make_episode(number, 20, task=tasks and tasks[number % 2]))
    write.close()
  expected = make_replay(tmp_path / 'a', tasks=tasks).sample(3)

  def flaky(*args, **kwargs):
    left[0] -= 1
    if left[0] >= 0:
      raise OSError(errno.ESTALE, 'Stale file handle')
    return load(*args, **kwargs)

  monkeypatch.setattr(np, 'load', flaky)
  monkeypatch.setattr(episodes.time, 'sleep', paused.append)
  if times == 2:
    assert_equal(make_replay(tmp_path / 'a', tasks=tasks).sample(3), expected)
    assert paused == [1, 4] and not warnings(capsys)
  else:
    with pytest.raises(terminal.UserError, match='cannot be read: Stale file'):
      make_replay(tmp_path / 'a', tasks=tasks).sample(3)
    page = ' '.join((ROOT / 'docs/log_directory.md').read_text().split())
    assert f'is tried again for {sum(paused)} seconds' in page


def test_free_room_that_is_not_known(tmp_path, monkeypatch):
  expected = make_replay(tmp_path, [20, 30, 5]).sample(3)
  def fail(path):
    raise OSError(errno.ENOSYS, 'Function not implemented')
  monkeypatch.setattr(replay.shutil, 'disk_usage', fail)
  store = make_replay(tmp_path, memory=0)
  assert_equal(store.sample(3), expected)
  store.add(make_episode(3, 20))


def test_directories_that_cannot_be_used(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(terminal.UserError, match='file/episodes.*written'):
    make_replay(tmp_path / 'file' / 'episodes')
  with pytest.raises(terminal.UserError, match='nothing.*cannot be read'):
    episodes.paths(tmp_path / 'nothing')


def test_scratch_takes_at_most_half_of_the_disk(tmp_path, monkeypatch):
  left = [100_000]
  usage = collections.namedtuple('Usage', 'total used free')
  monkeypatch.setattr(
      replay.shutil, 'disk_usage',
      lambda path: usage(0, 0, left[0] - scratch(tmp_path)))
  store = make_replay(tmp_path, memory=0)
  for number in range(60):
    store.add(make_episode(number, 20))
  size = scratch(tmp_path)
  assert 40_000 < size <= 50_000
  store.close()


def test_available_memory(tmp_path):
  assert 0 < memory.available() < 2 ** 50
  make_replay(tmp_path, [20, 30]).sample(0)  # By default, a share of it.
  assert scratch(tmp_path) == 0


def test_control_groups_bound_the_memory(tmp_path):
  def group(path, prefix, limit, used, cache):
    path.mkdir(parents=True, exist_ok=True)
    new = prefix == 'v2'
    (path / ('memory.max' if new else 'memory.limit_in_bytes')
     ).write_text(f'{limit}\n')
    (path / ('memory.current' if new else 'memory.usage_in_bytes')
     ).write_text(f'{used}\n')
    (path / 'memory.stat').write_text(
        f'anon 5\n{"" if new else "total_"}inactive_file {cache}\n')
  membership = tmp_path / 'cgroup'
  membership.write_text('0::/slurm/job\n')
  group(tmp_path / 'v2/slurm', 'v2', 1000, 400, 100)
  group(tmp_path / 'v2/slurm/job', 'v2', 'max', 300, 0)
  assert list(memory.group_limits(tmp_path / 'v2', membership)) == [700]
  membership.write_text('5:cpu:/a\n4:memory:/job\n0::/\n')
  group(tmp_path / 'v1/memory', 'v1', 9000, 100, 0)
  group(tmp_path / 'v1/memory/job', 'v1', 800, 500, 50)
  assert list(
      memory.group_limits(tmp_path / 'v1', membership)) == [350, 8900]
  assert not list(memory.group_limits(tmp_path, tmp_path / 'none'))


# Scale.


def multiply(directory, episode, count):
  """Fills a directory with links to one episode."""
  store = make_replay(directory)
  source = store.add(episode)
  for number in range(count - 1):
    store._time += 1
    os.link(source, directory / store._new_name(len(episode['reward'])))


@pytest.mark.parametrize('tasks', [None, ['a', 'b']])
def test_many_episodes_start_quickly(tmp_path, tasks):
  multiply(tmp_path, make_episode(0, 500, task='a'), 2000)
  began = time.perf_counter()
  store = make_replay(tmp_path, tasks=tasks)
  store.sample(0)
  assert time.perf_counter() - began < (5 if tasks else 1)
  assert store.episodes == 2000 and store.steps == 2000 * 499


@pytest.mark.slow
def test_speed(tmp_path):
  """50x50 images, 200 episodes of 500 records: beyond the cache >= 8 / s."""
  rng = np.random.default_rng(0)
  image = np.repeat(
      rng.integers(0, 256, (500, 64, 8, 3), np.uint8), 8, axis=2)
  episode = dict(
      image=image, action=np.zeros((500, 6), np.float32),
      reward=np.zeros(500, np.float32), discount=np.ones(500, np.float32))
  size = 500 * (image[0].size + 8 * 4)
  multiply(tmp_path, episode, 200)
  rates = {}
  for name, count in (('cached', 200), ('beyond the cache', 20)):
    store = make_replay(
        tmp_path, batch_size=50, batch_length=50, memory=count * size)
    for phase in ('cold', 'warm'):
      began = time.perf_counter()
      for _ in store.batches(0, 30):
        pass
      rates[name, phase] = 30 / (time.perf_counter() - began)
      print(f'{name}, {phase}: {rates[name, phase]:.1f} batches/s')
    store.close()
  assert rates['cached', 'warm'] > 20
  assert rates['beyond the cache', 'warm'] > 8
