"""Reads runs from log directories and tells which of them are one method."""

import collections
import dataclasses
import functools
import json
import math
import os
import pathlib
import re

import numpy as np
import pandas as pd

from common import options
from common import terminal
from data.logdir import Logdir, METRICS

# Records of a run that stand beside its flags.
_RECORDS = (
    'script', 'run', 'python', 'tensorflow', 'precision_used', 'decoder_used')
# Ending of records with the hash of what a run started from, by flag.
_HASH = '_sha256'
# How the names of meta-model runs tell what became of the decoder.
_DECODERS = {'fresh': ' encoder only', 'copied': ' decoder copied'}
# Flags that name files of other agents.
SOURCES = re.compile(r'source|encoder|decoder|meta\d')
_OMEGA = re.compile(r' ?(?:ω|omega)[=_ ]?(\d*\.?\d+(?:e[+-]?\d+)?)')
LONGEST = 28  # characters of a flag's value in a label


@dataclasses.dataclass
class Curve:
  """One run on one task: values `ys` at steps `xs`, both `[N]`, ascending.

  `method` is the name under which runs are averaged, `label` the same in a few
  words, `kind` what the script did ('dreamer', 'FTL ω=0.2', …), `flags` the
  values of the flags that tell methods apart, as text. `end` is the step up to
  which the curve goes, which of a curve that was cut may lie behind its last
  value.
  """

  task: str
  method: str
  seed: str
  path: pathlib.Path
  config: dict
  xs: np.ndarray
  ys: np.ndarray
  kind: str = ''
  label: str = ''
  flags: dict = dataclasses.field(default_factory=dict)
  end: float = None

  def __post_init__(self):
    self.end = self.xs[-1] if self.end is None else self.end
    self.kind = self.kind or self.method
    self.label = self.label or self.method


# Reading log directories


def load(
    indirs, xaxis='step', yaxis='test/return', merge=(), group_by='flags'):
  """All curves below the directories, one per run and task.

  Rows that cannot be read and values that are not finite are left out and
  counted in a warning. A cut last line is what a running program leaves, and
  is passed over.

  Args:
    indirs: directories, searched at any depth.
    xaxis, yaxis: keys of metrics.jsonl.
    merge: patterns of flags that do not tell methods apart.
    group_by: 'flags' names methods for the script and the flags of a run,
      'path' for its directory.
  """
  curves, empty, broken, odd = [], [], 0, 0
  for folder, indir in _log_directories(indirs):
    found, lines, values = _read(Logdir(folder).metrics, xaxis, yaxis)
    broken, odd = broken + lines, odd + values
    config = _config(folder)
    task, method, seed = identity(folder, indir, config)
    for prefix, points in found.items():
      xs, ys = np.array(sorted(points, key=lambda point: point[0])).T
      curves.append(
          Curve(prefix or task, method, seed, folder, config, xs, ys))
    if not found:
      empty.append(folder)
  if not curves:
    raise terminal.UserError(_nothing_found(indirs, empty, xaxis, yaxis))
  for count, what in (
      (len(empty), f'log directories without {yaxis} yet'),
      (broken, 'lines that are not JSON objects'),
      (odd, f'values of {yaxis} or {xaxis} that are not finite numbers')):
    if count:
      terminal.warn(f'left out {count} {what}.')
  name_methods(curves, indirs, merge, group_by)
  return curves


def identity(folder, indir, config):
  """Task, method and seed of a log directory, as strings.

  They come from the saved configuration, else from a path `task/method/seed`,
  else from the names of the directories: `method` and what it lies in.
  """
  inner = folder.relative_to(indir).parts
  names = [''] * 3 + [_clean(name) for name in folder.resolve().parts]
  if len(inner) >= 3 or names[-1].isdigit():
    task, method, seed = names[-3:]
  else:
    task, method, seed = *names[-2:], '0'
  numbered = sorted(
      (int(key[4:]), name) for key, name in config.items()
      if re.fullmatch(r'task\d{1,3}', key))
  tasks = [name for _, name in numbered if name and name != 'none']
  if tasks or config.get('task'):
    task = ' + '.join(map(_clean, tasks or [config['task']]))
  return (
      task or method, _kind(config) or method,
      _clean(config.get('seed', seed)))


