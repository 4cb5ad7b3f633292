"""Does the forecast forecast? Measures of rank.py against what transfer gained.

python3 -m results.forecasting --do measure  measures the sources of the studies
python3 -m results.forecasting --do draw     table and figure of --out

A pair is a run with transfer: a target, a source, a method and a seed. Its
outcome is the area under its curve over the mean of training from scratch, as
in the transfer report. Its measures are known before such a run begins: they
are taken on 1,000 decisions of random actions. Measuring may be stopped and
goes on from where it was; drawing needs no TensorFlow and no sources.
"""

import argparse
import json
import pathlib
import re

from common import flags
from results import second, study

# Studies by name: the table, and its --logdir and --out. A study gives pairs
# when all of its runs are kept, so that no choice of runs decides the finding.
EDITIONS = {
    'first': (study, 'logdir/study', 'results'),
    'second': (second, 'logdir/second', 'results/second_study')}


def define_config():
  config = flags.Config()
  define = config.define
  define('do', 'draw', 'What to do; see above.', ['measure', 'draw'])
  define('out', pathlib.Path('./results/forecast'), 'Where measures, table and '
         'figure are.')
  return config


if __name__ == '__main__':
  flags.check(define_config, __doc__)  # Before slow imports.

from matplotlib import figure as mpl_figure
from matplotlib import lines as mpl_lines
from matplotlib import ticker as mpl_ticker
import numpy as np
import pandas as pd

from analysis import measures, reading, scores, style, tables
from analysis.measures import MEASURES
from common import files, options, terminal
from results import keeping

# Of the episodes, the sequences and the fits.
SEED = 0
# Steps per bin of a curve, as in the figures of the studies.
WIDTH = 2500
# Sources below which a correlation gets no interval.
LEAST = 5
# Who is compared with whom.
WITHIN, ACROSS = 'sources of a target', 'all pairs'


def main(argv):
  config = define_config().command(argv, __doc__)
  if config.do == 'measure':
    return measure(config.out)
  return draw(config.out)


# Pairs


def transfers(finished=True):
  """`(edition, run, scratch)` of all runs with transfer.

  Those of finished studies alone, or also runs that are not made yet: what is
  measured is known before. `scratch` are the runs of dreamer.py on the same
  task that share all flags but the seed. Runs that make sources are left out.
  """
  for edition, (module, logdir, out) in EDITIONS.items():
    runs = module.all_runs(pathlib.Path(logdir), pathlib.Path(out))
    if finished and not all(map(keeping.recorded, runs)):
      continue
    runs = [run for run in runs if run.file is None]
    for run in runs:
      scratch = [other for other in runs if is_scratch(other, run)]
      if run.after and scratch:
        yield edition, run, scratch


def is_scratch(other, run):
  """Whether a run differs from one with transfer by the transfer alone."""
  return (
      other.script == 'dreamer.py' and target(other) == target(run)
      and other.flags.keys() - run.flags.keys() <= {'task'}
      and all(other.flags[key] == run.flags[key]
              for key in other.flags.keys() & run.flags.keys() - {'seed'}))


def target(run):
  return run.flags.get('task1') or run.flags['task']


def family(run):
  """What a run takes over; factors ω of fractional transfer are one family."""
  own = run.flags
  if run.script == 'dreamer-MMTL.py':
    if own.get('decoder') == 'none':
      return 'meta-model, encoder'
    trained = own.get('freeze_decoder') is False
    return f'meta-model, {"decoder trained" if trained else "frozen"}'
  if 'copy' in own:
    return f'autoencoder, {"fixed" if own.get("freeze") else "trained"}'
  return 'fractional' if own.get('scale', True) else 'full'


def read_by(run):
  """`(agent, reward models)`: the source runs that a run reads."""
  made = {str(other.file): other for other in run.after}
  agent = made[run.flags.get('source') or run.flags['encoder']]
  return agent, [
      made[value] for name, value in run.flags.items()
      if re.fullmatch(r'meta\d+', name)]


