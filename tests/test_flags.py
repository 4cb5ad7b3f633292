"""Flags: the published defaults, presets, --help, and what bad ones get."""

import pathlib
import shlex
import subprocess
import sys

import pytest

from common import flags, options, precision, terminal
from common.backend import tf
import dreamer

ROOT = pathlib.Path(__file__).parent.parent

DEFAULTS = dict(
    logdir=pathlib.Path('./logdir/TASK/METHOD/SEED'), seed=0, steps=5000000,
    eval_every=10000, log_every=1000, log_scalars=True, log_images=True,
    gpu_growth=True, precision='auto', jit='auto', task='dmc_walker_walk', envs=1,
    parallel='none', action_repeat=2, time_limit=1000, prefill=5000,
    eval_noise=0.0, clip_rewards='none', deter_size=200, stoch_size=30,
    num_units=400, dense_act='elu', cnn_act='relu', cnn_depth=32, pcont=False,
    free_nats=3.0, kl_scale=1.0, pcont_scale=10.0, weight_decay=0.0,
    weight_decay_pattern='.*', batch_size=50, batch_length=50, train_every=1000,
    train_steps=100, pretrain=100, model_lr=6e-4, value_lr=8e-5, actor_lr=8e-5,
    grad_clip=100.0, dataset_balance=False, discount=0.99, disclam=0.95,
    horizon=15, action_dist='tanh_normal', action_init_std=5.0,
    expl='additive_gaussian', expl_amount=0.3, expl_decay=0.0, expl_min=0.0)


@pytest.fixture
def config():
  return dreamer.define_config()


def parse(*words):
  return dreamer.define_config().parse(words)


def message(*words):
  with pytest.raises(terminal.UserError) as error:
    parse(*words)
  text = str(error.value)
  assert '\n' not in text
  return text


### Defaults ###


@pytest.mark.parametrize('name', DEFAULTS)
def test_published_defaults(config, name):
  value = getattr(config, name)
  assert value == DEFAULTS[name]
  assert type(value) is type(DEFAULTS[name])


@pytest.mark.parametrize('instructions, bits', [
    ('fpu avx512f', '32'), ('avx512f avx512_bf16 fma', 'bfloat16'),
    ('amx_bf16 amx_tile', 'bfloat16'), ('xavx512_bf16', '32')])
def test_precision_follows_the_device(
    tmp_path, monkeypatch, instructions, bits):
  devices = []
  monkeypatch.setattr(
      tf.config, 'list_physical_devices', lambda kind: devices)
  cpuinfo = tmp_path / 'cpuinfo'
  cpuinfo.write_text(
      f'processor\t: 0\nflags\t\t: {instructions}\nbugs\t\t: none\n'
      'processor\t: 1\n')
  processor = precision.processor
  monkeypatch.setattr(precision, 'processor', lambda: processor(cpuinfo))
  assert precision.resolve('auto') == bits
  assert precision.resolve('16') == '16' and precision.resolve('32') == '32'
  assert precision.saved(None, 'auto') == precision.saved('16', 'auto') == '32'
  assert precision.saved('bfloat16', 'auto') == 'bfloat16'
  assert precision.saved(None, '16') == precision.saved('16', '16') == '16'
  devices.append('GPU:0')
  assert precision.resolve('auto') == precision.saved(None, 'auto') == '16'
  assert precision.saved('16', 'auto') == '16'
  assert precision.saved('32', 'auto') == '32'
  assert precision.resolve('32') == '32'
  cpuinfo.unlink()  # As on systems other than Linux.
  devices.clear()
  assert precision.resolve('auto') == '32'


@pytest.mark.parametrize('script, defaults', [
    ('dreamer-multi-task.py', {}),
    ('dreamer-FTL.py', dict(transfer_factor=0.2, source='')),
    ('dreamer-MMTL.py', dict(
        n_meta=0, num_meta_lay=1, encoder='', decoder='',
        **{f'meta{i}': '' for i in range(1, 9)}))])
