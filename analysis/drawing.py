"""Figures of curves, scores and transfer.

`args` is the namespace that `plotting.parse` returns, with `short` names of
methods; `tasks` is {task: {method: [curves]}}, `looks` {method: dict of colour
and line style}.
"""

import math
import re

from matplotlib import figure as mpl_figure
from matplotlib import lines as mpl_lines
from matplotlib import ticker as mpl_ticker
import numpy as np

from analysis import reading
from analysis import scores
from analysis import style
from analysis import tables
from common import terminal

AXIS_NAMES = {
    'step': 'Environment steps', 'test/return': 'Test return',
    'train/return': 'Training return'}
# Text in the legend, colour and dashes of the published scores.
PUBLISHED = {
    'dreamer_1e6': ('Dreamer, published (1M)', '0.6', (0, (6, 2))),
    'dreamer_5e6': ('Dreamer, published (5M)', '0.25', (0, (6, 2))),
    'planet_1e6': ('PlaNet (1M)', '#117733', (0, (4, 1.5, 1, 1.5))),
    'slac_3e6': ('SLAC (3M)', '#AA4499', (0, (2, 1))),
    'd4pg_100m': ('D4PG (100M)', '#882255', (0, (8, 1.5, 1, 1.5, 1, 1.5))),
    'a3c_100m_proprio': ('A3C (100M, proprio)', '#999933', (0, (1, 1.5)))}
# The name in --baselines, text and look of the published agent over the steps.
CURVE = 'curve'
CURVE_LABEL = 'Dreamer, published'
CURVE_LOOK = dict(color='0.45', linewidth=1.1, linestyle=(0, (6, 2)))
MEASURES = {
    'jump_start': ('Jump-start', 0), 'area_ratio': ('Area ratio', 1),
    'final_difference': ('Final difference', 0),
    'steps_saved': ('Steps saved', 0)}
CHANCES = {'overall': ('Overall score', 0.5), 'final': ('Final score', 0.5)}


def draw_curves(tasks, width, looks, args):
  """One panel per task: a line and a band per method, or a line per run."""
  figure, panels = grid(len(tasks), args)
  drawn, sources, without, dots = {}, {}, [], []
  for axes, (task, methods) in zip(panels, tasks.items()):
    known = chosen_baselines(task, args)
    for name, values in known.items():
      sources[name] = draw_baseline(axes, name, values)
    last = max(curve.end for curve in sum(methods.values(), []))
    curve = CURVE in (args.baselines or ()) and draw_published(
        axes, task, last)
    if curve:
      sources[CURVE] = curve
    elif not known:
      without.append(task)
    longest, last = 0, 0.0
    for method, curves in methods.items():
      drawn[method] = looks[method]
      centres, values = scores.aligned(curves, width)
      longest = max(longest, len(centres))
      last = max(last, centres[-1])
      if len(centres) == 1:
        drawn[method] = {**looks[method], 'marker': 'o'}
        if any(curve.xs[0] < curve.xs[-1] for curve in curves):
          dots.append(f'{method} on {task}')
      if args.aggregate == 'none':
        for row in values:
          some = np.isfinite(row)
          draw_line(axes, centres[some], row[some], looks[method], 0.8)
      else:
        draw_band(
            axes, centres, scores.curve_summary(args.aggregate, values),
            looks[method], len(methods))
    style.set_title(
        axes, style.wrapped(title(task, args), title_width(args)))
    dress(axes, args, args.ylim)
    if longest == 1 and last > 0 and not args.xlim:
      axes.set_xlim(0, 2 * last)
  if args.baselines is not None and without:
    terminal.warn(
        f'no published score for {listed(without)} and these --baselines.')
  if dots:
    terminal.warn(
        f'one point, drawn as a dot, is all that bins of {tables.si(width)} '
        f'steps leave of {listed(dots)}: smaller --bins draw a curve.')
  label_outer(panels, args)
  style.arrange(in_rows(panels))
  handles = {
      label(method, args): mpl_lines.Line2D([], [], **look)
      for method, look in sorted(
          drawn.items(), key=lambda item: reading.method_order(item[0]))}
  texts = {CURVE: CURVE_LABEL, **{
      name: text for name, (text, _, _) in PUBLISHED.items()}}
  handles.update({
      args.labels.get(name, text): sources[name]
      for name, text in texts.items() if name in sources})
  style.add_legend(figure, handles)
  return figure


