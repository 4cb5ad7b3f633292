"""The table of what a CPU learns: commands, scores, films, figures."""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest

import running
from running import read_csv
from common.backend import tf  # Before dm_control, or that ends the process.
from common import options, terminal
from data import checkpoints
from results import commands, keeping, learn
from runs import logs
import wrappers

ROOT = pathlib.Path(__file__).parent.parent
BALANCE = 'dmc_cartpole_balance'
SWINGUP = running.SWINGUP
HOPPER = 'HopperBulletEnv-v0'


# The commands


def test_runs_follow_from_the_table(tmp_path):
  *runs, one, two, three = learn.all_runs(tmp_path, tmp_path / 'out')
  # The last are three of the others in 32 bits.
  for seed, exact in enumerate((one, two, three), 1):
    task = exact.flags['task']
    assert exact.name == f'{task}/float32/{seed}'
    twin, = [run for run in runs if run.name == f'{task}/dreamer/{seed}']
    assert exact.flags == {**twin.flags, 'precision': '32'}
  wanted = {(row.task, seed) for row in learn.table() for seed in row.seeds}
  assert len(runs) == len(wanted)
  assert {(run.flags['task'], run.flags['seed']) for run in runs} == wanted
  for run in runs:
    name = f'{run.flags["task"]}/dreamer/{run.flags["seed"]}'
    assert run.name == name and run.logdir == tmp_path / name
    assert run.results == tmp_path / 'out' / 'runs' / name
  # A row of the table is seen as a whole before its second seed.
  assert [run.flags['seed'] for run in runs] == sorted(
      run.flags['seed'] for run in runs)


def test_no_seed_was_tuned_on():
  assert not {0, 9} & {seed for row in learn.table() for seed in row.seeds}


def test_commands_are_those_of_dreamer(tmp_path):
  """Every flag exists, every task too, and all but the task is the same."""
  for run in learn.all_runs(tmp_path, tmp_path):
    words = shlex.split(run.command)
    assert words[:2] == ['python3', 'dreamer.py']
    config = options.dreamer().parse(words[2:])
    assert run.flags.items() <= config.plain().items()
    assert run.flags['preset'] == 'cpu' and config.threads == 1
    assert config.log_images and config.eval_episodes == 3
    # The preset alone says how the agent learns.
    rest = {
        name for name in run.flags
        if options.dreamer().fixed(name)} - {'seed', 'task'}
    assert rest <= {'render', 'termination'}
    assert ('render' in rest) == config.task.startswith('dmc_')
    if learn.installed(learn.needed(config.task)):
      wrappers.check_task(config.task)


def test_list_has_a_command_a_line(tmp_path, capsys):
  arguments = '--logdir', str(tmp_path), '--out', str(tmp_path / 'out')
  assert learn.main(['--do', 'list', *arguments, '--only', 'cartpole']) == 0
  lines = capsys.readouterr().out.splitlines()
  runs = commands.select(
      learn.all_runs(tmp_path, tmp_path / 'out'), 'cartpole')
  assert lines == [f'{run.command}  # at step 0' for run in runs]
  assert len(lines) == 4


def test_a_missing_package_is_a_line_for_each_task(
    tmp_path, monkeypatch, capsys):
  """Its tasks are left out, but for runs that need nothing any more."""
  monkeypatch.setitem(sys.modules, 'pybullet', None)
  arguments = '--logdir', str(tmp_path), '--out', str(tmp_path / 'out')
  only = f'{HOPPER}|{SWINGUP}|{BALANCE}'
  assert learn.main(['--do', 'list', *arguments, '--only', only]) == 0
  said = capsys.readouterr()
  assert {line.split('--task ')[1].split()[0]
          for line in said.out.splitlines()} == {BALANCE}
  told = sorted(said.err.splitlines())
  assert len(told) == 2 and all('pybullet' in line for line in told)
  assert HOPPER in told[0] and SWINGUP in told[1]

  run, = commands.select(
      learn.all_runs(tmp_path, tmp_path / 'out'), HOPPER)
  running.write_run(run)
  assert learn.main(['--do', 'run', *arguments, '--only', HOPPER]) == 0
  assert keeping.kept(run)
  said = capsys.readouterr()
  assert said.out == '1 of 1 runs are complete.\n' and not said.err


