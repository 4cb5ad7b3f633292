"""Measures of sources against what transfer gained: pairs, tables, page."""

import csv
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from analysis import scores
from analysis.measures import MEASURES
from common import terminal
from results import commands, forecasting, second, study
import running

ROOT = pathlib.Path(__file__).resolve().parent.parent
STORED = ROOT / 'results' / 'forecast'
PAGE = (ROOT / 'docs' / 'forecast.md').read_text().split(
    '## Does the forecast forecast?')[1].split('\n## ')[0]
WORDS = 'none', 'one', 'two', 'three', 'four', 'five'
TABLES = [
    'pairs.csv', *(f'correlations.{end}' for end in ('csv', 'md', 'txt'))]


@pytest.fixture(autouse=True)
def root(monkeypatch):
  monkeypatch.chdir(ROOT)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  """A directory with the runs of the study and the measures, but no source."""
  for _, _, folder in forecasting.EDITIONS.values():
    (tmp_path / folder).mkdir()
    (tmp_path / folder / 'runs').symlink_to(ROOT / folder / 'runs')
  out = tmp_path / 'results' / 'forecast'
  out.mkdir()
  (out / 'measures.json').write_bytes((STORED / 'measures.json').read_bytes())
  monkeypatch.chdir(tmp_path)
  return out


def read_csv(name):
  return running.read_csv(STORED / name)


# Correlations


def correlation(xs, ys, strata=None, sources=None, targets=None):
  count = len(xs)
  one = np.zeros(count, int)
  return forecasting.correlation(
      np.array(xs, float), np.array(ys, float),
      one if strata is None else np.array(strata),
      np.arange(count) if sources is None else np.array(sources),
      one if targets is None else np.array(targets))


def test_perfect_order_is_one_and_the_reverse_minus_one():
  xs = np.arange(8)
  assert correlation(xs, np.exp(xs)) == (1, 1, 1)
  assert correlation(xs, -xs) == (-1, -1, -1)


def test_order_by_chance_is_about_nothing():
  rng = np.random.default_rng(0)
  rho, low, high = correlation(rng.normal(size=200), rng.normal(size=200))
  assert abs(rho) < 0.15 and low < 0 < high and high - low < 0.4


def test_intervals_hold_the_truth_as_often_as_they_say():
  """Of normal numbers with a correlation of 0.5, Spearman's is known."""
  rng = np.random.default_rng(1)
  truth, hits = 6 / np.pi * np.arcsin(0.5 / 2), 0
  for _ in range(100):
    xs, noise = rng.normal(size=(2, 40))
    _, low, high = correlation(xs, 0.5 * xs + 0.75 ** 0.5 * noise)
    hits += low <= truth <= high
  assert 88 <= hits <= 100


def test_ties_are_those_of_spearman():
  rng = np.random.default_rng(0)
  xs, ys = rng.integers(0, 4, (2, 30))
  assert correlation(xs, ys)[0] == pytest.approx(
      scipy.stats.spearmanr(xs, ys).statistic)


def test_strata_are_compared_inside_only():
  """Right order in each target, the wrong one between them."""
  xs, ys = [1, 2, 3, 11, 12, 13], [101, 102, 103, 1, 2, 3]
  assert correlation(xs, ys)[0] < 0
  assert correlation(xs, ys, [0, 0, 0, 1, 1, 1])[0] == 1


def test_runs_of_the_same_source_do_not_narrow_the_interval():
  rng = np.random.default_rng(0)
  xs, ys = rng.normal(size=(2, 8))
  alone = correlation(xs, ys)
  often = correlation(
      np.tile(xs, 10), np.tile(ys, 10), sources=np.tile(np.arange(8), 10))
  assert often == pytest.approx(alone)


def test_order_of_few_targets_has_a_wide_interval():
  """Ten sources on three targets, whose order alone a measure tells."""
  rng = np.random.default_rng(0)
  sources, targets = np.tile(np.arange(10), 3), np.repeat(np.arange(3), 10)
  xs, ys = 9 * targets + rng.normal(size=(2, 30))
  rho, low, _ = correlation(xs, ys, sources=sources)
  assert rho > low > 0.5
  other = correlation(xs, ys, sources=sources, targets=targets)
  # One in nine samples has one target alone.
  assert other[0] == rho and other[1] < 0


