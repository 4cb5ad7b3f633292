"""Environments in this thread, in threads, or in processes of their own."""

import collections
import contextlib
import faulthandler
from multiprocessing.connection import Connection, Pipe
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback

from common import files, terminal
from envs import libraries
from runs import signals
import wrappers


class EnvFailure(Exception):
  """An environment crashed, hung or gave bad numbers.

  The message is one line; `details` holds the environment's own traceback.
  """

  def __init__(self, message, details=''):
    super().__init__(message)
    self.details = details


def make(parallel, task, *, timeout=120.0, max_failures=5, **settings):
  """Starts an environment and returns without waiting for it.

  Args:
    parallel: 'none' (in this thread; a call runs when its promise is asked),
      'thread' or 'process'.
    task: Task of the environment.
    timeout: Seconds after which a call counts as failed; not watched with
      'none'.
    max_failures: Failures without a finished episode in between, after which
      the last one is the user's to solve.
    **settings: Settings of `wrappers.make_env`.

  Returns:
    An `Environment`.
  """
  kinds = {'none': _Here, 'thread': _Thread, 'process': _Process}
  if parallel not in kinds:
    raise terminal.UserError(
        f"parallel is '{parallel}'; it must be none, thread or process")
  return Environment(kinds[parallel], task, settings, timeout, max_failures)


class Environment:
  """Handle of an environment that is made again when it fails.

  `reset`, `step` and `render` return promises: functions that wait for the
  result. Start the calls of several environments, then ask for the results.

  A promise raises `EnvFailure` when the environment failed; the next `reset`
  makes a fresh one. It raises `terminal.UserError` when that does not help.
  """

  def __init__(self, kind, task, settings, timeout, max_failures):
    self._kind = kind
    self._task = task
    self._settings = settings
    self._timeout = timeout
    self._max_failures = max_failures
    self._in_a_row = 0
    self._stepped = False
    self._space = None
    self._start()

  @property
  def action_space(self):
    """Space of the actions."""
    if self._space is None:
      self._wait_until_made()
    return self._space

  def reset(self, seed=None):
    """Promises observation and info of a new episode."""
    if self._worker is None:
      self._start()
    elif self._stepped:
      self._in_a_row = 0  # Also where the caller truncates episodes.
    self._stepped = False
    return self._promise('reset', seed)

  def step(self, action):
    """Promises observation, reward, terminated, truncated and info."""
    return self._promise('step', action)

  def render(self, height, width):
    """Promises a picture uint8 [height, width, 3]."""
    return self._promise('render', height, width)

  def close(self):
    """Ends the environment; again does nothing."""
    if self._worker is not None:
      self._worker.stop()
      self._worker = None

  def _start(self):
    self._worker = self._kind()
    self._worker.send(('make', self._task, self._settings))
    self._made = False

  def _wait_until_made(self):
    if not self._made:
      self._space = self._receive()
      self._made = True

  def _promise(self, method, *args):
    if self._worker is None:
      raise RuntimeError(f'{self._task}: reset the environment before {method}')
    self._worker.send((method, *args))
    return lambda: self._collect(method)

  def _collect(self, method):
    self._wait_until_made()
    result = self._receive()
    self._stepped |= method == 'step'
    return result

  def _receive(self):
    kind, *values = self._worker.receive(self._timeout)
    if kind == 'result':
      return values[0]
    self.close()
    if kind == 'user error':
      raise terminal.UserError(values[0])
    message, details = values
    message = f'{self._task}: {message}'
    self._in_a_row += 1
    if self._space is None:
      raise terminal.UserError(f'{message}\n{details}'.strip())
    if self._in_a_row >= self._max_failures:
      raise terminal.UserError(
          f'{message} (failure {self._in_a_row} in a row)\n{details}'.strip())
    raise EnvFailure(message, details)


class _Server:
  """Owns an environment and answers the messages of its handle."""

  def __init__(self):
    self._env = None

  def answer(self, method, *args):
    """Says what kind the answer is, and the answer.

    That is the result, the message for the user, or a line and the details.
    """
    try:
      with _own_signals(), libraries.own_directory():
        return 'result', getattr(self, method)(*args)
    except terminal.UserError as error:
      return 'user error', str(error)
    except (Exception, SystemExit) as error:
      line = traceback.format_exception_only(error)[-1].splitlines()[0]
      return 'failure', line, traceback.format_exc()

  def make(self, task, settings):
    self._env = wrappers.make_env(task, **settings)
    return self._env.action_space

  def reset(self, seed):
    return self._env.reset(seed=seed)

  def step(self, action):
    return self._env.step(action)

  def render(self, height, width):
    return self._env.render_frame(height, width)

  def close(self):
    if self._env is not None:
      # One that failed may be too broken for that.
      with contextlib.suppress(Exception):
        self._env.close()