def test_as_many_jobs_as_cores():
  done = subprocess.run(
      ['taskset', '-c', str(min(os.sched_getaffinity(0))),
       sys.executable, '-c', 'from results import learn\n'
       'print(learn.define_config().jobs)'], cwd=ROOT, text=True,
      capture_output=True, check=True)
  assert done.stdout == '1\n'


# Scores


LEVEL = 900
ROWS = [
    learn.Row(BALANCE, (1, 2, 3), 303, LEVEL, 1.5, 150_000, learn.FAST),
    learn.Row(SWINGUP, (1, 2), -884, 500, 1, 20_000),
    learn.Row(HOPPER, (1,), 19, 800, 1, 15_000, learn.ENDS),
    learn.Row('dmc_walker_walk', (1,), 45, steps=105_000, more=learn.FAST)]


def returns(run, last, every=5000):
  """Evaluations that rise from 0 over all but the last ten, which are known."""
  steps = range(every, run.flags['steps'] + 1, every)
  late = [last + 10 * (index % 2) - 5 for index in range(10)]
  values = [*np.linspace(0, last, max(len(steps) - 10, 0)), *late]
  return [
      {'step': 1000, 'train/return': 1.0},
      *({'step': step, 'test/return': value}
        for step, value in zip(steps, values[-len(steps):]))]


@pytest.fixture
def results(tmp_path, monkeypatch):
  """All but a seed of swing-up and the run of Hopper are complete."""
  monkeypatch.setattr(learn, 'LEVELS', ROWS[:3])
  monkeypatch.setattr(learn, 'FURTHER', ROWS[3:])
  runs = learn.all_runs(tmp_path / 'logdir', tmp_path / 'out')
  finals = {
      (BALANCE, 1): 950, (BALANCE, 2): 890, (BALANCE, 3): 910,
      (SWINGUP, 1): 600, ('dmc_walker_walk', 1): 300}
  for run in runs:
    final = finals.get((run.flags['task'], run.flags['seed']))
    if final:
      running.write_run(run, returns(run, final))
      (run.logdir / 'sessions.jsonl').write_text(json.dumps(
          dict(commit='abc', machine='one', command=run.command)) + '\n')
  assert learn.main([
      '--do', 'keep', '--logdir', str(tmp_path / 'logdir'), '--out',
      str(tmp_path / 'out')]) == 0
  return tmp_path / 'out', runs


def test_table_and_curves(results):
  out, runs = results
  assert learn.main(['--do', 'draw', '--out', str(out)]) == 0
  balance, swingup, hopper, walker = read_csv(out / 'table.csv')
  assert [balance[key] for key in (
      'task', 'seeds', 'scores', 'evaluations', 'hours')] == [
          BALANCE, '1, 2, 3', '950.0, 890.0, 910.0', '10, 10, 10',
          '0.50, 0.50, 0.50']
  assert [float(balance[key]) for key in (
      'random_play', 'level', 'median', 'steps', 'within_hours')] == [
          303, LEVEL, 910, 150_000, 1.5]
  assert float(balance['median_in_time']) == 910
  assert walker['median_in_time'] == hopper['median_in_time'] == 'nan'
  assert balance['reached'] == 'yes'
  # One seed is missing, and the other had only four evaluations.
  assert [swingup[key] for key in ('scores', 'evaluations', 'reached')] == [
      '600.0, –', '4, –', '1 of 2 seeds']
  assert [hopper[key] for key in ('scores', 'median', 'reached')] == [
      '–', 'nan', '0 of 1 seeds']
  assert (walker['reached'], walker['level']) == ('–', 'nan')
  published = json.loads(
      (ROOT / 'analysis/baselines/dreamer.json').read_text())
  for row, end in ((balance, 205000.0), (walker, 105000.0)):
    # Bins are named for their ends: 150,000 lies in the one to 205,000.
    values = [
        dict(zip(run['xs'], run['ys']))[end] for run in published
        if run['task'] == row['task']]
    assert len(values) == 5
    assert [float(row[f'published{end}']) for end in ('', '_low', '_high')] == (
        pytest.approx([np.mean(values), min(values), max(values)]))
  assert swingup['published'] == hopper['published'] == 'nan'

  table = (out / 'table.md').read_text()
  assert table.count('\n') == 2 + len(ROWS)
  assert '| 910.0 |' in table and '| 150K |' in table
  for ending in ('.png', '.pdf'):
    assert (out / 'curves').with_suffix(ending).stat().st_size > 5000
  scores = read_csv(out / 'scores.csv')
  # Seeds of a task are one method, though the tasks have flags of their own.
  assert [(row['task'], row['method'], row['runs']) for row in scores[:-1]] == [
      (BALANCE, 'dreamer', '3'), (SWINGUP, 'dreamer', '1'),
      ('dmc_walker_walk', 'dreamer', '1')]
  lines = read_csv(out / 'runs.csv')
  assert [row['run'] for row in lines] == [run.name for run in runs]