def listed(names, most=5):
  more = f' and {len(names) - most} more' * (len(names) > most)
  return ', '.join(names[:most]) + more


def draw_all_tasks(tasks, width, ranges, looks, args):
  """Normalised scores over all tasks, of the methods that ran all of them."""
  figure, (axes,) = grid(1, args)
  handles = {}
  common = reading.common_methods(tasks)
  for method in common:
    curves = [methods[method] for methods in tasks.values()]
    centres, values = scores.aligned(sum(curves, []), width)
    groups = np.split(values, np.cumsum([len(group) for group in curves])[:-1])
    groups = [
        scores.normalise(group, ranges[task])
        for task, group in zip(tasks, groups)]
    draw_band(
        axes, centres, scores.curve_summary(args.aggregate, *groups),
        looks[method], len(common))
    handles[label(method, args)] = mpl_lines.Line2D([], [], **looks[method])
  style.set_title(axes, f'{len(tasks)} tasks')
  dress(axes, args)
  axes.set_xlabel(args.xlabel or axis_name(args.xaxis))
  axes.set_ylabel((args.ylabel or axis_name(args.yaxis)) + ' (normalised)')
  style.arrange([[axes]])
  style.add_legend(figure, handles)
  return figure


def draw_line(axes, xs, ys, look, width=None):
  # A line through one point would not be seen, nor would it behind others.
  single = dict(marker='o', markersize=6, zorder=3) if len(xs) == 1 else {}
  axes.plot(xs, ys, linewidth=width, **single, **look)


def draw_band(axes, xs, summary, look, count):
  """Draws a line and its band, one of `count`: the more, the fainter."""
  centre, low, high = summary
  some = np.isfinite(centre)
  draw_line(axes, xs[some], centre[some], look)
  some = np.isfinite(low)
  if some.sum() == 1:
    axes.vlines(
        xs[some], low[some], high[some], color=look['color'], linewidth=1.5)
    return
  axes.fill_between(
      xs[some], low[some], high[some], color=look['color'],
      alpha=min(0.15, 0.6 / count), linewidth=0)


def chosen_baselines(task, args):
  if args.baselines is None:
    return {}
  names = args.baselines or list(PUBLISHED)
  known = scores.baselines(task)
  return {name: known[name] for name in names if name in known}


def draw_baseline(axes, name, values):
  """A line over the whole panel; returns it for the legend."""
  _, color, dashes = PUBLISHED[name]
  score, low, high = values
  if high > low:
    axes.axhspan(low, high, color=color, alpha=0.12, linewidth=0)
  return axes.axhline(
      score, color=color, linewidth=1.1, linestyle=dashes, zorder=1.5)


def draw_published(axes, task, last):
  """The published agent's mean and range in its bins, up to a step.

  Returns the line for the legend, or None if nothing is published.
  """
  ends, summaries = scores.published_curve(task)
  begins = np.maximum(ends - scores.PUBLISHED_BIN, 0)
  some = begins < last
  if not some.any():
    return None
  edges = np.append(begins[some], min(ends[some][-1], last))
  # Each bin is a step, and the last one is as long as the others.
  mean, low, high = (
      np.append(values[some], values[some][-1]) for values in summaries)
  axes.fill_between(
      edges, low, high, step='post', alpha=0.15, linewidth=0,
      color=CURVE_LOOK['color'])
  line, = axes.plot(
      edges, mean, drawstyle='steps-post', zorder=1.5, **CURVE_LOOK)
  return line


