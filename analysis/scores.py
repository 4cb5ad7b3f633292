"""Statistics of curves: scores, intervals, transfer against scratch."""

import itertools
import json
import math
import pathlib
import warnings

import numpy as np
import pandas as pd
import scipy.stats

from analysis import reading
from analysis import tables
from common import terminal

RESAMPLES = 2000
BASELINES = pathlib.Path(__file__).parent / 'baselines'
PUBLISHED_BIN = 1e5  # environment steps in each bin of baselines/dreamer.json


# Curves and scores


def binned(xs, ys, width):
  """Means of the values in bins of steps, a series over the bins' centres.

  Bin k holds the steps in (k · width, (k + 1) · width], and step 0 belongs to
  the first. The borders do not depend on the run, so that seeds align. Bins
  without a value are not there.
  """
  index = np.ceil(xs / width) - 1
  index[xs == 0] = 0
  return pd.Series(ys).groupby((index + 0.5) * width).mean()


def aligned(curves, width):
  """Common `centres [K]` and `values [runs, K]`, NaN where a run has none."""
  rows = [binned(curve.xs, curve.ys, width) for curve in curves]
  table = pd.concat(rows, axis=1).sort_index()
  return table.index.to_numpy(), table.to_numpy().T


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
  last = curve.xs > 0.9 * curve.end
  last[-1] = True
  return curve.ys[last].mean()


def summary(how, *groups):
  """`(centre, low, high)` over runs; each group is `[runs, ...]` of a task.

  Tasks count alike, however many runs they have. mean: mean and one standard
  deviation of the runs at hand, the root of their mean squared distance (ddof 0:
  with three runs 0.82 of the estimate with ddof 1); median: median and
  quartiles; iqm: mean of the middle half and its 95 % bootstrap interval, runs
  being redrawn within each group (Agarwal et al. 2021, arXiv 2108.13264).
  """
  if how == 'iqm':
    return _iqm(*groups), *interval(_iqm, *groups)
  if how == 'median':
    return tuple(_quantile(groups, share) for share in (0.5, 0.25, 0.75))
  centre = _mean(*groups)
  spread = (
      _mean(*[(group - centre) ** 2 for group in groups]) ** 0.5
      if sum(map(len, groups)) > 1 else np.full_like(centre, np.nan))
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
  with warnings.catch_warnings(), np.errstate(invalid='ignore'):
    # Of draws that are not finite, which are looked at below.
    warnings.simplefilter('ignore', scipy.stats.DegenerateDataWarning)
    result = scipy.stats.bootstrap(
        groups, statistic, n_resamples=RESAMPLES, axis=0, method='percentile',
        batch=200, rng=np.random.default_rng(0))
  drawn = result.bootstrap_distribution
  if np.isfinite(drawn).all():
    return result.confidence_interval
  # Between infinite draws there is nothing to interpolate.
  return tuple(
      np.nanpercentile(drawn, share, axis=-1, method=method)
      for share, method in ((2.5, 'lower'), (97.5, 'higher')))


def _iqm(*groups, axis=0):
  """Mean of the middle half of the runs; tasks count alike."""
  if _as_many(groups, axis):
    return scipy.stats.trim_mean(np.concatenate(groups, axis), 0.25, axis=axis)
  ordered, ends = _ordered(groups, axis)
  cut, total = ends.flat[-1] // 4, ends.flat[-1]
  kept = np.diff(np.clip(ends, cut, total - cut), prepend=cut)
  return (ordered * kept).sum(-1) / (total - 2 * cut)


def _quantile(groups, share):
  """Quantile of the runs, linear between them; tasks count alike."""
  if _as_many(groups, 0):
    return np.quantile(np.concatenate(groups), share, axis=0)
  ordered, ends = _ordered(groups, 0)
  place = share * (ends.flat[-1] - 1)
  low, high = (
      np.take_along_axis(
          ordered, (ends <= bound).sum(-1, keepdims=True), -1)[..., 0]
      for bound in (math.floor(place), math.ceil(place)))
  return low + (place - math.floor(place)) * (high - low)


