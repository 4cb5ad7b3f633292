"""The examples of README, docs/ and CONTRIBUTING do what is said of them."""

import importlib
import csv
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from common import options
import dreamer
from runs import settings
import running
import wrappers

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / 'README.md'
DOCS = sorted((ROOT / 'docs').glob('*.md'))
PAGES = {
    str(path.relative_to(ROOT)): path.read_text() for path in (
        README, *DOCS, ROOT / 'CONTRIBUTING.md', ROOT / 'results/README.md',
        ROOT / 'results/learning/README.md')}
COMMAND = re.compile(r'^(python3?|tensorboard) (.*)$', re.M)


def page(name):
  return PAGES[f'docs/{name}.md']


def blocks(text, language):
  """The code blocks of a page; `language` may be empty."""
  return [
      code for name, code in re.findall(
          r'^```(\w*)\n(.*?)^```', text, re.M | re.S) if name == language]


def parse(script, words):
  """Parses the arguments of a command as its script does."""
  if script in options.SCRIPTS:
    module = running.script_module(script)
  else:
    module = importlib.import_module(
        script.removesuffix('.py').replace('/', '.'))
  if script == 'plotting.py':
    return module.parse(words)
  return module.define_config().parse(words)


def test_readme_is_short():
  assert len(PAGES['README.md'].splitlines()) <= 250


def test_every_page_is_listed():
  for path in DOCS:
    if path.name != 'README.md':
      assert f'(docs/{path.name})' in PAGES['README.md']
      assert f'({path.name})' in page('README')


def test_the_map_names_every_file_and_folder():
  table = PAGES['README.md'].split('## Map of the code')[1].split('\n## ')[0]
  named = re.findall(r'`([^`]+)`', ' '.join(
      line.split(' | ')[0] for line in table.splitlines()))
  code = {path.name for path in ROOT.glob('*.py')} | {
      f'{path.parent.name}/' for path in ROOT.glob('*/__init__.py')}
  assert set(named) == code | {'docs/', 'tests/'}


def test_files_that_are_named_exist():
  for name in ('README.md', 'docs/code.md', 'CONTRIBUTING.md'):
    files = re.findall(r'`((?:[\w-]+/)*[\w-]+\.py)`', PAGES[name])
    assert len(files) >= 1
    for file in files:
      assert (ROOT / file).exists() or file == 'my_tasks.py', f'{name}: {file}'


def test_names_stand_in_the_files_that_pages_name():
  found = [
      (page, *pair) for page, text in PAGES.items() for pair in re.findall(
          r'`([\w.]+)`\s+(?:in|of)\s+`((?:[\w-]+/)*[\w-]+\.py)`', text)]
  assert len(found) >= 10
  for page, name, file in found:
    # Methods are named with their class.
    for part in name.split('.'):
      assert re.search(rf'\b{part}\b', (ROOT / file).read_text()), (page, name)


def test_imports_go_one_way():
  line = re.search(r'`common` ←.*?\n\n', PAGES['docs/code.md'], re.S)[0]
  order = {
      name.removesuffix('.py'): place
      for place, group in enumerate(line.split('←'))
      for name in re.findall('`([^`]+)`', group)}
  scripts = {path.stem for path in ROOT.glob('*.py')}
  folders = {name for name in order if (ROOT / name).is_dir()}
  assert folders | {'dreamer', 'models'} <= set(order) <= scripts | folders
  checked = 0
  for path in [*ROOT.glob('*.py'), *(
      file for name in folders for file in (ROOT / name).glob('*.py'))]:
    own = path.stem if path.parent == ROOT else path.parent.name
    words = re.findall(
        r'^ *(?:import|from) (\w+)', path.read_text(), re.M)
    for word in words:
      if word in scripts | folders:
        checked += 1
        assert order.get(word, 99) <= order.get(own, 99), (path, word)
  assert checked > 150


