"""Reads the curves of runs from log directories and computes statistics."""

import collections
import csv
import dataclasses
import json
import math
import os
import pathlib
import re

import numpy as np
import scipy.stats

from common import terminal
from data.logdir import Logdir, METRICS

RESAMPLES = 2000
BASELINES = pathlib.Path(__file__).parent / 'baselines'

# Flags that do not change what is learned, or that a method's name already
# tells.
_NEUTRAL = re.compile(
    r'task\d?|seed|steps|logdir|script|preset|transfer|transfer_factor|n_meta'
    r'|log_\w+|eval_every|envs|parallel|gpu_growth'
    r'|precision|run|python|tensorflow|threads|jit|save_every|eval_episodes'
    r'|allow_changes|replay_memory|source|encoder|decoder|meta\d?')
_OMEGA = re.compile(r' ?(?:ω|omega)[=_ ]?(\d*\.?\d+)')


@dataclasses.dataclass
class Curve:
  """One run on one task: values `ys` at steps `xs`, both `[N]`, ascending."""

  task: str
  method: str
  seed: str
  path: pathlib.Path
  config: dict
  xs: np.ndarray
  ys: np.ndarray


# Reading runs


def load(indirs, xaxis='step', yaxis='test/return'):
  """All curves below the directories, one per run and task.

  Rows that cannot be read and values that are not finite are left out and
  counted in a warning. A cut last line is what a running program leaves, and
  is passed over.
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
  _tell_apart(curves)
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
  tasks = [config.get(f'task{index}') for index in range(1, 5)]
  tasks = [name for name in tasks if name and name != 'none']
  if tasks or config.get('task'):
    task = ' + '.join(map(_clean, tasks or [config['task']]))
  return (
      task or method, _method(config) or method,
      _clean(config.get('seed', seed)))


def _method(config):
  """The name of what a script ran, or None.

  dreamer, multi-task, scratch (dreamer-FTL.py without transfer), 'FTL ω=0.2',
  'MMTL N=2' (N source reward models on the frozen autoencoder).
  """
  script = pathlib.Path(_clean(config.get('script', ''))).stem
  if script == 'dreamer-FTL':
    factor = _number(config.get('transfer_factor'))
    return f'FTL ω={factor:g}' if config.get('transfer') else 'scratch'
  if script == 'dreamer-MMTL':
    return f'MMTL N={_clean(config.get("n_meta", 0))}'
  return script.removeprefix('dreamer-') or None


def omega(method):
  """The transfer factor in a method's name, or None."""
  found = _OMEGA.search(method)
  return float(found.group(1)) if found else None


def _tell_apart(curves):
  """Adds to the names of methods the flags that differ between their runs.

  Otherwise runs with two learning rates would be averaged as if they were two
  seeds. Only flags that differ within one task count: tasks may well need
  their own settings.
  """
  groups = collections.defaultdict(list)
  for curve in curves:
    groups[curve.method, curve.task].append(curve)
  differing = collections.defaultdict(set)
  for (method, _), group in groups.items():
    configs = [curve.config for curve in group if curve.config]
    for key in set().union(*configs):
      values = {str(config.get(key)) for config in configs}
      if len(values) > 1 and not _NEUTRAL.fullmatch(key):
        differing[method].add(key)
  for curve in curves:
    if curve.config:
      curve.method = ' '.join([curve.method] + [
          f'{key}={_clean(curve.config.get(key))}'
          for key in sorted(differing[curve.method])])


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
  return [_cut(curve, steps) for curve in begun]


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

  Where a run names its tasks, the same episodes stand under the plain name
  too, and only those under the task count.
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


# Curves and scores


def binned(xs, ys, width):
  """Means of the values in bins of steps, `(centres [K], means [K])`.

  Bin k holds the steps in (k · width, (k + 1) · width], and step 0 belongs to
  the first. The borders do not depend on the run, so that seeds align. Bins
  without a value are not there.
  """
  index = np.ceil(xs / width) - 1
  index[xs == 0] = 0
  bins, inverse = np.unique(index, return_inverse=True)
  means = np.bincount(inverse, ys) / np.bincount(inverse)
  return (bins + 0.5) * width, means


def aligned(curves, width):
  """Common `centres [K]` and `values [runs, K]`, NaN where a run has none."""
  pairs = [binned(curve.xs, curve.ys, width) for curve in curves]
  centres = np.unique(np.concatenate([xs for xs, _ in pairs]))
  values = np.full((len(curves), len(centres)), np.nan)
  for row, (xs, ys) in zip(values, pairs):
    row[np.searchsorted(centres, xs)] = ys
  return centres, values