def forecasts(edition, run):
  """What is to be measured for a run: `(key, source run, autoencoder run)`.

  A whole agent is a source by itself. In meta-model transfer each reward model
  is one, on the autoencoder of the agent, whose dynamics are not taken over.
  `key` says all that a measurement depends on.
  """
  agent, rewards = read_by(run)
  if run.script == 'dreamer-MMTL.py':
    pairs = [(reward, agent) for reward in rewards or [agent]]
  else:
    pairs = [(agent, None)]
  config = options.SCRIPTS[run.script]().parse(run.words)
  how = {
      'decisions': measures.DECISIONS, 'sequences': measures.SEQUENCES,
      'fit_steps': measures.FIT_STEPS, 'seed': SEED,
      **{name: getattr(config, name) for name in options.ENVIRONMENT}}
  for source, autoencoder in pairs:
    yield {
        'edition': edition, 'target': target(run), 'source': source.name,
        'autoencoder': autoencoder and autoencoder.name,
        'how': how}, source, autoencoder


# Measuring


def measure(out):
  """Measures what is not in `measures.json` yet; returns the exit status.

  Sources whose files are not here are left out, with a line for each that runs
  of the results have read.
  """
  from analysis import forecast  # TensorFlow, which drawing does without.
  known, batches, missing = read(out), {}, set()
  for edition, run, _ in transfers(finished=False):
    for key, source, autoencoder in forecasts(edition, run):
      word = as_text(key)
      if word in known:
        continue
      lacking = {
          other.file: other.name for other in (source, autoencoder)
          if other and not other.file.exists()}
      for file, name in lacking.items():
        if file not in missing and keeping.recorded(run):
          terminal.say(
              f'skipped {file}: it is not here; {edition} study, {name}')
      missing.update(lacking)
      if lacking:
        continue
      terminal.say(f'measuring {source.name} on {key["target"]}')
      place = key['target'], as_text(key['how'])
      if place not in batches:
        batches[place] = forecast.sequences(
            forecast.played(argparse.Namespace(
                task=key['target'], **key['how'])),
            key['how']['sequences'], SEED)
      found = forecast.read(
          source.file, autoencoder and autoencoder.file)
      if autoencoder:
        found['arrays'].pop('dynamics', None)
      if source is autoencoder:  # No reward models are taken over.
        found['arrays'].pop('reward', None)
      batch = batches[place]
      values, _ = forecast.measure(
          forecast.build(
              found, batch['action'].shape[-1], SEED, source.name),
          batch, key['how']['fit_steps'], SEED)
      known[word] = {**key, 'measures': {
          name: None if np.isnan(values[name]) else round(values[name], 6)
          for name in MEASURES if name in values}}
      files.make_directory(out)
      files.write_text(out / 'measures.json', json.dumps(
          list(known.values()), indent=1) + '\n')
  terminal.say(f'{out / "measures.json"} has {len(known)} measurements.')
  return 0


def read(out):
  """`{text of a key: measurement}` of what is measured; empty if nothing is."""
  path = out / 'measures.json'
  if not path.exists():
    return {}
  try:
    with files.reading(path):
      rows = json.loads(path.read_text())
    return {
        as_text({k: v for k, v in row.items() if k != 'measures'}): row
        for row in rows}
  except (ValueError, AttributeError, TypeError) as error:
    raise terminal.UserError(
        f'{path} is damaged: {error}; remove it and measure again.') from None


def as_text(key):
  return json.dumps(key, sort_keys=True)


# What came of it


def pairs(out):
  """A row for each pair: its outcome and its measures, NaN where unknown.

  Of several reward models, each measure is the best one's.
  """
  known, groups = read(out), {}
  for edition, run, scratch in transfers():
    values = [
        known.get(as_text(key), {}).get('measures', {})
        for key, *_ in forecasts(edition, run)]
    row = dict(
        edition=edition, target=target(run), family=family(run),
        omega=run.flags.get('transfer_factor', np.nan),
        precision=run.flags.get('precision', 'auto'),
        source=read_by(run)[0].name, seed=run.flags['seed'],
        **{name: best(name, values) for name in MEASURES})
    group = tuple(str(row[name]) for name in STRATUM)
    groups.setdefault(group, []).append((row, run, scratch))
  rows = []
  for group in groups.values():
    ratios = scores.area_ratios(
        [curve(run) for _, run, _ in group],
        [curve(run) for run in group[0][2]], WIDTH)
    for (row, *_), ratio in zip(group, ratios):
      rows.append({**row, 'area_ratio': round(float(ratio), 6)})
  return pd.DataFrame(rows)