def test_links_lead_somewhere():
  count = 0
  for name, text in PAGES.items():
    for link in re.findall(r'\]\(([^)]+)\)', text):
      if re.match('https?:', link):
        continue
      count += 1
      target, _, anchor = link.partition('#')
      path = (ROOT / name).parent / target if target else ROOT / name
      assert path.exists(), f'{name}: {link}'
      if anchor:
        titles = re.findall(r'^#+ (.*)$', path.read_text(), re.M)
        assert anchor in [
            re.sub('[^a-z0-9 -]', '', title.lower()).replace(' ', '-')
            for title in titles], f'{name}: {link}'
  assert count >= 40


@pytest.mark.parametrize('name', PAGES)
def test_the_environment_is_activated_before_the_first_command(name):
  text = PAGES[name]
  command = COMMAND.search(text)
  if command:
    assert 'source .venv/bin/activate' in text[:command.start()]


def test_commands_run_after_activation(tmp_path):
  """A shell that has activated an environment finds what commands need."""
  if not os.path.exists(os.path.join(sys.prefix, 'bin', 'activate')):
    pytest.skip('Python runs outside of a virtual environment.')
  os.symlink(sys.prefix, tmp_path / '.venv')
  for name in ('dreamer.py', 'common'):
    os.symlink(ROOT / name, tmp_path / name)
  programs = {
      match[1] for text in PAGES.values() for match in COMMAND.finditer(text)}
  assert programs == {'python', 'python3', 'tensorboard'}
  script = '\n'.join([
      'set -e', 'source .venv/bin/activate',
      *(f'{name} -c "import tensorflow.version"'
        for name in programs if name.startswith('python')),
      'command -v tensorboard'])
  done = subprocess.run(
      ['bash', '-c', script], cwd=tmp_path, capture_output=True, text=True,
      env={'PATH': '/usr/bin:/bin'})
  assert done.returncode == 0, done.stderr
  assert os.path.samefile(
      done.stdout.strip(), tmp_path / '.venv/bin/tensorboard')


def test_pages_use_the_words_of_the_glossary():
  """A picture is an image, a record a time step (but in a file's name)."""
  for name, text in PAGES.items():
    if not name.startswith('results/'):
      text = re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)
      text = re.sub(r'`[^`\n]*`', '', text)
      assert not re.search(r'\b(pictures?|records?)\b', text, re.I), name


def test_environment_of_ones_own(tmp_path, monkeypatch):
  code, = re.findall(r'```python\n# my_tasks.py\n(.*?)```', page('environments'), re.S)
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
  """Every script and flag in the commands of all pages exists."""
  commands = [
      found for text in PAGES.values() for found in re.findall(
          r'^python3? (\S+\.py) (.*)$', text, re.M)]
  assert len(commands) >= 26
  for script, rest in commands:
    parse(script, shlex.split(rest, comments=True))


def test_modules_have_the_flags_that_commands_name():
  commands = [
      found for text in PAGES.values() for found in re.findall(
          r'^python3 -m ((?:results|benchmarks)\.\w+) (.*)$', text, re.M)]
  assert len(commands) >= 2
  for name, rest in commands:
    rest = rest.partition(' > ')[0]
    parse(name.replace('.', '/') + '.py', shlex.split(rest, comments=True))


