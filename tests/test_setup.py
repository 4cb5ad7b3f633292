"""The Makefile sets up an environment on every supported Python."""

import ast
import importlib.metadata
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

from packaging.requirements import Requirement
import pytest

from common import options

ROOT = pathlib.Path(__file__).parent.parent
VERSIONS = '3.10', '3.11', '3.12', '3.13'
# Outside of a virtual environment, as users have it.
PYTHON = os.path.realpath(sys.executable)


@pytest.fixture
def checkout(tmp_path):
  """A copy of what sets up, with no package to install."""
  shutil.copy(ROOT / 'Makefile', tmp_path)
  for name in ('requirements.txt', 'requirements-no-deps.txt',
               'requirements-gpu.txt', 'tests/requirements.txt'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('')
  return tmp_path


def make(folder, *words, path=(), check=True):
  # As at a shell, also where `make test ARGS=… PYTHON=…` has started the tests.
  outside = {
      key: value for key, value in os.environ.items() if key not in (
          'MAKEFLAGS', 'MAKELEVEL', 'MFLAGS', 'MAKEOVERRIDES', 'ARGS',
          'PYTHON')}
  done = subprocess.run(
      ['make', *words], cwd=folder, capture_output=True, text=True, env={
          **outside,
          'PATH': ':'.join([*map(str, path), os.environ['PATH']])})
  assert not check or done.returncode == 0, done.stderr
  return done


def program(path, script):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!/bin/sh\n{script}\n')
  path.chmod(0o755)
  return path


def train(folder, *words, **kwargs):
  """The words of the command that `make train` runs."""
  out = make(folder, '-n', 'train', *words, **kwargs).stdout
  command, = re.findall(r'^\S+ dreamer.py .*(?:\\\n.*)*', out, re.M)
  return shlex.split(command)[2:]


@pytest.mark.parametrize('target', ['study', 'second', 'learn'])
def test_tables_get_the_flags_of_make(checkout, target):
  out = make(checkout, '-n', target, 'ARGS=--do draw').stdout
  assert out.splitlines()[-1].endswith(f'-m results.{target} --do draw')


def test_half_made_environments_are_made_anew(checkout):
  """A `venv` that ended before pip, as Debian's does without python3-venv."""
  broken = program(
      checkout / 'python-without-ensurepip',
      f'{PYTHON} -m venv --without-pip .venv; exit 1')
  done = make(checkout, '.venv/ready', f'PYTHON={broken}', check=False)
  assert done.returncode and 'apt-get install python3-venv' in done.stderr
  assert (checkout / '.venv/bin/python').exists()
  assert not list(checkout.glob('.venv/**/pip'))
  done = make(checkout, '.venv/ready', f'PYTHON={PYTHON}')
  assert done.stdout.startswith('Making .venv with')
  assert (checkout / '.venv/bin/pip').exists()
  # Nothing is left to do, until the interpreter is gone.
  ready = checkout / '.venv/ready'
  assert 'up to date' in make(checkout, '.venv/ready').stdout
  (checkout / '.venv/bin/python').unlink()
  (checkout / '.venv/bin/python').symlink_to('/nowhere/python')
  done = make(checkout, '-n', '.venv/ready', f'PYTHON={PYTHON}')
  assert '-m venv --clear .venv' in done.stdout
  assert '-m pip install' in done.stdout and ready.exists()


def test_complete_environments_are_kept(checkout):
  """One that an earlier version of the Makefile made, or uv with its pip."""
  python = program(checkout / '.venv/bin/python', 'exit 0')
  make(checkout, '.venv/made', 'PYTHON=/bin/false')
  assert python.read_text() == '#!/bin/sh\nexit 0\n'


def test_no_python_is_one_line(checkout):
  done = make(checkout, 'train', 'PYTHON=', check=False)
  assert done.returncode
  errors = [line for line in done.stderr.splitlines() if 'error:' in line]
  assert len(errors) == 1 and 'make PYTHON=' in errors[0]


@pytest.mark.parametrize('status, words, expected', [
    (0, (), True), (0, ('GPU=0',), False), (9, (), False),
    (9, ('GPU=1',), True)])
def test_gpu_libraries_where_nvidia_smi_works(
    checkout, status, words, expected):
  program(checkout / 'bin/nvidia-smi', f'exit {status}')
  out = make(
      checkout, '-n', 'train', *words, path=[checkout / 'bin']).stdout
  assert ('-r requirements-gpu.txt' in out) == expected
  assert '-r requirements.txt' in out


def test_set_up_shows_progress(checkout):
  """Packages are installed by name, none in silence."""
  out = make(checkout, '-n', '.venv/ready-test').stdout
  assert out.count('-m pip install') == 3
  assert not re.search(r'--quiet| -q+ ', out)


@pytest.mark.parametrize('bullet', [True, False])
def test_train_has_a_task_that_exists(checkout, bullet):
  """Without PyBullet it is one of DeepMind Control."""
  program(checkout / '.venv/bin/python', 'echo 1' if bullet else 'echo')
  config = options.dreamer()
  config.parse(train(checkout))
  assert config.task == (
      'InvertedPendulumBulletEnv-v0' if bullet else 'dmc_cartpole_balance')
  assert config.plain()['preset'] == 'cpu'


def test_pybullet_is_built_in_the_pinned_version(checkout):
  shutil.copy(ROOT / 'requirements.txt', checkout)
  command = make(checkout, '-n', 'pybullet').stdout.splitlines()[-1]
  assert command.startswith('.venv/bin/python -m pip install')
  chosen = command[command.index('$(') + 2:-1]
  words = subprocess.run(
      chosen, shell=True, cwd=checkout, capture_output=True, text=True)
  assert words.stdout.split() == [
      'pybullet==3.2.7', 'pybullet_envs_gymnasium==0.6.0']


def test_another_seed_has_a_directory_of_its_own(checkout):
  program(checkout / '.venv/bin/python', 'echo 1')
  folders = set()
  for words in ((), ('ARGS=--seed 1',), ('ARGS=--seed 2',)):
    config = options.dreamer()
    config.parse(train(checkout, *words))
    options.place(config, 'dreamer.py', [config.task])
    folders.add(str(config.logdir))
  assert folders == {
      f'logdir/InvertedPendulumBulletEnv-v0/dreamer/{seed}' for seed in range(3)}


@pytest.mark.parametrize('version', VERSIONS)
def test_requirements_pin_every_package_once(version):
  """PyBullet on 3.10 and 3.11; the other simulators everywhere."""
  def pins(name):
    lines = [
        line.split('#')[0].strip()
        for line in (ROOT / name).read_text().splitlines()]
    result = []
    for line in lines:
      if line and not line.startswith('-r '):
        need = Requirement(line)
        assert [pin.operator for pin in need.specifier] == ['=='], line
        if not need.marker or need.marker.evaluate(
            {'python_version': version}):
          result.append((need.name, str(need.specifier)))
    return result

  packages = pins('requirements.txt') + pins('requirements-no-deps.txt') + pins(
      'tests/requirements.txt')
  names = [name for name, _ in packages]
  assert len(set(names)) == len(names)
  assert set(names) >= {
      'tensorflow', 'gymnasium', 'dm_control', 'mujoco', 'ale-py', 'pygame',
      'imageio', 'numpy', 'pytest'}
  for name in ('pybullet', 'pybullet_envs_gymnasium'):
    assert (name in names) == (version in ('3.10', '3.11'))
  gpu, = pins('requirements-gpu.txt')
  assert gpu in packages


def test_imports_are_pinned():
  """What the program imports does not only come along with something else."""
  local = {path.stem for path in ROOT.glob('*')}
  owners = importlib.metadata.packages_distributions()
  needed = {}
  for path in [*ROOT.glob('*.py'), *ROOT.glob('[a-z]*/*.py')]:
    if path.parent.name in ('tests', 'logdir', 'plots'):
      continue
    for node in ast.walk(ast.parse(path.read_text())):
      names = (
          [alias.name for alias in node.names] if isinstance(node, ast.Import)
          else [node.module] if isinstance(node, ast.ImportFrom) else [])
      for name in (name.split('.')[0] for name in names):
        if name not in sys.stdlib_module_names and name not in local:
          needed[name] = path
  assert {'numpy', 'tensorflow', 'gymnasium', 'tqdm'} <= set(needed)
  pinned = {
      re.split('[=;]', line)[0].replace('_', '-').lower()
      for name in ('requirements.txt', 'requirements-no-deps.txt')
      for line in (ROOT / name).read_text().splitlines()}
  for name, path in needed.items():
    packages = {
        owner.replace('_', '-').lower() for owner in owners.get(name, [name])}
    assert packages & pinned, f'{path} imports {name}'


def test_licence_and_citation():
  assert (ROOT / 'LICENSE').read_text().startswith('MIT License\n')
  text = (ROOT / 'CITATION.cff').read_text()
  assert 'cff-version: 1.2.0' in text and 'license: MIT' in text
  papers = re.findall(r'https://arxiv.org/abs/([\d.]+)', text)
  assert papers == ['1912.01603', '2205.14410']


def test_tasks_without_pybullet(tmp_path):
  """DeepMind Control is left, and a task of PyBullet is one line."""
  script = '''
import sys
from importlib.machinery import PathFinder
class Without:
  find_distributions = staticmethod(PathFinder.find_distributions)
  def find_spec(self, name, *rest):
    if not name.startswith('pybullet'):
      return PathFinder.find_spec(name, *rest)
sys.meta_path[sys.meta_path.index(PathFinder)] = Without()
import wrappers
from common import terminal
names = wrappers.task_names()
assert 'Pendulum-v1' in names and 'atari_pong' in names
assert not [name for name in names if 'Bullet' in name]
wrappers.check_task('Pendulum-v1')
try:
  wrappers.check_task('HopperBulletEnv-v0')
except terminal.UserError as error:
  print(error)
'''
  done = subprocess.run(
      [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert 'needs PyBullet' in done.stdout and '3.11' in done.stdout