# Pairs that differ in nothing but the source and its seed.
STRATUM = 'edition', 'target', 'family', 'omega', 'precision'


def best(name, values):
  """The best of a measure over several sources; NaN if none has it."""
  found = [x[name] for x in values if x.get(name) is not None]
  return (max if MEASURES[name][0] else min)(found, default=np.nan)


def curve(run):
  found, = reading.load([run.results])
  return found


def correlations(frame):
  """Rows of rank correlations of measures and outcomes.

  `rho` is 1 if a measure puts all in the order of what they gained, whether
  more or less of it is better. `sources of a target` compares pairs that
  differ in the source alone (edition, target, method, ω and --precision are the
  same), the question that rank.py is asked; `all pairs` also compares targets
  and ω, if there are several targets. The interval of the first is for these
  targets and other sources, that of the second for other targets as well.
  `finding` says whether the 95 % interval lies above or below 0; intervals are
  not corrected for their number.
  """
  rows = []
  for name, part in frame.groupby('family'):
    for measure, (more, _) in MEASURES.items():
      some = part[np.isfinite(part[measure]) & np.isfinite(part.area_ratio)]
      for compared in (WITHIN, ACROSS):
        own = some
        if compared == WITHIN:
          own = some[some.groupby(
              list(STRATUM), dropna=False).source.transform('nunique') > 1]
        targets = own.target.nunique()
        if targets < (1 if compared == WITHIN else 2):
          continue
        strata, redrawn = (
            (STRATUM, ()) if compared == WITHIN else ((), ('target',)))
        rho = correlation(
            own[measure].to_numpy() * (1 if more else -1),
            own.area_ratio.to_numpy(), codes(own, strata),
            codes(own, ('edition', 'source')), codes(own, redrawn))
        rows.append(dict(
            family=name, measure=measure, compared=compared, pairs=len(own),
            sources=len(own.groupby(['edition', 'source'])), targets=targets,
            rho=tuple(round(float(x), 4) for x in rho), finding=finding(rho)))
  return rows


def codes(frame, names):
  """Integers `[N]` that are equal where the columns are."""
  if not names:
    return np.zeros(len(frame), int)
  return frame.groupby(list(names), dropna=False).ngroup().to_numpy()


def finding(rho):
  if np.isnan(rho[0]):
    return 'does not vary'
  if np.isnan(rho[1]):
    return 'too few sources'
  return 'forecasts' if rho[1] > 0 else 'misleads' if rho[2] < 0 else 'open'


def correlation(xs, ys, strata, sources, targets):
  """Spearman's rank correlation within strata: `(rho, low, high)`.

  Ranks, means of ties, are taken in each stratum and centred there; with one
  stratum it is Spearman's rho. Pairs of the same source are not independent, nor
  are those of the same target: the 95 % bootstrap interval redraws whole sources
  and whole targets (Owen 2007, "The pigeonhole bootstrap"), or sources alone if
  all `targets` are 0. It does not know that sources which learned the same tasks
  resemble each other. With fewer than `LEAST` sources nothing can be said, and
  the interval is NaN; so it is where more than a tenth of the redrawn samples do
  not vary. rho is NaN if `xs` or `ys` do not vary.

  Args:
    xs, ys: numbers `[N]`.
    strata, sources, targets: integers `[N]` from 0: which pairs are compared,
      and which are redrawn together.
  """
  same = strata[:, None] == strata
  # Half of how many are below a number, less how many are above.
  orders = [
      same * np.sign(values[None] - values[:, None]) / 2
      for values in (xs, ys)]

  def rho(weights):
    """Of samples `[R]` in which a pair stands `weights [R, N]` times."""
    left, right = (weights @ order for order in orders)
    spread = np.sqrt(
        (weights * left ** 2).sum(-1) * (weights * right ** 2).sum(-1))
    return (weights * left * right).sum(-1) / np.where(
        spread > 0, spread, np.nan)

  found = rho(np.ones((1, len(xs))))[0]
  if sources.max() + 1 < LEAST or np.isnan(found):
    return found, np.nan, np.nan
  rng, weights = np.random.default_rng(0), 1.0
  for own in sources, targets:
    count = own.max() + 1
    weights = weights * rng.multinomial(
        count, np.full(count, 1 / count), scores.RESAMPLES)[:, own]
  drawn = rho(weights)
  if np.isnan(drawn).mean() > 0.1:
    return found, np.nan, np.nan
  return found, *np.nanpercentile(drawn, (2.5, 97.5))