def test_few_sources_have_no_interval():
  few = forecasting.LEAST - 1
  for count, known in ((few, False), (few + 1, True)):
    rho, low, high = correlation(
        np.arange(2 * count), np.arange(2 * count),
        sources=np.repeat(np.arange(count), 2))
    assert rho == 1 and np.isfinite([low, high]).all() == known


def test_numbers_that_do_not_vary_have_no_correlation():
  assert np.isnan(correlation(np.ones(9), np.arange(9))).all()
  # Nor has what varies between targets alone, inside of them.
  assert np.isnan(correlation(
      np.repeat([0, 1], 5), np.arange(10), np.repeat([0, 1], 5))).all()


def frame(**columns):
  """Pairs of six sources on two targets; image_r2 orders them on each."""
  rows = [
      dict(edition='x', target=target, family='fractional', omega=0.2,
           precision='auto', source=str(source), seed=source,
           area_ratio=source + shift + 1.0,
           **{**dict.fromkeys(MEASURES, np.nan), 'image_r2': source - shift})
      for target, shift in (('a', 0.0), ('b', 100.0)) for source in range(6)]
  return pd.DataFrame(rows).assign(**columns)


def found(table):
  return {
      (row['measure'], row['compared']): row
      for row in forecasting.correlations(table)}


def test_measures_that_are_missing_are_left_out():
  values = np.arange(12.0)
  values[:4] = np.nan
  rows = found(frame(divergence=values))
  assert {measure for measure, _ in rows} == {'image_r2', 'divergence'}
  assert rows['image_r2', forecasting.WITHIN]['pairs'] == 12
  assert rows['divergence', forecasting.WITHIN]['pairs'] == 8
  # More of it, more was gained: less was to be better.
  assert rows['divergence', forecasting.WITHIN]['rho'] == (-1, -1, -1)
  assert rows['divergence', forecasting.WITHIN]['finding'] == 'misleads'


def test_sources_of_a_target_and_all_pairs():
  rows = found(frame())
  row = rows['image_r2', forecasting.WITHIN]
  assert row['rho'] == (1, 1, 1) and row['finding'] == 'forecasts'
  assert (row['sources'], row['targets']) == (6, 2)
  assert rows['image_r2', forecasting.ACROSS]['rho'][0] < 0


def test_runs_of_two_precisions_are_not_compared_with_each_other():
  table = frame(target='a')
  assert found(table)['image_r2', forecasting.WITHIN]['rho'][0] < 0
  precisions = np.repeat(['auto', '32'], 6)
  rows = found(frame(target='a', precision=precisions))
  assert rows['image_r2', forecasting.WITHIN]['rho'] == (1, 1, 1)


def test_a_source_alone_at_its_target_is_compared_with_none():
  table = frame()
  rows = found(table[(table.target == 'a') | (table.source == '0')])
  assert rows['image_r2', forecasting.WITHIN]['pairs'] == 6
  assert rows['image_r2', forecasting.WITHIN]['targets'] == 1
  assert rows['image_r2', forecasting.ACROSS]['pairs'] == 7


def test_few_sources_are_named_as_such():
  table = frame()
  rows = found(table[table.source < '3'])
  for row in rows.values():
    assert row['finding'] == 'too few sources' and np.isnan(row['rho'][1])


# Pairs


def test_the_mean_of_ratios_is_the_area_ratio_of_the_transfer_report():
  table = pd.DataFrame(read_csv('pairs.csv'))
  table = table[table.edition == 'first']
  names = {
      'fractional': 'FTL ω={:g}', 'full': 'FTL ω={:g}',
      'meta-model, frozen': 'MMTL N=2'}
  path = ROOT / 'results' / 'figures' / 'targets' / 'transfer.csv'
  with path.open() as file:
    report = {
        (row['task'], row['method']): float(row['area_ratio'])
        for row in csv.DictReader(file)}
  seen = set()
  for (task, family, omega), part in table.groupby(
      ['target', 'family', 'omega']):
    key = task, names.get(family, '').format(float(omega))
    if key in report:
      seen.add(key)
      assert part.area_ratio.astype(float).mean() == pytest.approx(
          report[key], rel=1e-5)
  assert seen == report.keys()


