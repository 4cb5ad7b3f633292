"""The second study from sources that have learned: its table and figures."""

import os
import pathlib
import statistics

import pytest

from pages import check_drawn, finding_words, one_line
from results import competent, keeping, second
import running
from running import read_csv, write_run

ROOT = running.ROOT
OUT = pathlib.Path('results/competent')


@pytest.fixture
def runs(tmp_path):
  return competent.all_runs(tmp_path / 'logdir', tmp_path / 'out')


def test_runs_are_those_of_the_second_study_from_other_sources(runs):
  """Nothing but the source, the seeds left out and the precision differ."""
  theirs = {
      run.name: run for run in second.all_runs(
          pathlib.Path('logdir'), competent.STUDY)}
  targets = [run for run in runs if run.name.startswith('targets/')]
  methods = {run.name.split('/')[2] for run in targets}
  assert len(targets) == len(competent.SEEDS) * len(
      second.TARGETS) * len(methods)
  assert len(methods) == 7
  for run in targets:
    other = theirs[run.name]
    assert run.script == other.script
    assert run.flags.pop('precision') == '32'
    differing = {
        key for key in {*run.flags, *other.flags}
        if run.flags.get(key) != other.flags.get(key)}
    # dreamer.py has --task, the others --task1.
    assert differing - {'task', 'task1'} <= {
        'source', 'encoder', 'meta1', 'meta2'}
    assert differing
    files = {str(source.file) for source in run.after}
    assert files == {
        run.flags[key] for key in differing - {'task', 'task1'}}
    assert all(f'/{run.flags["seed"] + 100}/' in file for file in files)


def test_runs_are_made_in_the_order_of_the_protocol(runs):
  names = [
      run.name.split('/')[2] if run.name.startswith('targets/')
      else run.name.split('/')[1].split('-')[-1] for run in runs]
  assert list(dict.fromkeys(names)) == [
      'longer', 'twice', 'full', 'fractional-0.2', 'balance', 'pole',
      'meta-encoder', 'meta-frozen', 'meta-trained', 'fractional-0.0',
      'fractional-0.5']


def scores(runs, name):
  """`{seed: lower score of the two tasks}` of the kept sources of a name."""
  return {
      run.flags['seed']: min(
          second.score_of(run, task) for task in second.SOURCES)
      for run in runs
      if run.name.startswith(f'sources/{name}/') and keeping.recorded(run)}


def below(found):
  return {
      seed for seed, score in found.items()
      if score < min(second.COMPETENT.values())}


def test_those_are_trained_on_that_had_not_learned():
  assert len({*second.COMPETENT.values()}) == 1
  several = scores(
      second.all_runs(pathlib.Path('logdir'), competent.STUDY), 'several')
  assert {*competent.SEEDS.values()} == below(several)
  runs = competent.all_runs(pathlib.Path('logdir'), OUT)
  longer = scores(runs, 'longer')
  page = one_line(OUT / 'README.md')
  assert {*competent.TWICE} == below(longer)
  words = ' and '.join(
      f'{longer[seed]:.0f} ({"seed " * (seed == min(below(longer)))}{seed})'
      for seed in sorted(below(longer)))
  assert f'scores on InvertedPendulum were {words}' in page
  fallen = [
      row[f'{second.POLE}/test/return']
      for row in keeping.rows(
          ROOT / OUT / 'runs/sources/longer/123/metrics.jsonl')
      if row.get(f'{second.POLE}/test/return', 1000) < 1000]
  later = [value for value in fallen if value > 200]
  assert (
      f'of the {len(fallen)} evaluations of 123 in which the pole fell '
      f'{len(later)} ended later') in page
  stopped = keeping.rows(
      ROOT / OUT / 'stopped/longer-twice/123/metrics.jsonl')
  pole, cart = (
      statistics.mean([
          row[f'{task}/test/return'] for row in stopped
          if f'{task}/test/return' in row][-5:])
      for task in (second.POLE, second.BALANCE))
  assert (
      f'its last five evaluations of the pole had a mean of {pole:.0f}, but '
      f'those of the cart pole {cart:.0f}') in page
  assert f'stopped after {stopped[-1]["step"] // 1000},000 steps' in page
  *most, last = [f'{several[seed]:.0f}' for seed in sorted(below(several))]
  assert f'had {" and ".join(most)} on InvertedPendulum' in page
  assert f'had {last} on dmc_cartpole_balance' in page
  for run in runs[:len(competent.SEEDS)]:
    assert run.flags['source'] == str(
        competent.STUDY / f'sources/{run.flags["seed"]}/several.pkl')