def automatic_width(curves):
  """A round bin width: the longest curve gets some thirty bins."""
  width = max(np.abs(curve.xs).max() for curve in curves) / 30 or 1.0
  unit = 10.0 ** math.floor(math.log10(width))
  return unit * min((1, 2, 5, 10), key=lambda n: abs(n - width / unit))


def overall_score(curve):
  """The mean over all evaluations."""
  return curve.ys.mean()


def final_score(curve):
  """The mean over the evaluations in the last tenth of the steps."""
  last = curve.xs > 0.9 * curve.xs[-1]
  last[-1] = True
  return curve.ys[last].mean()


def summary(how, *groups):
  """`(centre, low, high)` over runs; each group is `[runs, ...]` of a task.

  mean: mean and one (population) standard deviation; median: median and
  quartiles; iqm: mean of the middle half and its 95 % bootstrap interval, runs
  being redrawn within each group (Agarwal et al. 2021, arXiv 2108.13264).
  """
  pooled = np.concatenate(groups)
  if how == 'median':
    return np.median(pooled, 0), *np.percentile(pooled, (25, 75), axis=0)
  if how == 'iqm':
    return _iqm(*groups), *interval(_iqm, *groups)
  centre = pooled.mean(0)
  spread = pooled.std(0) if len(pooled) > 1 else np.full_like(centre, np.nan)
  return centre, centre - spread, centre + spread


def curve_summary(how, *groups):
  """`summary` for `[runs, K]` with gaps: each column uses the runs it has.

  A column that a whole group lacks is NaN.
  """
  result = np.full((3, groups[0].shape[1]), np.nan)
  present = np.isfinite(np.concatenate(groups))
  patterns, inverse = np.unique(present, axis=1, return_inverse=True)
  for index in range(patterns.shape[1]):
    columns = np.flatnonzero(inverse.reshape(-1) == index)
    parts = [group[:, columns] for group in groups]
    parts = [part[np.isfinite(part[:, 0])] for part in parts]
    if all(map(len, parts)):
      result[:, columns] = summary(how, *parts)
  return result


def interval(statistic, *groups):
  """95 % bootstrap interval `(low, high)`; NaN where a group has one run.

  Each group is resampled on its own: strata of one sample, or the two sides
  of a comparison.
  """
  if min(map(len, groups)) < 2:
    nothing = np.full(np.shape(groups[0])[1:], np.nan)
    return nothing, nothing
  result = scipy.stats.bootstrap(
      groups, statistic, n_resamples=RESAMPLES, axis=0, method='percentile',
      batch=200, rng=np.random.default_rng(0))
  return result.confidence_interval


def _iqm(*groups, axis=0):
  return scipy.stats.trim_mean(np.concatenate(groups, axis), 0.25, axis=axis)


def by_task(curves):
  """`{task: {method: [curves]}}`, methods as in `method_order`."""
  result = {curve.task: {} for curve in curves}
  for curve in sorted(curves, key=lambda curve: method_order(curve.method)):
    result[curve.task].setdefault(curve.method, []).append(curve)
  return result


def method_order(method):
  """Sorting key: training from scratch first, numbers by their value."""
  words = re.split(r'(\d+\.?\d*)', method)
  words[1::2] = map(float, words[1::2])
  return not is_scratch(method), words


def is_scratch(method):
  """Whether a method is Dreamer without transfer."""
  return method.split(' ')[0] in ('dreamer', 'scratch')


def is_target(method):
  """Whether to compare with scratch: multi-task steps are those of all tasks.

  Their runs make the sources, not an attempt at the target.
  """
  return not is_scratch(method) and method.split(' ')[0] != 'multi-task'


def score_range(task, curves, width, yaxis):
  """`(low, high)` that become 0 and 1 in a mean over tasks.

  Returns of the DeepMind Control suite lie in [0, 1000] by design. Elsewhere
  it is the range of the given curves.
  """
  if task.startswith('dmc_') and yaxis.endswith('return'):
    return 0.0, 1000.0
  values = aligned(curves, width)[1]
  low, high = np.nanmin(values), np.nanmax(values)
  return low, high if high > low else low + 1


def common_methods(tasks):
  """Methods with runs on every one of at least two tasks."""
  first, *others = tasks.values()
  return [
      method for method in first
      if others and all(method in methods for methods in others)]