# Table and figure


def draw(out):
  """Writes pairs, table and figure; returns the exit status."""
  if not read(out):
    raise terminal.UserError(
        f'{out} has no measures.json: --do measure makes it.')
  frame = pairs(out)
  if frame.empty:
    raise terminal.UserError(
        'no run with transfer is kept in ' + ' or '.join(
            out for *_, out in EDITIONS.values()) + ': make study runs them.')
  if not any(name in frame and frame[name].notna().any() for name in MEASURES):
    raise terminal.UserError(
        f'measures.json in {out} has no measure of any run with transfer that '
        'is kept: --do measure makes them.')
  with files.writing(out):
    frame.to_csv(
        out / 'pairs.csv', index=False, na_rep='nan', lineterminator='\r\n')
    terminal.say(tables.write(
        out / 'correlations', correlations(frame), 'iqm'))
    with style.applied():
      style.save(picture(frame), out / 'forecast')
  return 0


def picture(frame, cols=4):
  """Each measure against the area ratio, a mark per pair.

  ↑ stands at measures of which more is better, ↓ at the others.
  """
  shown = [name for name in MEASURES if frame[name].notna().any()]
  rows = -(-len(shown) // cols)
  figure = mpl_figure.Figure((8.5, 1.9 * rows + 0.3), dpi=style.DPI)
  grid = figure.subplots(rows, cols, squeeze=False)
  palette = style.PALETTES['contrast']
  colors = {
      name: palette[index % len(palette)]
      for index, name in enumerate(sorted(frame.family.unique()))}
  marks = dict(zip(sorted(frame.target.unique()), 'os^Dv<>PX*'))
  lowest, highest = frame.area_ratio.min(), frame.area_ratio.max()
  for name, axes in zip(shown, grid.flat):
    for (kind, task), part in frame.groupby(['family', 'target']):
      axes.plot(
          part[name], part.area_ratio, marks[task], color=colors[kind],
          markersize=3.5, alpha=0.7, markeredgewidth=0)
    axes.axhline(1, color='0.35', linewidth=1, linestyle='--')
    more, low, high = MEASURES[name][0], frame[name].min(), frame[name].max()
    if not more and low > 0:
      axes.set_xscale('log')
      axes.xaxis.set_major_locator(
          round_numbers(powers=high > 50 * low) if high > 5 * low
          else style.ticks(4))
    elif more and low < -20:
      # 1 is the best, and there is no worst.
      axes.set_xscale('symlog', linthresh=1)
      axes.set_xlim(1.6 * low, 1.1)
      axes.xaxis.set_major_locator(
          mpl_ticker.SymmetricalLogLocator(base=10, linthresh=1))
    else:
      axes.xaxis.set_major_locator(style.ticks(4))
    if lowest > 0:
      axes.set_yscale('log')
      axes.yaxis.set_major_locator(round_numbers())
      axes.set_ylim(0.8 * lowest, 1.25 * highest)
    for axis in axes.xaxis, axes.yaxis:
      axis.set_minor_locator(mpl_ticker.NullLocator())
      axis.set_major_formatter(style.value_text)
    style.set_title(axes, f'{name} {"↑" if more else "↓"}')
  for axes in grid.flat[len(shown):]:
    axes.set_axis_off()
  for line in grid:
    line[0].set_ylabel('Area ratio')
  style.arrange([list(line) for line in grid])
  line = dict(linestyle='', markersize=5)
  style.add_legend(figure, {
      **{name: mpl_lines.Line2D([], [], marker='o', color=color, **line)
         for name, color in colors.items()},
      **{name: mpl_lines.Line2D([], [], marker=mark, color='0.4', **line)
         for name, mark in marks.items()}})
  return figure


def round_numbers(powers=False):
  """A locator for a logarithmic axis, of powers of ten alone if asked."""
  return mpl_ticker.LogLocator(subs=(1,) if powers else (1, 2, 5))


if __name__ == '__main__':
  terminal.run(main)
