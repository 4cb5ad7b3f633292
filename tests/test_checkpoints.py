"""Checkpoints: old and new files, atomic writing, hostile and damaged files."""

import json
import pathlib
import pickle
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from common import layers, terminal
from data import checkpoints, old_checkpoints, pickles
import hostile
from hostile import ORACLE, today

ROOT = pathlib.Path(__file__).parent.parent
AGENTS = ['a', 'b']


def oracle(name):
  return ORACLE / name / 'variables.pkl'


def old_arrays(name):
  return pickle.loads(oracle(name).read_bytes())


def write(path, data, protocol=4):
  path.write_bytes(pickle.dumps(data, protocol))
  return path


def assert_same(left, right):
  assert type(left) is type(right)
  if isinstance(left, dict):
    assert list(left) == list(right)
    for key in left:
      assert_same(left[key], right[key])
  elif isinstance(left, (list, tuple)):
    assert len(left) == len(right)
    for pair in zip(left, right):
      assert_same(*pair)
  elif isinstance(left, (np.ndarray, np.generic)):
    assert left.dtype == right.dtype.newbyteorder('=')
    assert left.shape == right.shape
    np.testing.assert_array_equal(left, right)
  else:
    assert left == right


### Old files ###


@pytest.mark.parametrize('name', AGENTS)
def test_sizes_of_old_checkpoints(name):
  data = checkpoints.load(oracle(name))
  truth = json.loads((ORACLE / name / 'config.json').read_text())
  assert data['action_dim'] == truth.pop('A')
  assert data['config'] == {**truth, 'action_dist': 'tanh_normal'}
  assert data['step'] == 3000
  assert data['script'] is None
  assert data['format'] == checkpoints.CHECKPOINT
  assert all(x.dtype == np.float32 for x in data['variables'].values())


def elu(x):
  return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def dense(variables, name, x):
  names = layers.names(name)
  for layer in names:
    kernel = variables[f'{name}/{layer}/kernel']
    x = x @ kernel + variables[f'{name}/{layer}/bias']
    if layer != names[-1]:
      x = elu(x)
  return x


@pytest.mark.parametrize('name', AGENTS)
def test_heads_of_old_checkpoints(name):
  variables = checkpoints.load(oracle(name))['variables']
  expected = np.load(ORACLE / name / 'expected.npz')
  feat = expected['feat']
  for head in ('reward', 'value', 'pcont'):
    if f'{head}_mean' in expected:
      mean = dense(variables, head, feat)[..., 0]
      if head == 'pcont':
        mean = sigmoid(mean)
      np.testing.assert_allclose(mean, expected[f'{head}_mean'], 1e-4, 1e-5)
  mean, _ = np.split(dense(variables, 'actor', feat), 2, -1)
  np.testing.assert_allclose(
      5 * np.tanh(mean / 5), expected['actor_mean'], 1e-4, 1e-5)


@pytest.mark.parametrize('name', AGENTS)
def test_dynamics_of_old_checkpoints(name):
  """One step of the RSSM, whose layers differ in nothing but their names."""
  expected = np.load(ORACLE / name / 'expected.npz')
  values = {
      key.removeprefix('dynamics/'): value for key, value
      in checkpoints.module(oracle(name), 'dynamics').items()}
  def layer(key, *inputs):
    x = np.concatenate(inputs, -1)
    return x @ values[f'{key}/kernel'] + values[f'{key}/bias']
  x = elu(layer('img1', expected['prev_stoch'], expected['prev_action']))
  deter, bias = expected['prev_deter'], values['gru/bias']
  inputs = np.split(x @ values['gru/kernel'] + bias[0], 3, -1)
  hidden = np.split(deter @ values['gru/recurrent_kernel'] + bias[1], 3, -1)
  update, reset = sigmoid(inputs[0] + hidden[0]), sigmoid(inputs[1] + hidden[1])
  candidate = np.tanh(inputs[2] + reset * hidden[2])
  deter = update * deter + (1 - update) * candidate
  prior = layer('img3', elu(layer('img2', deter)))
  post = layer('obs2', elu(layer('obs1', deter, expected['embed'][:, 0])))
  for key, value in [
      ('prior_deter', deter), ('prior_mean', np.split(prior, 2, -1)[0]),
      ('post_mean', np.split(post, 2, -1)[0])]:
    np.testing.assert_allclose(value, expected[key], 1e-4, 1e-5)