def test_scripts_for_several_gpus(tmp_path):
  """The loop and Slurm scripts, with programs that print their words.

  test_study.py runs the rounds of the study.
  """
  (tmp_path / '.venv/bin').mkdir(parents=True)
  (tmp_path / '.venv/bin/activate').write_text('')
  (tmp_path / 'bin').mkdir()
  for name, line in (
      ('python3', 'echo $CUDA_VISIBLE_DEVICES"|"$TF_CONFIG"|${*@Q}"'),
      ('srun', 'SLURM_PROCID=1 "$@"'), ('scontrol', 'echo one; echo two')):
    (tmp_path / 'bin' / name).write_text(f'#!/bin/bash\n{line}\n')
    (tmp_path / 'bin' / name).chmod(0o755)

  def run(script, **variables):
    done = subprocess.run(
        ['bash', '-eu', '-c', script], cwd=tmp_path, capture_output=True,
        text=True, check=True, env={
            'PATH': f'{tmp_path}/bin:/usr/bin:/bin', 'TF_CONFIG': '',
            'CUDA_VISIBLE_DEVICES': '', **variables})
    result = []
    for line in done.stdout.splitlines():
      gpus, cluster, words = line.split('|')
      script, *words = shlex.split(words)
      result.append((gpus, cluster, script, parse(script, words)))
    return result

  loop, array, _, study, machines = blocks(page('machines'), 'bash')
  started = run(loop)
  assert sorted(gpus for gpus, *_ in started) == list('0123')
  assert len({str(config.logdir) for *_, config in started}) == 4
  assert all(str(config.seed) == gpus for gpus, *_, config in started)
  first, last = map(int, re.search(r'--array=(\d+)-(\d+)', array).groups())
  started = [
      run(array, SLURM_ARRAY_TASK_ID=str(index), SLURM_SUBMIT_DIR='.')
      for index in range(first, last + 1)]
  chosen = [
      (script, config.seed, config.task if 'task1' not in config
       else config.task1) for (_, _, script, config), in started]
  assert len(set(chosen)) == len(chosen) == 12
  assert len({str(config.logdir) for (*_, config), in started}) == 12
  (tmp_path / 'jobs.txt').write_text(
      "python3 dreamer.py --seed 1\npython3 dreamer.py --freeze '^a b'  # 1,000\n")
  (*_, config), = run(study, SLURM_ARRAY_TASK_ID='2')
  assert config.freeze == '^a b' and config.seed == 0
  (_, cluster, script, config), = run(machines, SLURM_JOB_NODELIST='')
  assert json.loads(cluster) == {
      'cluster': {'worker': ['one:2222', 'two:2222']},
      'task': {'type': 'worker', 'index': 1}}
  assert script == 'dreamer.py' and config.batch_size == 256


def test_ablations_are_patterns_of_the_script():
  define = running.script_module('dreamer-FTL.py').define_config
  section = page('transfer').split('**Ablations.**')[1].split('\n## ')[0]
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


def test_atari_has_the_flags_that_are_listed():
  block, = [code for code in blocks(page('environments'), '') if 'noops' in code]
  given = options.dreamer().parse(shlex.split(block))
  assert set(settings.ATARI) == set(re.findall(r'--(\w+)', block))
  assert {name: getattr(given, name) for name in settings.ATARI} == (
      settings.ATARI)


def test_the_first_words_are_the_two_commands():
  commands = PAGES['README.md'].split('```')[1].split('\n')
  assert [line.split('#')[0].strip() for line in commands if line] == [
      'make train', 'make test']


def test_images_are_there():
  images = [
      (name, image) for name, text in PAGES.items() for image in re.findall(
          r'!\[[^]]+\]\(([^)]+)\)', text)]
  assert {name for name, _ in images} >= {
      'README.md', 'docs/learning.md', 'docs/transfer.md', 'docs/agents.md',
      'docs/speed.md'}
  for name, image in images:
    with Image.open((ROOT / name).parent / image) as opened:
      assert min(opened.size) > 100
      assert (getattr(opened, 'n_frames', 1) > 100) == image.endswith('.gif')


def test_swing_up_is_learned_as_the_readme_says():
  """`| seed | step, minutes | return | mean |` says what metrics.jsonl says."""
  rows = re.findall(
      r'^\| (\d) \| ([\d,]+) steps, [\d.]+ min \| ([\d.]+) \| (−?\d+) \|',
      page('learning').split('first evaluation above 0')[1], re.M)
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
      r'ten evaluations is (\d+), the best (\d+)', ' '.join(page('learning').split()))
  assert [row[0] for row in rows] == list('013')
  for seed, step, mean, best in rows:
    returns = evaluations(f'InvertedPendulumSwingupBulletEnv-v0/dreamer/{seed}')
    scores = [score for _, score in returns]
    assert f'{returns[-1][0]:,}' == step
    assert f'{np.mean(scores[-10:]):.0f}' == mean
    assert f'{max(scores):.0f}' == best