def test_area_ratios_are_above_the_floor_of_scratch():
  def curve(ys):
    return scores.reading.Curve(
        't', 'm', '0', ROOT, {}, np.array([0.0, 10, 20]), np.array(ys, float))
  scratch = [curve([-10, -10, -10]), curve([-10, 0, 10])]
  ratios = scores.area_ratios([curve([0, 0, 0])], scratch, 10)
  assert ratios == pytest.approx([2.0])


def test_pairs_are_runs_with_transfer_and_scratch_is_not_broken():
  pairs = list(forecasting.transfers())
  assert len(pairs) == len(read_csv('pairs.csv'))
  for edition, run, scratch in pairs:
    assert run.after and run.file is None
    assert edition != 'first' or [other.name for other in scratch] == [
        f'{forecasting.target(run)}/scratch/{seed}' for seed in study.SEEDS]


def test_families_are_what_is_taken_over(tmp_path):
  def family(script='dreamer-MMTL.py', **own):
    return forecasting.family(commands.make_run(
        tmp_path, tmp_path, 'x', script, dict(own, seed=0)))
  ftl = 'dreamer-FTL.py'
  assert family(ftl, transfer_factor=0.2) == 'fractional'
  assert family(ftl, **study.FULL) == 'full'
  assert family(ftl, scale='', copy='^encoder/', freeze='') == (
      'autoencoder, trained')
  assert family(ftl, scale='', copy='^encoder/', freeze='^encoder/') == (
      'autoencoder, fixed')
  assert family() == 'meta-model, frozen'
  assert family(decoder='none') == 'meta-model, encoder'
  assert family(freeze_decoder=False) == 'meta-model, decoder trained'


def test_of_several_reward_models_the_best_counts():
  several = [{'reward_r2': 0.1, 'image_error': 5.0},
             {'reward_r2': 0.3, 'image_error': 4.0}, {'reward_r2': None}]
  assert forecasting.best('reward_r2', several) == 0.3
  assert forecasting.best('image_error', several) == 4.0
  assert np.isnan(forecasting.best('divergence', several))


def test_a_study_whose_runs_are_not_kept_is_empty(monkeypatch, tmp_path):
  before = len(list(forecasting.transfers()))
  monkeypatch.setitem(
      forecasting.EDITIONS, 'other', (study, 'logdir/x', str(tmp_path)))
  assert len(list(forecasting.transfers())) == before


def test_a_study_of_which_one_run_is_missing_is_empty(monkeypatch, tmp_path):
  before = len(list(forecasting.transfers()))
  shutil.copytree(ROOT / 'results/runs', tmp_path / 'runs')
  monkeypatch.setitem(
      forecasting.EDITIONS, 'other', (study, 'logdir/x', str(tmp_path)))
  runs = [run for edition, run, _ in forecasting.transfers()
          if edition == 'other']
  assert runs
  shutil.rmtree(runs[-1].results)
  assert len(list(forecasting.transfers())) == before


def test_meta_models_are_measured_by_reward_models_without_dynamics():
  rows = [
      row for row in json.loads((STORED / 'measures.json').read_text())
      if row['edition'] == 'first']
  alone = [row for row in rows if row['autoencoder'] is None]
  # Each source on each target, and two reward models of each.
  assert len(alone) == len(study.SEEDS) * len(study.TARGETS)
  assert len(rows) == 3 * len(alone)
  for row in rows:
    wanted = set(MEASURES) if row in alone else {
        'image_r2', 'image_error', 'reward_r2', 'reward_log_prob'}
    assert set(row['measures']) == wanted
    assert row['how']['termination'] is True


# Measuring