def _kind(config):
  """The name of what a script ran, or None.

  dreamer, multi-task, scratch (dreamer-FTL.py without transfer), 'FTL ω=0.2',
  'MMTL N=2' (N source reward models on the frozen autoencoder), the same with
  'encoder only' or 'decoder copied' behind if the decoder is trained.
  """
  script = pathlib.Path(_clean(config.get('script', ''))).stem
  if script == 'dreamer-FTL':
    factor = _number(config.get('transfer_factor'))
    return f'FTL ω={factor:g}' if config.get('transfer') else 'scratch'
  if script == 'dreamer-MMTL':
    kind = f'MMTL N={_clean(config.get("n_meta", 0))}'
    # Older runs do not say whether they found a decoder.
    thawed = config.get('freeze_decoder') is False
    used = config.get('decoder_used', 'copied' if thawed else 'frozen')
    return kind + _DECODERS.get(_clean(used), '')
  return script.removeprefix('dreamer-') or None


def _log_directories(indirs):
  seen = set()
  for indir in map(pathlib.Path, indirs):
    if not indir.is_dir():
      raise terminal.UserError(
          f"--indir '{indir}' is not a directory: name a folder of runs.")
    for folder, subdirs, files in os.walk(indir, followlinks=True):
      real = os.path.realpath(folder)
      if real in seen:
        subdirs.clear()
        continue
      seen.add(real)
      subdirs.sort()
      if METRICS in files:
        yield pathlib.Path(folder), indir


def _read(path, xaxis, yaxis):
  """`({task or '': [(x, y)]}, broken lines, values that are not finite)`.

  If a run names its tasks, the same episodes stand under the plain name too,
  and only those under the task count.
  """
  found, broken, odd = collections.defaultdict(list), 0, 0
  needle, ending = json.dumps(yaxis)[1:].encode(), '/' + yaxis
  try:
    lines = path.read_bytes().splitlines(keepends=True)
  except OSError:
    return {}, 0, 0
  for line in lines:
    # Most lines hold other metrics: do not parse those.
    if needle not in line:
      continue
    row = _json(line)
    if row is None:
      broken += line.endswith(b'\n')
      continue
    x = _number(row.get(xaxis))
    for key, y in row.items():
      task = key.removesuffix(yaxis).removesuffix('/')
      if key != yaxis and (
          not key.endswith(ending) or task in ('train', 'test')):
        continue
      point = (x, _number(y))
      if math.isfinite(sum(point)):
        found[_clean(task)].append(point)
      else:
        odd += 1
  if len(found) > 1:
    found.pop('', None)
  return found, broken, odd


def _config(folder):
  try:
    return _json(Logdir(folder).config.read_bytes()) or {}
  except OSError:
    return {}


def _json(data):
  try:
    value = json.loads(data)
  except (ValueError, RecursionError):
    return None
  return value if isinstance(value, dict) else None


def _number(value):
  try:
    return float(value) if type(value) in (int, float) else math.nan
  except OverflowError:
    return math.nan


def _clean(name):
  """One line of valid text, whatever bytes a directory's name holds."""
  name = os.fsencode(str(name)).decode('utf-8', 'replace')
  return ' '.join(name.split())


def _nothing_found(indirs, empty, xaxis, yaxis):
  folders = ', '.join(map(str, indirs))
  if not empty:
    return f'no {METRICS} below {folders}: name a folder of runs.'
  keys = set()
  for folder in empty[:20]:
    try:
      lines = Logdir(folder).metrics.read_bytes().splitlines()[-100:]
    except OSError:
      continue
    for line in lines:
      keys.update(_json(line) or {})
  known = ', '.join(sorted(map(_clean, keys))) or 'nothing yet'
  return (
      f'no run below {folders} has {yaxis} against {xaxis}; they have {known}.')


# Methods


