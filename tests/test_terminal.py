"""What users see: one-line errors, a live line or plain lines, no noise."""

import fcntl
import os
import pathlib
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
import textwrap

import pytest

from common import terminal

ROOT = pathlib.Path(__file__).parent.parent


def program(code):
  code = 'from common import terminal\n' + textwrap.dedent(code)
  return [sys.executable, '-c', code]


def run(code, **kwargs):
  return subprocess.run(
      program(code), cwd=ROOT, capture_output=True, text=True, **kwargs)


def run_on_terminal(code, columns=60, rows=24):
  """All that a terminal receives."""
  ours, theirs = pty.openpty()
  size = struct.pack('HHHH', rows, columns, 0, 0)
  fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
  child = subprocess.Popen(
      program(code), cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs)
  os.close(theirs)
  content = b''
  while True:
    try:
      part = os.read(ours, 4096)
    except OSError:  # How Linux says that the other end is closed.
      break
    if not part:
      break
    content += part
  os.close(ours)
  assert child.wait() == 0
  return content.decode()


def screen(content):
  """The lines that stay on the screen."""
  lines = []
  for line in content.replace('\r\n', '\n').split('\n'):
    cells = []
    for part in line.split('\r'):
      cells[:len(part)] = part
    lines.append(''.join(cells).rstrip())
  return lines


### Errors ###


def test_user_errors_are_one_line():
  done = run('''
      def main(argv):
        raise terminal.UserError('--seed is odd: give another.')
      terminal.run(main)''')
  assert done.returncode == 2
  assert done.stdout == ''
  assert done.stderr == 'error: --seed is odd: give another.\n'


def test_other_errors_keep_their_trace():
  done = run('''
      def main(argv):
        raise ValueError('a mistake of ours')
      terminal.run(main)''')
  assert done.returncode == 1
  assert 'Traceback' in done.stderr
  assert 'a mistake of ours' in done.stderr


@pytest.mark.parametrize('returned, status', [(None, 0), (0, 0), (143, 143)])
def test_exit_status(returned, status):
  with pytest.raises(SystemExit) as end:
    terminal.run(lambda argv: returned, ['--flag'])
  assert end.value.code == status


def test_arguments():
  given = []
  with pytest.raises(SystemExit):
    terminal.run(given.append, ['--seed', '1'])
  assert given == [['--seed', '1']]


def test_reader_that_goes_away_is_no_error():
  command = ' '.join([
      sys.executable, '-c',
      "'from common import terminal; terminal.run(lambda argv: "
      "[print(number) for number in range(100000)] and None)'"])
  done = subprocess.run(
      f'{command} | head -1', shell=True, cwd=ROOT, capture_output=True,
      text=True)
  assert done.stdout == '0\n'
  assert done.stderr == ''


### Noise ###


def test_silence_hides_what_libraries_write():
  done = run('''
      import os
      print('before')
      with terminal.silence():
        print('python')
        os.write(1, b'library')
        os.write(2, b'library')
        os.system('echo child')
      print('after')''')
  assert done.stdout == 'before\nafter\n'
  assert done.stderr == ''


def test_silence_needs_no_directory_to_write_to():
  """A full disk, or one that is read only, is told elsewhere."""
  done = run('''
      import os, tempfile
      def refuse(*args, **kwargs):
        raise FileNotFoundError(2, 'No usable temporary directory found')
      tempfile.TemporaryFile = refuse
      with terminal.silence():
        os.write(2, b'library')
      try:
        with terminal.silence():
          os.write(2, b'the library says why. ')
          raise RuntimeError('failed')
      except RuntimeError:
        print('after')''')
  assert done.stdout == 'after\n'
  assert done.stderr == 'the library says why. '


def test_silence_shows_what_came_before_a_failure():
  done = run('''
      import os
      with terminal.silence():
        os.write(2, b'the library says why. ')
        raise RuntimeError('failed')''')
  assert done.returncode == 1
  assert 'the library says why. ' in done.stdout + done.stderr
  assert 'RuntimeError: failed' in done.stderr