def test_make_train_learns_as_the_page_says():
  section = page('learning').split('## make train')[1].split('\n## ')[0]
  rows = re.findall(
      r'^\| (\d) \| ([\d,]+) steps \| ([\d,]+) \| ([\d,]+) \| (\d+) min \|$',
      section, re.M)
  assert rows
  for seed, step, mean, best, minutes in rows:
    run = f'runs/InvertedPendulumBulletEnv-v0/dreamer/{seed}'
    returns = evaluations(run)
    first = next(step for step, score in returns if score == 1000)
    scores = [score for _, score in returns[-10:]]
    assert f'{first:,}' == step and f'{np.mean(scores):,.0f}' == mean
    assert f'{scores.count(1000)}' == best
    told = json.loads((ROOT / 'results/learning' / run / 'run.json').read_text())
    assert f'{60 * told["hours"]:.0f}' == minutes
    assert {score for step, score in returns if step >= 35000} == {1000}
  text = ' '.join(section.split())
  means = re.search(
      r'same seeds have means of (\d+), (\d+) and ([\d,]+), after (\d+)', text)
  assert means.groups()[:3] == tuple(
      f'{np.mean([score for _, score in evaluations(run)][-10:]):,.0f}'
      for run in (f'runs/InvertedPendulumBulletEnv-v0/float32/{seed}'
                  for seed in (1, 2, 3)))
  firsts = sorted(int(row[1].replace(',', '')) for row in rows)
  assert (f'after {firsts[0]:,} to {firsts[-1]:,} environment steps' in
          ' '.join(PAGES['README.md'].split()))


def test_the_table_of_tasks_is_as_the_page_says():
  """Of each task with a run: what `make learn ARGS="--do draw"` found."""
  section = page('learning').split('## A table of tasks')[1].split('\n## ')[0]
  rows = list(csv.DictReader((ROOT / 'results/learning/table.csv').open()))
  rows = [row for row in rows if row['median'] != 'nan']
  told = re.findall(r'^\| \w+_.*$|^\| \w+BulletEnv.*$', section, re.M)
  assert told == [
      '| ' + ' | '.join([
          row['task'], f'{float(row["steps"]):,.0f}', whole(row['scores']),
          whole(row['level']), published(row), row['hours']]) + ' |'
      for row in rows]
  text = ' '.join(section.split())
  runs = sum(len(re.findall(r'\d+\.', row['scores'])) for row in rows)
  assert runs == 23 and 'All of its 23 runs are there' in text
  missed = {row['task']: row for row in rows if row['reached'] == 'no'}
  assert list(missed) == ['InvertedPendulumBulletEnv-v0', 'dmc_cartpole_swingup']
  pendulum, swingup = (float(row['median']) for row in missed.values())
  assert f'InvertedPendulum misses its level by {990 - pendulum:.0f}' in text
  assert f'dmc_cartpole_swingup misses its own with {swingup:.0f}' in text
  longer = re.search(
      r'With 45,000 steps, .* seeds 1 and 2 have (\d+) and (\d+), so', text)
  assert longer.groups() == tuple(
      f'{np.mean([x for _, x in evaluations(run)][-10:]):.0f}'
      for run in (f'longer/InvertedPendulumBulletEnv-v0/dreamer/{seed}'
                  for seed in (1, 2)))
  told = re.search(
      r'the medians were (\d+), (\d+) and (\d+) already, above their levels', text)
  timed = [row for row in rows if row['task'] in (
      'dmc_walker_stand', 'dmc_cup_catch', 'dmc_pendulum_swingup')]
  assert told.groups() == tuple(whole(row['median_in_time']) for row in timed)
  assert all(
      float(row['median_in_time']) >= float(row['level']) for row in rows
      if row['reached'] == 'yes')
  evals = re.search(r'80,000 steps were ([\d, ]+) \(', ' '.join(
      page('learning').split()))[1]
  assert evals.split(', ') == [
      f'{score:.0f}' for _, score in evaluations(
          'runs/dmc_cartpole_balance/dreamer/1')]