def draw_transfer(rows, looks, args):
  """A row of panels per task, a column per measure, a mark per method.

  Names stand in lines above each other: the task, then its methods.
  """
  tasks = dict.fromkeys(row['task'] for row in rows)
  groups = [
      (title(task, args), [row for row in rows if row['task'] == task])
      for task in tasks]
  return draw_marks(
      groups, MEASURES, looks, args, 'Against the baseline (dashed): mean and '
      '95 % interval; better to the right')


def draw_improvement(rows, number, looks, args):
  """Probabilities of improvement, a mark per method."""
  name = f'{number} task' + 's' * (number > 1)
  figure = draw_marks(
      [(name, rows)], CHANCES, looks, args,
      'Probability that a run beats one of '
      f'{label(rows[0]["baseline"], args)}, with 95 % interval')
  for axes in figure.axes:
    axes.set_xlim(-0.03, 1.03)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
  return figure


def draw_marks(groups, measures, looks, args, below):
  """A row of panels per group of rows, a column per measure.

  Args:
    groups: pairs of a heading and rows with a `method` and an estimate per
      measure.
    measures: {name: (title, where the baseline stands)}.
    looks: from `styles`.
    args: from `parse`.
    below: text below the panels.
  """
  names = [
      [style.wrapped(label(row['method'], args), 36) for row in group]
      for _, group in groups]
  headings = [style.wrapped(heading, 36) for heading, _ in groups]
  lines = [[1 + 0.65 * name.count('\n') for name in group] for group in names]
  # A unit of the y axes is a fifth of an inch.
  heights = [0.2 * (1.1 + sum(group)) for group in lines]
  figure = mpl_figure.Figure(
      figsize=(8.5, sum(heights) + 0.32 * len(groups) + 0.4), dpi=style.DPI)
  grids = figure.subplots(
      len(groups), len(measures), squeeze=False, sharey='row',
      height_ratios=heights)
  for axes, (name, _) in zip(grids[0], measures.values()):
    style.set_title(axes, name)
  for line, heading, (_, group), texts, sizes in zip(
      grids, headings, groups, names, lines):
    ends = np.cumsum(sizes)
    places = ends - np.array(sizes) / 2
    for axes, (measure, (_, baseline)) in zip(line, measures.items()):
      axes.axvline(baseline, color='0.35', linewidth=1, linestyle='--')
      for place, row in zip(places, group):
        centre, low, high = row[measure]
        color = looks[row['method']]['color']
        axes.plot([low, high], [place, place], color=color, linewidth=2)
        axes.plot([centre], [place], 'o', color=color, markersize=4.5)
      draw_unbounded(axes, places, [row[measure] for row in group], [
          looks[row['method']]['color'] for row in group])
      axes.set_ylim(ends[-1] + 0.1, -1)
      axes.grid(False, axis='y')
      axes.tick_params(axis='y', length=0)
      axes.set_yticks([-0.5, *places], [heading, *texts])
      axes.xaxis.set_major_locator(mpl_ticker.MaxNLocator(4))
      axes.xaxis.set_major_formatter(style.step_text)
    line[0].get_yticklabels()[0].set_fontweight('bold')
  texts = [text for group in names for text in group] + headings
  style.arrange(grids.tolist(), heights, texts, below)
  return figure


def draw_unbounded(axes, places, estimates, colors):
  """Draws intervals with an infinite end, as arrows to a panel's border."""
  border = axes.get_xlim()
  for place, (_, *ends), color in zip(places, estimates, colors):
    low, high = np.clip(ends, *border)
    for end, stop, mark in zip(ends, (low, high), '<>'):
      if np.isinf(end):
        axes.plot([low, high], [place, place], color=color, linewidth=2)
        axes.plot([stop], [place], mark, color=color, clip_on=False)
  axes.set_xlim(border)