def test_silence_stays_silent_before_a_user_error():
  done = run('''
      import os
      def main(argv):
        with terminal.silence():
          os.write(1, b'noise')
          raise terminal.UserError('say this.')
      terminal.run(main)''')
  assert (done.stdout, done.stderr) == ('', 'error: say this.\n')


def test_other_threads_speak_while_one_is_silent_for_ever():
  done = run('''
      import os, threading, time
      silent = threading.Event()
      def hang():
        with terminal.silence():
          os.write(1, b'library')
          silent.set()
          time.sleep(1000)
      def main(argv):
        threading.Thread(target=hang, daemon=True).start()
        silent.wait()
        terminal.say('a line')
        terminal.warn('careful')
        raise terminal.UserError('it hangs.')
      terminal.run(main)''')
  assert done.stdout == 'a line\n'
  assert done.stderr == 'warning: careful\nerror: it hangs.\n'
  assert done.returncode == 2


def test_silence_leaves_no_files_open():
  count = len(os.listdir('/proc/self/fd'))
  for _ in range(5):
    with terminal.silence():
      pass
    with pytest.raises(KeyError), terminal.silence():
      raise KeyError
  assert len(os.listdir('/proc/self/fd')) == count


### Progress ###


PROGRESS = '''
    status = terminal.Status('train', 100, 1000, interval=0)
    status.update(200, 'train return 12.5')
    {between}
    status.update(300)
    status.close()
    terminal.Status('evaluate', 0, 10).close()
    print('done')'''


def test_plain_lines_in_a_file():
  done = run(PROGRESS.format(between="terminal.warn('a step was repeated')"))
  assert done.stderr == 'warning: a step was repeated\n'
  first, second, third, last = done.stdout.splitlines()
  assert first.startswith('train 200/1,000 steps, ')
  assert second.startswith('train 300/1,000 steps, ')
  for line in (first, second):
    assert re.search(r', [\d.]+/s, [\d:]+ left, train return 12.5$', line)
  assert third.startswith('evaluate 0/10 steps')
  assert last == 'done'
  assert '\r' not in done.stdout


def test_few_plain_lines():
  done = run('''
      status = terminal.Status('train', 0, 100000)
      for step in range(100000):
        status.update(step)
      status.close()''')
  line, = done.stdout.splitlines()
  assert line.startswith('train 99,999/100,000 steps')


def test_live_line():
  content = run_on_terminal('''
      import time
      status = terminal.Status('train', 0, 1000)
      for step in range(0, 1000, 250):
        time.sleep(0.25)
        status.update(step, 'train return 12.5, a note that is very long')
      terminal.warn('a step was repeated')
      terminal.say('a line')
      status.update(1000)
      status.close()
      print('done')''')
  lines = screen(content)
  assert content.count('\r') > 4
  assert lines[:2] == ['warning: a step was repeated', 'a line']
  assert re.match(r'train \|.*\| 1,000/1,000 steps, ', lines[2])
  assert lines[3:] == ['done', '']
  assert max(map(len, lines)) <= 60


def test_live_line_gives_way_to_an_error():
  content = run_on_terminal('''
      import sys, time
      def main(argv):
        status = terminal.Status('train', 0, 1000)
        time.sleep(0.25)
        status.update(500)
        raise terminal.UserError('the disk is full.')
      try:
        terminal.run(main)
      except SystemExit:
        pass''')
  assert '500/1,000' in content
  assert screen(content) == ['error: the disk is full.', '']


@pytest.mark.parametrize('seconds, text', [
    (0, '0 s'), (42.3, '42 s'), (90, '2 min'), (420, '7 min'),
    (3600, '1 h 0 min'), (12000, '3 h 20 min'), (86400, '1 d 0 h'),
    (367200, '4 d 6 h')])
def test_duration(seconds, text):
  assert terminal.duration(seconds) == text


