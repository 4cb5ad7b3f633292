"""The second study from sources that have learned: its table and figures."""

import os
import pathlib

import pytest

from results import competent, keeping, second
from running import read_csv, write_run

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def runs(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)  # Where the second study is.
  return competent.all_runs(tmp_path / 'logdir', tmp_path / 'out')


def test_runs_are_those_of_the_second_study_from_other_sources(runs):
  """Nothing but the source, the seeds left out and the precision differ."""
  theirs = {
      run.name: run for run in second.all_runs(
          pathlib.Path('logdir'), competent.STUDY)}
  targets = [run for run in runs if run.name.startswith('targets/')]
  assert len(targets) == len(competent.SEEDS) * len(second.TARGETS) * 7
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


def test_those_are_trained_on_that_had_not_learned(runs):
  scores = {}
  for run in second.all_runs(pathlib.Path('logdir'), competent.STUDY):
    if run.name.startswith('sources/several/'):
      scores[run.flags['seed']] = min(
          second.score_of(run, task) for task in second.SOURCES)
  level = min(second.COMPETENT.values())
  assert {*competent.SEEDS.values()} == {
      seed for seed, score in scores.items() if score < level}
  for run in runs[:len(competent.SEEDS)]:
    assert run.flags['source'] == str(
        competent.STUDY / f'sources/{run.flags["seed"]}/several.pkl')


def test_five_runs_are_compared_with_ten(tmp_path, monkeypatch, runs):
  """Those of here and those of the second study whose sources had learned."""
  monkeypatch.setattr(second, 'draw_sources', lambda runs, out: None)
  for run in runs:
    if '/full/' in run.name:
      write_run(run, [
          {'step': step, 'test/return': 5000.0}
          for step in range(1000, run.flags['steps'] + 1, 1000)])
      keeping.keep(run)
  out = tmp_path / 'out'
  assert competent.main(['--do', 'draw', '--out', str(out)]) == 0
  rows = read_csv(out / 'figures/targets/transfer.csv')
  full = [row for row in rows if row['method'] == 'full']
  assert {(row['runs'], row['scratch_runs']) for row in full} == {('5', '10')}
  # Of the others there are the two of the second study so far.
  assert {row['runs'] for row in rows if row['method'] != 'full'} == {'2'}
  found = {
      (row['task'], row['method']): row['finding']
      for row in read_csv(out / 'findings.csv')}
  for (task, method), finding in found.items():
    assert (finding == 'runs missing') == (method != 'full')
  links = [path for path in (out / 'compared').rglob('*') if path.is_symlink()]
  assert len(links) == len(second.TARGETS) * (10 + 7 * 2 + 3)
  for path in links:
    assert not os.path.isabs(os.readlink(path)) and path.is_dir()