def draw_profiles(tasks, ranges, looks, args):
  """Shares of runs above each normalised score, of methods on all tasks."""
  figure, panels = grid(len(scores.SCORES), args)
  handles = {}
  chosen = scores.everywhere(tasks)
  tasks = {
      task: scores.equally_long({name: methods[name] for name in chosen}, task)
      for task, methods in tasks.items()}
  for axes, (name, score) in zip(panels, scores.SCORES):
    groups = {
        method: [
            np.array([
                scores.normalise(score(curve), ranges[task])
                for curve in methods[method]])
            for task, methods in tasks.items()]
        for method in chosen}
    values = np.concatenate(sum(groups.values(), []))
    thresholds = np.linspace(
        min(0, values.min()), max(1, values.max()), 201)
    for method, group in groups.items():
      draw_band(
          axes, thresholds, scores.profile(group, thresholds), looks[method],
          len(groups))
      handles[label(method, args)] = mpl_lines.Line2D([], [], **looks[method])
    style.set_title(axes, f'{name.capitalize()} score')
    dress(axes, args)
    axes.set_ylim(0, 1.03)
  for index, axes in enumerate(panels):
    outer(
        axes, index, panels, 'Normalised score', 'Share of runs above')
  style.arrange(in_rows(panels))
  style.add_legend(figure, handles)
  return figure


