"""The driver of the study: its commands, their order, stops, and results."""

import fnmatch
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data import checkpoints
import dreamer
import running
from running import evaluations, read_csv, write_run
from results import commands, keeping, study
from common import files, options, terminal

ROOT = pathlib.Path(__file__).resolve().parent.parent
BALANCE, HOPPER = study.TARGETS
PENDULUM, WALKER = study.SOURCES

# A script that counts to its steps, and saves what it reached when stopped.
FAKE = '''
import json, os, pathlib, signal, sys, time
sys.path.append(os.getcwd())
import numpy as np
from common import options
from data import checkpoints
from data.logdir import Logdir
flags = {k[2:]: v for k, v in zip(sys.argv[1::2], sys.argv[2::2])}
logdir = pathlib.Path(flags['logdir'])
held = Logdir(logdir).lock()
name = pathlib.Path(sys.argv[0]).name
if 'source' in flags or 'encoder' in flags:
  source = flags.get('source') or flags['encoder']
  assert str(checkpoints.load(source)['step']) == flags['steps'], source
if name == 'dreamer.py' and flags['seed'] == FAILING:
  sys.exit('this one cannot be done')
saved = logdir / 'variables.pkl'
step = checkpoints.load(saved)['step'] if saved.exists() else 0
values = options.SCRIPTS[name]().parse(sys.argv[1:]).plain()
(logdir / 'config.json').write_text(json.dumps({'script': name, **values}))
metrics = (logdir / 'metrics.jsonl').open('a')
print('from', step, flush=True)
stopped = []
def stop(number, _):
  if stopped:
    os._exit(143)
  stopped.append(number)
signal.signal(signal.SIGTERM, stop)
while step < int(flags['steps']) and not stopped:
  step += 1
  print(json.dumps({'step': step, 'loss': 1}), file=metrics, flush=True)
  time.sleep(PAUSE)
if stopped:
  time.sleep(SAVING)
else:
  print(json.dumps({'step': step, 'test/return': 1}), file=metrics, flush=True)
checkpoints.save(saved, {
    'format': checkpoints.CHECKPOINT, 'script': name, 'step': step,
    'action_dim': 1, 'config': {}, 'progress': {'seconds': 1.0},
    'variables': {'reward/hout/bias': np.zeros(1, np.float32)}})
sys.exit(143 if stopped else 0)
'''

@pytest.fixture
def two_seeds(monkeypatch):
  monkeypatch.setattr(study, 'SEEDS', {0: 100, 1: 101})


def by_name(runs):
  return {run.name: run for run in runs}


# The commands


def test_runs_follow_from_the_table(tmp_path):
  runs = study.all_runs(tmp_path, tmp_path / 'out')
  seeds = len(study.SEEDS)
  factors = sum(
      len(some) for table in (study.TARGETS, study.GRID)
      for some in table.values())
  targets, sources = len(study.TARGETS), len(study.SOURCES)
  assert len(runs) == seeds * (
      1 + sources + targets * 3 + factors + len(study.BROKEN) +
      sum(map(len, study.AUTOENCODER.values())))
  for index, run in enumerate(runs):
    assert run.logdir == tmp_path / run.name
    assert all(other in runs[:index] for other in run.after)
    read = {
        value for key, value in run.flags.items()
        if key in ('source', 'encoder', 'meta1', 'meta2')}
    assert read == {str(other.file) for other in run.after}
    assert run.results == tmp_path / 'out' / 'runs' / run.name
  files = [run.file for run in runs if run.file]
  assert len(set(files)) == len(files) == seeds * (1 + sources)
  # No run starts from what was made with its own seed, and seeds stay apart.
  extra = seeds * (
      sum(map(len, study.GRID.values())) + len(study.BROKEN) +
      sum(map(len, study.AUTOENCODER.values())))
  for part in runs[:-extra], runs[-extra:]:
    order = [run.flags['seed'] % 100 for run in part]
    assert order == sorted(order)
  for run in runs:
    of_target = 'sources' not in run.name and 'frozen' not in run.name
    assert (run.flags['seed'] in study.SEEDS) == of_target
    assert all(
        other.flags['seed'] == run.flags['seed'] % 100 + 100
        for other in run.after)
  assert len(by_name(runs)) == len(runs)