def test_pcont_may_come_before_the_reward(tmp_path):
  data = checkpoints.load(oracle('b'))
  arrays = tuple(
      data['variables'][f'{name}/{key}'] for name in layers.MODULES
      for key in old_checkpoints.names(name))
  found = checkpoints.load(write(tmp_path / 'x.pkl', arrays))
  assert_same(
      dict(sorted(found['variables'].items())),
      dict(sorted(data['variables'].items())))
  assert found['step'] == 0


def test_discrete_actions_of_old_checkpoints(tmp_path):
  arrays = list(old_arrays('a'))
  for index, array in enumerate(arrays):
    if array.shape in ((20, 6), (6,)):
      arrays[index] = array[..., :3]
  data = checkpoints.load(write(tmp_path / 'x.pkl', tuple(arrays)))
  assert data['action_dim'] == 3
  assert data['config']['action_dist'] == 'onehot'


@pytest.mark.parametrize('protocol', range(6))
def test_protocols_of_old_checkpoints(tmp_path, protocol):
  path = write(tmp_path / 'x.pkl', old_arrays('a'), protocol)
  assert_same(checkpoints.load(path), checkpoints.load(oracle('a')))
  old_numpy = path.read_bytes().replace(b'numpy._core', b'numpy.core')
  if protocol == 2:  # Later protocols state the length of each name.
    path.write_bytes(old_numpy)
    assert_same(checkpoints.load(path), checkpoints.load(oracle('a')))


PYTHON_2 = (  # As Python 2.7 and NumPy 1.16 write it by protocol 2.
    b'\x80\x02}q\x01(U\x04fourq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03'
    b'cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02\x85cnumpy\n'
    b'dtype\nq\x06U\x02f4K\x00K\x01\x87Rq\x07(K\x03U\x01<NNNJ\xff\xff\xff\xff'
    b'J\xff\xff\xff\xffK\x00tb\x89U\x08\x00\x00\x80?\xff\xff\x7f\xfftb'
    b'U\x04stepcnumpy.core.multiarray\nscalar\nh\x07U\x04\x00\x00\x80\xbf\x86R'
    b'X\x02\x00\x00\x00\xc3\xa4U\x01\xe4u.')


def test_pickles_of_python_2(tmp_path):
  path = tmp_path / 'x.pkl'
  path.write_bytes(PYTHON_2)
  assert_same(checkpoints.read(path), {
      'four': np.array([1, -np.finfo('f4').max], 'f4'), 'step': np.float32(-1),
      'ä': 'ä'})


def changed(change):
  arrays = list(old_arrays('a'))
  change(arrays)
  return tuple(arrays)


@pytest.mark.parametrize('change, words', [
    (lambda x: x.pop(1), 'holds 54 arrays'),
    (lambda x: x.append(np.ones(3, np.float32)), 'holds 56 arrays'),
    (lambda x: x.__setitem__(1, x[1][:-1]), 'features is 21'),
    (lambda x: x.__setitem__(3, x[3][:, :-1]), 'actor/h1/kernel'),
    (lambda x: x.__setitem__(15, x[15].T), 'decoder/h3/kernel'),
    (lambda x: x.__setitem__(23, x[23][0]), 'dynamics/gru/bias'),
    (lambda x: x.__setitem__(34, x[34].astype(int)), 'encoder/h1/kernel'),
    (lambda x: x.__setitem__(-1, x[-1][None]), 'value/hout/bias'),
    (lambda x: x.reverse(), 'not'),
    (lambda x: x.insert(2, 'text'), 'holds a str'),
])
def test_arrays_that_do_not_fit_are_named(tmp_path, change, words):
  path = write(tmp_path / 'x.pkl', changed(change))
  with pytest.raises(terminal.UserError, match=words) as error:
    checkpoints.load(path)
  assert str(path) in str(error.value)
  assert 'old checkpoint' in str(error.value)