def test_walker_stand_learned_as_its_protocol_says():
  text = ' '.join((ROOT / 'results/learning/README.md').read_text().split())
  short, long = (
      evaluations(f'{folder}/dmc_walker_stand/dreamer/1')
      for folder in ('shorter', 'runs'))

  def mean(found, until):
    scores = [score for step, score in found if step <= until]
    return f'{np.mean(scores[-10:]):.0f}'

  told = re.search(
      r'Seed 1 had (\d+) then, .* of seed 1 to step 150,000 have a mean of (\d+) '
      r'already, .* and the last ten (\d+)\.', text)
  assert told.groups() == (
      mean(short, 150_000), mean(long, 150_000), mean(long, 300_000))


def test_seeds_that_learned_less_did_so_as_the_page_says():
  section = page('learning').split('## A table of tasks')[1].split('\n## ')[0]
  text = ' '.join(section.split())
  stand = evaluations('runs/dmc_walker_stand/dreamer/3')
  told = re.search(
      r'Seed 3 of dmc_walker_stand, (\d+), .* evaluations to 100,000 steps have a '
      r'mean of (\d+), those to 200,000 of (\d+)\.', text)
  assert told.groups() == tuple(
      f'{np.mean([score for step, score in stand if step <= until][-10:]):.0f}'
      for until in (300_000, 100_000, 200_000))
  swing = [
      evaluations(f'runs/InvertedPendulumSwingupBulletEnv-v0/dreamer/{seed}')
      for seed in (1, 2, 3)]
  told = re.search(
      r'Seed 3 of InvertedPendulumSwingup, (\d+), has its first return above 0 '
      r'after ([\d,]+) steps \(seeds 1 and 2 after ([\d,]+) and ([\d,]+)\)', text)
  firsts = [next(step for step, score in run if score > 0) for run in swing]
  assert told.groups() == (
      f'{np.mean([score for _, score in swing[2]][-10:]):.0f}',
      *(f'{firsts[index]:,}' for index in (2, 0, 1)))


def test_further_tasks_have_the_scores_that_the_page_says():
  text = ' '.join(page('learning').split())
  rows = {row['task']: row for row in csv.DictReader(
      (ROOT / 'results/learning/table.csv').open())}
  finger, pong = rows['dmc_finger_spin'], rows['atari_pong']
  assert f'which spins ({whole(finger["scores"])}, where' in text
  walker = rows['dmc_walker_walk']
  assert f'forward on its knees ({whole(walker["scores"])}, where' in text
  for row in finger, walker:
    low, high = (whole(row[f'published_{name}']) for name in ('low', 'high'))
    random = whole(row['random_play'])
    assert f'published seeds have {low} to {high} and random play {random}' in text
  score = pong['scores'].replace('-', '−')
  assert f'Pong is not learned: {score}, random play −20.6' in text