def test_steps_past_the_end():
  """Environments that step together may pass the last step of a phase."""
  done = run('''
      status = terminal.Status('train', 0, 1000)
      status.update(1004)
      status.close()
      terminal.Status('train', 0, 0).close()''')
  first, second = done.stdout.splitlines()
  assert first.startswith('train 1,004/1,004 steps')
  assert second.startswith('train 0/')
  assert done.stderr == ''


def test_quiet():
  code = '''
      status = terminal.Status('train', 0, 1000, interval=0, quiet=True)
      status.update(500, 'train return 12.5')
      status.close()
      print('done')'''
  assert run(code).stdout == 'done\n'
  assert screen(run_on_terminal(code)) == ['done', '']


@pytest.mark.parametrize('size', [(80, 24), (0, 0), (0, 24), (80, 0)])
def test_live_line_of_a_long_phase_fits(size):
  """The returns are seen in 80 columns, and where the size is unknown."""
  content = run_on_terminal('''
      import time
      status = terminal.Status('train', 4_000_000, 5_000_000)
      time.sleep(0.25)
      status.update(4_000_059, 'train return 12.5')
      status.close()''', *size)
  line, _ = screen(content)
  assert line.endswith(' left, train return 12.5')


### Output that cannot be written ###


NOISY = '''
    def main(argv):
      status = terminal.Status('train', 0, 1000, interval=0)
      status.update(200, 'λ 1.5')
      terminal.say('±')
      terminal.warn('ω')
      status.close()
      open({path!r}, 'w').write('went on')
      raise terminal.UserError('--λ is odd.')
    terminal.run(main)'''


def test_ascii_output(tmp_path):
  path = tmp_path / 'end'
  done = run(NOISY.format(path=str(path)), env={
      **os.environ, 'PYTHONIOENCODING': 'ascii'})
  assert path.read_text() == 'went on'
  assert done.returncode == 2
  assert '\n?\n' in done.stdout
  assert done.stderr == 'warning: ?\nerror: --? is odd.\n'


@pytest.mark.parametrize('closed', ['>&-', '2>&-', '>&- 2>&-', '<&- >&- 2>&-',
                                    '>/dev/full', '>/dev/full 2>/dev/full'])
def test_closed_or_full_output(tmp_path, closed):
  path = tmp_path / 'end'
  command = ' '.join(map(shlex.quote, program(NOISY.format(path=str(path)))))
  done = subprocess.run(
      f'{command} {closed}', shell=True, cwd=ROOT, capture_output=True,
      text=True)
  # Nothing meant for the terminal is written to the file.
  assert path.read_text() == 'went on'
  assert done.returncode == 2
  assert 'Traceback' not in done.stderr
  assert ('error: --' in done.stderr) == ('2>' not in closed)


def test_silence_with_closed_output():
  done = subprocess.run(
      ' '.join(map(shlex.quote, program('''
          import os
          with terminal.silence():
            os.write(1, b'noise')
          os.write(2, b'end')'''))) + ' >&-',
      shell=True, cwd=ROOT, capture_output=True, text=True)
  assert done.stderr == 'end'


def test_terminal_that_is_closed(tmp_path):
  """The program goes on without it."""
  path = tmp_path / 'end'
  ours, theirs = pty.openpty()
  child = subprocess.Popen(
      program('''
          import time
          def main(argv):
            status = terminal.Status('train', 0, 1000)
            status.update(100)
            print('ready', flush=True)
            time.sleep(1)
            for step in range(100, 105):
              time.sleep(0.21)
              status.update(step)
              terminal.say('a line')
              terminal.warn('a warning')
            status.close()
            open({path!r}, 'w').write('went on')
          terminal.run(main)'''.format(path=str(path))),
      cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs)
  os.close(theirs)
  content = b''
  while b'ready\r\n' not in content:
    content += os.read(ours, 4096)
  os.close(ours)
  assert child.wait() == 0
  assert path.read_text() == 'went on'