def _serve(connection):
  """Answers messages until the other end is closed."""
  server = _Server()
  try:
    while True:
      connection.send(server.answer(*connection.recv()))
  except (EOFError, OSError):
    pass
  finally:
    server.close()
    connection.close()


@contextlib.contextmanager
def _own_signals():
  """Puts this program's signal handlers back that an environment replaced."""
  if threading.current_thread() is not threading.main_thread():
    yield  # Python lets no other thread change them.
    return
  handlers = {name: signal.getsignal(name) for name in signals.Signals.statuses}
  try:
    yield
  finally:
    for name, handler in handlers.items():
      if handler is not None:
        signal.signal(name, handler)


class _Here:
  """Answers in the calling thread, at the time the answer is received."""

  def __init__(self):
    self._server = _Server()
    self._messages = collections.deque()

  def send(self, message):
    self._messages.append(message)

  def receive(self, timeout):
    del timeout  # No other thread could watch.
    return self._server.answer(*self._messages.popleft())

  def stop(self):
    self._server.close()


class _Remote:
  """The near end of a connection to a server elsewhere."""

  def __init__(self, connection):
    self._connection = connection

  def send(self, message):
    try:
      self._connection.send(message)
    except OSError:
      pass  # The other end is gone, which `receive` reports.

  def receive(self, timeout):
    try:
      if not self._connection.poll(timeout):
        message = f'no answer within {timeout:g} seconds'
        return 'failure', message, self._where_silent()
      return self._connection.recv()
    except (EOFError, OSError):
      return 'failure', *self._why_gone()


class _Thread(_Remote):
  """Answers in a thread of this process."""

  def __init__(self):
    ours, theirs = Pipe()
    super().__init__(ours)
    self._thread = threading.Thread(
        target=_serve, args=(theirs,), daemon=True)
    self._thread.start()

  def stop(self, patience=2.0):
    self._connection.close()
    # A thread that hangs is left behind; it ends when it comes back.
    self._thread.join(patience)

  def _where_silent(self):
    frame = sys._current_frames()[self._thread.ident]
    return ''.join(traceback.format_stack(frame))

  def _why_gone(self):
    return 'the thread of the environment ended', ''


# The program of a worker process, which imports this file alone and not the
# main script.
_BOOT = (
    'import sys; sys.path[:0] = [sys.argv[1]]; from runs import workers; '
    'workers.serve(int(sys.argv[2]))')


class _Process(_Remote):
  """Answers in a process that imports this file and what it imports.

  `multiprocessing` would import the main script there, and TensorFlow with it.
  """

  def __init__(self):
    ours, theirs = socket.socketpair()
    # The output of libraries, which is shown after a crash.
    self._output = terminal.unseen_file()
    with theirs:
      self._process = subprocess.Popen(
          [sys.executable, '-c', _BOOT, str(files.ROOT), str(theirs.fileno())],
          pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
          stdout=self._output, stderr=self._output, start_new_session=True)
    super().__init__(Connection(ours.detach()))
    super().send(sys.path)

  def send(self, message):
    if message[0] == 'reset':
      # Both processes share the position in the file, which else would grow.
      self._output.seek(0)
      self._output.truncate()
    super().send(message)

  def stop(self, patience=5.0):
    self._connection.close()
    self._end(patience)
    self._output.close()

  def _end(self, patience):
    try:
      self._process.wait(patience)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()

  def _where_silent(self):
    # Its fault handler writes where it was.
    self._process.send_signal(signal.SIGABRT)
    self._end(patience=5.0)
    return self._last_words()

  def _why_gone(self):
    self._end(patience=5.0)
    code = self._process.returncode
    how = signal.Signals(-code).name if code < 0 else f'status {code}'
    return f'the worker process ended with {how}', self._last_words()

  def _last_words(self):
    size = self._output.seek(0, os.SEEK_END)
    self._output.seek(max(0, size - 4000))
    return self._output.read().decode(errors='replace').strip()


def serve(descriptor):
  """Runs a worker process at one end of a socket."""
  # The main process decides when to end, and ends this one by hanging up.
  for name in signals.Signals.statuses:
    signal.signal(name, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  faulthandler.enable()
  threading.Thread(
      target=_end_without_parent, args=(descriptor,), daemon=True).start()
  connection = Connection(descriptor)
  sys.path[:] = connection.recv()
  _serve(connection)


def _end_without_parent(descriptor, patience=5.0):
  """Ends this process when the other end is closed and it does not notice."""
  hangup = select.poll()
  hangup.register(descriptor, 0)
  hangup.poll()
  time.sleep(patience)
  os._exit(1)