def test_what_swings_the_pole_up_is_as_the_pages_say():
  protocol = (ROOT / 'results/learning/README.md').read_text()
  rows = re.findall(
      r'^\| `(\w+)` \| ([^|]*) \| ([\d,]+)[^|]*\| (\d) \| ([\d,–]+) \| (\d+) \|',
      protocol, re.M)
  assert len(rows) == 5
  scores = {}
  for name, words, steps, seed, above, score in rows:
    run = f'{name}/dmc_cartpole_swingup/dreamer/{seed}'
    config = json.loads(
        (ROOT / 'results/learning' / run / 'config.json').read_text())
    assert ('--action_repeat 4' in words) == (config['action_repeat'] == 4)
    assert ('--collect_limit 0' in words) == (config['collect_limit'] == 0)
    returns = evaluations(run)
    assert f'{returns[-1][0]:,}' == steps
    if above != '–':
      assert f'{next(at for at, value in returns if value > 120):,}' == above
    scores[name] = np.mean([value for _, value in returns[-10:]])
    assert f'{scores[name]:.0f}' == score
  assert scores['whole'] > scores['uncut'] > scores['runs']
  text = ' '.join(page('learning').split())
  told = re.search(
      r'With `--collect_limit 0` seed 1 has (\d+) after .* and stays: (\d+) with '
      r'seed 1 .* and (\d+) with seed 2 after 80,000', text)
  assert told.groups() == tuple(
      f'{scores[name]:.0f}' for name in ('uncut', 'whole', 'seeds'))


def whole(text):
  """The numbers in a text, rounded; – where there is none."""
  return re.sub(r'-?[\d.]+', lambda match: f'{float(match[0]):,.0f}', text
                ).replace('nan', '–').replace('-', '−')


def published(row):
  if row['published'] in ('', 'nan'):
    return '–'
  mean, low, high = (
      whole(row[name])
      for name in ('published', 'published_low', 'published_high'))
  return f'{mean} ({low} to {high})'


def test_the_preset_small_learned_as_the_page_says():
  """`| seed | step, … | mean | … |` says what metrics.jsonl says."""
  rows = re.findall(
      r'^\| (\d) \| ([\d,]+) steps[^|]* \| ([\d,]+) \| [a-z]',
      page('learning'), re.M)
  assert len(rows) == 3
  for seed, step, mean in rows:
    returns = evaluations(f'InvertedPendulumBulletEnv-v0/dreamer/{seed}')
    first = next(step for step, score in returns if score == 1000)
    last = np.mean([score for _, score in returns[-5:]])
    assert f'{first:,}' == step and f'{last:,.0f}' == mean
    assert max(score for _, score in returns[:3]) < 31
  before, count, after = re.search(
      r'Seed 0 had a mean of (\d+) over the five to 100,000 steps and of (\d+) '
      r'over the (\d+) after', ' '.join(page('learning').split())).group(1, 3, 2)
  returns = evaluations('InvertedPendulumBulletEnv-v0/dreamer/0')
  scores = [score for at, score in returns if at <= 100000]
  later = [score for at, score in returns if at > 100000]
  assert f'{np.mean(scores[-5:]):.0f}' == before
  assert f'{len(later)}' == count and f'{np.mean(later):.0f}' == after


def test_start_and_formats_are_those_that_are_stored():
  stored = {}
  for name in ('start', 'formats', 'step'):
    file = ROOT / 'results/speed' / f'{name}.json'
    stored.update({
        row['name']: row['value'] for row in json.loads(file.read_text())['rows']})
  _, later, *_ = re.split('^## .*$', page('speed'), flags=re.M)
  shown = [float(x) for x in re.findall(r'^\| [^|]+ \| ([\d.]+)', later, re.M)]
  ratio = '{} after 200 updates, bfloat16 / float32'.format
  np.testing.assert_allclose(shown, [
      stored[name] for name in (
          'command to first update, paper', 'command to first update, cpu',
          *map(ratio, ('image_loss', 'reward_loss', 'div', 'value_loss')),
          'update, paper', 'update, paper: floor / time',
          'update, paper: time / sheeprl', 'update, paper, bfloat16',
          'update, paper, bfloat16: floor / time',
          'update, paper, bfloat16: time / sheeprl',
          'update, paper, bfloat16: time / float32',
          'update, cpu, bfloat16: time / float32')],
      rtol=0.005)


