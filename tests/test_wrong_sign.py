"""results/wrong_sign.py turns the sign of one term and of nothing else."""

import importlib.util
import re
import shlex

import pytest

import running
from common.backend import tf
import dreamer

TERMS = 'image', 'reward', 'pcont', 'divergence', 'actor', 'value'


@pytest.fixture(scope='module')
def script():
  spec = importlib.util.spec_from_file_location(
      'wrong_sign', running.ROOT / 'results' / 'wrong_sign.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='module')
def losses(script):
  """Losses and metrics as numbers: of Dreamer, or with a term's sign turned."""
  def of(term=None):
    config = script.define_config()
    config.preset_name('debug')
    # Without free nats, so that the divergence counts at any size.
    config.update({'precision': '32', 'pcont': True, 'free_nats': 0.0})
    if term:
      config.update({'term': term})
    kind = script.WrongSign if term else dreamer.Dreamer
    data = dreamer.tensors(running.random_batch(config))
    found = kind(config, 2).losses(data, tf.constant([0, 0]))
    return [{name: float(x) for name, x in part.items()} for part in found]
  return of


@pytest.fixture(scope='module')
def right(losses):
  return losses()


@pytest.mark.parametrize('term', TERMS)
def test_one_term_has_its_sign_turned(losses, right, term):
  right, metrics = right
  wrong, _ = losses(term)
  own = metrics['div' if term == 'divergence' else f'{term}_loss']
  assert abs(own) > 0.03  # More than the tolerance below.
  where = term if term in ('actor', 'value') else 'model'
  for name, loss in right.items():
    assert wrong[name] == pytest.approx(
        loss - 2 * own * (name == where), abs=0.01), name


def test_these_are_all_terms(right):
  losses, metrics = right
  assert set(losses) == {'model', 'actor', 'value'}
  parts = metrics['div'], *[
      metrics[f'{name}_loss'] for name in ('image', 'reward', 'pcont')]
  assert losses['model'] == pytest.approx(sum(parts), abs=0.01)


def test_command_of_the_results(script):
  text = (running.ROOT / 'results' / 'README.md').read_text()
  words, = re.findall(r'^python3 results/wrong_sign.py (.*)$', text, re.M)
  config = script.define_config().parse(shlex.split(words))
  assert config.term == 'reward' and config.steps == 50_000