@pytest.fixture
def short(monkeypatch):
  """One seed of one target, and measures that take a moment."""
  first = forecasting.EDITIONS['first']
  monkeypatch.setattr(forecasting, 'EDITIONS', {'first': first})
  hopper = 'HopperBulletEnv-v0'
  monkeypatch.setattr(study, 'SEEDS', {10: 110})
  monkeypatch.setattr(study, 'TARGETS', {hopper: study.TARGETS[hopper]})
  for name in ('GRID', 'BROKEN', 'AUTOENCODER'):
    monkeypatch.setattr(study, name, {})
  for name, value in (('DECISIONS', 100), ('SEQUENCES', 6), ('FIT_STEPS', 2)):
    monkeypatch.setattr(forecasting.measures, name, value)


def test_measuring_goes_on_from_where_it_was(short, tmp_path, capsys):
  out = tmp_path / 'out'
  words = ['--do', 'measure', '--out', str(out)]
  assert forecasting.main(words) == 0
  assert capsys.readouterr().out.count('measuring ') == 3
  path = out / 'measures.json'
  whole = path.read_text()
  rows = json.loads(whole)
  # A number that measuring again would change.
  rows[0]['measures']['image_r2'] = 7.0
  path.write_text(json.dumps(rows[:-1]))
  assert forecasting.main(words) == 0
  text = capsys.readouterr().out
  assert text.count('measuring ') == 1
  assert f'measuring {rows[-1]["source"]} on {rows[-1]["target"]}' in text
  assert json.loads(path.read_text()) == rows
  assert forecasting.main(words) == 0
  assert 'measuring ' not in capsys.readouterr().out


def test_sources_are_measured_before_their_runs_are_made(
    short, monkeypatch, tmp_path, capsys):
  shutil.copytree(ROOT / 'results/sources/110', tmp_path / 'sources/110')
  monkeypatch.setattr(
      forecasting, 'EDITIONS', {'other': (study, 'logdir/x', str(tmp_path))})
  out = tmp_path / 'out'
  assert forecasting.main(['--do', 'measure', '--out', str(out)]) == 0
  text = capsys.readouterr().out
  assert text.count('measuring ') == 3
  # One that is not here yet is no fault.
  shutil.rmtree(tmp_path / 'sources')
  (out / 'measures.json').unlink()
  assert forecasting.main(['--do', 'measure', '--out', str(out)]) == 0
  assert 'skipped' not in capsys.readouterr().out


@pytest.mark.slow
def test_stored_measures_are_found_again(tmp_path, monkeypatch):
  first = forecasting.EDITIONS['first']
  monkeypatch.setattr(forecasting, 'EDITIONS', {'first': first})
  monkeypatch.setattr(study, 'SEEDS', {10: 110})
  assert forecasting.main(['--do', 'measure', '--out', str(tmp_path)]) == 0
  stored = forecasting.read(STORED)
  again = forecasting.read(tmp_path)
  assert len(again) == 6
  for key, row in again.items():
    # None where there is no number.
    left, right = (
        pd.Series(one['measures'], dtype=float) for one in (row, stored[key]))
    pd.testing.assert_series_equal(left, right, rtol=0.05, atol=0.01)


def test_sources_that_are_not_here_are_skipped_by_a_line(elsewhere, capsys):
  path = elsewhere / 'measures.json'
  path.unlink()
  assert forecasting.main(['--do', 'measure']) == 0
  lines = capsys.readouterr().out.splitlines()
  skipped = [line for line in lines if line.startswith('skipped ')]
  assert len(skipped) == len(set(skipped))
  first = [line for line in skipped if 'first study' in line]
  assert len(first) == 3 * len(study.SEEDS)
  assert skipped[0] == (
      'skipped results/sources/110/multi-task.pkl: it is not here; first '
      'study, sources/multi-task/110')
  assert lines[-1].endswith('has 0 measurements.')
  assert not path.exists()


def test_measures_that_are_missing_or_damaged_are_one_line(elsewhere):
  (elsewhere / 'measures.json').write_text('[{"edi')
  with pytest.raises(terminal.UserError, match='measures.json is damaged'):
    forecasting.main(['--do', 'draw'])
  (elsewhere / 'measures.json').unlink()
  with pytest.raises(terminal.UserError, match='--do measure makes it'):
    forecasting.main(['--do', 'draw'])