def test_all_runs_stand_in_the_table():
  runs = competent.all_runs(pathlib.Path('logdir/competent'), OUT)
  table = read_csv(ROOT / OUT / 'runs.csv')
  assert [row['run'] for row in table] == [run.name for run in runs]
  for row, run in zip(table, runs):
    assert bool(row['commits']) == keeping.recorded(run)


def test_five_runs_are_compared_with_ten(tmp_path, monkeypatch, runs):
  """Those of here and those of the second study whose sources had learned."""
  for run in runs:
    if '/full/' in run.name or run.name.endswith('sparse/meta-frozen/20'):
      write_run(run)
      keeping.keep(run)
  drawn = []
  monkeypatch.setattr(
      second.commands, 'draw', lambda words, out: drawn.extend(words) or 0)
  out = tmp_path / 'out'
  assert competent.main(['--do', 'draw', '--out', str(out)]) == 0
  (words,) = drawn  # One folder of figures.
  assert words[words.index('--indir') + 1] == str(out / 'compared')
  links = {
      path.relative_to(out / 'compared').parts
      for path in (out / 'compared').rglob('*') if path.is_symlink()}
  for path in links:
    path = out.joinpath('compared', *path)
    assert path.is_dir() and not os.path.isabs(os.readlink(path))
  for task in second.TARGETS:
    seeds = {
        method: {int(seed) for *own, seed in links if own == [task, method]}
        for method in ('scratch', 'full', 'meta-frozen', 'meta-trained')}
    assert len(seeds['scratch']) == 10
    assert seeds['full'] == {*second.SEEDS}
    # The others lack some, and are not drawn from the rest.
    assert not seeds['meta-frozen'] and not seeds['meta-trained']


# What was found


def test_all_sources_have_learned_both_tasks_in_the_end():
  page = one_line(OUT / 'README.md')
  runs = competent.all_runs(pathlib.Path('logdir'), OUT)
  final = {
      **scores(competent.counted(runs), 'several'), **scores(runs, 'longer'),
      **scores(runs, 'longer-twice')}
  assert {*final} == {*second.SEEDS.values()}
  assert not below(final)
  *most, last = [
      f'{final[seed]:.0f} ({"seed " * (seed == min(final))}{seed})'
      for seed in sorted(final)]
  assert f'the lower of the two scores is {", ".join(most)} and {last}' in page


def test_figures_are_drawn_from_these_runs(tmp_path):
  check_drawn(competent, ROOT / OUT, tmp_path / 'out', 5)


def test_findings_stand_in_the_page():
  page = one_line(OUT / 'README.md')
  rows = read_csv(ROOT / OUT / 'findings.csv')
  earlier = {
      (row['task'], row['method']): row
      for row in read_csv(ROOT / competent.STUDY / 'findings.csv')}
  assert rows
  for row in rows:
    assert row['finding'] != 'runs missing'
    assert finding_words(row) in page
    before = earlier[row['task'], row['method']]
    assert row['finding'] == before['finding']  # As the page says.
  words = [
      '{:.2f} [{:.2f}, {:.2f}]'.format(*(
          float(row[f'area_ratio{end}']) for end in ('', '_low', '_high')))
      for study in ({(row['task'], row['method']): row for row in rows}, earlier)
      for row in [study[second.PENDULUM, 'full']]]
  assert f'its area ratio is {words[0]}, and was {words[1]}.' in page
  *most, last = [
      f'{float(earlier[task, "full"]["area_ratio"]):.2f}'
      for task in second.TARGETS]
  assert f'where the area ratios were {", ".join(most)} and {last}.' in page
  assert {row['method'] for row in rows} == {'full'}
  assert 'one method of seven has all of its runs' in page
