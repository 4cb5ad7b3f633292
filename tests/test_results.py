"""What results/ reports is what its runs say."""

import json
import pathlib
import re
import statistics

import pytest

from data import checkpoints
from results import keeping, study
from runs import logs
from running import read_csv

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / 'results'
TEXT = (RESULTS / 'README.md').read_text()


def sections(title):
  """The rows of the table below a heading, as lists of cells."""
  text = TEXT.split(f'### {title}\n')[1].split('\n#')[0]
  rows = [
      [cell.strip() for cell in line.strip('|').split('|')]
      for line in text.splitlines() if line.startswith('|')]
  return rows[2:]


@pytest.fixture
def runs(monkeypatch):
  monkeypatch.chdir(ROOT)
  return study.all_runs(
      pathlib.Path('logdir', 'study'), pathlib.Path('results'))


def test_all_runs_of_the_table_are_reported(runs):
  assert [run.name for run in runs if not keeping.kept(run)] == []
  table = read_csv(RESULTS / 'runs.csv')
  assert [row['run'] for row in table] == [run.name for run in runs]
  for row, run in zip(table, runs):
    assert row['command'] == run.command
    # Of code that is in the repository, as it was committed.
    assert re.fullmatch(r'[0-9a-f]{7,}( [0-9a-f]{7,})*', row['commits'])


def test_bundle_is_small_and_has_what_transfer_reads(runs):
  files = sorted((RESULTS / 'sources').rglob('*.pkl'))
  assert files == sorted(ROOT / run.file for run in runs if run.file)
  assert sum(path.stat().st_size for path in files) < 20e6
  for run in runs:
    if run.file and run.script == 'dreamer-multi-task.py':
      variables = checkpoints.load(run.file)['variables']
      assert 'actor/hout/kernel' in variables


def test_figures_are_drawn_from_these_runs(runs, tmp_path):
  out = tmp_path / 'results'
  out.mkdir()
  (out / 'runs').symlink_to(RESULTS / 'runs')
  assert study.main(['--do', 'draw', '--out', str(out)]) == 0
  tables = sorted((out / 'figures').rglob('*.csv'))
  assert len(tables) == 10
  for path in tables:
    stored = RESULTS / path.relative_to(out)
    assert path.read_text() == stored.read_text()
    for ending in ('curves.png', 'curves.pdf'):
      assert (stored.parent / ending).stat().st_size > 5000


@pytest.mark.parametrize('title, folder, number', [
    ('Does transfer help?', 'targets', 10),
    ('Hopper in the first stage', 'first_stage', 5),
    ('It is the fixed autoencoder', 'autoencoder', 3)])
def test_words_follow_from_the_rule(title, folder, number):
  """helps, harms or undecided, as the protocol defines them."""
  found = {
      (row['task'], row['method']): row
      for row in read_csv(RESULTS / 'figures' / folder / 'transfer.csv')}
  names = {
      f'Autoencoder, {kind}': f'FTL ω=0 freeze={freeze}'
      for kinds in study.AUTOENCODER.values() for kind, freeze in kinds.items()}
  rows = sections(title)
  assert len(rows) == number
  assert folder == 'first_stage' or len(found) == number
  for task, method, area, final, word in rows:
    method = names.get(method, re.search(r'\((.*)\)|$', method)[1] or method)
    row = found[task, method]

    def interval(name):
      return float(row[f'{name}_low']), float(row[f'{name}_high'])

    (area_low, area_high), (final_low, final_high) = map(
        interval, ('area_ratio', 'final_difference'))
    assert area == (
        f'{float(row["area_ratio"]):.2f} [{area_low:.2f}, {area_high:.2f}]')
    assert final == (
        f'{float(row["final_difference"]):.0f} '
        f'[{final_low:.0f}, {final_high:.0f}]')
    if area_low > 1 and final_high >= 0:
      assert word == 'helps'
    elif area_high < 1 or final_high < 0:
      assert word == 'harms'
    else:
      assert word == 'undecided'


def test_levels_are_those_of_the_runs():
  rows = sections('Does the agent learn?')
  assert [row[0] for row in rows] == list(study.TARGETS)
  scores = read_csv(RESULTS / 'figures' / 'targets' / 'scores.csv')
  broken = read_csv(RESULTS / 'figures' / 'broken' / 'scores.csv')
  for task, random, scratch, ablated in rows:
    chance = [
        float(row['random_return']) for row in read_csv(RESULTS / 'runs.csv')
        if row['run'].startswith(f'{task}/scratch')]
    assert random == f'{sum(chance) / len(chance):.0f}'
    row, = (
        row for row in scores
        if row['task'] == task and row['method'] == 'dreamer')
    assert scratch == interval_of(row)
    if task in study.BROKEN:
      row, = (row for row in broken if 'freeze=^' in row['method'])
      assert ablated == interval_of(row)