### Modules ###


@pytest.mark.parametrize('name', layers.MODULES)
def test_a_module_comes_from_any_kind_of_file(tmp_path, name):
  data = today()
  expected = {
      key: value for key, value in data['variables'].items()
      if key.split('/')[0] == name}
  assert len(expected) == len(old_checkpoints.names(name))
  whole = tmp_path / 'whole.pkl'
  checkpoints.save(whole, data)
  single = tmp_path / 'models' / 'single.pkl'
  checkpoints.save_module(single, name, expected, data['config'])
  old = write(tmp_path / 'old.pkl', tuple(expected.values()))
  listed = write(tmp_path / 'list.pkl', [*expected.values(), np.float32(3)])
  for path in (whole, single, old, listed, oracle('b')):
    assert_same(checkpoints.module(path, name), expected)
  assert pickle.loads(single.read_bytes())['format'] == checkpoints.MODULE


def test_a_module_that_is_not_there(tmp_path):
  with pytest.raises(terminal.UserError, match='has no pcont module.*reward'):
    checkpoints.module(oracle('a'), 'pcont')
  reward = checkpoints.module(oracle('a'), 'reward')
  path = tmp_path / 'cheetah.pkl'
  checkpoints.save_module(path, 'reward', reward, {})
  with pytest.raises(terminal.UserError, match="no encoder module.*'reward'"):
    checkpoints.module(path, 'encoder')
  with pytest.raises(terminal.UserError, match="only a module .'reward'"):
    checkpoints.load(path)
  write(path, tuple(reward.values()))
  with pytest.raises(terminal.UserError, match='6 arrays.* has 8'):
    checkpoints.module(path, 'value')
  with pytest.raises(terminal.UserError, match='6 arrays.* 55 or 63'):
    checkpoints.load(path)
  with pytest.raises(ValueError, match='encoder/h1'):
    checkpoints.save_module(path, 'reward', {'encoder/h1/kernel': 0}, {})


### Writing and recovering ###


def test_what_is_saved_is_read(tmp_path):
  path = tmp_path / 'variables.pkl'
  data = today()
  data['variables']['extra'] = np.asfortranarray(np.arange(6).reshape(2, 3))
  checkpoints.save(path, data)
  assert_same(checkpoints.load(path), data)
  checkpoints.load(path)['variables']['extra'][0, 0] = 5  # May be written to.
  assert [x.name for x in tmp_path.iterdir()] == ['variables.pkl']


@pytest.mark.parametrize('protocol', range(6))
def test_every_kind_of_array(tmp_path, protocol):
  base = np.arange(24).reshape(2, 3, 4)
  arrays = [base.astype(kind) for kind in (
      '?', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8',
      '>f4', '>i8')]
  arrays += [
      base.T, base.transpose(1, 0, 2), base[:, ::2], base[..., None],
      np.zeros((0, 3)), np.array(2.5), np.float64(np.nan), np.bool_(True),
      np.uint8(200)]
  data = {'arrays': arrays, 'same': arrays[0], 1: {}, -1: '\udc80ä\n', '': (
      0, 255, 256, 65536, -1, -2 ** 31, 2 ** 127, 1e-300, float('inf'), b'',
      b'x' * 300, 'x' * 300, (), (1, ), (1, 2), (1, 2, 3), [[]], None, False)}
  found = checkpoints.read(write(tmp_path / 'x.pkl', data, protocol))
  assert_same(found, data)
  for array in found['arrays'][:-3]:
    assert array.dtype.isnative and array.flags.writeable


