"""Two processes on loopback: one update, one run, one end."""

import json
import pickle
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from data import checkpoints
import running

# Each process takes its half of a batch; alone, one takes the whole.
PROGRAM = '''
import pickle
import sys

from runs import devices
import dreamer
import running

config = dreamer.define_config()
config.preset_name('debug')
config.free_nats = 0.1  # One half of the batch may lie below, one above.
config.threads = 1
config.precision = '32'
devices.configure(config)
team = devices.Team(config.batch_size)
batch = running.random_batch(config)
share = config.batch_size // team.size
part = slice(team.index * share, (team.index + 1) * share)
assert team.sum(1, team.index) == [2, 1] or team.size == 1
with team.together():
  agent = dreamer.Dreamer(config, 2)
  start = {name: x.numpy() for name, x in agent.variables.items()}
  metrics = [
      agent.train({k: v[part] for k, v in batch.items()}) for _ in range(3)]
  metrics = [{k: float(v) for k, v in step.items()} for step in metrics]
  end = {name: x.numpy() for name, x in agent.variables.items()}
with open(sys.argv[1], 'wb') as file:
  pickle.dump((metrics, start, end), file)
'''


def team_config(index, ports):
  return {'TF_CONFIG': json.dumps({
      'cluster': {'worker': [f'127.0.0.1:{port}' for port in ports]},
      'task': {'type': 'worker', 'index': index}})}


def free_ports(count=2):
  sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(count)]
  ports = [one.getsockname()[1] for one in sockets]
  for one in sockets:
    one.close()
  return ports


def start_team(logdir, more=((), ()), **values):
  """Two processes; `more` has flags that each has for itself."""
  ports = free_ports()
  return [
      running.Process(
          logdir, env=team_config(index, ports), threads=1,
          **{**values, **dict(more[index])})
      for index in range(2)]


def updates(logdir):
  """How often a run has logged its updates."""
  return sum('model_loss' in line for line in running.lines(logdir))


def test_two_processes_make_the_update_of_one(tmp_path):
  def start(name, env):
    return subprocess.Popen(
        [sys.executable, '-c', PROGRAM, str(tmp_path / name)],
        env=running.environment(env))

  ports = free_ports()
  processes = [start(f'{i}', team_config(i, ports)) for i in range(2)]
  processes.append(start('alone', {}))
  assert [process.wait(timeout=500) for process in processes] == [0, 0, 0]
  (found, start, end), (others, _, others_end), (expected, _, alone) = (
      pickle.loads((tmp_path / name).read_bytes())
      for name in ('0', '1', 'alone'))
  assert found == others
  for one, other in zip(found, expected):
    for name in other:
      np.testing.assert_allclose(
          one[name], other[name], rtol=1e-4, atol=1e-4, err_msg=name)
  for name in alone:
    assert np.array_equal(end[name], others_end[name]), name
    moved = np.abs(alone[name] - start[name]).max()
    assert np.abs(end[name] - alone[name]).max() < 0.05 * moved, name


def test_a_team_stops_together_and_continues(tmp_path):
  chief, other = start_team(tmp_path, steps=1e6, envs=2)
  episodes = tmp_path / 'episodes'

  chief.wait_for(lambda: updates(tmp_path))
  assert other.end(signal.SIGTERM) == 143
  assert chief.popen.wait(timeout=100) == 0
  chief.end()
  assert 'the same command continues' in chief.output
  # Both collected, each into its own shard, and neither has what the other
  # has.
  shards = {}
  for path in episodes.glob('*.npz'):
    shards.setdefault(int(path.name.split('-')[1], 16) % 2, []).append(
        np.load(path)['action'])
  assert set(shards) == {0, 1}
  assert not any(
      np.array_equal(a, b) for a in shards[0] for b in shards[1])
  before = checkpoints.load(tmp_path / 'variables.pkl')
  # Else the second worker would lose its episode and its count of calls.
  mine = checkpoints.load(tmp_path / 'worker1.pkl')
  assert [mine['run'], mine['updates']] == [before['run'], before['updates']]
  logged = updates(tmp_path)

  chief, other = start_team(tmp_path, steps=1e6, envs=2)
  chief.wait_for(lambda: updates(tmp_path) > logged)
  assert chief.end(signal.SIGTERM) == 143
  assert other.popen.wait(timeout=100) == 0
  other.end()
  assert 'did not repeat' not in chief.output + other.output
  after = checkpoints.load(tmp_path / 'variables.pkl')
  assert after['updates'] > before['updates']
  assert after['step'] > before['step']


def test_a_worker_that_is_killed_ends_the_others(tmp_path):
  chief, other = start_team(tmp_path, steps=1e6)
  chief.wait_for(lambda: updates(tmp_path))
  other.end(signal.SIGKILL)
  assert chief.popen.wait(timeout=300) == 2
  chief.end()
  last = chief.output.strip().splitlines()[-1]
  assert last.startswith('error: worker 0 of 2 ends because another one'), last
  assert 'continues from the last checkpoint' in last

  chief, other = start_team(tmp_path, steps=1e6)
  chief.wait_for(lambda: 'continues at step' in chief.peek())
  time.sleep(1)
  chief.end(signal.SIGTERM)
  other.popen.wait(timeout=100)


@pytest.mark.parametrize('flags', [{'batch_length': 12}, {'steps': 100}])
def test_machines_with_other_flags_do_not_begin(tmp_path, flags):
  logdir = tmp_path / 'run'
  team = start_team(logdir, more=({'steps': 40}, {'steps': 40, **flags}))
  for process in team:
    assert process.popen.wait(timeout=200) == 2
    process.end()
    last = process.output.strip().splitlines()[-1]
    assert last.startswith('error: 1 of 2 machines'), last
  assert not logdir.exists()


@pytest.mark.parametrize('text', [
    'nonsense', '{"cluster": {"ps": ["a:1"]}}',
    '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
    '{"cluster": {"worker": ["a:1", "b:1"]}}',
    '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"index": 1}}',
    '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "evaluator"}}',
    '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "chief"}}',
    '{"cluster": {"chief": ["a:1", "b:1"]}, "task": {"type": "chief"}}',
    '{"cluster": {"worker": "ab"}, "task": {"type": "worker"}}',
    '{"cluster": {"worker": [1, 2]}, "task": {"type": "worker"}}',
    '{"cluster": {"worker": {"a:1": 0}}, "task": {"type": "worker"}}'])
def test_a_wrong_team_is_one_line(tmp_path, monkeypatch, capsys, text):
  monkeypatch.setenv('TF_CONFIG', text)
  assert running.run(tmp_path / 'run') == 2
  error = capsys.readouterr().err
  assert 'error: TF_CONFIG is' in error and error.count('\n') == 1
  assert not (tmp_path / 'run').exists()