def name_methods(curves, indirs=(), merge=(), group_by='flags'):
  """Sets `method` and `label` of the curves, and warns of odd groups.

  Runs are seeds of one method if they differ in no flag that tells methods
  apart. Only flags that differ within one task count: tasks may well need
  their own settings.
  """
  table = flag_table(curves)
  merged = [key for key in table if any(
      re.fullmatch(pattern, key) for pattern in merge)]
  # Flags of all scripts count: runs that have them may not be there yet.
  known = {
      key for flags in map(_flags, options.SCRIPTS) for key in flags.plain()
      if flags.method(key)}
  for pattern in merge:
    if not any(re.fullmatch(pattern, key) for key in {*known, *table}):
      raise terminal.UserError(
          f"--merge '{pattern}' fits no flag that tells methods apart; those "
          f'that differ are {", ".join(_varying(table)) or "none"}.')
  _say_merged(curves, table, merged)
  table = table.drop(columns=merged)
  for curve, row in zip(curves, table.to_dict('records')):
    curve.flags = {
        key: value for key, value in row.items() if value is not None}
  if group_by == 'path':
    for curve, name in zip(curves, _path_names(curves, indirs)):
      curve.method = curve.label = name
    _warn_differing(curves, table)
  else:
    _name_by_flags(curves, table)
  _warn_seeds(curves)


def flag_table(curves):
  """A row per curve, a column per flag that tells methods apart, as text.

  A run that does not know a flag of its script, because it is older, has the
  default; cells of runs without a configuration and of other scripts are
  empty.
  """
  rows = []
  for curve in curves:
    flags = {**_defaults(curve.config), **curve.config}
    if curve.config:  # A record, which only runs that were lengthened have.
      flags.setdefault('former_steps', '')
    rows.append({
        _clean(key): _text(value) for key, value in flags.items()
        if tells_apart(key, curve)})
  for (_, flag), cells in _sources(curves, rows).items():
    if len({digest for _, digest in cells} - {''}) > 1:
      for row, digest in cells:
        row[flag] = ' '.join(filter(None, [row.get(flag), digest[:8]]))
  return pd.DataFrame(rows, dtype=object).astype(object).where(
      lambda frame: frame.notna(), None)


def _sources(curves, rows):
  """`{(name, flag): [(row, hash)]}` of sources that runs call by one name.

  They have none if they lay in the log directory, or above it. Runs of older
  versions have no hash, ''.
  """
  found = collections.defaultdict(list)
  for curve, row in zip(curves, rows):
    for flag in filter(SOURCES.fullmatch, curve.config):
      if tells_apart(flag, curve):
        found[row.get(flag), flag].append(
            (row, _clean(curve.config.get(flag + _HASH, ''))))
  return found


def tells_apart(flag, curve):
  """Whether runs that differ in a flag are runs of two methods."""
  if flag.endswith(_HASH):
    return False
  if curve.kind == 'scratch' and flag in (
      'source', 'reset', 'scale', 'copy'):  # Unused.
    return False
  if curve.kind.endswith(_DECODERS['fresh']) and flag == 'decoder':
    return False
  if flag == 'steps' and _number(curve.config.get('lr_end', 1)) < 1:
    return True  # Learning rates follow from it.
  flags = _flags(_clean(curve.config.get('script', ''))) or _flags('dreamer.py')
  return flags.method(flag) if flag in flags else flag not in _RECORDS


@functools.cache
def _flags(script):
  """The flags of a script with their defaults; None if it is not ours."""
  return options.SCRIPTS[script]() if script in options.SCRIPTS else None


def _defaults(config):
  flags = _flags(_clean(config.get('script', '')))
  return flags.plain() if flags else {}


def _text(value):
  number = _number(value)
  return _clean(value) if math.isnan(number) else f'{number:g}'


def _varying(table):
  return [key for key in table if table[key].nunique(dropna=False) > 1]


def _say_merged(curves, table, merged):
  kinds = collections.defaultdict(set)
  for (kind, _), rows in _groups(curves, ('kind', 'task')):
    keys = [key for key in merged if key in _varying(table.loc[rows])]
    if keys:
      kinds[', '.join(keys)].add(kind)
  for keys, names in kinds.items():
    names = ', '.join(sorted(names, key=method_order))
    terminal.say(
        f'--merge: runs that differ in {keys} are seeds of one method: {names}')


def _groups(curves, names):
  """`((values of the attributes), indices of the curves)` in turn."""
  keys = [[getattr(curve, name) for curve in curves] for name in names]
  frame = pd.DataFrame(dict(zip(names, keys)))
  for values, part in frame.groupby(list(names), sort=False):
    yield values, part.index