@pytest.mark.parametrize('data', [
    {1}, object(), np.array([None]), np.array(['a']), np.zeros(2, 'f4,i4'),
    np.zeros(2, 'M8[s]'), np.zeros(2, 'c8'), np.ma.ones(3), {(1, 2): 3},
    {1.5: 0}, {2 ** 61 - 1: 0}, pathlib.Path('x'), range(3), [[[lambda: 0]]]])
def test_what_cannot_be_read_is_not_saved(tmp_path, data):
  with pytest.raises(ValueError, match='holds|nested'):
    checkpoints.save(tmp_path / 'x.pkl', {'x': data})
  assert not any(tmp_path.iterdir())


def test_previous_file_is_kept(tmp_path):
  path = tmp_path / 'variables.pkl'
  for step in range(3):
    checkpoints.save(path, today(step), keep=True)
  assert checkpoints.load(path)['step'] == 2
  assert checkpoints.load(tmp_path / 'variables.prev.pkl')['step'] == 1
  checkpoints.save(path, today(3))
  assert checkpoints.load(checkpoints.previous(path))['step'] == 1
  assert len([*tmp_path.iterdir()]) == 2


def test_file_systems_without_hard_links(tmp_path, monkeypatch):
  def link(*_):
    raise PermissionError(1, 'Operation not permitted')
  monkeypatch.setattr('os.link', link)
  test_previous_file_is_kept(tmp_path)


KILLED = '''
import os, pathlib, sys
from data import checkpoints
path, point = pathlib.Path(sys.argv[1]), int(sys.argv[2])
for step in range(2):
  checkpoints.save(path, {'step': step}, keep=True)
def interrupt(call):
  def wrapped(*args, **kwargs):
    global point
    if not point:
      os.kill(os.getpid(), 9)
    point -= 1
    return call(*args, **kwargs)
  return wrapped
for name in ('open', 'fsync', 'link', 'replace', 'unlink', 'close'):
  setattr(os, name, interrupt(getattr(os, name)))
checkpoints.save(path, {'step': 2}, keep=True)
'''


def test_killed_at_any_point_of_a_save(tmp_path):
  path = tmp_path / 'variables.pkl'
  for point in range(20):
    for file in tmp_path.iterdir():
      file.unlink()
    code = subprocess.run(
        [sys.executable, '-c', KILLED, path, str(point)], cwd=ROOT).returncode
    found = [
        checkpoints.read(file)['step']
        for file in (path, checkpoints.previous(path)) if file.exists()]
    assert found in ([1, 0], [1, 1], [2, 1]), point
    for step in (3, 4):  # What was left behind does no harm.
      checkpoints.save(path, {'step': step}, keep=True)
    assert checkpoints.read(checkpoints.previous(path))['step'] == 3
    assert len([*tmp_path.iterdir()]) == 2
    if code == 0:
      break
    assert code == -signal.SIGKILL
  assert point >= 6 and code == 0


def test_full_disk(tmp_path):
  path = tmp_path / 'variables.pkl'
  checkpoints.save(path, today(1), keep=True)
  checkpoints.save(path, today(2), keep=True)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
  try:
    with pytest.raises(terminal.UserError, match='cannot be written') as error:
      checkpoints.save(path, today(3), keep=True)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert str(path) in str(error.value) and '\n' not in str(error.value)
  assert checkpoints.load(path)['step'] == 2
  assert checkpoints.load(checkpoints.previous(path))['step'] == 1
  assert len([*tmp_path.iterdir()]) == 2


def test_checkpoints_too_large_to_be_read_are_not_written(
    tmp_path, monkeypatch):
  path = tmp_path / 'variables.pkl'
  checkpoints.save(path, today(1), keep=True)
  checkpoints.save(path, today(2), keep=True)
  size = path.stat().st_size
  larger = {**today(3), 'more': 'x'}
  monkeypatch.setattr(pickles, 'MAX_BYTES', size)
  with pytest.raises(terminal.UserError, match='not read again') as error:
    checkpoints.save(path, larger, keep=True)
  assert str(path) in str(error.value) and '\n' not in str(error.value)
  assert checkpoints.load(path)['step'] == 2
  assert checkpoints.load(checkpoints.previous(path))['step'] == 1
  checkpoints.save(path, today(3), keep=True)  # Of just this size.
  assert checkpoints.load(path)['step'] == 3
  assert len([*tmp_path.iterdir()]) == 2