def test_commands_are_those_of_the_scripts(tmp_path, two_seeds):
  """Every flag exists, and the scripts take these tasks and sources."""
  for run in study.all_runs(tmp_path, tmp_path):
    if run.flags['seed'] % 100:
      continue
    script = running.script_module(run.script)
    config = script.define_config().parse(run.words)
    assert run.flags.items() <= config.plain().items()
    if hasattr(script, 'tasks'):
      assert script.tasks(config)
    words = run.command.split()
    assert words[:2] == ['python3', run.script]


def test_methods(tmp_path, two_seeds):
  runs = by_name(study.all_runs(tmp_path, tmp_path))
  grid = [
      run.flags['transfer_factor'] for name, run in runs.items()
      if name.startswith(f'{BALANCE}/fractional') and name.endswith('/1')]
  assert sorted(grid) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
  meta = runs[f'{HOPPER}/meta-model/1']
  assert meta.flags['n_meta'] == 2
  assert meta.flags['meta2'] == str(tmp_path / 'sources/101' / f'{WALKER}.pkl')
  for task in study.TARGETS:
    assert runs[f'{task}/full/0'].flags['scale'] == ''


def test_only_takes_sources_along(tmp_path, two_seeds):
  runs = study.all_runs(tmp_path, tmp_path)
  names = [run.name for run in commands.select(runs, f'{HOPPER}/meta.*/1')]
  assert names == [
      'sources/multi-task/101', f'{PENDULUM}/frozen-autoencoder/101',
      f'{WALKER}/frozen-autoencoder/101', f'{HOPPER}/meta-model/1']
  assert commands.select(runs, '') == runs
  for bad in ('nothing', '['):
    with pytest.raises(terminal.UserError, match='--only'):
      commands.select(runs, bad)


def test_list_has_a_command_a_line(tmp_path, two_seeds, capsys):
  """Lines may be pasted, and a job array takes one of them."""
  runs = study.all_runs(tmp_path, tmp_path / 'out')
  write_run(runs[0], evaluations(200))
  study.main([
      '--do', 'list', '--logdir', str(tmp_path), '--out',
      str(tmp_path / 'out')])
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == len(runs)
  for line, run in zip(lines, runs):
    words = ['python3', run.script, *run.words]
    assert shlex.split(line, comments=True) == words
  source = runs[0].name
  assert lines[0].endswith('# at step 200')
  assert lines[1].endswith(f'# at step 0, after {source}')
  waiting, = (
      line for line, run in zip(lines, runs)
      if run.name == f'{HOPPER}/meta-model/0')
  assert waiting.endswith(
      f'# at step 0, after {source} and {PENDULUM}/frozen-autoencoder/100 and '
      f'{WALKER}/frozen-autoencoder/100')
  scratch, = (
      line for line, run in zip(lines, runs)
      if run.name == f'{HOPPER}/scratch/0')
  assert scratch.endswith('# at step 0')


# What is complete


@pytest.fixture
def run(tmp_path):
  return study.make_run(
      tmp_path, tmp_path / 'out', 'task/scratch', 'dreamer.py', 0,
      task='task', steps=1000)


def test_complete(run):
  assert not keeping.complete(run)
  write_run(run)
  assert keeping.complete(run)
  # Nothing that was learned depends on these.
  write_run(run, threads=2, eval_every=1, steps=2000)
  assert keeping.complete(run)


@pytest.mark.parametrize('change', [
    dict(seed=1), dict(script='dreamer-FTL.py'), dict(batch_size=4),
    dict(task='other')])
def test_run_with_other_flags_is_not_complete(run, change):
  write_run(run, **change)
  assert not keeping.complete(run)


def test_run_that_was_stopped_is_not_complete(run):
  write_run(run, evaluations(900))
  assert not keeping.complete(run)
  # It went to the end, but was not evaluated there.
  write_run(run, evaluations(900) + [{'step': 1000, 'train/return': 1.0}])
  assert not keeping.complete(run)
  assert keeping.reached(run) == 1000
  assert keeping.reached(run, 'test/return') == 900


def test_longer_run_continues(run):
  write_run(run)
  run.flags['steps'] = 2000
  assert not keeping.complete(run)