def test_defaults_of_the_transfer_scripts(script, defaults):
  config = options.SCRIPTS[script]()
  expected = {
      **DEFAULTS, 'task': '', 'envs': 0, **defaults,
      **{f'task{i}': '' for i in range(1, 9)}}
  for name, value in expected.items():
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)
  if 'transfer' in config:
    assert config.transfer is False


### Meaning for the rest of the program ###


def test_flags_that_may_change_when_a_run_is_continued(config):
  assert {name for name in config.plain() if not config.fixed(name)} == {
      'logdir', 'preset', 'steps', 'eval_every', 'eval_episodes', 'log_every',
      'log_scalars', 'log_images', 'log_histograms', 'save_every',
      'gpu_growth', 'threads', 'precision', 'jit', 'parallel',
      'replay_memory', 'allow_changes'}


def test_flags_that_make_no_method(config):
  """Bookkeeping and speed; the task and the seed, which plots show anyway."""
  names = {name for name in config.plain() if not config.method(name)}
  free = {name for name in config.plain() if not config.fixed(name)}
  assert names == free | {'task', 'seed', 'envs'}
  fractional = options.fractional()
  for name in ('source', 'scale', 'reset', 'copy', 'discount'):
    assert fractional.method(name)
  # The names of methods in plots tell these: FTL ω=0.2, MMTL N=2.
  assert not fractional.method('transfer_factor')
  meta = options.meta_model()
  assert not meta.method('n_meta')
  assert meta.method('encoder') and meta.method('meta1')
  assert not meta.method('task8')


def test_questions_about_flags_that_are_not_there(config):
  for ask in (config.fixed, config.method, config.default, config.given):
    with pytest.raises(AttributeError, match='batch_lenght.*batch_length'):
      ask('batch_lenght')
  assert config.default('steps') == 5_000_000
  config.steps = 5
  assert config.default('steps') == 5_000_000


def test_declarations_need_no_tensorflow():
  """So that plots may ask them, and --help answers at once."""
  subprocess.run([sys.executable, '-c', (
      'import sys; from common import options; '
      '[define() for define in options.SCRIPTS.values()]; '
      'assert not {"tensorflow", "numpy", "gymnasium"} & set(sys.modules)')],
      cwd=ROOT, check=True)


### Parsing ###


@pytest.mark.parametrize('name, text, value', [
    ('steps', '2e6', 2000000),
    ('steps', '1000', 1000),
    ('prefill', '0', 0),
    ('seed', '3.0', 3),
    ('discount', '1', 1.0),
    ('model_lr', '1e-3', 1e-3),
    ('pcont', 'True', True),
    ('log_images', 'False', False),
    ('log_images', 'false', False),
    ('precision', '16', '16'),
    ('task', 'HopperBulletEnv-v0', 'HopperBulletEnv-v0'),
    ('weight_decay_pattern', 'value/.*=x', 'value/.*=x'),
    ('logdir', './logdir/', pathlib.Path('logdir')),
    ('freeze', '', ''),
    ('steps', '9007199254740991', 9007199254740991),
])
@pytest.mark.parametrize('joined', [False, True])
def test_values(name, text, value, joined):
  words = [f'--{name}={text}'] if joined else [f'--{name}', text]
  config = parse(*words)
  assert getattr(config, name) == value
  assert type(getattr(config, name)) is type(value)
  rest = set(DEFAULTS) - {name}
  assert all(getattr(config, other) == DEFAULTS[other] for other in rest)


def test_the_last_of_two_wins():
  assert parse('--seed', '1', '--seed', '2').seed == 2


### Presets ###


def test_presets(config):
  assert parse('--preset', 'paper').changed() == {}
  for name in ('cpu', 'small', 'debug'):
    changed = parse('--preset', name).changed()
    assert changed.pop('preset') == name
    assert changed
    for key, value in changed.items():
      assert value != config.default(key)
      assert config.default(key) == DEFAULTS.get(key, config.default(key))


@pytest.mark.parametrize('words', [
    ['--preset', 'debug', '--batch_size', '7'],
    ['--batch_size', '7', '--preset', 'debug']])