def _name_by_flags(curves, table):
  differing = collections.defaultdict(set)
  known = np.array([bool(curve.config) for curve in curves])
  for (kind, _), rows in _groups(curves, ('kind', 'task')):
    rows = rows[known[rows]]
    if len(rows) > 1:
      differing[kind].update(_varying(table.loc[rows]))
  told = []
  for kind, keys in differing.items():
    for key in sorted(filter(SOURCES.fullmatch, keys)):
      told.append(f'{key} ({kind})')
  if told:
    terminal.warn(
        f'runs with different {", ".join(told)} are methods of their own: '
        "--merge 'source|encoder|decoder|meta.' takes them as seeds.")
  for (kind,), rows in _groups(curves, ('kind',)):
    rows = rows[known[rows]]
    # Flags in the order in which configurations list them.
    keys = [key for key in table if key in differing[kind]]
    if not len(rows) or not keys:
      continue
    frame = table.loc[rows, keys]
    labels = short_names(kind, frame, [
        curves[row].config for row in rows])
    for row, label in zip(rows, labels):
      words = (f'{key}={frame.at[row, key]}' for key in sorted(keys))
      curves[row].method = ' '.join([kind, *words])
      curves[row].label = label


def short_names(kind, frame, configs):
  """A few words for each row of flags, as different as the rows.

  They name as few flags as tell the rows apart, shorten long values and leave
  out defaults. `…` marks rows that differ from others in further flags.
  """
  rows = list(frame.itertuples(index=False, name=None))
  keys = list(frame)
  # A preset stands for many flags, so it comes first.
  presets = [_clean(config.get('preset', '')) for config in configs]
  columns = {'preset': presets, **{key: list(frame[key]) for key in keys}}
  chosen = list(columns)
  for key in reversed(list(columns)):
    fewer = [name for name in chosen if name != key]
    pairs = set(zip(rows, zip(*[columns[name] for name in fewer])))
    if fewer and len({words for _, words in pairs}) == len(set(rows)):
      if len(pairs) == len(set(rows)):
        chosen = fewer
  shown = {name: _short_values(columns[name]) for name in chosen}
  defaults = _defaults(configs[0])
  usual = {
      name: _text(defaults[name]) if name in defaults else ''
      for name in chosen}

  def label(index, plain):
    words = [
        f'{name}={shown[name][index] or repr("")}' for name in chosen
        if plain or columns[name][index] not in (usual[name], '', 'none', None)]
    hidden = [
        key for key in keys if key not in chosen
        and columns[key][index] not in (None, _text(defaults.get(key, '')))]
    # A no-break space, so that no line begins with the ellipsis.
    return ', '.join([kind, *words]) + ',\N{NO-BREAK SPACE}…' * bool(
        hidden and words)

  for plain in (False, True):
    labels = [label(index, plain) for index in range(len(rows))]
    if len(set(labels)) == len(set(rows)):
      return labels
  return [
      ' '.join([kind, *(f'{k}={v}' for k, v in zip(keys, row))])
      for row in rows]


def _short_values(values):
  """The same texts without the folders that they share, and not too long."""
  texts = ['' if value is None else value for value in values]
  kinds = {text for text in texts if text}
  if any('/' in text and not re.search(r'[(|^]', text) for text in kinds):
    short = dict(zip(kinds, without_common_parts(list(kinds))))
    texts = [short.get(text, text) for text in texts]
  cut = [
      text if len(text) <= LONGEST else
      f'{text[:LONGEST // 2]}…{text[-LONGEST // 2 + 1:]}' for text in texts]
  return cut if len(set(cut)) == len(set(texts)) else texts


def without_common_parts(paths):
  """Paths as texts, without the folders and endings that all of them share."""
  parts = [list(pathlib.PurePath(path).parts) for path in paths]
  while min(map(len, parts)) > 1 and len({part[0] for part in parts}) == 1:
    parts = [part[1:] for part in parts]
  while min(map(len, parts)) > 1 and len({part[-1] for part in parts}) == 1:
    parts = [part[:-1] for part in parts]
  return ['/'.join(part) for part in parts]