def test_directory_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(terminal.UserError, match='cannot be written'):
    checkpoints.save(tmp_path / 'file' / 'x.pkl', {})


def test_recover(tmp_path, capsys):
  path = tmp_path / 'variables.pkl'
  older = checkpoints.previous(path)
  assert checkpoints.recover(path) is None
  checkpoints.save(path, today(1), keep=True)
  assert checkpoints.recover(path)['step'] == 1
  checkpoints.save(path, today(2), keep=True)
  assert checkpoints.recover(path)['step'] == 2
  assert capsys.readouterr().err == ''

  path.write_bytes(path.read_bytes()[:-100])
  assert checkpoints.recover(path)['step'] == 1
  warning = capsys.readouterr().err
  assert warning.count('\n') == 2
  assert f'{path} is truncated' in warning and str(older) in warning
  assert 'variables.damaged.pkl' in warning
  # The damaged file must not take the place of the good one.
  assert (tmp_path / 'variables.damaged.pkl').exists()
  assert checkpoints.recover(path)['step'] == 1
  assert 'missing' in capsys.readouterr().err
  checkpoints.save(path, today(3), keep=True)
  assert checkpoints.recover(path)['step'] == 3
  assert checkpoints.load(older)['step'] == 1

  path.write_bytes(b'')
  older.write_bytes(b'')
  with pytest.raises(terminal.UserError) as error:
    checkpoints.recover(path)
  assert str(path) in str(error.value) and str(older) in str(error.value)
  older.unlink()
  with pytest.raises(terminal.UserError, match='use another copy'):
    checkpoints.recover(path)
  assert path.exists()


def test_newest_only_reads(tmp_path, capsys):
  path = tmp_path / 'variables.pkl'
  older = checkpoints.previous(path)
  with pytest.raises(terminal.UserError, match='no checkpoint'):
    checkpoints.newest(path)
  checkpoints.save(path, today(1), keep=True)
  checkpoints.save(path, today(2), keep=True)
  data, file = checkpoints.newest(path)
  assert (data['step'], file) == (2, path)
  path.write_bytes(path.read_bytes()[:-100])
  before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
  data, file = checkpoints.newest(path)
  assert (data['step'], file) == (1, older)
  warning = capsys.readouterr().err
  assert warning.count('\n') == 1
  assert f'{path} is truncated' in warning and str(older) in warning
  assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir()}
  path.unlink()
  assert checkpoints.newest(path)[1] == older
  assert f'{path} is missing' in capsys.readouterr().err


def test_a_log_directory_names_its_newest_complete_checkpoint(
    tmp_path, capsys):
  path = tmp_path / 'variables.pkl'
  assert checkpoints.file_in(tmp_path) == path
  assert checkpoints.file_in(str(path)) == path
  checkpoints.save(path, today(1), keep=True)
  checkpoints.save(path, today(2), keep=True)
  assert checkpoints.file_in(tmp_path) == path
  path.write_bytes(path.read_bytes()[:-100])
  assert checkpoints.file_in(tmp_path) == checkpoints.previous(path)
  assert f'{path} is truncated' in capsys.readouterr().err
  path.unlink()
  assert checkpoints.file_in(tmp_path) == checkpoints.previous(path)
  # A file is taken at its word.
  assert checkpoints.file_in(path) == path


### Bad files ###