def test_flags_beside_a_preset_win(words):
  config = parse(*words)
  assert config.batch_size == 7
  assert config.batch_length == parse('--preset', 'debug').batch_length == 10
  assert config.plain()['preset'] == 'debug'


def test_the_default_given_beside_a_preset_wins():
  assert parse('--preset', 'debug', '--cnn_depth', '32').cnn_depth == 32


def test_small_preset_keeps_what_is_published():
  """Smaller networks and batches, everything else as in the paper."""
  assert set(parse('--preset', 'small').changed()) <= {
      'preset', 'cnn_depth', 'deter_size', 'stoch_size', 'num_units',
      'batch_size', 'batch_length'}


### Bad input ###


@pytest.mark.parametrize('words, expected', [
    (['--taks', 'x'], 'unknown flag --taks. Did you mean --task'),
    (['--batch_lenght', '5'], 'Did you mean --batch_length'),
    (['--zzzzzz', '5'], 'unknown flag --zzzzzz. See --help.'),
    (['task', 'x'], "'task' is not a flag"),
    (['--task'], '--task needs a value'),
    (['--pcont', '--seed', '1'], '--pcont needs a value'),
    (['--batch_length', '0'], '--batch_length must be at least 2, not 0'),
    (['--batch_size', '0'], '--batch_size must be at least 1'),
    (['--steps', '-1'], '--steps must be at least 0, not -1'),
    (['--steps', '1e999'], "--steps takes a whole number, not '1e999'"),
    (['--steps', '1.5'], "--steps takes a whole number, not '1.5'"),
    (['--steps', 'many'], "--steps takes a whole number, not 'many'"),
    (['--seed', '-1'], '--seed must be at least 0'),
    (['--seed', '2147483648'], '--seed must be at most 2147483647'),
    (['--precision', '8'],
     '--precision takes one of auto, 16, bfloat16, 32; not 8'),
    (['--pcont', 'maybe'], "--pcont takes True or False, not 'maybe'"),
    (['--discount', '1.1'], '--discount must be at most 1'),
    (['--discount', 'nan'], '--discount takes a finite number, not nan'),
    (['--replay_memory', 'inf'], '--replay_memory takes a finite number'),
    (['--replay_memory', '1e308'], '--replay_memory must be at most 1048576'),
    (['--steps', '1e400'], "--steps takes a whole number, not '1e400'"),
    (['--steps', '1e300'], '--steps must be at most 9007199254740992'),
    (['--steps', 'nan'], "--steps takes a whole number, not 'nan'"),
    (['--logdir', ''], '--logdir needs a value.'),
    (['--freeze', '('], "--freeze '(' is not a regular expression: "),
    (['--logdir', 'x/\udcff'], "--logdir 'x/\\udcff': the name is not in UTF"),
    (['--logdir', 'x/' + 'y' * 300 + '/z'], 'has 300 characters'),
    (['--model_lr', 'fast'], "--model_lr takes a number, not 'fast'"),
    (['--model_lr', '-1'], '--model_lr must be at least 0'),
    (['--grad_clip', '0'], '--grad_clip must be more than 0'),
    (['--horizon', '2'], '--horizon must be at least 3'),
    (['--action_dist', 'tanh_norm'], 'Did you mean tanh_normal?'),
    (['--preset', 'laptop'], '--preset takes one of paper, cpu, small'),
], ids=lambda value: ' '.join(value) if isinstance(value, list) else '')
def test_bad_flags(words, expected):
  assert expected in message(*words)


def test_misspelt_names_in_scripts(config):
  with pytest.raises(AttributeError, match='batch_lengt.*batch_length'):
    config.batch_lengt = 5
  with pytest.raises(AttributeError, match='batch_lengt.*batch_length'):
    config.batch_lengt
  with pytest.raises(AttributeError, match='cnn_dept'):
    config.preset('mine', cnn_dept=1)
  assert 'batch_length' in config and 'batch_lengt' not in config