def _path_names(curves, indirs):
  """Directories of the runs, without seeds and tasks."""
  indirs = [pathlib.Path(indir) for indir in indirs]
  tops = without_common_parts([indir.resolve() for indir in indirs])
  for curve in curves:
    # Of nested directories, the first is the one that led to the run.
    index = next(
        i for i, indir in enumerate(indirs)
        if curve.path.is_relative_to(indir))
    inner = list(curve.path.relative_to(indirs[index]).parts)
    if inner and inner[-1].isdigit():
      inner.pop()
    inner = [part for part in inner if _clean(part) != curve.task]
    top = [tops[index]] if len(indirs) > 1 else []
    yield _clean('/'.join(top + inner)) or _clean(curve.path.resolve().name)


def _warn_differing(curves, table):
  for (method, task), rows in _groups(curves, ('method', 'task')):
    keys = _varying(table.loc[rows])
    if keys:
      terminal.warn(
          f'runs in {method} on {task} differ in {", ".join(sorted(keys))}, '
          'and are averaged all the same by --group-by path.')


def _warn_seeds(curves):
  """Names seeds that a method has twice: a copy, or a change of the code."""
  twice = []
  for (method, task, seed), rows in _groups(
      curves, ('method', 'task', 'seed')):
    if len(rows) > 1:
      paths = ' and '.join(_clean(curves[row].path) for row in rows[:2])
      more = f' and {len(rows) - 2} more' * (len(rows) > 2)
      twice.append(
          f'seed {seed} of {method} on {task} ({paths}{more})')
  if twice:
    more = f', and {len(twice) - 3} others' * (len(twice) > 3)
    terminal.warn(
        f'counted as several runs: {"; ".join(twice[:3])}{more}. Leave one '
        'out, or tell changes of the code apart with --group-by path.')


def labels(curves):
  """`{method: its name in a few words}`."""
  return {curve.method: curve.label for curve in curves}


def omega(method):
  """The transfer factor in a method's name, or None."""
  found = _OMEGA.search(method)
  return float(found.group(1)) if found else None


def without_omega(method):
  """A method's name without its transfer factor."""
  return _OMEGA.sub('', method).strip(' ,') or 'transfer'


def method_order(method):
  """Sorting key: training from scratch first, numbers by their value."""
  words = re.split(r'(\d+\.?\d*)', method)
  words[1::2] = map(float, words[1::2])
  return not is_scratch(method), words


def is_scratch(method):
  """Whether a method is Dreamer without transfer."""
  return re.split('[ ,]', method)[0] in ('dreamer', 'scratch')


def is_target(method):
  """Whether to compare with scratch: multi-task steps are those of all tasks.

  Their runs make the sources, not an attempt at the target.
  """
  return not is_scratch(method) and method.split(' ')[0] != 'multi-task'


def by_task(curves):
  """`{task: {method: [curves]}}`, methods as in `method_order`."""
  result = {curve.task: {} for curve in curves}
  for curve in sorted(curves, key=lambda curve: method_order(curve.method)):
    result[curve.task].setdefault(curve.method, []).append(curve)
  return result


def common_methods(tasks):
  """Methods with runs on every one of at least two tasks."""
  first, *others = tasks.values()
  return [
      method for method in first
      if others and all(method in methods for methods in others)]


# Parts of curves


def until(curves, steps):
  """The curves up to a number of steps; those that begin later are left out."""
  begun = [curve for curve in curves if curve.xs[0] <= steps]
  late = len(curves) - len(begun)
  if not begun:
    raise terminal.UserError(
        f'all runs have their first value after --until {steps:g}: give a '
        'larger one.')
  if late:
    terminal.warn(
        f'left out {late} run{"s" * (late > 1)} whose first value is later.')
  return [cut(curve, steps) for curve in begun]


def cut(curve, steps):
  """A curve up to a number of steps.

  It keeps its first evaluation, even if that comes later.
  """
  keep = curve.xs <= steps
  keep[0] = True
  return dataclasses.replace(
      curve, xs=curve.xs[keep], ys=curve.ys[keep],
      end=max(curve.xs[0], min(curve.end, steps)))