def test_speed_of_the_preset_is_that_which_is_stored():
  stored = {
      row['name']: row['value'] for name in ('whole', 'presets')
      for row in json.loads(
          (ROOT / f'results/speed/{name}.json').read_text())['rows']}
  stored.pop('presets, small in float32')
  kinds = [name for name in stored if name.startswith('operations')]
  order = [name for name in stored if name not in kinds] + kinds
  _, _, section, *_ = re.split('^## .*$', page('speed'), flags=re.M)
  shown = re.findall(r'^\| [^|]+ \| ([\d.]+)', section, re.M)
  np.testing.assert_allclose(
      list(map(float, shown)), [stored[name] for name in order], rtol=0.01,
      atol=0.0005)
  steps = json.loads((ROOT / 'results/speed/step.json').read_text())['rows']
  ratio, = [row['value'] for row in steps if row['name'] ==
            'update, small, bfloat16: time / float32']
  assert f'takes {ratio:.2f} of its time in float32' in ' '.join(section.split())


def test_rendering_takes_what_is_stored():
  rows = json.loads((ROOT / 'results/speed/rendering.json').read_text())['rows']
  stored = {row['name']: row['value'] for row in rows}
  told = re.search(
      r'takes ([\d.]+) ms, and ([\d.]+) ms with a camera for each, .* default '
      r'takes ([\d.]+) ms, ([\d.]+) times', ' '.join(page('speed').split()))
  np.testing.assert_allclose(list(map(float, told.groups())), [
      stored[name] for name in (
          'picture, --render fast',
          'picture, --render fast, a new camera for it', 'picture, default',
          'default / fast')], rtol=0.005)


def test_speed_with_onednn_is_that_which_is_stored():
  stored = {
      row['name']: row['value'] for name in ('presets', 'step', 'onednn')
      for row in json.loads(
          (ROOT / f'results/speed/{name}.json').read_text())['rows']}
  section, = re.findall(
      '^## Processors without AVX-512$(.*?)^## ', page('speed'), re.M | re.S)
  shown = re.findall(
      r'^\| [^|]+ \| ([\d.]+) s \| ([\d.]+) \|$', section, re.M)
  np.testing.assert_allclose(np.float64(shown), [
      [stored[f'oneDNN, {preset}'], stored[f'oneDNN, {preset}: time / without']]
      for preset in ('cpu', 'small', 'paper')], rtol=0.005)
  slower = [
      stored[f'oneDNN, {preset}'] / stored[name] for preset, name in (
          ('cpu', 'presets, cpu'), ('small', 'update, small'),
          ('paper', 'update, paper'))]
  words = f'{min(slower):.1f} to {max(slower):.1f} times as'
  assert f'take {words} long as on the newer processor' in section
  assert words in ' '.join(page('hours').split())


def test_the_page_says_which_code_was_measured():
  told = dict(re.findall(
      r'^\| (\w+\.json) \| (\w+(?:, with changes)?) \|$', page('speed'), re.M))
  assert told == {
      path.name: json.loads(path.read_text())['commit'].replace(
          '-dirty', ', with changes')
      for path in (ROOT / 'results/speed').glob('*.json')}


def test_what_is_not_learned():
  rows = re.findall(
      r'^\| (\S+) \| `(--[^`]+)` \| ([\d,]+) \| (\d+) \| (\d+) \| [^|]+ \|$',
      page('learning'), re.M)
  folder = ROOT / 'results' / 'not_learned'
  assert {row[0] for row in rows} == {path.name for path in folder.iterdir()}
  for task, words, step, mean, random in rows:
    run = folder / task / '0'
    config = json.loads((run / 'config.json').read_text())
    given = dreamer.define_config().parse(
        ['--preset', 'small', '--task', task, *words.split()])
    for name, value in given.changed().items():
      if name != 'preset':  # Its name was cpu then.
        assert config[name] == value, name
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
  first, _, _, last, *_ = re.split('^## .*$', page('speed'), flags=re.M)
  section = first + last
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