def test_values_set_in_scripts_are_checked(config):
  config.discount = 1
  assert config.discount == 1.0 and type(config.discount) is float
  config.steps = 2e6
  assert config.steps == 2000000 and type(config.steps) is int
  config.logdir = './somewhere'
  assert config.logdir == pathlib.Path('somewhere')
  config.precision = 16
  assert config.precision == '16'
  config.jit = False  # As in files of runs from before `auto`.
  assert config.jit == 'False'
  for name, value in [
      ('steps', 0.5), ('steps', float('inf')), ('steps', 'many'),
      ('pcont', 1), ('task', 3), ('batch_length', 0), ('discount', None),
      ('precision', '8')]:
    with pytest.raises(terminal.UserError, match=f'--{name} '):
      setattr(config, name, value)
  assert config.batch_length == 50 and config.steps == 2000000


def test_misspelt_flag_on_the_command_line(tmp_path):
  done = subprocess.run(
      [sys.executable, ROOT / 'dreamer.py', '--taks', 'x'], cwd=tmp_path,
      capture_output=True, text=True)
  assert done.returncode == 2
  assert done.stdout == ''
  assert done.stderr == (
      'error: unknown flag --taks. Did you mean --task?\n')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('words', [
    ['--batch_length', '0'], ['--steps', '-1'], ['--precision', '8'],
    ['--freeze', '('], ['--weight_decay_pattern', '(']],
    ids=' '.join)
