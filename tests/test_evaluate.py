import hashlib
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from analysis import agents
from common import layers, terminal
from data import checkpoints, episodes
import dreamer
import evaluate
import look
import running
from runs import logs, loop
import wrappers

OLD = running.ROOT / 'tests' / 'data' / 'oracle' / 'a' / 'variables.pkl'
TASK = running.SWINGUP


def command(script, *flags):
  return subprocess.run(
      [sys.executable, running.ROOT / script, *map(str, flags)],
      capture_output=True, text=True, timeout=300)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Log directory of a short run."""
  logdir = tmp_path_factory.mktemp('run')
  assert running.run(
      logdir, steps=400, log_images=True, log_histograms=True,
      precision='32') == 0
  return logdir


@pytest.fixture(scope='module')
def agent(run):
  return agents.load(run)[0]


@pytest.fixture(scope='module')
def multi(tmp_path_factory):
  """Checkpoint of an untrained agent of two tasks."""
  script = running.script_module('dreamer-multi-task.py')
  config = script.define_config()
  config.parse([
      '--preset', 'debug', '--task1', TASK, '--task2', 'ReacherBulletEnv-v0',
      '--time_limit', '20'])
  path = tmp_path_factory.mktemp('multi') / 'variables.pkl'
  script.Agent.start(config, 2).save(path)
  return path


def everything(folder):
  """Names, times and contents of all files."""
  return {
      path: (path.stat().st_mtime_ns, hashlib.md5(path.read_bytes()).digest())
      for path in folder.rglob('*') if path.is_file()}


def returns(text):
  found = re.findall(r'^episode .* return +(\S+)', text, re.M)
  return [float(x) for x in found]


def frames_of(data):
  image = Image.open(io.BytesIO(data))
  frames = []
  for index in range(image.n_frames):
    image.seek(index)
    frames.append(np.asarray(image.convert('RGB')))
  return np.stack(frames)


class TestRun:
  """What a run leaves in TensorBoard."""

  @pytest.fixture(scope='class')
  def events(self, run):
    events = event_accumulator.EventAccumulator(
        str(run), {'images': 0, 'tensors': 0})
    return events.Reload()

  def test_groups(self, run, events):
    lines = [
        json.loads(line)
        for line in (run / 'metrics.jsonl').read_text().splitlines()]
    names = {f'agent/{x}' for x in ('model_loss', 'div', 'actor_grad_norm')}
    names |= {f'sim/{x}' for x in ('train/return', 'test/length', 'episodes')}
    tags = set(events.Tags()['tensors'])
    assert names <= tags
    for tag in names:
      key = tag.split('/', 1)[1]
      rows = [(x['step'], x[key]) for x in lines if key in x]
      drawn = [
          (x.step, tensor_util.make_ndarray(x.tensor_proto))
          for x in events.Tensors(tag)]
      assert np.allclose(rows, drawn) and len(rows) > 1

  def test_videos_move(self, events):
    assert set(events.Tags()['images']) == {'agent/openl', f'sim/test/{TASK}'}
    for tag, count, shape in (
        ('agent/openl', 10, (192, 256)), (f'sim/test/{TASK}', 51, (64, 64))):
      images = events.Images(tag)
      assert [x.step for x in images] == [200, 400]
      frames = frames_of(images[-1].encoded_image_string)
      # Frames that do not change are merged.
      assert count - 5 <= len(frames) <= count
      assert frames.shape[1:] == (*shape, 3)
      assert (frames[0] != frames[-1]).any()

  def test_open_loop_shows_truth_model_and_error(self, events):
    frame = frames_of(
        events.Images('agent/openl')[-1].encoded_image_string)[0].astype(int)
    truth, model, error = frame[:64], frame[64:128], frame[128:]
    # Within the colours of a GIF.
    assert np.abs((model - truth + 255) / 2 - error).mean() < 6
    assert truth.max() == 255 and truth.std() > 5

  def test_configuration_as_text(self, events):
    text, = events.Tensors('config')[0].tensor_proto.string_val
    assert f'| task | `{TASK}` |' in text.decode()
    assert '| batch_length | `10` |' in text.decode()

  def test_histograms_of_all_variables(self, events, agent):
    assert set(agent.variables) <= set(events.Tags()['tensors'])


class TestEvaluate:

  def test_command(self, run, tmp_path):
    before = everything(run)
    done = command(
        'evaluate.py', '--from', run, '--episodes', 3, '--size', 96,
        '--video', tmp_path / 'film.gif')
    assert done.returncode == 0 and not done.stderr
    assert everything(run) == before
    assert re.match(
        r'device CPU .*precision .*parameters$', done.stdout.splitlines()[0])
    scores = returns(done.stdout)
    mean, deviation = re.search(
        r'^return (\S+) ± (\S+) \(mean ± standard deviation with ddof 0, episodes: 3\)$',
        done.stdout, re.M).groups()
    assert len(set(scores)) == 3
    assert float(mean) == pytest.approx(np.mean(scores), abs=0.02)
    assert float(deviation) == pytest.approx(np.std(scores), abs=0.02)
    frames = frames_of((tmp_path / 'film.gif').read_bytes())
    assert frames.shape[1:] == (96, 96, 3)
    assert 46 <= len(frames) <= 51
    assert (frames[0] != frames[-1]).any()

  def test_film_of_a_long_episode_is_its_beginning(
      self, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(logs, 'FILM_FRAMES', 20)
    film = tmp_path / 'film.gif'
    evaluate.main([
        '--from', str(run), '--episodes', '1', '--size', '32', '--video',
        str(film)])
    assert 17 <= len(frames_of(film.read_bytes())) <= 20  # Some are equal.
    output = capsys.readouterr().out
    assert 'length 100' in output  # That is 51 pictures.
    assert 'shows the first episode, the first 20 pictures' in output

  def test_plays_as_the_agent_acts(self, run, capsys):
    evaluate.main(['--from', str(run), '--episodes', '1', '--seed', '4'])
    score, = returns(capsys.readouterr().out)
    agent = dreamer.load_agent(run)
    agent.config.update({'seed': 4, 'eval_noise': 0.0})
    agent.random.calls[False] = 0
    env = wrappers.make_env(TASK, action_repeat=2, time_limit=100)
    seed = np.random.default_rng([4, 3, 0, 0]).integers(2 ** 31 - 1)
    obs, _ = env.reset(seed=int(seed))
    state, total, ended = None, 0, False
    while not ended:
      action, state = agent.policy(
          {'image': obs['image'][None]}, state, training=False)
      obs, reward, _, ended, _ = env.step(action.numpy()[0])
      total += reward
    env.close()
    assert score == pytest.approx(total, abs=0.01)

  def test_needs_only_the_checkpoint_and_makes_no_noise(
      self, run, tmp_path, capsys):
    saved = checkpoints.load(run / 'variables.pkl')
    saved['config']['eval_noise'] = 0.8
    checkpoints.save(tmp_path / 'other.pkl', saved)
    shown = []
    for path in (run, run / 'variables.pkl', tmp_path / 'other.pkl'):
      evaluate.main(['--from', str(path), '--episodes', '2'])
      shown.append(returns(capsys.readouterr().out))
    assert shown[0] == shown[1] == shown[2]
    assert [x.name for x in tmp_path.iterdir()] == ['other.pkl']

  def test_damaged_checkpoint_stays_where_it_is(self, run, tmp_path, capsys):
    file = tmp_path / 'variables.pkl'
    shutil.copy(run / 'variables.pkl', checkpoints.previous(file))
    file.write_bytes((run / 'variables.pkl').read_bytes()[:1000])
    before = everything(tmp_path)
    evaluate.main(['--from', str(tmp_path), '--episodes', '1'])
    out, err = capsys.readouterr()
    assert len(returns(out)) == 1
    assert err.count('\n') == 1 and 'truncated' in err
    assert everything(tmp_path) == before

  def test_old_checkpoint(self, capsys):
    with pytest.raises(terminal.UserError, match='--task'):
      evaluate.main(['--from', str(OLD)])
    evaluate.main([
        '--from', str(OLD), '--task', 'ReacherBulletEnv-v0', '--episodes', '1'])
    assert len(returns(capsys.readouterr().out)) == 1

  def test_every_task_in_turn(self, multi, tmp_path, capsys):
    flags = ['--from', str(multi), '--episodes', '2']
    evaluate.main([
        *flags, '--size', '32', '--video', str(tmp_path / 'film.gif')])
    both = capsys.readouterr().out
    assert re.findall(r'^\w+-v0$', both, re.M) == [TASK, 'ReacherBulletEnv-v0']
    evaluate.main([*flags, '--task', 'ReacherBulletEnv-v0'])
    assert returns(capsys.readouterr().out) == returns(both)[2:]
    films = {x.name: frames_of(x.read_bytes()) for x in tmp_path.iterdir()}
    assert set(films) == {
        f'film-{TASK}.gif', 'film-ReacherBulletEnv-v0.gif'}
    assert all(film.shape[1:] == (32, 32, 3) for film in films.values())

  @pytest.mark.parametrize('flags, words', [
      ([], '--from is missing'),
      (['--from', 'no/such'], 'no/such does not exist'),
      (['--from', 'tests'], 'tests holds no checkpoint'),
      (['--from', 'README.md', '--task', 'Hopper'], 'near matches: HopperBulletEnv-v0'),
      (['--from', OLD, '--task', 'AntBulletEnv-v0'],
       'takes 8 actions and the agent gives 3'),
      (['--from', OLD, '--task', 'atari_pong'],
       'takes discrete actions and the agent gives continuous ones'),
      (['--from', OLD, '--video', 'film.avi'], 'must end in .gif or .mp4'),
      (['--from', OLD, '--video', 'no/such/film.gif'], 'no directory no/such'),
      (['--from', OLD, '--size', '5'], '--size must be at least 16'),
      (['--from', OLD, '--episode', '5'], 'Did you mean --episodes'),
  ])
  def test_bad_input(self, flags, words):
    with pytest.raises(terminal.UserError, match=re.escape(words)) as error:
      evaluate.main(list(map(str, flags)))
    assert '\n' not in str(error.value)

  @pytest.mark.parametrize('main', [evaluate.main, look.main])
  def test_bad_input_is_one_line_and_a_status(self, main, capsys):
    with pytest.raises(SystemExit) as exit:
      terminal.run(main, ['--from', '/no/such'])
    assert exit.value.code == 2
    out, err = capsys.readouterr()
    assert err.startswith('error: /no/such') and err.count('\n') == 1
    assert not out


class TestFilm:

  @pytest.mark.parametrize('task, file', [
      ('ALE/Pong-v5', 'a.b-ALE.Pong-v5.gif'),
      ('module:function', 'a.b-module.function.gif'),
      (TASK, f'a.b-{TASK}.gif')])
  def test_names_of_tasks_become_names_of_files(self, tmp_path, task, file):
    path = evaluate.video_file(str(tmp_path / 'a.b.gif'), task, True)
    evaluate.save_video(path, np.zeros((2, 16, 16, 3), np.uint8))
    assert [x.name for x in tmp_path.iterdir()] == [file]

  def test_without_ffmpeg_a_gif_is_named(self, monkeypatch):
    monkeypatch.setenv('PATH', '')
    with pytest.raises(terminal.UserError, match=r'write out/film\.gif'):
      evaluate.check_video('out/film.mp4')

  def test_what_ffmpeg_says_is_one_line(self, monkeypatch, tmp_path):
    fake = tmp_path / 'ffmpeg'
    fake.write_text('#!/bin/sh\ncat > /dev/null\necho "no\ncodec" >&2\nexit 1')
    fake.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    with pytest.raises(terminal.UserError, match='film: no codec$'):
      evaluate.mp4(np.zeros((3, 16, 16, 3), np.uint8), 20)

  @pytest.mark.skipif(not shutil.which('ffmpeg'), reason='needs ffmpeg')
  def test_mp4(self, tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (30, 33, 64, 3), np.uint8)
    evaluate.save_video(tmp_path / 'film.mp4', frames)
    back = subprocess.run(
        ['ffmpeg', '-i', tmp_path / 'film.mp4', '-f', 'rawvideo', '-pix_fmt',
         'rgb24', '-'], capture_output=True, check=True).stdout
    assert len(back) == 30 * 34 * 64 * 3

  def test_unwritable_file(self, tmp_path):
    (tmp_path / 'film.gif').mkdir()
    with pytest.raises(terminal.UserError, match='film.gif cannot be written'):
      evaluate.save_video(
          tmp_path / 'film.gif', np.zeros((3, 16, 16, 3), np.uint8))


@pytest.fixture(scope='module')
def episode(run):
  arrays = episodes.load(max((run / 'episodes').iterdir()))
  return {key: arrays[key] for key in ('image', 'action', 'reward')}


def predict(agent, episode, context=5):
  look.tf.random.set_seed(0)
  return look.predict(agent, episode, context)


class TestPredict:

  def test_truth(self, agent, episode):
    seen = predict(agent, episode)
    assert np.allclose(seen['truth'], episode['image'] / 255, atol=1e-6)
    assert np.array_equal(seen['reward'], episode['reward'])
    assert seen['prediction'].shape == (51, 64, 64, 3)
    assert set(seen['rewards']) == {'prediction'}

  def test_images_after_the_context_are_not_seen(self, agent, episode):
    seen = predict(agent, episode)
    image = episode['image'].copy()
    image[5:] = 255 - image[5:]
    other = predict(agent, dict(episode, image=image))
    assert np.array_equal(seen['prediction'], other['prediction'])
    assert np.array_equal(
        seen['rewards']['prediction'], other['rewards']['prediction'])
    image[4] = 255 - image[4]
    other = predict(agent, dict(episode, image=image))
    same = (seen['prediction'] == other['prediction']).all((1, 2, 3))
    assert same[:4].all() and not same[4:].any()

  def test_actions_after_the_context_count(self, agent, episode):
    seen = predict(agent, episode)
    action = episode['action'].copy()
    action[20] = -action[20]
    other = predict(agent, dict(episode, action=action))
    same = (seen['rewards']['prediction'] == other['rewards']['prediction'])
    assert same[:20].all() and not same[20:].any()

  def test_rewards_are_shown_as_they_are_learned(self, run, episode):
    agent, _ = agents.load(run)
    agent.config.clip_rewards = 'tanh'
    seen = predict(agent, episode)
    assert np.allclose(seen['reward'], np.tanh(episode['reward']), atol=1e-6)

  def test_sources_of_a_meta_model(self, run, episode):
    agent = meta_agent(run)
    seen = predict(agent, episode)
    assert list(seen['rewards']) == [
        'prediction', 'source HalfCheetahBulletEnv-v0', 'source hopper']
    assert np.allclose(seen['rewards']['source HalfCheetahBulletEnv-v0'], 2)
    assert np.allclose(seen['rewards']['source hopper'], 3)
    assert np.ptp(seen['rewards']['prediction']) > 0


@pytest.mark.parametrize('paths, names', [
    (['Ant', 'stored_meta/hopper.pkl'], ['Ant', 'hopper']),
    (['./logdir/Cheetah/MMTL/0', './logdir/Ant/MMTL/0'], ['Cheetah', 'Ant']),
    (['a/variables.pkl', 'b/variables.pkl'], ['a', 'b']),
    (['a.pkl', 'a.pkl'], ['1 a.pkl', '2 a.pkl'])])
def test_sources_have_names_of_their_own(paths, names):
  assert look.short_names(paths) == names


def meta_agent(run):
  """An agent on two source reward models that always say 2 and 3."""
  script = running.script_module('dreamer-MMTL.py')
  config = script.define_config()
  config.parse([
      '--preset', 'debug', '--task1', TASK, '--n_meta', '2', '--meta1',
      'HalfCheetahBulletEnv-v0', '--meta2', 'stored_meta/hopper.pkl'])
  variables = checkpoints.module(run / 'variables.pkl', 'reward')
  given = {}
  for number in (1, 2):
    arrays = {
        name.replace('reward', f'reward/source{number}', 1): array.copy()
        for name, array in variables.items()}
    arrays[f'reward/source{number}/hout/kernel'] *= 0
    arrays[f'reward/source{number}/hout/bias'][:] = number + 1
    given[f'reward/source{number}'] = arrays
  agent = script.Agent(config, 1, list(given), sources=[
      layers.hidden(arrays) for arrays in given.values()])
  for arrays in given.values():
    for name, array in arrays.items():
      agent.variables[name].assign(array)
  return agent


def made_up(count, predictions=1):
  rng = np.random.default_rng(0)
  truth, prediction = rng.random((2, count, 64, 64, 3)).astype(np.float32)
  return {
      'truth': truth, 'prediction': prediction, 'reward': rng.random(count),
      'rewards': {
          f'name {index}': rng.random(count) for index in range(predictions)}}


class TestDraw:

  @pytest.mark.parametrize('count', [2, 10, 20, 31, 50, 52, 200, 501])
  def test_strip(self, count):
    seen = made_up(count)
    strip, curves = look.draw(seen, 1, start=30).axes
    shown = np.array(curves.get_xticks(), int) - 30
    assert min(count, 8) <= len(shown) <= 15
    assert len(set(np.diff(shown))) <= 1
    picture = np.asarray(strip.images[0].get_array())
    rows = np.split(picture, 3)
    assert np.array_equal(rows[0], np.concatenate(seen['truth'][shown], 1))
    assert np.array_equal(rows[1], np.concatenate(seen['prediction'][shown], 1))
    # Grey where nothing is wrong, in the range that is drawn.
    assert np.allclose(rows[2], 0.5 + (rows[1] - rows[0]) / 2)
    assert [x.get_text() for x in strip.get_yticklabels()] == [
        'truth', 'prediction', 'error']

  @pytest.mark.parametrize('count, predictions', [(50, 1), (52, 3), (20, 5)])
  def test_curves_stand_under_the_pictures(self, count, predictions):
    seen = made_up(count, predictions)
    figure = look.draw(seen, 5, start=30)
    strip, curves = figure.axes
    ticks = curves.get_xticks()
    middles = strip.transData.transform(
        [(index + 0.5, 0) for index in range(len(ticks))])
    below = curves.transData.transform([(tick, 0) for tick in ticks])
    assert np.allclose(middles[:, 0], below[:, 0])
    low, high = curves.get_xlim()
    assert low < 30 and high >= 30 + count - 1
    lines = {line.get_label(): line for line in curves.lines}
    wanted = {'truth': seen['reward'], **seen['rewards']}
    assert set(lines) == set(wanted)
    for name, values in wanted.items():
      assert np.array_equal(lines[name].get_ydata(), values)
      assert np.array_equal(lines[name].get_xdata(), 30 + np.arange(count))
    assert len({(x.get_color(), x.get_linestyle()) for x in curves.lines}) == (
        predictions + 1)

  @pytest.mark.parametrize('predictions', [1, 3, 9])
  def test_nothing_overlaps(self, predictions):
    figure = look.draw(made_up(50, predictions), 5)
    strip, curves = figure.axes
    figure.draw_without_rendering()
    legend = curves.get_legend().get_window_extent()
    assert legend.y1 < strip.get_window_extent().y0
    assert legend.x1 <= figure.bbox.x1
    for axes in figure.axes:
      box = axes.get_tightbbox()
      assert box.x0 >= 0 and box.y0 >= 0
      assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    # Pictures are square.
    size = strip.get_window_extent()
    assert size.width / 13 == pytest.approx(size.height / 3)


class TestLook:

  def test_command(self, run, tmp_path):
    before = everything(run)
    done = command('look.py', '--from', run, '--out', tmp_path / 'strip.png')
    assert done.returncode == 0 and not done.stderr
    assert everything(run) == before
    newest = max((run / 'episodes').iterdir())
    assert f'shows time steps 0 to 49 of {newest}' in done.stdout
    image = np.asarray(Image.open(tmp_path / 'strip.png').convert('RGB'))
    assert image.shape[1] == 2070 and image.shape[0] > 800
    assert image.std() > 10

  def test_pdf_of_another_episode(self, run, tmp_path, capsys):
    oldest = min((run / 'episodes').iterdir())
    look.main([
        '--from', str(run / 'variables.pkl'), '--episode', str(oldest),
        '--start', '40', '--context', '2', '--out', str(tmp_path / 'a.pdf')])
    assert f'shows time steps 40 to 50 of {oldest}' in capsys.readouterr().out
    assert (tmp_path / 'a.pdf').read_bytes().startswith(b'%PDF')

  def test_newest_episode_that_is_long_enough(self, run, tmp_path, capsys):
    shutil.copy(run / 'variables.pkl', tmp_path)
    newest = max((run / 'episodes').iterdir())
    arrays = episodes.load(newest)
    for length, time in ((4, 1), (40, 2), (3, 3)):
      episodes.write(
          tmp_path / 'episodes' / f'20990101T00000{time}-ab-{length}.npz',
          {key: value[:length] for key, value in arrays.items()})
    flags = ['--from', str(tmp_path), '--out', str(tmp_path / 'a.png')]
    for more, shown in (
        (['--length', '20'], '0 to 19 of .*-ab-40'),
        (['--length', '40'], '0 to 39 of .*-ab-40'),
        # None is as long as asked for: the longest.
        ([], '0 to 39 of .*-ab-40')):
      look.main([*flags, *more])
      assert re.search(f'time steps {shown}', capsys.readouterr().out)
    shutil.copy(newest, tmp_path / 'episodes')
    look.main(flags)
    assert f'0 to 49 of {tmp_path}/episodes/{newest.name}' in (
        capsys.readouterr().out)

  def test_an_episode_is_played_for_a_checkpoint_alone(
      self, run, multi, tmp_path, capsys):
    shutil.copy(run / 'variables.pkl', tmp_path / 'alone.pkl')
    look.main([
        '--from', str(tmp_path / 'alone.pkl'), '--out',
        str(tmp_path / 'a.png')])
    text = capsys.readouterr().out
    assert f'one of {TASK} is played' in text
    assert 'time steps 0 to 49 of the episode played, return' in text
    assert {x.name for x in tmp_path.iterdir()} == {'alone.pkl', 'a.png'}
    look.main([
        '--from', str(multi), '--task', TASK, '--length', '8', '--out',
        str(tmp_path / 'b.png')])
    assert 'time steps 0 to 7' in capsys.readouterr().out

  def test_actions_played_are_all_of_the_agent(self, multi):
    """As replay has them of a task that takes fewer: the model saw those."""
    agent, tasks = agents.load(multi)
    episode, _ = next(agents.play(agent, tasks[0], 0))
    assert episode['action'].shape[1] == agent.action_dim == 2
    assert np.abs(episode['action'][1:]).min() > 0

  @pytest.mark.parametrize('flags, words', [
      (['--out', 'strip.gif'], 'must end in .png or .pdf'),
      (['--out', 'no/such/strip.png'], 'strip.png cannot be written'),
      (['--context', '50'], '50 time steps of '),
      (['--start', '48'], '3 time steps of '),
      (['--episode', 'no.npz'], 'no episode no.npz'),
      (['--episode', 'README.md'], 'README.md is not a whole episode'),
      (['--from', OLD], 'name one with --episode, or a task to play'),
      (['--from', ''], '--from needs a value'),
  ])
  def test_bad_input(self, run, flags, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    pathlib.Path('README.md').write_text('text')
    with pytest.raises(terminal.UserError, match=re.escape(words)) as error:
      look.main(['--from', str(run), *map(str, flags)])
    assert '\n' not in str(error.value)

  def test_episode_of_another_agent(self, run):
    file = max((run / 'episodes').iterdir())
    with pytest.raises(terminal.UserError, match='has 1 actions and the agent'):
      look.main(['--from', str(OLD), '--episode', str(file)])


@pytest.mark.slow
def test_logging_costs_under_two_percent(tmp_path, monkeypatch):
  """Of the time between two evaluations, which are ten times as frequent as by
  default, at the small sizes of the preset for CPUs."""
  spent, ends = [], []

  def timed(owner, name):
    function = getattr(owner, name)

    def wrapper(*args, **kwargs):
      began = time.monotonic()
      result = function(*args, **kwargs)
      ends.append(time.monotonic())
      spent.append((name, began, ends[-1]))
      return result
    monkeypatch.setattr(owner, name, wrapper)

  for name in ('scalars', 'video', 'text', 'flush'):
    timed(logs.Logger, name)
  timed(dreamer.Dreamer, 'open_loop')
  loop.main([
      '--preset', 'cpu', '--task', TASK, '--logdir', str(tmp_path),
      '--prefill', '1000', '--steps', '3000', '--eval_every', '1000'],
      '', dreamer.define_config, dreamer.Dreamer)
  # The first evaluation, before training, also compiles.
  loops = [end for name, _, end in spent if name == 'open_loop']
  begin, end = loops[0], loops[-1]
  during = [x for x in spent if begin < x[1] and x[2] <= end]
  total = sum(end - begin for _, begin, end in during)
  share = total / (end - begin)
  print(f'\nlogging took {total:.2f} s of {end - begin:.1f} s: {share:.2%}')
  for name in sorted({x[0] for x in during}):
    times = [end - begin for x, begin, end in during if x == name]
    each = np.mean(times) * 1e3
    print(f'{name:10} {len(times):4} times, {each:6.1f} ms each')
  assert share < 0.02