@pytest.mark.parametrize('score, word', [(899.9, 'no'), (900, 'yes')])
def test_the_median_reaches_the_level(results, score, word):
  out, runs = results
  run, = commands.select(runs, f'{BALANCE}/dreamer/3')
  (run.results / 'metrics.jsonl').write_text(
      json.dumps({'step': 150_000, 'test/return': score}) + '\n')
  row = learn.table_row(ROWS[0], [
      run for run in runs if run.flags['task'] == BALANCE])
  assert (row['median'], row['reached']) == (score, word)
  assert row['evaluations'] == '10, 10, 1'


@pytest.mark.parametrize('hours, expected', [
    # Evaluations every 5,000 steps: until 75,000, until 150,000 and at no time.
    (3.0, np.mean(range(6, 16))), (1.5, np.mean(range(21, 31))), (75, np.nan)])
def test_the_median_where_the_hours_of_a_row_are_over(
    results, hours, expected):
  out, runs = results
  runs = [run for run in runs if run.flags['task'] == BALANCE]
  for run in runs:
    (run.results / 'metrics.jsonl').write_text(''.join(
        json.dumps({'step': 5000 * index, 'test/return': index}) + '\n'
        for index in range(1, 31)))
    told = json.loads((run.results / 'run.json').read_text())
    (run.results / 'run.json').write_text(
        json.dumps({**told, 'hours': hours}) + '\n')
  row = learn.table_row(ROWS[0], runs)
  np.testing.assert_equal(row['median_in_time'], expected)
  assert row['median'] == np.mean(range(21, 31))


def test_other_flags_are_other_runs(results, monkeypatch):
  """A table that gives a task other flags does not count older runs."""
  out, runs = results
  run, = commands.select(runs, f'{BALANCE}/dreamer/3')
  assert keeping.kept(run)
  run.flags['batch_size'] = 3
  assert not keeping.kept(run)


def test_nothing_to_draw_is_one_line(tmp_path):
  with pytest.raises(terminal.UserError, match='no complete run'):
    learn.main(['--do', 'draw', '--out', str(tmp_path)])
  assert not list(tmp_path.iterdir())


# Films


def video(seed):
  return np.random.default_rng(seed).integers(
      0, 256, (5, 64, 64, 3), dtype=np.uint8)


def test_the_last_film_is_kept_if_it_is_small(tmp_path, monkeypatch):
  run = learn.run_of(ROWS[2], 1, tmp_path, tmp_path / 'out')
  running.write_run(run)
  for step in (5000, 15_000):  # A run that was continued has two files.
    logger = logs.Logger(run.logdir)
    for tag in (f'sim/test/{HOPPER}', 'agent/openl'):
      logger.video(step, tag, video(step if 'sim' in tag else 1))
    logger.close()
  early, late = sorted(run.logdir.glob('events*'))
  early.write_bytes(early.read_bytes()[:-7])  # Which a crash cut off.
  film = run.results / 'film.gif'
  monkeypatch.setattr(keeping, 'FILM_BYTES', 1000)
  keeping.keep(run)
  assert keeping.kept(run) and not film.exists()
  monkeypatch.undo()
  keeping.keep(run)
  assert film.read_bytes() == logs.gif(video(15_000))
  assert Image.open(film).n_frames == 5