def test_measures_of_other_runs_are_one_line_and_nothing_is_written(elsewhere):
  (elsewhere / 'measures.json').write_text('[]')
  with pytest.raises(terminal.UserError, match='--do measure makes'):
    forecasting.main(['--do', 'draw'])
  rows = json.loads((STORED / 'measures.json').read_text())
  for row in rows:
    row['decisions'] = -1
  (elsewhere / 'measures.json').write_text(json.dumps(rows))
  with pytest.raises(terminal.UserError, match='no measure of any run'):
    forecasting.main(['--do', 'draw'])
  assert [path.name for path in elsewhere.iterdir()] == ['measures.json']


# What is stored, and said of it


def test_tables_are_drawn_again_without_sources_and_tensorflow(elsewhere):
  code = (
      'import sys; from results import forecasting; forecasting.main([]); '
      'assert "tensorflow" not in sys.modules')
  subprocess.run(
      [sys.executable, '-c', code], cwd=elsewhere.parent.parent, check=True,
      env=running.environment(), stdout=subprocess.DEVNULL)
  for name in TABLES:
    assert (elsewhere / name).read_bytes() == (STORED / name).read_bytes()
  for name in ('forecast.png', 'forecast.pdf'):
    for folder in (elsewhere, STORED):
      assert (folder / name).stat().st_size > 5000


def test_numbers_on_the_axes_do_not_overlap():
  figure = forecasting.picture(pd.read_csv(STORED / 'pairs.csv'))
  figure.canvas.draw()
  for axes in figure.axes:
    low, high = axes.get_xlim()
    boxes = sorted(
        (label.get_window_extent() for label in axes.get_xticklabels()
         if low <= label.get_position()[0] <= high), key=lambda box: box.x0)
    for left, right in zip(boxes, boxes[1:]):
      assert left.x1 < right.x0


def test_correlations_are_those_of_the_page():
  text = ' '.join(PAGE.split())
  table = read_csv('correlations.csv')
  for compared, title in (
      (forecasting.WITHIN, '**Which source'),
      (forecasting.ACROSS, '**Which target')):
    head, _, *rows = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in PAGE.split(title)[1].split('of these')[0].splitlines()
        if line.startswith('|')]
    known = {
        (row['family'], row['measure']): row for row in table
        if row['compared'] == compared and row['finding'] != 'too few sources'}
    assert [row[0] for row in rows] == list(MEASURES)
    found = {}
    for measure, *cells in rows:
      for family, cell in zip(head[1:], cells, strict=True):
        row = known.get((family, measure))
        found[family, measure] = row
        assert cell == ('{:.2f} [{:.2f}, {:.2f}]'.format(*(
            float(row[f'rho{end}']) for end in ('', '_low', '_high')))
            if row else '–')
    assert known.keys() == {key for key, row in found.items() if row}
    number = sum(row['finding'] != 'open' for row in known.values())
    assert (
        f'{number or "None"} of these {len(known)} intervals '
        f'exclude{"" if number > 1 else "s"} 0') in text
  values = [
      float(row['rho']) for row in table
      if row['compared'] == forecasting.ACROSS and row['finding'] == 'open'
      and row['measure'] == 'reward_log_prob']
  assert (
      f'reward_log_prob has {min(values):.2f} to {max(values):.2f} in all '
      f'{WORDS[len(values)]} columns') in text


def test_sources_of_one_task_are_told_apart_as_the_page_says():
  text = ' '.join(PAGE.split())
  table = pd.read_csv(STORED / 'pairs.csv')
  found = read_csv('correlations.csv')
  within = {
      (row['family'], row['measure']) for row in found
      if row['compared'] == forecasting.WITHIN
      and row['finding'] not in ('open', 'too few sources')}
  fractional = {measure for family, measure in within if family == 'fractional'}
  assert fractional == {
      'ahead_15', 'ahead_5_fit', 'ahead_15_fit', 'reward_r2',
      'reward_log_prob'}
  assert within - {('fractional', measure) for measure in fractional} == {
      ('meta-model, decoder trained', measure)
      for measure in ('image_r2', 'image_error')}
  alone = table.source.str.contains('/balance/|/pole/')
  assert table[alone].source.nunique() == 10
  for row in forecasting.correlations(table[~alone]):
    if row['family'] == 'fractional' and row['compared'] == forecasting.WITHIN:
      assert row['finding'] == 'open'
  assert 'without these none is above 0' in text
  same = table[
      (table.precision.astype(str) == '32') & (table.edition == 'second')]
  pole = same.source.str.contains('/pole/')
  assert (pole.sum(), (~pole).sum()) == (5, 10)
  for measure, (more, _) in MEASURES.items():
    values = same[measure] * (1 if more else -1)
    apart = values[pole].max() < values[~pole].min()
    assert apart == (not measure.startswith('divergence'))
  less = (same.area_ratio[pole] < same.area_ratio[~pole].min()).sum()
  assert f'{WORDS[less]} of their {WORDS[pole.sum()]} runs have a smaller' in text
  low, high = (
      '{:.2f} to {:.2f}'.format(values.min(), values.max())
      for values in (same.image_r2[pole], same.image_r2[~pole]))
  assert f'(image_r2 {low} against {high};' in text