def _mean(*groups, axis=0):
  """Mean of the runs; tasks count alike."""
  if _as_many(groups, axis):
    return np.concatenate(groups, axis).mean(axis)
  return np.mean([group.mean(axis) for group in groups], 0)


def _as_many(groups, axis):
  return len({group.shape[axis] for group in groups}) == 1


def _ordered(groups, axis):
  """The runs of all tasks `[..., N]` by size, and how many there are up to each.

  They count so often that each task has as many: repeating them instead would
  take too much memory.
  """
  counts = [group.shape[axis] for group in groups]
  most = math.lcm(*counts)
  times = np.concatenate([np.full(count, most // count) for count in counts])
  pooled = np.moveaxis(np.concatenate(groups, axis), axis, -1)
  order = np.argsort(pooled, -1)
  return np.take_along_axis(pooled, order, -1), np.cumsum(times[order], -1)


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


def score_rows(tasks, ranges, how):
  """Overall and final scores per task and method, as rows of a table.

  With several tasks, the methods that ran all of them are also averaged over
  tasks, with scores normalised by `ranges {task: (low, high)}`.
  """
  rows = []
  for task, methods in tasks.items():
    ends = [curve.end for curves in methods.values() for curve in curves]
    if common_steps(sum(methods.values(), [])) < np.inf:
      terminal.warn(
          f'runs of {task} end after {tables.si(min(ends))} to '
          f'{tables.si(max(ends))} steps, and each score is over all of them: '
          f'--until {min(ends):g} compares the same steps.')
    for method, curves in methods.items():
      rows.append(dict(
          task=task, method=method, runs=len(curves),
          steps=min(curve.end for curve in curves),
          **{name: summary(how, np.array([score(curve) for curve in curves]))
             for name, score in SCORES}))
  for method in reading.common_methods(tasks):
    groups = [methods[method] for methods in tasks.values()]
    row = dict(
        task='all, normalised', method=method, runs=sum(map(len, groups)),
        steps=min(curve.end for group in groups for curve in group))
    for name, score in SCORES:
      row[name] = summary(how, *[
          np.array([normalise(score(curve), ranges[task]) for curve in group])
          for task, group in zip(tasks, groups)])
    rows.append(row)
  return rows


SCORES = (('overall', overall_score), ('final', final_score))


def normalise(score, limits):
  """A score with `limits (low, high)` moved to 0 and 1."""
  return (score - limits[0]) / (limits[1] - limits[0])


# Transfer


def transfer_rows(
    tasks, width, threshold=None, baseline=None, tested=False):
  """Gains of transfer over training from scratch on the same task.

  The measures are those of Taylor and Stone (2009), as means over runs with
  95 % bootstrap intervals, over the steps that all compared runs have made:

  - jump_start: difference of the mean over the first tenth of the steps.
  - area_ratio: area under the curve over that of scratch, above a floor: the
    lowest bin of the scratch runs where that is negative, else 0. The upper end
    of its interval is infinite where too many draws of scratch have no area.
  - final_difference: difference of the mean over the last tenth.
  - steps_to_threshold: end of the first bin that reaches `threshold`, by
    default nine tenths of the way from the floor to the final score of
    scratch; a run that never does counts with all its steps. `steps_saved`:
    how many fewer than scratch.

  Args:
    tasks: {task: {method: [curves]}}.
    width: Steps per bin.
    threshold: Return, or None.
    baseline: A method in place of scratch, or None for the one that
      `find_baseline` finds.
    tested: Whether to add `p`, of a permutation test of the areas, and
      `p_holm`, the same corrected for the number of rows.

  Returns:
    A list of rows, and {task: {method: its baseline}}.
  """
  rows, used = [], {}
  for task, methods in tasks.items():
    targets = [
        method for method, curves in methods.items()
        if method != baseline and reading.is_target(curves[0].kind)]
    if baseline and baseline not in methods:
      if targets:
        terminal.warn(
            f'no {baseline} runs of {task}: not in the transfer report.')
      continue
    for method in targets:
      against = baseline or find_baseline(task, methods, method)
      if not against:
        continue
      used.setdefault(task, {})[method] = against
      curves, scratch = methods[method], methods[against]
      row = dict(
          task=task, method=method, runs=len(curves),
          scratch_runs=len(scratch),
          **compare(curves, scratch, width, threshold, tested))
      rows.append(row)
      if row['steps'] < 0.5 * max(c.end for c in curves + scratch):
        _warn_of_length([method, against], task, row['steps'])
  if tested:
    correct(rows)
  if len({name for names in used.values() for name in names.values()}) > 1:
    rows = [
        {'task': row['task'], 'method': row['method'],
         'baseline': used[row['task']][row['method']], **row} for row in rows]
  return rows, used


def find_baseline(task, methods, method):
  """The one scratch method that differs from a method by the transfer alone.

  It has the same value of every flag that both know, and trains all of its
  variables. None, with a warning, if there is no such method; several are an
  error that lists them.
  """
  scratch = {
      name: curves for name, curves in methods.items()
      if reading.is_scratch(curves[0].kind)}
  if not scratch:
    terminal.warn(f'no scratch runs of {task}: not in the transfer report.')
    return None
  table = {
      name: flag_values(curves)
      for name, curves in [*scratch.items(), (method, methods[method])]}
  differences = {}
  for name in scratch:
    differences[name] = [
        key for key, values in table[name].items()
        if key in table[method] and key != 'freeze'
        and not values & table[method][key]]
    if table[name].get('freeze', {''}) != {''}:
      differences[name].append('freeze')
  fits = [name for name, keys in differences.items() if not keys]
  if len(fits) > 1:
    raise terminal.UserError(
        f'{method} on {task} can be compared with '
        f'{" or ".join(map(repr, fits))}: name one with --baseline.')
  if not fits:
    told = '; '.join(
        f'{name!r} in {", ".join(keys)}' for name, keys in differences.items())
    terminal.warn(
        f'{method} is not in the transfer report of {task}: runs from scratch '
        f'differ from it by more than the transfer, {told}. Name one with '
        '--baseline.')
    return None
  return fits[0]


def flag_values(curves):
  """`{flag: values}` of the runs of a method that tell methods apart."""
  keys = set().union(*(curve.flags for curve in curves))
  return {
      key: {curve.flags[key] for curve in curves if key in curve.flags}
      for key in keys}


def compare(curves, scratch, width, threshold=None, tested=False):
  """The measures of `transfer_rows` for the curves of one method."""
  ours, theirs, steps, floor = _comparable(curves, scratch, width)
  finals = [np.array([final_score(c) for c in cs]) for cs in (ours, theirs)]
  if threshold is None:
    threshold = floor + 0.9 * (finals[1].mean() - floor)
  starts = [np.array([_start(c) for c in cs]) for cs in (ours, theirs)]
  areas = [_areas(cs, floor) for cs in (ours, theirs)]
  hits = [
      np.array([_reached(c, width, threshold) for c in cs])
      for cs in (ours, theirs)]
  return dict(
      steps=steps,
      jump_start=_estimate(_difference, *starts),
      area_ratio=_ratio_estimate(*areas),
      final_difference=_estimate(_difference, *finals),
      threshold=threshold,
      reached=int(np.isfinite(hits[0]).sum()),
      scratch_reached=int(np.isfinite(hits[1]).sum()),
      steps_to_threshold=_estimate(np.mean, np.minimum(hits[0], steps)),
      steps_saved=_estimate(
          _difference, *[np.minimum(hit, steps) for hit in hits[::-1]]),
      **(dict(p=p_value(*([area] for area in areas))) if tested else {}))


def area_ratios(curves, scratch, width):
  """Area of each curve over the mean of scratch, `[runs]`.

  Their mean is the `area_ratio` of `compare`; NaN where scratch has no area.
  """
  ours, theirs, _, floor = _comparable(curves, scratch, width)
  return _ratio(_areas(ours, floor)[None], _areas(theirs, floor), 0)


def _comparable(curves, scratch, width):
  """The curves of both up to the same step, that step, and their floor."""
  limit = common_steps(curves + scratch)
  ours = [reading.cut(curve, limit) for curve in curves]
  theirs = [reading.cut(curve, limit) for curve in scratch]
  steps = min(curve.end for curve in ours + theirs)
  floor = min(0.0, np.nanmin(aligned(theirs, width)[1]))
  return ours, theirs, steps, floor


def omega_rows(tasks, baselines):
  """Mean scores along the grid of transfer factors, and of the baselines.

  Those of a task are over the steps that all of its runs here have made.

  Args:
    tasks: {task: {method: [curves]}}.
    baselines: {task: {method: its baseline}}.

  Returns:
    Rows of `task, method`, `line` (the first method of those that differ in
    nothing but the factor), `omega` (None of a baseline), `score` (overall or
    final), `estimate (mean, low, high)`.
  """
  rows, lines = [], {}
  for task, used in baselines.items():
    curves_of = equally_long({
        method: curves for method, curves in tasks[task].items()
        if method in used.values() or (
            method in used and reading.omega(method) is not None)}, task)
    for method, curves in curves_of.items():
      factor = reading.omega(method)
      if method in used.values():
        line, factor = method, None
      else:
        same = reading.without_omega(curves[0].kind), *sorted(
            curves[0].flags.items())
        line = lines.setdefault(same, method)
      for score_name, score in SCORES:
        values = np.array([score(curve) for curve in curves])
        rows.append(dict(
            task=task, method=method, line=line, omega=factor,
            score=score_name, estimate=_estimate(np.mean, values)))
  return rows


def _start(curve):
  first = curve.xs <= 0.1 * curve.end
  first[0] = True
  return curve.ys[first].mean()


def _areas(curves, floor):
  return np.array([_area(curve) - floor for curve in curves])


def _area(curve):
  """The area under the curve divided by its steps."""
  length = curve.xs[-1] - curve.xs[0]
  if not length:
    return curve.ys.mean()
  return np.trapezoid(curve.ys, curve.xs) / length


def _reached(curve, width, threshold):
  means = binned(curve.xs, curve.ys, width)
  above = means.index[means >= threshold]
  return above[0] + width / 2 if len(above) else np.inf


def _estimate(statistic, *groups):
  return statistic(*groups, axis=0), *interval(statistic, *groups)


def _difference(ours, theirs, axis):
  return ours.mean(axis) - theirs.mean(axis)


def _ratio(ours, theirs, axis):
  ours, theirs = ours.mean(axis), np.asarray(theirs.mean(axis))
  return ours / np.where(theirs > 0, theirs, np.nan)


def _ratio_estimate(ours, theirs):
  centre = _ratio(ours, theirs, 0)
  if np.isnan(centre):
    return centre, np.nan, np.nan
  return centre, *interval(_ratio_drawn, ours, theirs)


def _ratio_drawn(ours, theirs, axis):
  """`_ratio`, infinite where runs without any area were drawn."""
  own = ours.mean(axis)
  return np.where(
      theirs.mean(axis) > 0, _ratio(ours, theirs, axis),
      np.where(own, np.copysign(np.inf, own), np.nan))


# Comparing methods over all tasks (Agarwal et al. 2021, arXiv 2108.13264)


def improvement_rows(tasks, baseline, tested=False):
  """Probabilities that a run of a method beats a run of the baseline.

  Args:
    tasks: {task: {method: [curves]}}.
    baseline: a method on all tasks.
    tested: whether to add `p`, of a permutation test of the overall scores,
      and `p_holm`, the same corrected for the number of methods.

  Returns:
    A row for each other method that ran all tasks, with the probability and
    its 95 % bootstrap interval for overall and final scores, over the steps
    that the runs of both have made.
  """
  rows = []
  for method in everywhere(tasks):
    if method == baseline:
      continue
    row = dict(
        method=method, baseline=baseline, tasks=len(tasks),
        runs=sum(len(methods[method]) for methods in tasks.values()))
    pairs = [
        equally_long(
            {side: methods[side] for side in (method, baseline)}, task)
        for task, methods in tasks.items()]
    sides = {
        name: [
            [np.array([score(curve) for curve in pair[side]])
             for pair in pairs] for side in (method, baseline)]
        for name, score in SCORES}
    for name, (ours, theirs) in sides.items():
      row[name] = improvement(ours, theirs)
    if tested:
      row['p'] = p_value(*sides['overall'], _improvement, middle=0.5)
    rows.append(row)
  if tested:
    correct(rows)
  return rows


def equally_long(methods, task):
  """The curves of a task's `methods {name: [curves]}`, cut to common steps."""
  steps = common_steps(sum(methods.values(), []))
  if steps == np.inf:
    return methods
  _warn_of_length(methods, task, steps)
  return {
      name: [reading.cut(curve, steps) for curve in curves]
      for name, curves in methods.items()}


def common_steps(curves):
  """The step where the shortest curve ends; infinite if all are as long.

  So are those that are at most a twentieth longer: their last evaluations come
  where an episode ends.
  """
  ends = [curve.end for curve in curves]
  return np.inf if max(ends) <= 1.05 * min(ends) else min(ends)


def _warn_of_length(methods, task, steps):
  terminal.warn(
      f'{" and ".join(methods)} on {task} are compared over '
      f'{tables.si(steps)} steps only: one run ends there.')


def everywhere(tasks):
  """Methods with runs on every task."""
  first, *others = tasks.values()
  return [m for m in first if all(m in methods for methods in others)]


def improvement(ours, theirs):
  """`(probability, low, high)` that a score of ours is above one of theirs.

  The mean over tasks of the share of pairs of runs in which ours is higher, a
  tie counting half (that is the Mann-Whitney U statistic over the number of
  pairs). Runs are redrawn within each task and side.

  Args:
    ours, theirs: lists with the scores `[runs]` of each task.
  """
  return _estimate(_improvement, *ours, *theirs)


def _improvement(*groups, axis):
  groups = [np.moveaxis(group, axis, -1) for group in groups]
  half = len(groups) // 2
  chances = [
      (np.sign(x[..., :, None] - y[..., None, :]) + 1).mean((-1, -2)) / 2
      for x, y in zip(groups[:half], groups[half:])]
  return np.mean(chances, 0)


# Tests


def p_value(ours, theirs, statistic=None, middle=0.0, count=10_000):
  """Two-sided p-value of no difference between runs of two methods.

  A permutation test: runs change sides within each task, and it is counted how
  often the statistic is as far from its middle as it is. All ways are tried
  where there are at most 20,000, else random ones. Of one task, p is not below
  2 / 252, 0.008, for five runs against five, and for five against ten not below
  1 / 3003, 0.0003, by means and 2 / 3003 by pairs. NaN where a score is.

  Args:
    ours, theirs: lists with the scores `[runs]` of each task.
    statistic: of `(*ours, *theirs, axis)`; the mean over tasks of the
      difference of the means by default.
    middle: the statistic where nothing differs.
    count: random permutations.
  """
  statistic = statistic or _mean_difference
  pooled = [np.concatenate(pair) for pair in zip(ours, theirs)]
  if not all(np.isfinite(scores).all() for scores in pooled):
    return np.nan
  sizes = [len(own) for own in ours]
  ways = math.prod(
      math.comb(len(scores), size) for scores, size in zip(pooled, sizes))
  exact = ways <= 20_000
  if exact:
    orders = _splits(pooled, sizes)
  else:
    rng = np.random.default_rng(0)
    orders = [
        rng.permuted(np.tile(scores, (count, 1)), axis=1) for scores in pooled]
  drawn = statistic(
      *(scores[:, :size] for scores, size in zip(orders, sizes)),
      *(scores[:, size:] for scores, size in zip(orders, sizes)), axis=1)
  found = statistic(*ours, *theirs, axis=0)
  # Sums of the same numbers in another order differ by as much as this.
  same = 1e-9 * np.abs(drawn - middle).max()
  far = int((np.abs(drawn - middle) >= abs(found - middle) - same).sum())
  return far / ways if exact else (1 + far) / (1 + count)


def _splits(pooled, sizes):
  """All ways to split the scores of each task, `[ways, runs]` for each."""
  tasks = []
  for scores, size in zip(pooled, sizes):
    places = range(len(scores))
    tasks.append(np.array([
        [*scores[list(own)],
         *(scores[place] for place in places if place not in own)]
        for own in itertools.combinations(places, size)]))
  chosen = np.meshgrid(*(range(len(ways)) for ways in tasks), indexing='ij')
  return [ways[index.ravel()] for ways, index in zip(tasks, chosen)]


def _mean_difference(*groups, axis):
  half = len(groups) // 2
  return np.mean([
      _difference(x, y, axis)
      for x, y in zip(groups[:half], groups[half:])], 0)


def correct(rows):
  """Adds `p_holm` to rows with `p`: Holm's correction for their number.

  Where nothing differs, any `p_holm` is below 0.05 in at most one of twenty
  cases. Rows whose `p` is NaN are no comparisons.
  """
  order = sorted(
      (row for row in rows if np.isfinite(row['p'])), key=lambda row: row['p'])
  for row in rows:
    row['p_holm'] = np.nan
  least = 0.0
  for index, row in enumerate(order):
    least = max(least, min(1.0, (len(order) - index) * row['p']))
    row['p_holm'] = least


def profile(groups, thresholds):
  """`(share, low, high)`, each `[K]`: runs whose score is above a threshold.

  Args:
    groups: list with the normalised scores `[runs]` of each task; runs are
      redrawn within each.
    thresholds: `[K]`.
  """
  above = [
      (group[:, None] > thresholds).astype(float) for group in groups]
  return _estimate(_mean, *above)


# Published scores


def baselines(task):
  """Published scores of a task, `{name: (score, low, high)}`.

  Sources: `baselines/README.md`. Dreamer's numbers are read as ranges: the
  mean, lowest and highest over seeds of the bins whose middle is in the last
  tenth before 1e6 and 5e6 steps.
  """
  single = json.loads((BASELINES / 'baselines.json').read_text())
  result = {
      name: (score, score, score)
      for name, score in single.get(task, {}).items()}
  for steps in (1e6, 5e6):
    scores = []
    for xs, ys in _published_runs(task):
      middle = xs - PUBLISHED_BIN / 2
      last = (middle > 0.9 * steps) & (middle <= steps)
      if last.any() and xs[-1] >= steps - PUBLISHED_BIN:  # It got to `steps`.
        scores.append(ys[last].mean())
    if scores:
      name = f'dreamer_{steps / 1e6:.0f}e6'
      result[name] = np.mean(scores), min(scores), max(scores)
  return result


def published_curve(task):
  """The published Dreamer of a task over environment steps.

  Returns:
    `ends [K]` of the bins and `(mean, low, high)`, each `[K]`, over the seeds
    that got there. A bin holds the steps in (end - PUBLISHED_BIN, end]; the
    first ends at 5,000, before training. K is 0 if nothing is published of the
    task.
  """
  bins = {}
  for xs, ys in _published_runs(task):
    for end, y in zip(xs, ys):
      bins.setdefault(end, []).append(y)
  ends = sorted(bins)
  return np.array(ends), tuple(
      np.array([reduce(bins[end]) for end in ends])
      for reduce in (np.mean, np.min, np.max))


def published_at(task, steps):
  """`(mean, low, high)` of the published bin in which a run of `steps` ends.

  NaN where there is none.
  """
  ends, summaries = published_curve(task)
  index = np.searchsorted(ends, steps)
  if index == len(ends):
    return np.nan, np.nan, np.nan
  return tuple(float(values[index]) for values in summaries)


def _published_runs(task):
  """Pairs of `xs [K]` and `ys [K]`, one for each seed of a task."""
  return [
      (np.array(run['xs']), np.array(run['ys'])) for run in json.loads(
          (BASELINES / 'dreamer.json').read_text()) if run['task'] == task]