def test_evaluation_after_the_last_checkpoint_does_not_count(run):
  write_run(run)
  metrics = (run.logdir / 'metrics.jsonl').stat().st_mtime_ns
  os.utime(run.logdir / 'variables.pkl', ns=(metrics - 1, metrics - 1))
  assert not keeping.complete(run)
  (run.logdir / 'variables.pkl').unlink()
  assert not keeping.complete(run)


def test_damaged_files_are_not_complete(run):
  write_run(run)
  with (run.logdir / 'metrics.jsonl').open('r+') as file:
    content = file.read()
    file.truncate(len(content) - 5)
  assert keeping.reached(run) == 900
  assert not keeping.complete(run)
  write_run(run)
  (run.logdir / 'config.json').write_text('{"script": ')
  assert not keeping.complete(run)


# Running


def program(folder, pause=0.0, failing=None, saving=0.0):
  """Code of `study.py` with few steps, and with scripts that only count."""
  scripts = folder / 'scripts'
  scripts.mkdir(exist_ok=True)
  code = FAKE.replace('PAUSE', str(pause)).replace(
      'FAILING', repr(failing)).replace('SAVING', str(saving))
  for name in options.SCRIPTS:
    (scripts / name).write_text(code)
  return f'''
import pathlib, signal
from common import files, terminal
from results import study
# What ran the tests may have had them ignored, as nohup does.
for number in signal.SIGINT, signal.SIGHUP:
  signal.signal(number, signal.SIG_DFL)
files.ROOT = pathlib.Path({str(scripts)!r})
study.SEEDS = {{0: 100, 1: 101}}
study.SINGLE_STEPS = study.SOURCE_STEPS = 20
study.STEPS = dict.fromkeys(study.STEPS, 20)
terminal.run(study.main)
'''