def test_wrong_signs_are_those_of_the_runs():
  none, *rows = sections('Wrong signs')
  learned = {row[0]: row[2] for row in sections('Does the agent learn?')}
  tasks = list(study.TARGETS)
  assert none[1:] == [learned[task] for task in tasks]
  assert [row[0] for row in rows] == [
      'image', 'reward', 'pcont', 'divergence', 'actor', 'value']
  for term, *cells in rows:
    for task, cell in zip(tasks, cells):
      folder = RESULTS / 'signs' / task / term
      config = json.loads((folder / 'config.json').read_text())
      assert (config['term'], config['task']) == (term, task)
      assert config['steps'] == study.STEPS[task]
      # The preset small was called cpu then.
      assert dict(study.FLAGS, preset='cpu').items() <= config.items()
      lines = keeping.rows(folder / 'metrics.jsonl')
      last = [
          line['test/return'] for line in lines
          if 'test/return' in line and line['step'] > 0.9 * config['steps']]
      if last:
        mean = sum(last) / len(last)
        assert cell == f'{mean:.0f}'
        # As the protocol has it: below the interval of scratch.
        assert mean < float(re.search(r'\[(\d+),', learned[task])[1])
      else:
        assert cell == f'not finite after {lines[-1]["step"]:,}'


def image_losses(task, *methods):
  """Least and largest over runs, above the constant: last 20 reports kept."""
  means = [
      statistics.mean([
          row['image_loss'] - logs.IMAGE_CONSTANT
          for row in keeping.rows(path) if 'image_loss' in row][-20:])
      for method in methods
      for path in (RESULTS / 'runs').glob(f'{task}/{method}/*/metrics.jsonl')]
  assert len(means) >= 3 * len(methods)
  return f'{min(means):.0f} to {max(means):.0f}'


def test_image_losses_are_those_of_the_runs():
  text = ' '.join(TEXT.split())
  pole, hopper = study.TARGETS
  alone = f'autoencoder/{pole}'
  fixed = image_losses(alone, 'fixed')
  drawn = 'scratch', 'fractional-*', 'full'
  assert f'stays at {image_losses(pole, "meta-model")} where it is fixed' in text
  assert f'({fixed} with the autoencoder alone)' in text
  assert f'and falls to {image_losses(pole, *drawn)} where it is not' in text
  assert (
      f'On Hopper it stays at {image_losses(hopper, "meta-model")} with the '
      f'meta-model and falls to {image_losses(hopper, *drawn)} otherwise') in text
  page = ' '.join((ROOT / 'docs/forecast.md').read_text().split())
  assert f'stayed at {fixed} ' in page


def test_longer_runs_go_as_far_as_the_page_says():
  folder = RESULTS / 'learning/InvertedPendulumSwingupBulletEnv-v0/dreamer'
  best = [
      max(row['test/return'] for row in keeping.rows(path)
          if 'test/return' in row)
      for path in sorted(folder.glob('*/metrics.jsonl'))]
  above = sum(value > 0 for value in best)
  numbers = dict(enumerate('no one two three four five'.split()))
  assert (
      f'to above 0 with {numbers[above]} of {numbers[len(best)]}') in (
          ' '.join(TEXT.split()))


def interval_of(row):
  mean, low, high = (
      float(row[f'final{end}']) for end in ('', '_low', '_high'))
  return f'{mean:.0f} [{low:.0f}, {high:.0f}]'


def test_options_of_later_agents_learn_as_the_page_says():
  text = (ROOT / 'docs' / 'learning.md').read_text()
  section = text.split('## Options of later agents')[1].split('\n## ')[0]
  table = re.findall(
      r'^\| (\d+) \| ([\d, ]+) \| (\d+) \|$', section, re.M)
  folder = RESULTS / 'pilots' / 'dmc_cartpole_balance' / 'dreamer'
  assert {seed for seed, *_ in table} == {
      path.name for path in folder.iterdir()}
  flags = dict(re.findall(r'--(\w+) (\S+)', re.search(
      r'^python3 dreamer.py (.*)$', section, re.M)[1]))
  for seed, row, last in table:
    config = json.loads((folder / seed / 'config.json').read_text())
    for name, value in flags.items():
      if name not in ('logdir', 'preset'):
        kind = type(config[name])
        assert config[name] == (
            value == 'True' if kind is bool else kind(
                float(value) if kind in (int, float) else value)), name
    lines = (folder / seed / 'metrics.jsonl').read_text().splitlines()
    found = [
        x['test/return'] for x in map(json.loads, lines) if 'test/return' in x]
    assert [f'{x:.0f}' for x in found] == row.split(', ')
    assert f'{sum(found[-3:]) / 3:.0f}' == last