def draw_omega(points, args):
  """Scores over the transfer factor, a panel per task and score.

  A line joins methods that differ in nothing but the factor.
  """
  tasks = list(dict.fromkeys(
      point['task'] for point in points if point['omega'] is not None))
  panels_of = [
      (task, score) for score in ('overall', 'final') for task in tasks]
  figure, panels = grid(len(panels_of), args, min(len(tasks), 4))
  factors = sorted({p['omega'] for p in points} - {None})
  spread = factors[-1] - factors[0]
  lines = list(dict.fromkeys(
      p['line'] for p in points if p['omega'] is not None))
  references = list(dict.fromkeys(
      p['method'] for p in points if p['omega'] is None))
  alone = [
      line for line in lines
      if len({p['omega'] for p in points if p['line'] == line}) == 1]
  palette = style.PALETTES['contrast'][:6]
  handles = {}
  for axes, (task, score) in zip(panels, panels_of):
    here = [p for p in points if (p['task'], p['score']) == (task, score)]
    for index, method in enumerate(references):
      for point in here:
        if point['omega'] is None and point['method'] == method:
          handles[label(method, args)] = draw_reference(
              axes, point['estimate'], str(0.3 * (index % 3)),
              style.LINES[1 + index % 3])
    for index, name in enumerate(lines):
      line = [p for p in here if p['omega'] is not None and p['line'] == name]
      if line:
        # Single points stand beside others at their factor, not on top.
        others = [
            p['line'] for p in here if p['omega'] == line[0]['omega']]
        first = {other for other in others if other not in alone}
        beside = [other for other in others if other in alone]
        shift = name in alone and 0.03 * spread * (
            len(first) + beside.index(name))
        text = label if name in alone else line_label
        handles[text(name, args)] = draw_grid(
            axes, line, palette[index % len(palette)],
            'osD^v'[index // len(palette) % 5], shift)
    style.set_title(axes, style.wrapped(
        f'{title(task, args)}, {score}', title_width(args)))
    # Factors closer than their texts are wide have small ticks.
    shown = style.apart(factors, 0.32 / args.size[0] * spread)
    axes.set_xticks(shown, [f'{factor:g}' for factor in shown])
    axes.set_xticks(factors, minor=True)
    axes.yaxis.set_major_locator(style.ticks(args.yticks))
    axes.yaxis.set_major_formatter(style.value_text)
  for index, axes in enumerate(panels):
    outer(axes, index, panels, 'Transfer factor ω', axis_name(args.yaxis))
  style.arrange(in_rows(panels))
  style.add_legend(figure, handles)
  return figure


def line_label(method, args):
  """The name of methods that differ in their transfer factors alone."""
  name = reading.without_omega(method)
  return args.labels.get(name) or reading.without_omega(
      args.short.get(method, method))


def draw_grid(axes, points, color, marker, shift):
  points = sorted(points, key=lambda point: point['omega'])
  xs = [point['omega'] + shift for point in points]
  centre, low, high = np.array([point['estimate'] for point in points]).T
  axes.vlines(xs, low, high, color=color, linewidth=1.2)
  line, = axes.plot(
      xs, centre, marker=marker, color=color, markersize=4,
      linestyle='-' if len(xs) > 1 else '')
  return line


def draw_reference(axes, estimate, color, linestyle):
  centre, low, high = estimate
  if math.isfinite(low):
    axes.axhspan(low, high, color=color, alpha=0.08, linewidth=0)
  return axes.axhline(centre, color=color, linewidth=1.1, linestyle=linestyle)


def grid(number, args, cols=None):
  """An empty figure and its first `number` panels, row by row."""
  cols = min(args.cols or cols or columns(number), number)
  rows = math.ceil(number / cols)
  width, height = args.size
  figure = mpl_figure.Figure(
      figsize=(cols * width, rows * height), dpi=style.DPI)
  spec = figure.add_gridspec(rows, cols)
  panels = [figure.add_subplot(spec[divmod(i, cols)]) for i in range(number)]
  return figure, panels


def in_rows(panels):
  cols = panels[0].get_gridspec().ncols
  return [panels[at:at + cols] for at in range(0, len(panels), cols)]


def columns(number):
  return number if number <= 4 else math.ceil(math.sqrt(number))


def dress(axes, args, ylim=None):
  """Limits, ticks and their labels."""
  axes.xaxis.set_major_locator(style.ticks(args.xticks))
  axes.yaxis.set_major_locator(style.ticks(args.yticks))
  axes.xaxis.set_major_formatter(style.step_text)
  axes.yaxis.set_major_formatter(style.value_text)
  # Axes start at zero where the data come near it.
  for low, high, limit in (
      (axes.dataLim.xmin, axes.dataLim.xmax, axes.set_xlim),
      (axes.dataLim.ymin, axes.dataLim.ymax, axes.set_ylim)):
    if 0 <= low < 0.3 * high:
      limit(0)
  if args.xlim:
    axes.set_xlim(*args.xlim)
  if ylim:
    axes.set_ylim(*ylim)


def label_outer(panels, args):
  xlabel = args.xlabel or axis_name(args.xaxis)
  ylabel = args.ylabel or axis_name(args.yaxis)
  for index, axes in enumerate(panels):
    outer(axes, index, panels, xlabel, ylabel)


def outer(axes, index, panels, xlabel, ylabel):
  """Labels the left panels, and the lowest of each column."""
  cols = axes.get_gridspec().ncols
  if index % cols == 0:
    axes.set_ylabel(ylabel)
  if index + cols >= len(panels):
    axes.set_xlabel(xlabel)


def axis_name(key):
  return AXIS_NAMES.get(key) or re.sub(r'[/_]+', ' ', key).strip().capitalize()


def label(method, args):
  return named(args.labels, method, args) or args.short.get(method, method)


def title_width(args):
  """How many characters stand above a panel."""
  return max(8, int(11.5 * args.size[0]))


def title(task, args):
  """'dmc_walker_walk' as 'Walker Walk', 'HopperBulletEnv-v0' as 'Hopper'."""
  short = re.sub(r'BulletEnv-v\d+', '', task)
  if re.match(r'dmc_|atari_', task):
    short = task.split('_', 1)[1].replace('_', ' ').title()
  return args.labels.get(task, short)


def named(values, method, args):
  """The entry of --labels or --colors for a method, by either of its names."""
  return values.get(method) or values.get(args.short.get(method))
