"""How far the runs of a table came, and what of them results/ keeps.

A run is a `commands.Run`: `logdir` is where it writes, `results` what is kept
of it, and `file` what others start from.
"""

import contextlib
import csv
import io
import json
import math
import re
import shutil
import statistics
import struct
import time

from tensorboard.compat.proto import event_pb2

from common import files, machine, options, terminal
from data import checkpoints
from data.logdir import CONFIG, Logdir, TRANSFER

AGENT_LINES = 200  # that are kept of a run's metrics.jsonl
FILM = 'film.gif'
FILM_BYTES = 1_000_000  # that a film may have at most to be kept


# How far a run came


def rows(path):
  """The JSON objects in the lines of a file, but for what a crash cut off."""
  found = []
  for line in path.read_bytes().splitlines() if path.exists() else []:
    with contextlib.suppress(ValueError):
      found.append(json.loads(line))
  return [row for row in found if isinstance(row, dict)]


def reached(run, key='step'):
  """The last step that the metrics report of `key`, 0 if there is none."""
  return max(
      (row['step'] for row in rows(Logdir(run.logdir).metrics) if key in row),
      default=0)


def complete(run):
  """Whether a run has been evaluated at its end, and saved afterwards.

  One that has other flags is not: when it is started again, it says which.
  """
  metrics = Logdir(run.logdir).metrics
  checkpoint = Logdir(run.logdir).checkpoint
  return (
      _is_of(run, run.logdir)
      and reached(run, 'test/return') >= run.flags['steps']
      and checkpoint.exists()
      and checkpoint.stat().st_mtime_ns >= metrics.stat().st_mtime_ns)


def kept(run):
  """Whether the results hold a run, and what others start from."""
  return recorded(run) and (run.file is None or run.file.exists())


def recorded(run):
  """Whether the results hold a run, with the file of a source or without."""
  steps = [row['steps'] for row in rows(run.results / 'run.json')]
  return (
      _is_of(run, run.results) and bool(steps)
      and steps[0] >= run.flags['steps'])


def _is_of(run, folder):
  """Whether a directory holds a run with all flags that a command gives.

  Flags that a continued run may change do not count, and flags left out may
  follow from the task.
  """
  saved = _saved_flags(folder)
  config = options.SCRIPTS[run.script]().parse(run.words)
  changed = config.changed()
  if _other_schedule(run, saved):
    return False
  return saved.get('script') == run.script and all(
      _file(saved.get(key, config.default(key))) == _file(value)
      for key, value in config.plain().items()
      if config.fixed(key) and (key in changed or config.given(key)))


def _file(value):
  """What a flag names; of a source's file, without the study's directory.

  So a run counts in whatever --logdir its sources were made.
  """
  found = re.search(r'(?:^|/)(sources/\d+/[^/]+\.pkl)$', str(value))
  return found[1] if found else value


def other_schedule(run):
  """Whether the log directory holds what other learning rates have learned.

  It can be continued with the steps of the command, but never becomes its run.
  """
  saved = _saved_flags(run.logdir)
  if 'run' not in saved or not _other_schedule(run, saved):
    return False
  if 'former_steps' in saved:
    return True
  try:
    checkpoint, _ = checkpoints.newest(Logdir(run.logdir).checkpoint)
  except terminal.UserError:
    return False  # Nothing was learned, or the run says what is damaged.
  return checkpoint.get('updates', 0) > 0


def _other_schedule(run, saved):
  # Where learning rates fall, what is learned depends on the steps.
  return saved.get('lr_end', 1) < 1 and (
      saved.get('steps') != run.flags['steps'] or 'former_steps' in saved)


def _saved_flags(folder):
  """The configuration in a log directory; empty if it cannot be read."""
  with contextlib.suppress(terminal.UserError):
    return Logdir(folder).read_config()
  return {}


# What is kept


def begin(run):
  """Notes by which code and on which machine a run is started."""
  session = dict(
      began=time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
      commit=machine.commit(), machine=machine.describe(), command=run.command)
  files.make_directory(run.logdir)
  with files.writing(run.logdir), open(
      run.logdir / 'sessions.jsonl', 'a') as file:
    file.write(json.dumps(session) + '\n')