def test_files_that_are_no_checkpoints(tmp_path):
  path = tmp_path / 'variables.pkl'
  for content, words in [
      (b'', 'no pickle'), (b'hello', 'no pickle'), (b'PK\3\4' * 9, 'no pickle'),
      (b'import numpy\nx = 1\n', 'no pickle'),
      (pickle.dumps([1.0], 0), 'holds 0 arrays'),
      (oracle('a').read_bytes()[:1000], 'truncated'),
      (oracle('a').read_bytes()[:-1], 'truncated'),
      (oracle('a').read_bytes() + b'x', 'goes on after its end'),
      (pickle.dumps({'format': 'dreamer-checkpoint-9'}), 'checkpoint-9'),
      (pickle.dumps({'format': checkpoints.CHECKPOINT}), 'no usable variables'),
      (pickle.dumps({**today(), 'step': 'x'}), 'no usable step'),
      (pickle.dumps({**today(), 'variables': {'a': 1}}), "variable 'a'"),
      (pickle.dumps('x' * 5000), 'format is None'),
  ]:
    path.write_bytes(content)
    for reader in (
        checkpoints.load, lambda file: checkpoints.module(file, 'reward')):
      if reader is checkpoints.load or words != 'no usable step':
        with pytest.raises(checkpoints.Damaged, match=words) as error:
          reader(path)
        assert str(error.value).startswith(f'{path} ')
        assert '\n' not in str(error.value) and len(str(error.value)) < 500


def test_paths_that_are_no_checkpoints(tmp_path):
  with pytest.raises(terminal.UserError, match='does not exist; name'):
    checkpoints.load(tmp_path / 'nothing.pkl')
  with pytest.raises(terminal.UserError, match='variables.pkl'):
    checkpoints.load(tmp_path)
  with pytest.raises(terminal.UserError, match='is not a file'):
    checkpoints.load('/dev/zero')
  huge = tmp_path / 'huge.pkl'
  with open(huge, 'wb') as file:
    file.truncate(2 ** 40)
  with pytest.raises(terminal.UserError, match='more than'):
    checkpoints.load(huge)


def test_large_checkpoints_load_fast(tmp_path):
  sizes = {
      'cnn_depth': 32, 'deter_size': 200, 'stoch_size': 30, 'features': 230,
      'num_units': 400, 'action_dim': 6, 'action_outputs': 12}
  arrays = tuple(
      np.zeros(old_checkpoints.shapes(name, sizes)[key], np.float32)
      for name in layers.MODULES for key in old_checkpoints.names(name))
  assert sum(x.nbytes for x in arrays) > 20e6
  for protocol in (2, 4, 5):
    path = write(tmp_path / 'x.pkl', arrays, protocol)
    began = time.process_time()
    assert checkpoints.load(path)['config']['num_units'] == 400
    assert time.process_time() - began < 2


def survive(folder, *arguments):
  """The answer of `hostile.py`; a crash of its interpreter is a failure."""
  result = subprocess.run(
      [sys.executable, hostile.__file__, folder, *map(str, arguments)],
      cwd=folder, capture_output=True, text=True,
      env={'PYTHONPATH': str(ROOT), 'OPENBLAS_NUM_THREADS': '1'})
  assert result.returncode == 0, result.stderr[-3000:]
  return json.loads(result.stdout)


def test_hostile_pickles(tmp_path):
  """Each gives the error, in 1 GiB; those that are only odd may be read."""
  contents = hostile.pickles()
  harmless = {
      'dotted name', 'build nothing', 'large step', 'infinite step'}
  for name, content in contents.items():
    (tmp_path / f'{name}.pkl').write_bytes(content)
  found = survive(tmp_path)
  assert not (tmp_path / 'canary').exists()
  assert len(found) == len(contents)
  for name in contents:
    messages = found[f'{name}.pkl']
    assert messages.pop('read') or name in harmless, name
    assert all(messages.values()), name


def test_mutations(tmp_path):
  found = survive(tmp_path, 500, 0)
  assert found['refused'] > 250 and found['loaded'] > 10
  assert found['slowest'] < 10


@pytest.mark.slow
def test_many_mutations(tmp_path):
  found = survive(tmp_path, 20_000, 1)
  assert found['refused'] + found['loaded'] == 20_000
  assert found['slowest'] < 10