# The page


def test_the_page_says_what_is_run():
  text = (ROOT / 'results' / 'learning' / 'README.md').read_text()
  found = re.findall(
      r'^\| ([\w-]+) \| ([\d, ]+) \| ([−\d.,]+) \| ([\d,–]+) \| ([\d,]+) \| '
      r'([\d.]+ h|–) \|(.*)\|$',
      text, re.M)
  assert [
      (task, seeds, float(random.replace('−', '-').replace(',', '')), level,
       steps, hours)
      for task, seeds, random, level, steps, hours, _ in found] == [
          (row.task, ', '.join(map(str, row.seeds)), row.random,
           f'{row.level:g}' if row.level == row.level else '–',
           f'{row.steps:,}', f'{row.hours:g} h' if row.hours == row.hours
           else '–') for row in learn.table()]
  for row, (*_, words) in zip(learn.table(), found):
    flags = ' '.join(f'--{name} {value}' for name, value in row.more.items())
    assert words.strip(' `') == flags


def test_commands_of_the_page_run():
  text = (ROOT / 'results' / 'learning' / 'README.md').read_text()
  made = re.findall(r'^make learn(?: ARGS="(.*?)")?', text, re.M)
  typed = re.findall(r'^python3 -m results.learn (.*?) *#', text, re.M)
  assert len(made) == 2 and len(typed) == 3
  for words in made + typed:
    config = learn.define_config().parse(shlex.split(words))
    assert commands.select(
        learn.all_runs(config.logdir, config.out), config.only)


# The real script

SMALL = f'''
from common import terminal
from results import learn
learn.LEVELS = [learn.Row({SWINGUP!r}, (1,), -884, 500, 1, steps=600)]
learn.FURTHER = []
learn.FLAGS.update(preset='debug', eval_every=200, eval_episodes=1)
terminal.run(learn.main)
'''


@pytest.mark.slow
@pytest.mark.bullet
def test_a_real_run(tmp_path):
  """It is stopped and continued, kept with a film, and drawn."""
  def start(*words):
    return subprocess.Popen(
        [sys.executable, '-c', SMALL, '--logdir', str(tmp_path / 'logdir'),
         '--out', str(tmp_path / 'out'), *words], cwd=ROOT)

  logdir = tmp_path / 'logdir' / SWINGUP / 'dreamer' / '1'
  driver = start()
  while not any('model_loss' in line for line in running.lines(logdir)):
    assert driver.poll() is None
    time.sleep(0.2)
  driver.terminate()
  assert driver.wait(timeout=300) == 143
  assert 0 < checkpoints.load(logdir / 'variables.pkl')['updates'] < 12
  for words in ((), ('--do', 'draw')):
    assert start(*words).wait(timeout=600) == 0
  assert 'continues at' in (logdir / 'output.txt').read_text()
  kept = tmp_path / 'out' / 'runs' / SWINGUP / 'dreamer' / '1'
  assert {path.name for path in kept.iterdir()} == {
      'config.json', 'metrics.jsonl', 'run.json', 'film.gif'}
  assert Image.open(kept / 'film.gif').n_frames > 1
  row, = read_csv(tmp_path / 'out' / 'table.csv')
  score = np.mean([
      line['test/return'] for line in running.lines(kept)
      if 'test/return' in line])
  assert float(row['median']) == pytest.approx(score)
  assert row['scores'] == f'{score:.1f}'
  assert row['evaluations'] == '3' and float(row['hours']) >= 0
  assert (tmp_path / 'out' / 'curves.png').stat().st_size > 5000


def test_random_play_that_is_stored_was_not_cut_short():
  stored = ROOT / 'results' / 'learning'
  runs = [
      run for run in learn.all_runs(stored, stored) if keeping.recorded(run)]
  assert len(runs) > 10
  for run in runs:
    told, = keeping.rows(run.results / 'run.json')
    same = dataclasses.replace(run, logdir=run.results)
    assert told['random_return'] == keeping._random_return(same), run.name