def keep(run):
  """Copies what is worth keeping of a complete run."""
  files.make_directory(run.results)
  if run.file:
    _bundle(run)
  logdir, results = Logdir(run.logdir), Logdir(run.results)
  with files.writing(run.results):
    for name in (CONFIG, TRANSFER):
      if (run.logdir / name).exists():
        shutil.copyfile(run.logdir / name, run.results / name)
  lines = logdir.metrics.read_text().splitlines(keepends=True)
  files.write_text(results.metrics, ''.join(thinned(lines)))
  film = _film(run)
  if film and len(film) <= FILM_BYTES:
    with files.replacing(run.results / FILM) as file:
      file.write(film)
  # The last file, without which the others do not count.
  files.write_text(
      run.results / 'run.json', json.dumps(_summary(run)) + '\n')


def write_table(runs, out):
  """Tells of all runs how far they came, in `runs.csv`."""
  table = [
      _kept_row(run) if recorded(run) else dict(
          run=run.name, steps=reached(run), command=run.command)
      for run in runs]
  text = io.StringIO(newline='')
  writer = csv.DictWriter(text, max(table, key=len))
  writer.writeheader()
  writer.writerows(table)
  files.make_directory(out)
  files.write_text(out / 'runs.csv', text.getvalue())


def _kept_row(run):
  """A row of runs.csv, of what is kept."""
  row, *_ = rows(run.results / 'run.json')
  command = row.pop('command')
  saved = _saved_flags(run.results)
  # In older runs auto was float32 (`common/precision.py`).
  precision = saved.get('precision_used') or saved.get(
      'precision', '').replace('auto', '32')
  return dict(row, precision=precision, command=command)


def thinned(lines):
  """All lines of episodes, and every nth of the agent's so that few remain."""
  agent = [
      index for index, line in enumerate(lines)
      if '"test/return"' not in line and '"train/return"' not in line]
  every = -(-len(agent) // AGENT_LINES) or 1
  dropped = set(agent) - set(agent[::every])
  return [line for index, line in enumerate(lines) if index not in dropped]


def _summary(run):
  """What run.json says of a run."""
  sessions = rows(run.logdir / 'sessions.jsonl')
  progress = checkpoints.load(Logdir(run.logdir).checkpoint)['progress']
  return dict(
      run=run.name, seed=run.flags['seed'], steps=reached(run),
      hours=round(progress['seconds'] / 3600, 3),
      random_return=_random_return(run),
      commits=' '.join(dict.fromkeys(s['commit'] for s in sessions)),
      machine='; '.join(dict.fromkeys(s['machine'] for s in sessions)),
      command=run.command)


def _random_return(run):
  """Mean return of the random actions before training, of a single task.

  None if one of their episodes was cut short by `collect_limit`.
  """
  saved = _saved_flags(run.logdir)
  played = [
      row for row in rows(Logdir(run.logdir).metrics)
      if 'train/return' in row and row['step'] <= saved['prefill']]
  limit = saved.get('collect_limit') or math.inf
  if saved.get('task2') or not played or any(
      row.get('train/length', 0) >= limit for row in played):
    return None
  return round(statistics.fmean(row['train/return'] for row in played), 3)


def _film(run):
  """The GIF of the last evaluation, as `logs.Logger.video` wrote it, or None.

  Only runs with --log_images have one.
  """
  if not _saved_flags(run.logdir).get('log_images'):
    return None
  films = {
      event.step: value.image.encoded_image_string
      for path in run.logdir.glob('events.out.tfevents.*')
      for event in _events(path) for value in event.summary.value
      if value.tag.startswith('sim/test/') and value.HasField('image')}
  return films[max(films)] if films else None


def _events(path):
  """The events in a file of TensorBoard, but for one that a crash cut off.

  Read here, since all readers of TensorBoard load TensorFlow.
  """
  data, start = path.read_bytes(), 0
  # Length and its checksum, the event and its checksum.
  while start + 12 <= len(data):
    size, = struct.unpack_from('<Q', data, start)
    if start + 12 + size > len(data):
      return
    yield event_pb2.Event.FromString(data[start + 12:start + 12 + size])
    start += size + 16


def _bundle(run):
  """Keeps of a source run what transfer needs: no optimizers, no progress."""
  checkpoint = Logdir(run.logdir).checkpoint
  data = checkpoints.load(checkpoint)
  if run.script != 'dreamer-MMTL.py':  # A whole agent.
    names = 'format', 'script', 'config', 'action_dim', 'step', 'variables'
    checkpoints.save(run.file, {
        **{name: data[name] for name in names},
        'rssm_act': checkpoints.rssm_act(data)})
  else:
    checkpoints.save_module(
        run.file, 'reward', checkpoints.module(checkpoint, 'reward'),
        data['config'])