def score_rows(tasks, ranges, how):
  """Overall and final scores per task and method, as rows of a table.

  With several tasks, the methods that ran all of them are also averaged over
  tasks, with scores normalised by `ranges {task: (low, high)}`.
  """
  rows = []
  for task, methods in tasks.items():
    for method, curves in methods.items():
      rows.append(dict(
          task=task, method=method, runs=len(curves),
          steps=min(curve.xs[-1] for curve in curves),
          **{name: summary(how, np.array([score(curve) for curve in curves]))
             for name, score in _SCORES}))
  for method in common_methods(tasks):
    groups = [methods[method] for methods in tasks.values()]
    row = dict(
        task='all, normalised', method=method, runs=sum(map(len, groups)),
        steps=min(curve.xs[-1] for group in groups for curve in group))
    for name, score in _SCORES:
      row[name] = summary(how, *[
          np.array([normalise(score(curve), ranges[task]) for curve in group])
          for task, group in zip(tasks, groups)])
    rows.append(row)
  return rows


_SCORES = (('overall', overall_score), ('final', final_score))


def normalise(score, limits):
  """A score with `limits (low, high)` moved to 0 and 1."""
  return (score - limits[0]) / (limits[1] - limits[0])


# Transfer


def transfer_rows(tasks, width, threshold=None):
  """What transfer gained over training from scratch on the same task.

  The measures are those of Taylor and Stone (2009), as means over runs with
  95 % bootstrap intervals, over the steps that all compared runs have made:

  - jump_start: difference of the mean over the first tenth of the steps.
  - area_ratio: area under the curve over that of scratch, above a floor: the
    lowest bin of the scratch runs where that is negative, else 0.
  - final_difference: difference of the mean over the last tenth.
  - steps_to_threshold: end of the first bin that reaches `threshold`, by
    default nine tenths of the way from the floor to the final score of
    scratch; a run that never does counts with all its steps. `steps_saved`:
    how many fewer than scratch.
  """
  rows = []
  for task, methods in tasks.items():
    scratch = [c for m, cs in methods.items() if is_scratch(m) for c in cs]
    if not scratch:
      terminal.warn(f'no scratch runs of {task}: not in the transfer report.')
      continue
    for method, curves in methods.items():
      if is_target(method):
        row = dict(
            task=task, method=method, runs=len(curves),
            scratch_runs=len(scratch),
            **compare(curves, scratch, width, threshold))
        rows.append(row)
        if row['steps'] < 0.5 * max(c.xs[-1] for c in curves + scratch):
          terminal.warn(
              f'{method} and scratch on {task} are compared over '
              f'{si(row["steps"])} steps only: one run ends there.')
  return rows


def compare(curves, scratch, width, threshold=None):
  """The measures of `transfer_rows` for the curves of one method."""
  steps = min(curve.xs[-1] for curve in curves + scratch)
  ours = [_cut(curve, steps) for curve in curves]
  theirs = [_cut(curve, steps) for curve in scratch]
  floor = min(0.0, np.nanmin(aligned(theirs, width)[1]))
  finals = [np.array([final_score(c) for c in cs]) for cs in (ours, theirs)]
  if threshold is None:
    threshold = floor + 0.9 * (finals[1].mean() - floor)
  starts = [np.array([_start(c) for c in cs]) for cs in (ours, theirs)]
  areas = [np.array([_area(c) - floor for c in cs]) for cs in (ours, theirs)]
  hits = [
      np.array([_reached(c, width, threshold) for c in cs])
      for cs in (ours, theirs)]
  return dict(
      steps=steps,
      jump_start=_estimate(_difference, *starts),
      area_ratio=_estimate(_ratio, *areas),
      final_difference=_estimate(_difference, *finals),
      threshold=threshold,
      reached=int(np.isfinite(hits[0]).sum()),
      scratch_reached=int(np.isfinite(hits[1]).sum()),
      steps_to_threshold=_estimate(np.mean, np.minimum(hits[0], steps)),
      steps_saved=_estimate(
          _difference, *[np.minimum(hit, steps) for hit in hits[::-1]]))


def omega_rows(tasks):
  """Mean scores along the grid of transfer factors, and of scratch (None).

  Rows of `task, method` (without its factor), `omega, score` (overall or
  final) and `estimate (mean, low, high)`.
  """
  rows = []
  for task, methods in tasks.items():
    for method, curves in methods.items():
      if omega(method) is None and not is_scratch(method):
        continue
      name = _OMEGA.sub('', method).strip() or 'transfer'
      for score_name, score in _SCORES:
        values = np.array([score(curve) for curve in curves])
        rows.append(dict(
            task=task, method=name, omega=omega(method), score=score_name,
            estimate=_estimate(np.mean, values)))
  return rows