class Driver:
  """`study.py` in a process of its own, with scripts that only count."""

  def __init__(
      self, folder, pause=0.0, failing=None, jobs=2, saving=0.0):
    self.logdir = folder / 'logdir'
    self.popen = subprocess.Popen(
        [sys.executable, '-c', program(folder, pause, failing, saving),
         '--logdir', str(self.logdir), '--jobs', str(jobs), '--out',
         str(folder / 'out')], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

  def finish(self):
    output, _ = self.popen.communicate(timeout=100)
    return self.popen.returncode, output

  def children(self):
    return [
        process for process, (parent, _) in running.processes().items()
        if parent == self.popen.pid]


@pytest.fixture
def runs(tmp_path, two_seeds, monkeypatch):
  monkeypatch.setattr(study, 'STEPS', dict.fromkeys(study.STEPS, 20))
  monkeypatch.setattr(study, 'SINGLE_STEPS', 20)
  monkeypatch.setattr(study, 'SOURCE_STEPS', 20)
  return study.all_runs(tmp_path / 'logdir', tmp_path / 'out')


@pytest.mark.parametrize('number, status', [
    (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_stopped_study_saves_its_runs_and_continues(
    tmp_path, runs, number, status):
  driver = Driver(tmp_path, pause=0.1)
  wait_until_runs_count(driver, runs)
  children = driver.children()
  assert len(children) == 2
  driver.popen.send_signal(number)
  code, output = driver.finish()
  assert code == status, output
  assert not set(children) & set(running.processes())
  assert output.count('start ') == output.count('stopped  ') == 2
  assert output.endswith('stopped; the same command continues.\n')
  stopped = [run for run in runs if run.logdir.exists()]
  # The source of all transfer, and what does without it.
  assert [run.name for run in stopped] == [
      'sources/multi-task/100', f'{BALANCE}/scratch/0']
  saved = {
      run: checkpoints.load(run.logdir / 'variables.pkl')['step']
      for run in stopped}
  assert all(3 < step < 20 for step in saved.values())
  assert not any(map(keeping.complete, runs))
  if number != signal.SIGTERM:
    return

  code, output = Driver(tmp_path, jobs=6).finish()
  assert code == 0, output
  assert all(map(keeping.complete, runs))
  for run, step in saved.items():
    assert (run.logdir / 'output.txt').read_text() == f'from 0\nfrom {step}\n'
    assert len(keeping.rows(run.logdir / 'sessions.jsonl')) == 2
    assert f'done     {run.name} at step 20 after' in output
  assert '; 1 remain' in output and '; 0 remain' in output
  steps = sum(run.flags['steps'] for run in runs)
  assert f'\nstudy {steps}/{steps} steps' in output

  before = running.content(tmp_path / 'logdir')
  code, output = Driver(tmp_path).finish()
  assert (code, output) == (
      0, f'{len(runs)} of {len(runs)} runs are complete.\n')
  assert running.content(tmp_path / 'logdir') == before


def wait_until_runs_count(driver, runs):
  limit = time.monotonic() + 100
  while sum(keeping.reached(run) > 3 for run in runs) < 2:
    assert driver.popen.poll() is None and time.monotonic() < limit
    time.sleep(0.02)


def test_hangup_after_a_signal_does_not_keep_runs_from_saving(tmp_path, runs):
  """As when a terminal is closed after Ctrl-C."""
  driver = Driver(tmp_path, pause=0.1, saving=2.0)
  wait_until_runs_count(driver, runs)
  driver.popen.send_signal(signal.SIGINT)
  time.sleep(0.8)
  driver.popen.send_signal(signal.SIGHUP)
  code, output = driver.finish()
  assert code == 130, output
  stopped = [run for run in runs if run.logdir.exists()]
  assert len(stopped) == 2
  for run in stopped:
    assert checkpoints.load(run.logdir / 'variables.pkl')['step'] > 3


def test_runs_of_a_driver_that_was_killed_are_waited_for(tmp_path, runs):
  driver = Driver(tmp_path, pause=0.3)
  wait_until_runs_count(driver, runs)
  children = driver.children()
  driver.popen.kill()
  driver.popen.communicate()
  assert set(children) <= set(running.processes())
  code, output = Driver(tmp_path, jobs=2).finish()
  assert code == 0, output
  assert output.count('waits    for ') == 2
  assert f'of process {children[0]} on ' in output
  assert all(map(keeping.complete, runs))
  for run in runs:
    assert (run.logdir / 'output.txt').read_text() == 'from 0\n'


def test_job_arrays_of_the_page_run_sources_first(tmp_path, runs):
  """The scripts as they stand in docs/, with an `sbatch` that runs jobs."""
  page = (ROOT / 'docs' / 'machines.md').read_text()
  rounds, job = (
      code for code in re.findall(r'^```bash\n(.*?)^```', page, re.M | re.S)
      if 'jobs.txt' in code)
  (tmp_path / 'study.sh').write_text(job)
  (tmp_path / '.venv' / 'bin').mkdir(parents=True)
  (tmp_path / '.venv' / 'bin' / 'activate').write_text('')
  code = program(tmp_path).replace('1: 101', '')
  (tmp_path / 'driver.py').write_text(code)
  programs = {
      # Words before the script: -m results.study.
      'python3': f'''
case $1 in
  -m) shift 2; exec {sys.executable} {tmp_path}/driver.py "$@";;
  *) echo "$@" >> ran.txt
    script=$1; shift; exec {sys.executable} {tmp_path}/scripts/$script "$@";;
esac''',
      'sbatch': '''
echo sbatch >> ran.txt
for index in $(seq ${2#--array=1-}); do
  SLURM_ARRAY_TASK_ID=$((${2#--array=1-} + 1 - index)) bash $3 || exit 1
done'''}
  (tmp_path / 'bin').mkdir()
  for name, text in programs.items():
    (tmp_path / 'bin' / name).write_text(f'#!/bin/bash{text}\n')
    (tmp_path / 'bin' / name).chmod(0o755)

  def submit():
    return subprocess.run(
        ['bash', '-u', '-c', rounds], cwd=tmp_path, text=True,
        capture_output=True, check=True, env=running.environment({
            'PATH': f'{tmp_path}/bin:/usr/bin:/bin'}))

  done = submit()
  assert not done.stderr, done.stderr
  pattern, = re.findall("^only='(.*)'$", rounds, re.M)
  wanted = [
      run for run in commands.select(runs, pattern) if run.name[-1] == '0']
  assert done.stdout.endswith(
      f'{len(wanted)} of {len(wanted)} runs are complete.\n')
  *_, last = ran = (tmp_path / 'ran.txt').read_text().split('sbatch\n')
  assert len(ran) == 4 and last.count('--meta2') == len(study.TARGETS)
  words = [line.split() for part in ran for line in part.splitlines()]
  logdirs = [line[line.index('--logdir') + 1] for line in words]
  assert sorted(logdirs) == sorted(f'logdir/study/{x.name}' for x in wanted)
  # All is kept: nothing is submitted any more.
  submit()
  assert (tmp_path / 'ran.txt').read_text() == 'sbatch\n'.join(ran)


def test_length_of_a_run_counts_where_its_learning_rates_fall(run):
  for lr_end, others in ((1.0, True), (0.1, False)):
    write_run(run, lr_end=lr_end)
    assert keeping.complete(run)
    write_run(run, lr_end=lr_end, steps=2 * run.flags['steps'])
    assert keeping.complete(run) == others
  # It has the steps now, but the rates fell over others before.
  write_run(run, lr_end=0.1, former_steps='1000')
  assert not keeping.complete(run)


def test_run_that_can_never_count_is_not_continued(run):
  config = study.define_config().parse(['--logdir', str(run.logdir.parent)])
  for flags in dict(steps=500), dict(former_steps='500'):
    write_run(run, evaluations(500), lr_end=0.1, **flags)
    before = {file: file.read_bytes() for file in run.logdir.iterdir()}
    with pytest.raises(terminal.UserError, match='move it away') as error:
      commands.work([run], config, 'study')
    assert str(run.logdir) in str(error.value)
    assert {file: file.read_bytes() for file in run.logdir.iterdir()} == before


def test_run_that_has_not_learned_may_become_another(run):
  write_run(run, [], lr_end=0.1, steps=500, updates=0)
  assert not keeping.other_schedule(run)
  write_run(run, [], lr_end=0.1, steps=500, updates=3)
  assert keeping.other_schedule(run)
  (run.logdir / 'variables.pkl').unlink()
  assert not keeping.other_schedule(run)


def test_random_play_that_was_cut_short_is_no_return(run):
  lines = [
      {'step': 200 * index, 'train/return': 5.0, 'train/length': 200.0}
      for index in range(1, 4)] + evaluations(run.flags['steps'])
  for limit, expected in ((0, 5.0), (300, 5.0), (200, None)):
    write_run(run, lines, prefill=1000, collect_limit=limit)
    assert keeping._random_return(run) == expected


def test_other_runs_go_on_when_one_fails(tmp_path, runs):
  code, output = Driver(tmp_path, failing='1', jobs=6).finish()
  assert code == 1
  failed = [run for run in runs if not keeping.complete(run)]
  assert {run.name for run in failed} == {
      run.name for run in runs
      if run.script == 'dreamer.py' and run.flags['seed'] == 1}
  for run in failed:
    assert f'failed   {run.name} at step 0' in output
  assert output.count('this one cannot be done') == len(failed)
  assert output.splitlines()[-1].startswith('failed: ')


def test_what_needs_a_failed_run_is_not_started(tmp_path, runs):
  source = by_name(runs)['sources/multi-task/100']
  write_run(source, [])
  (source.logdir / 'variables.pkl').write_text('no checkpoint')
  code, output = Driver(tmp_path, jobs=6).finish()
  assert code == 1
  needing = [run for run in runs if source in run.after]
  assert f'{len(needing)} runs need what failed' in output
  for run in runs:
    assert keeping.complete(run) == (run != source and run not in needing)
    assert run.logdir.exists() == (run not in needing)


def test_two_studies_cannot_share_a_log_directory(tmp_path, runs):
  first = Driver(tmp_path, pause=0.1)
  while not any(map(keeping.reached, runs)):
    time.sleep(0.02)
  code, output = Driver(tmp_path).finish()
  first.popen.send_signal(signal.SIGTERM)
  assert first.finish()[0] == 143
  assert code == 2 and output.splitlines()[-1].startswith(
      'error: Another run')


# Results


@pytest.mark.parametrize('agent', [0, 1, 199, 200, 201, 399, 1000])
def test_thinned(agent):
  lines = []
  for index in range(agent):
    lines.append(json.dumps({'step': index, 'model_loss': 1.0}))
    if index % 3 == 0:
      lines.append(json.dumps({'step': index, 'train/return': 1.0}))
    if index % 50 == 0:
      lines.append(json.dumps({'step': index, 'test/return': 1.0}))
  kept = keeping.thinned(lines)
  assert kept == [line for line in lines if line in set(kept)]
  scores = [line for line in lines if 'return' in line]
  assert [line for line in kept if 'return' in line] == scores
  few = [json.loads(line)['step'] for line in kept if 'loss' in line]
  assert min(agent, 100) <= len(few) <= 200
  assert agent > 200 or len(few) == agent
  assert len(set(np.diff(few))) <= 1


def curve(run):
  """Metrics with more of everything the better the method is."""
  method = run.logdir.parent.name
  gain = {'fractional-0.2': 1.5, 'full': 0.5}.get(method, 1)
  lines = [
      {'step': 500, 'train/return': 4.0}, {'step': 1000, 'train/return': 6.0},
      {'step': 1500, 'train/return': 60.0}, {'step': 1500, 'model_loss': 1.0}]
  for step in range(1000, run.flags['steps'] + 1, 1000):
    value = gain * step + run.flags['seed'] % 100
    line = {'step': step, 'test/return': value}
    if 'task2' in run.flags:
      for task in study.SOURCES:
        lines.append({**line, f'{task}/test/return': value})
    else:
      lines.append(line)
  return lines


def agent_of(run, *args):
  """The untrained agent of a run."""
  script = running.script_module(run.script)
  config = script.define_config().parse(run.words)
  return script.Agent(config, *args)


@pytest.fixture
def results(tmp_path, two_seeds, monkeypatch):
  monkeypatch.setattr(study, 'STEPS', dict.fromkeys(study.STEPS, 5000))
  monkeypatch.setattr(study, 'SINGLE_STEPS', 5000)
  monkeypatch.setattr(study, 'SOURCE_STEPS', 7000)
  runs = study.all_runs(tmp_path / 'logdir', tmp_path / 'results')
  for run in runs:
    agent = None
    if run.file:
      agent = agent_of(run, 6, *([{}] if 'frozen' in run.name else []))
    # Older runs do not say what --precision auto came to.
    used = {} if run is runs[-1] else {'precision_used': 'bfloat16'}
    write_run(run, curve(run), agent, prefill=1000, **used)
    session = dict(commit='abc', machine='one', command=run.command)
    (run.logdir / 'sessions.jsonl').write_text(2 * (json.dumps(session) + '\n'))
  (runs[-1].logdir / 'transfer.txt').write_text('what became of it\n')
  assert not any(map(keeping.kept, runs))
  assert study.main([
      '--logdir', str(tmp_path / 'logdir'), '--out',
      str(tmp_path / 'results')]) == 0
  assert all(map(keeping.kept, runs))
  return tmp_path / 'results', runs


def test_complete_runs_are_kept(results):
  out, runs = results
  for run in runs:
    kept = out / 'runs' / run.name
    for name in ('config.json', 'metrics.jsonl'):
      assert (kept / name).read_text() == (run.logdir / name).read_text()
  assert (kept / 'transfer.txt').read_text() == 'what became of it\n'
  table = read_csv(out / 'runs.csv')
  assert [row['run'] for row in table] == [run.name for run in runs]
  for row, run in zip(table, runs):
    assert row['seed'] == str(run.flags['seed'])
    assert row['steps'] == str(run.flags['steps'])
    assert row['hours'] == '0.5' and row['commits'] == 'abc'
    assert row['command'] == run.command
    assert row['precision'] == ('32' if run is runs[-1] else 'bfloat16')
    # Of several tasks it is not known whose the returns are.
    assert row['random_return'] == ('' if 'task2' in run.flags else '5.0')


def test_what_is_kept_needs_no_log_directory(results, tmp_path):
  out, runs = results
  before = running.content(out)
  arguments = '--logdir', str(tmp_path / 'elsewhere'), '--out', str(out)
  assert study.main(arguments) == 0
  assert running.content(out) == before
  run = runs[-1]
  run.flags['steps'] += 1
  assert not keeping.kept(run)
  run.flags.update(steps=run.flags['steps'] - 1, seed=5)
  assert not keeping.kept(run)
  run.flags['seed'] = 1
  runs[0].file.unlink()
  assert not keeping.kept(runs[0])
  # Nothing is to be made of it until a run that reads it is.
  assert 'is not here' in commands.state(runs[0])
  assert commands.wanted(runs, commands.keep(runs[1:])) == []
  # A run that failed half way is in the table as well.
  (out / 'runs' / runs[1].name / 'run.json').unlink()
  assert commands.wanted(runs, commands.keep(runs[2:])) == runs[:2]
  write_run(runs[1], curve(runs[1])[:-2])
  keeping.write_table(runs, out)
  row = read_csv(out / 'runs.csv')[1]
  assert (row['run'], row['steps'], row['commits']) == (
      runs[1].name, '3000', '')
  # And what is kept of other flags is none of it.
  runs[2].flags['seed'] += 1
  keeping.write_table(runs, out)
  row = read_csv(out / 'runs.csv')[2]
  assert (row['run'], row['hours']) == (runs[2].name, '')


def test_sources_of_the_results_are_sources(results):
  out, runs = results
  sources = out / 'sources' / '100'
  assert sum(
      path.stat().st_size for path in (out / 'sources').rglob('*.pkl')) < 20e6
  whole = checkpoints.load(runs[0].logdir / 'variables.pkl')['variables']
  agent = dreamer.load_agent(sources / 'multi-task.pkl')
  assert agent.script == 'dreamer-multi-task.py' and agent.action_dim == 6

  def start(name):
    run = by_name(runs)[name]
    run.logdir = out / 'new'
    script = running.script_module(run.script)
    config = script.define_config().parse(run.words)
    return script.Agent.start(config, 1)

  fractional = start(f'{BALANCE}/fractional-0.2/0')
  meta = start(f'{BALANCE}/meta-model/0')
  for agent in (fractional, meta):
    for name in ('encoder/h1/kernel', 'decoder/h5/bias'):
      assert np.array_equal(agent.variables[name].numpy(), whole[name])
  walker = by_name(runs)[f'{WALKER}/frozen-autoencoder/100'].logdir
  assert np.array_equal(
      meta.variables['reward/source2/h0/kernel'].numpy(),
      checkpoints.module(walker / 'variables.pkl', 'reward')[
          'reward/h0/kernel'])


@pytest.mark.parametrize('codes, status', [
    ((0, 0), 0), ((-9, 0), 9), ((0, 2), 2), ((1, -9), 1)])
def test_drawing_that_was_killed_has_failed(codes, status, monkeypatch):
  left = list(codes)
  monkeypatch.setattr(
      commands.subprocess, 'run',
      lambda words: subprocess.CompletedProcess(words, left.pop(0)))
  assert commands.draw([['--indir', 'x'], ['--indir', 'y']], 'out') == status


def test_draw(results):
  out, runs = results
  assert study.main(['--do', 'draw', '--out', str(out)]) == 0
  figures = out / 'figures'
  for name in (
      'targets/curves', 'targets/transfer', 'targets/all-tasks', 'omega/omega',
      'sources/curves', 'broken/curves', 'autoencoder/curves',
      'first_stage/curves'):
    for ending in ('.png', '.pdf'):
      assert (figures / name).with_suffix(ending).stat().st_size > 5000

  rows = read_csv(figures / 'targets' / 'transfer.csv')
  found = {(row['task'], row['method']): row for row in rows}
  methods = ['FTL ω=0', 'FTL ω=0.2', 'FTL ω=0.5', 'FTL ω=1', 'MMTL N=2']
  assert set(found) == {
      (task, method) for task in study.TARGETS for method in methods}
  assert all(row['runs'] == row['scratch_runs'] == '2' for row in rows)
  for task in study.TARGETS:
    for method, ratio in zip(methods, (1, 1.5, 1, 0.5, 1)):
      area = float(found[task, method]['area_ratio'])
      assert area == pytest.approx(ratio, abs=0.01)

  rows = read_csv(figures / 'omega' / 'scores.csv')
  assert [row['method'] for row in rows] == ['dreamer'] + [
      f'FTL ω={factor:g}'
      for factor in sorted(study.TARGETS[BALANCE] + study.GRID[BALANCE])]
  rows = read_csv(figures / 'broken' / 'scores.csv')
  assert [row['runs'] for row in rows] == ['2', '2']
  rows = read_csv(figures / 'autoencoder' / 'scores.csv')
  assert [row['method'] for row in rows] == [
      'dreamer', 'FTL ω=0 freeze=', 'FTL ω=0 freeze=^(encoder|decoder)/',
      'MMTL N=2']
  rows = read_csv(figures / 'sources' / 'scores.csv')
  assert {row['task'] for row in rows} >= set(study.SOURCES)


def test_part_of_the_study_is_drawn(results):
  out, runs = results

  def drawn(*names):
    """The folders of figures with only these runs kept."""
    shutil.rmtree(out / 'runs')
    shutil.rmtree(out / 'figures', ignore_errors=True)
    for run in runs:
      if any(fnmatch.fnmatch(run.name, name) for name in names):
        keeping.keep(run)
    assert study.main(['--do', 'draw', '--out', str(out)]) == 0
    return {path.name for path in (out / 'figures').iterdir()}

  assert drawn('sources/*') == {'sources'}
  assert drawn(f'{HOPPER}/*') == {'targets', 'first_stage'}
  table = read_csv(out / 'figures/targets/transfer.csv')
  assert {row['task'] for row in table} == {HOPPER}
  assert drawn(f'{BALANCE}/scratch/*', f'{BALANCE}/fractional-0.1/*') == {
      'omega'}
  assert drawn(
      f'{BALANCE}/scratch/*', f'{BALANCE}/fractional-0.2/*',
      f'{BALANCE}/meta-model/*') == {
          'targets', 'first_stage', 'omega', 'autoencoder'}
  assert drawn(f'{BALANCE}/scratch/*', 'ablation/*') == {'broken'}
  # Nothing has runs from scratch beside it.
  with pytest.raises(terminal.UserError, match='no runs to compare yet'):
    drawn(f'{BALANCE}/full/*', 'ablation/*', 'autoencoder/*')


def test_readme_tells_what_is_run():
  text = (ROOT / 'results' / 'README.md').read_text()
  for fact in (
      *study.SOURCES, *study.TARGETS,
      ', '.join(f'{steps:,}' for steps in study.STEPS.values()),
      f'{study.SOURCE_STEPS:,}', f'{study.SINGLE_STEPS:,}',
      f'every {study.FLAGS["eval_every"]:,} steps',
      ', '.join(map(str, study.SEEDS)),
      ', '.join(map(str, study.SEEDS.values()))):
    assert fact in text, fact
  commands = re.findall(
      r'^python3 (-m [\w.]+|[\w-]+\.py) (.*?)(?:  +#.*)?$', text, re.M)
  assert len(commands) == 5
  for script, words in commands:
    module = (
        study if script == '-m results.study'
        else running.script_module(script))
    module.define_config().parse(shlex.split(words))


# The real scripts

SMALL = '''
import sys
from common import files, terminal
from results import study
study.SEEDS = {0: 100}
TASK = 'InvertedPendulumBulletEnv-v0'
study.TARGETS, study.GRID = {TASK: (0.2,)}, {}
study.SINGLE_STEPS = study.SOURCE_STEPS = 600
study.STEPS = {TASK: 600}
study.FLAGS = dict(preset='debug', threads=1, log_images=False, eval_every=200)
terminal.run(study.main)
'''


@pytest.mark.slow
def test_study_of_real_runs(tmp_path):
  """Stopped and continued, collected, and drawn."""
  logdir = tmp_path / 'logdir'

  def start(*words):
    return subprocess.Popen(
        [sys.executable, '-c', SMALL, '--logdir', str(logdir), '--out',
         str(tmp_path / 'results'), *words], cwd=ROOT)

  driver = start()
  scratch = logdir / BALANCE / 'scratch' / '0'
  while not any('model_loss' in line for line in running.lines(scratch)):
    assert driver.poll() is None
    time.sleep(0.2)
  driver.terminate()
  assert driver.wait(timeout=300) == 143
  assert 0 < checkpoints.load(scratch / 'variables.pkl')['updates'] < 12
  for words in ((), ('--do', 'draw')):
    assert start(*words).wait(timeout=3000) == 0
  output = (scratch / 'output.txt').read_text()
  assert 'the same command continues' in output and 'continues at' in output
  table = read_csv(tmp_path / 'results' / 'runs.csv')
  assert len(table) == 10 and all(row['commits'] for row in table)
  for row in table:
    assert float(row['hours']) > 0 and row['steps'] == '600'
  for name in ('figures/targets/transfer.png', 'sources/100/multi-task.pkl'):
    assert (tmp_path / 'results' / name).exists()