def test_order_of_the_second_study_is_as_measured():
  text = ' '.join(PAGE.split())
  rows = [
      row for row in json.loads((STORED / 'measures.json').read_text())
      if row['edition'] == 'second' and 'several' in row['source']]
  parts = [
      [row['measures'] for row in rows if row['target'] == task]
      for task in second.TARGETS]
  for better, worse in zip(parts, parts[1:]):
    for left, right in zip(better, worse, strict=True):
      assert left['image_r2'] > right['image_r2']
      assert left['divergence'] < right['divergence']
  low, high = zip(*(
      (min(values), max(values)) for values in (
          [row['image_r2'] for row in part] for part in parts)))
  for words in (
      f'(image_r2 {low[0]:.2f} to {high[0]:.2f}), less on',
      f'({low[1]:.2f} to {high[1]:.2f}), least on Hopper',
      f'({low[2]:.2f} to {high[2]:.2f}).'):
    assert words in text


def test_frozen_autoencoders_of_the_second_study_are_as_measured():
  text = ' '.join(PAGE.split())
  rows = [
      row for row in json.loads((STORED / 'measures.json').read_text())
      if row['edition'] == 'second' and 'reward-' in row['source']]
  assert len(rows) == 10 * len(second.TARGETS)
  for task, words in zip(second.TARGETS, (
      '{:.2f} to {:.2f} on the sparse task', '{:.2f} to {:.2f} on '
      'InvertedPendulumSwingup', '{:.2f} to {:.2f} on Hopper'), strict=True):
    values = [
        row['measures']['image_r2'] for row in rows if row['target'] == task]
    assert words.format(min(values), max(values)) in text
    assert max(values) < 0.5


def test_words_of_the_page_follow_from_the_pairs():
  text = ' '.join(PAGE.split())
  table = pd.read_csv(STORED / 'pairs.csv')
  targets = table.target.nunique()
  assert (
      f'{len(table)} pairs of a source and a run, of {table.source.nunique()} '
      f'sources and {targets} targets') in text
  assert table.groupby('source').edition.nunique().max() == 1
  table = table[table.edition == 'first']
  assert f'is of {WORDS[table.source.nunique()]} sources, too few' in text
  assert table.source.nunique() < forecasting.LEAST
  parts = {
      task: table[(table.family == 'fractional') & (table.target == task)]
      for task in study.TARGETS}
  pole, hopper = (
      (f'{part.image_r2.min():.2f} to {part.image_r2.max():.2f}', len(part),
       (part.area_ratio > 1).sum()) for part in parts.values())
  assert (
      f'it is {pole[0]} on InvertedPendulum, where all {pole[1]} runs' in text)
  assert pole[1] == pole[2]
  assert f'{hopper[0]} on Hopper, where {hopper[2]} of {hopper[1]} did' in text
  frozen = table[table.family.isin(
      ['meta-model, frozen', 'autoencoder, fixed'])]
  assert (frozen.image_r2 < 0.5).all() and (frozen.area_ratio < 1).all()
  count = len(frozen)
  assert f'in all {count} with a frozen autoencoder, and all {count} lost' in (
      text)
  assert parts['HopperBulletEnv-v0'].ahead_15.isna().all()
  assert 'Hopper are too short for ahead_15' in text
