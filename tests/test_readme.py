"""The README's examples do what it says of them."""

import importlib
import json
import pathlib
import re
import shlex

import numpy as np
from PIL import Image

import dreamer
import wrappers

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()


def test_environment_of_ones_own(tmp_path, monkeypatch):
  code, = re.findall(r'```python\n# my_tasks.py\n(.*?)```', README, re.S)
  (tmp_path / 'my_tasks.py').write_text(code)
  monkeypatch.chdir(tmp_path)
  env = wrappers.make_env('my_tasks:Dot', time_limit=20)
  first, _ = env.reset(seed=1)
  again, _ = env.reset(seed=1)
  assert np.array_equal(first['image'], again['image'])
  for step in range(10):
    obs, reward, terminated, truncated, _ = env.step(np.float32([1]))
    assert reward <= 2 and not terminated and truncated == (step == 9)
  # The dot has moved to the right edge of the picture.
  assert obs['image'][32, :, 0].argmax() == 58
  assert first['image'][32, :, 0].argmax() < 58


def test_commands_have_the_flags_that_they_name():
  """Every script and flag in the README's commands exists."""
  import dreamer
  commands = re.findall(r'^python3? (\S+\.py) (.*)$', README, re.M)
  assert len(commands) >= 10
  for script, rest in commands:
    if script in dreamer.SCRIPTS:
      module = dreamer.script_module(script)
    else:
      module = importlib.import_module(script.removesuffix('.py'))
    words = shlex.split(rest)
    if script == 'plotting.py':
      module.parse(words)
    else:
      module.define_config().parse(words)


def test_ablations_are_patterns_of_the_script():
  import dreamer
  define = dreamer.script_module('dreamer-FTL.py').define_config
  section = README.split('**Ablations.**')[1].split('### ')[0]
  rows = re.findall(
      r'^\| [^|]+ \| ((?:[^|]|\\\|)*--(?:[^|]|\\\|)*) \|$', section, re.M)
  assert len(rows) >= 9
  for row in rows:
    for command in row.replace('\\|', '|').split('`')[1::2]:
      if not command.startswith('--'):
        continue
      words = re.findall(r"--(\w+) (?:'([^']*)'|(\S+))", command)
      assert words
      config = define()
      config.parse([
          part for name, quoted, bare in words
          for part in (f'--{name}', quoted or bare)])


def test_the_first_words_are_the_two_commands():
  commands = README.split('```')[1].split('\n')
  assert [line.split('#')[0].strip() for line in commands if line] == [
      'make train', 'make test']


def test_pictures_are_there():
  pictures = re.findall(r'!\[[^]]+\]\(([^)]+)\)', README)
  assert len(pictures) >= 3
  for name in pictures:
    with Image.open(ROOT / name) as picture:
      assert min(picture.size) > 100
      assert (picture.n_frames > 100) == name.endswith('.gif')


def test_swing_up_is_learned_as_the_readme_says():
  """`| seed | step, minutes | return | mean |` says what metrics.jsonl says."""
  rows = re.findall(
      r'^\| (\d) \| ([\d,]+) steps, [\d.]+ min \| ([\d.]+) \| (−?\d+) \|',
      README.split('first evaluation above 0')[1], re.M)
  assert [row[0] for row in rows] == list('01234')
  for seed, step, score, mean in rows:
    returns = evaluations(f'InvertedPendulumSwingupBulletEnv-v0/dreamer/{seed}')
    first, reached = next(x for x in returns if x[1] > 0)
    digits = len(score.partition('.')[2])
    assert f'{first:,}' == step and f'{reached:.{digits}f}' == score
    late = np.mean([x for at, x in returns if 60000 <= at <= 82500])
    assert f'{late:.0f}'.replace('-', '−') == mean


def test_swing_up_goes_as_far_as_the_readme_says():
  rows = re.findall(
      r'Seed (\d) went on to ([\d,]+) steps, \d+ minutes: the mean of its last '
      r'ten evaluations is (\d+), the best (\d+)', ' '.join(README.split()))
  assert [row[0] for row in rows] == list('013')
  for seed, step, mean, best in rows:
    returns = evaluations(f'InvertedPendulumSwingupBulletEnv-v0/dreamer/{seed}')
    scores = [score for _, score in returns]
    assert f'{returns[-1][0]:,}' == step
    assert f'{np.mean(scores[-10:]):.0f}' == mean
    assert f'{max(scores):.0f}' == best