def _cut(curve, steps):
  # Every run has at least one evaluation, even if it comes later than `steps`.
  keep = curve.xs <= steps
  keep[0] = True
  return dataclasses.replace(curve, xs=curve.xs[keep], ys=curve.ys[keep])


def _start(curve):
  first = curve.xs <= 0.1 * curve.xs[-1]
  first[0] = True
  return curve.ys[first].mean()


def _area(curve):
  """The area under the curve divided by its steps."""
  length = curve.xs[-1] - curve.xs[0]
  if not length:
    return curve.ys.mean()
  return np.trapezoid(curve.ys, curve.xs) / length


def _reached(curve, width, threshold):
  centres, means = binned(curve.xs, curve.ys, width)
  above = np.flatnonzero(means >= threshold)
  return centres[above[0]] + width / 2 if len(above) else np.inf


def _estimate(statistic, *groups):
  return statistic(*groups, axis=0), *interval(statistic, *groups)


def _difference(ours, theirs, axis):
  return ours.mean(axis) - theirs.mean(axis)


def _ratio(ours, theirs, axis):
  ours, theirs = ours.mean(axis), np.asarray(theirs.mean(axis))
  return ours / np.where(theirs > 0, theirs, np.nan)


# Published scores


def baselines(task):
  """Published scores of a task, `{name: (score, low, high)}`.

  Sources: `baselines/README.md`. Dreamer's numbers are read as ranges: the
  mean, lowest and highest over seeds of the last tenth before 1e6 and 5e6
  steps.
  """
  single = json.loads((BASELINES / 'baselines.json').read_text())
  result = {
      name: (score, score, score)
      for name, score in single.get(task, {}).items()}
  runs = json.loads((BASELINES / 'dreamer.json').read_text())
  for steps in (1e6, 5e6):
    scores = []
    for run in runs:
      xs, ys = np.array(run['xs']), np.array(run['ys'])
      # The bins are 1e5 wide: this one got to `steps`.
      if run['task'] == task and xs[-1] >= steps - 1e5:
        scores.append(ys[(xs > 0.9 * steps) & (xs <= steps)].mean())
    if scores:
      name = f'dreamer_{steps / 1e6:.0f}e6'
      result[name] = np.mean(scores), min(scores), max(scores)
  return result


# Tables


def si(number):
  """A number of steps as people write it: 200K, 1M, 1.5M."""
  for unit, letter in ((1e9, 'B'), (1e6, 'M'), (1e3, 'K')):
    if abs(number) >= 0.9995 * unit:
      return f'{number / unit:.4g}{letter}'
  return f'{number:.4g}'


def write_tables(stem, rows, how):
  """Writes rows as `stem` + .txt, .csv and .md; returns the text.

  Values `(centre, low, high)` become one cell, but three columns in the CSV.
  """
  names = list(rows[0])
  heads = [name.replace('_', ' ') for name in names]
  cells = [[_cell(name, row[name], how) for name in names] for row in rows]
  text = _aligned_text([heads] + cells)
  stem.with_suffix('.txt').write_text(text + '\n', encoding='utf-8')
  lines = [heads, ['---'] * len(heads)] + [
      [cell.replace('|', '\\|') for cell in line] for line in cells]
  stem.with_suffix('.md').write_text(
      ''.join(f'| {" | ".join(line)} |\n' for line in lines),
      encoding='utf-8')
  with stem.with_suffix('.csv').open('w', newline='', encoding='utf-8') as file:
    plain = [_flat(row) for row in rows]
    writer = csv.DictWriter(file, list(plain[0]))
    writer.writeheader()
    writer.writerows(plain)
  return text


def _flat(row):
  result = {}
  for name, value in row.items():
    if isinstance(value, tuple):
      for end, part in zip(('', '_low', '_high'), value):
        result[name + end] = float(part)
    else:
      result[name] = value
  return result


def _cell(name, value, how):
  if not isinstance(value, (tuple, float)):
    return str(value)
  values = value if isinstance(value, tuple) else (value,)
  if not np.isfinite(values[0]):
    return '–'
  # One number of decimals for a value and its interval.
  largest = np.nanmax(np.abs(values))
  decimals = 1 if largest >= 10 else 2 if largest >= 1 else 3
  show = si if name.startswith('steps') else f'{{:.{decimals}f}}'.format
  if np.isnan(values[-1]) or len(values) == 1:
    return show(values[0])
  centre, low, high = values
  if how == 'mean':
    return f'{show(centre)} ± {show(centre - low)}'
  return f'{show(centre)} [{show(low)}, {show(high)}]'


def _aligned_text(lines):
  widths = [max(map(len, column)) for column in zip(*lines)]
  return '\n'.join(
      '  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
      for line in lines)