def test_nothing_is_written_with_bad_flags(words, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  task = ['--task', 'InvertedPendulumBulletEnv-v0', '--preset', 'debug']
  with pytest.raises(terminal.UserError) as error:
    dreamer.main([*task, '--logdir', 'run', *words])
  assert words[0] in str(error.value) and '\n' not in str(error.value)
  assert not list(tmp_path.iterdir())


### Help and records ###


def test_help_is_the_manual(config, capsys):
  with pytest.raises(SystemExit) as end:
    dreamer.main(['--help'])
  assert not end.value.code  # Which is status 0.
  text = capsys.readouterr().out
  entries = {}
  for line in text.splitlines():
    if line.startswith('  --'):
      name, _, default = line[4:].partition(' ')
      entries[name] = [default]
    elif line.startswith('      ') and entries:
      entries[name].append(line.strip())
  assert list(entries) == list(config.plain())
  for name, (default, *meaning) in entries.items():
    assert len(' '.join(meaning)) > 12, name
    value = config.plain()[name]
    if isinstance(value, float):
      assert float(default) == value, name
    elif name == 'logdir':
      assert default == './logdir/TASK/METHOD/SEED'
    else:
      assert default == (str(value) or "''"), name
  assert 'Let PyBullet tasks terminate episodes' in text
  assert max(map(len, text.splitlines())) <= 80
  for preset in ('paper', 'cpu', 'small', 'debug'):
    assert f'--preset {preset}' in text


def test_changed_values(config):
  config.update({'seed': 4, 'logdir': 'elsewhere'})
  assert config.changed() == {'seed': 4, 'logdir': 'elsewhere'}


def test_given_tells_flags_of_the_command_from_defaults():
  config = dreamer.define_config().parse(
      ['--preset', 'debug', '--pcont', 'False'])
  assert config.given('pcont')
  assert not config.given('horizon') and config.horizon == 5


### Lists, pairs, patterns and paths ###


@pytest.fixture
def plot():
  """Flags of the kinds that plotting.py has."""
  config = flags.Config()
  define = config.define
  define('indir', [], 'Folders of runs.', type=pathlib.Path, nargs='+',
         metavar='FOLDER', required=True)
  define('size', [2.5, 2.1], 'Inches of a panel.', nargs=2, positive=True)
  define('xlim', None, 'Limits of the x axis.', type=float, nargs=2,
         metavar=('LOW', 'HIGH'))
  define('until', None, 'Steps to draw.', type=float, positive=True,
         metavar='STEPS')
  define('tasks', ['.*'], 'Tasks to draw.', nargs='+', regex=True)
  define('baselines', None, 'Published scores.', type=str, nargs='*',
         metavar='NAME')
  define('labels', {}, 'Texts of the legend.', metavar='NAME LABEL')
  define('transfer_report', False, 'Compare with scratch.', nargs='?')
  define('ticks', 6, 'Ticks at most.', low=1)
  return config


def test_lists_and_pairs(plot):
  plot.parse([
      '--indir', 'a', '~/b', '--size', '3', '2.5', '--xlim', '-1e3', '2e6',
      '--tasks', '^dmc_', 'Hopper', '--labels', 'FTL ω=0.2', 'ours', 'x', '',
      '--transfer-report', '--baselines'])
  assert plot.indir == [pathlib.Path('a'), pathlib.Path.home() / 'b']
  assert plot.size == [3.0, 2.5] and plot.xlim == [-1000.0, 2000000.0]
  assert plot.tasks == ['^dmc_', 'Hopper'] and plot.baselines == []
  assert plot.labels == {'FTL ω=0.2': 'ours', 'x': ''}
  assert plot.transfer_report is True
  assert plot.until is None and plot.ticks == 6
  assert plot.given('xlim') and not plot.given('until')


def test_defaults_of_lists_and_pairs(plot):
  plot.parse(['--indir=a', '--transfer_report', 'False'])
  assert plot.size == [2.5, 2.1] and plot.tasks == ['.*']
  assert plot.xlim is plot.until is plot.baselines is None
  assert plot.labels == {} and plot.transfer_report is False
  assert plot.plain()['indir'] == ['a']


@pytest.mark.parametrize('words, expected', [
    ('', '--indir is missing; see --help.'),
    ('--indir', '--indir needs a value.'),
    ('--indir a --size 1', '--size needs 2 values.'),
    ('--indir a --size 1 0', '--size must be more than 0, not 0.'),
    ('--indir a --size 1 x', "--size takes a number, not 'x'."),
    ('--indir a --size 1 2 3', "'3' is not a flag"),
    ('--indir a --until -5', '--until must be more than 0, not -5.'),
    ('--indir a --until inf', '--until takes a finite number, not inf.'),
    ('--indir a --tasks x (', "--tasks '(' is not a regular expression"),
    ('--indir a --labels x y z', "--labels takes pairs: 'z' stands alone."),
    ('--indir a --tick 5', 'unknown flag --tick. Did you mean --ticks?'),
    ('--indir a --trasfer-report', 'Did you mean --transfer_report?'),
    ('--indir a -ticks 5', "'-ticks' is not a flag"),
    ('--indir a --transfer-report maybe', "True or False, not 'maybe'"),
    ('--indir ' + 'x' * 300, 'has 300 characters')])
def test_bad_lists_and_pairs(plot, words, expected):
  with pytest.raises(terminal.UserError) as error:
    plot.parse(words.split())
  assert expected in str(error.value) and '\n' not in str(error.value)


def test_help_of_lists_and_pairs(plot):
  text = plot.help('Draws.')
  for line in (
      '--indir FOLDER [FOLDER ...]', '--size 2.5 2.1', '--xlim LOW HIGH',
      '--until STEPS', '--labels NAME LABEL', '--ticks 6'):
    assert f'\n  {line}' in text


def test_values_set_to_lists_are_checked(plot):
  plot.size = (1, 2)
  assert plot.size == [1.0, 2.0]
  plot.until = None
  for name, value in [('size', [1, 0]), ('until', 'x'), ('ticks', None)]:
    with pytest.raises(terminal.UserError, match=f'--{name} '):
      setattr(plot, name, value)


def test_home_directory(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  assert parse('--logdir=~/x').logdir == pathlib.Path('/home/me/x')
  config = options.fractional().parse(['--source=~/run'])
  assert config.source == '/home/me/run'
  config = options.meta_model().parse(['--meta1=~/x.pkl', '--encoder=a~b'])
  assert config.meta1 == '/home/me/x.pkl' and config.encoder == 'a~b'
  assert parse('--logdir', 'a~/~b').logdir == pathlib.Path('a~/~b')
  assert 'no such user' in message('--logdir', '~nobody-of-this-name/x')


def test_names_that_no_file_can_have():
  for define, flag in [
      (options.fractional, 'source'), (options.meta_model, 'encoder'),
      (options.meta_model, 'meta3')]:
    with pytest.raises(terminal.UserError, match=f'--{flag}: .* 300 charac'):
      define().parse([f'--{flag}', 'x/' + 'y' * 300])


@pytest.mark.parametrize('words', [
    ['--task', 'x y', '--freeze', "^a'b|$(c)", '--logdir', './log dir/*'],
    ['--preset', 'debug', '--cnn_depth', '32', '--seed', '3'],
    ['--freeze=--x', '--weight_decay_pattern', '-x', '--expl_amount', '1e-05'],
    ['--steps', '2e6', '--pcont', 'True'], []])
def test_pasted_command_line_gives_the_same_values(words):
  config = parse(*words)
  again = parse(*shlex.split(shlex.join(config.words())))
  assert again.plain() == config.plain()


def test_pasted_command_line_is_short():
  assert parse('--preset', 'debug', '--horizon', '6').words() == [
      '--preset', 'debug', '--horizon', '6']


### Answers before TensorFlow is imported ###


SCRIPTS = [
    'dreamer.py', 'dreamer-multi-task.py', 'dreamer-FTL.py', 'dreamer-MMTL.py',
    'evaluate.py', 'look.py', 'export.py', 'results/study.py',
    'results/wrong_sign.py', 'benchmarks/bench.py', 'plotting.py']
WATCHED = '''
import runpy, sys
sys.path.insert(0, {root!r})
slow = {{'tensorflow', 'matplotlib', 'scipy', 'gymnasium', 'pandas', 'PIL'}}
try:
  runpy.run_path({script!r}, run_name='__main__')
finally:
  loaded = slow & set(sys.modules)
  if loaded:
    print('loaded', loaded, file=sys.stderr)
'''


def answer(script, *words):
  code = WATCHED.format(root=str(ROOT), script=str(ROOT / script))
  return subprocess.run(
      [sys.executable, '-c', code, *words], capture_output=True, text=True)


@pytest.mark.parametrize('script', SCRIPTS)
def test_help_loads_nothing_slow(script):
  done = answer(script, '--help')
  assert done.returncode == 0 and done.stderr == ''
  assert '  --' in done.stdout
  assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize('script', SCRIPTS)
def test_misspelt_flags_are_told_at_once(script):
  done = answer(script, '--zzzz', 'x')
  assert done.returncode == 2 and done.stdout == ''
  assert done.stderr == 'error: unknown flag --zzzz. See --help.\n'


### The log directory that is not named ###


@pytest.mark.parametrize('script, tasks, words, logdir', [
    ('dreamer.py', ['dmc_walker_walk'] * 2, [],
     './logdir/dmc_walker_walk/dreamer/0'),
    ('dreamer-multi-task.py', ['dmc_cup_catch', 'AntBulletEnv-v0'],
     ['--seed', '3'], './logdir/dmc_cup_catch+AntBulletEnv-v0/multi-task/3'),
    ('dreamer-FTL.py', ['my_tasks:Dot'], [], './logdir/my_tasks-Dot/FTL/0'),
    ('dreamer-MMTL.py', ['ALE/Pong-v5'], [], './logdir/ALE-Pong-v5/MMTL/0'),
    ('dreamer-multi-task.py', [f'task{i}' * 10 for i in range(8)], [],
     './logdir/' + 'task0' * 10 + '+7/multi-task/0'),
    ('dreamer.py', ['x'], ['--logdir', './'], '.')])
def test_log_directory_by_task_method_and_seed(script, tasks, words, logdir):
  config = options.SCRIPTS[script]().parse(words)
  options.place(config, script, tasks)
  assert config.logdir == pathlib.Path(logdir)


def test_runs_without_a_log_directory_leave_the_working_directory_alone(
    tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  task = 'InvertedPendulumBulletEnv-v0'
  dreamer.main([
      '--task', task, '--preset', 'debug', '--steps', '0', '--prefill', '0',
      '--log_images', 'False'])
  assert [path.name for path in tmp_path.iterdir()] == ['logdir']
  assert (tmp_path / 'logdir' / task / 'dreamer' / '0' / 'config.json').exists()