def test_make_train_learns_as_the_readme_says():
  """`| seed | step, … | mean | … |` says what metrics.jsonl says."""
  rows = re.findall(
      r'^\| (\d) \| ([\d,]+) steps[^|]* \| ([\d,]+) \| [a-z]', README, re.M)
  assert len(rows) == 3
  for seed, step, mean in rows:
    returns = evaluations(f'InvertedPendulumBulletEnv-v0/dreamer/{seed}')
    first = next(step for step, score in returns if score == 1000)
    last = np.mean([score for _, score in returns[-5:]])
    assert f'{first:,}' == step and f'{last:,.0f}' == mean
    assert max(score for _, score in returns[:3]) < 31
  before, count, after = re.search(
      r'Seed 0 had a mean of (\d+) over the five to 100,000 steps and of (\d+) '
      r'over the (\d+) after', ' '.join(README.split())).group(1, 3, 2)
  returns = evaluations('InvertedPendulumBulletEnv-v0/dreamer/0')
  scores = [score for at, score in returns if at <= 100000]
  later = [score for at, score in returns if at > 100000]
  assert f'{np.mean(scores[-5:]):.0f}' == before
  assert f'{len(later)}' == count and f'{np.mean(later):.0f}' == after


def test_what_is_not_learned():
  rows = re.findall(
      r'^\| (\S+) \| `(--[^`]+)` \| ([\d,]+) \| (\d+) \| (\d+) \| [^|]+ \|$',
      README, re.M)
  folder = ROOT / 'results' / 'not_learned'
  assert {row[0] for row in rows} == {path.name for path in folder.iterdir()}
  for task, words, step, mean, random in rows:
    run = folder / task / '0'
    config = json.loads((run / 'config.json').read_text())
    given = dreamer.define_config().parse(
        ['--preset', 'cpu', '--task', task, *words.split()]).plain()
    for name in ('preset', 'task', *re.findall(r'--(\w+)', words)):
      assert config[name] == given[name]
    returns = evaluations(run)
    assert step == f'{returns[-1][0]:,}'
    assert mean == f'{np.mean([score for _, score in returns[-10:]]):.0f}'
    chance = evaluations(run, 'train/return', config['prefill'])
    assert random == f'{np.mean([score for _, score in chance]):.0f}'


def evaluations(run, key='test/return', until=np.inf):
  """Pairs of step and return of a run, whose path is in results/learning."""
  path = ROOT / 'results' / 'learning' / run / 'metrics.jsonl'
  return [
      (line['step'], line[key]) for line in map(json.loads, path.open())
      if key in line and line['step'] <= until]


def test_speed_is_that_of_the_stored_benchmark():
  rows = json.loads((ROOT / 'results/speed/bench.json').read_text())['rows']
  section = README.split('## Speed')[1].split('\n## ')[0]
  stored = {row['name']: row['value'] for row in rows}
  shown = [
      float(re.match('[0-9.]+', cell)[0])
      for cell in re.findall(r'^\| [^|]+ \| ([0-9][^|]*) \|', section, re.M)]
  expected = [
      stored[name] for name in (
          'update, paper', 'update, paper: floor / time',
          'update, paper: time / sheeprl', 'command to first update',
          'evaluations and summaries traced again', 'policy, 1 environment',
          'policy, 8 environments in one call', 'collection / free',
          'collection / free, at most by CPU time', 'batches, cached, one core',
          'batches, 2,000 episodes, memory of 1 GiB',
          'memory beyond the bound, 2,000 episodes',
          'start with 2,000 episodes, more than with 10', 'default / fast',
          'encoder / update', 'observe / update', 'decoder / update',
          'reward / update', 'imagination and actor / update',
          'value / update')]
  np.testing.assert_allclose(shown, expected, rtol=0.025, atol=0.005)
  for name in ('growth.png', 'rendering.png'):
    assert f'results/speed/{name}' in section
