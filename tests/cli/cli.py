"""What the tests of the command line share: where the programs are, and how a VM is run."""

import argparse
import os
import pathlib
import select
import subprocess
import sys
import tempfile
import time
import unittest

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / 'guests')]
import child  # noqa: E402

SKIP = 77
REFUSED = 4
KERNEL = object()  # stands for a kernel that is there, so that nothing else is wrong
WAIT = 30  # seconds for what takes a moment


class Paths:
    skep = skepctl = guests = engine = None


def main():
    """Runs the tests of the calling module: NAME.py --skep P --skepctl P --guests DIR [--engine E --probe P]."""
    parser = argparse.ArgumentParser()
    for name in ('--skep', '--skepctl', '--guests', '--engine', '--probe'):
        parser.add_argument(name)
    args, rest = parser.parse_known_args()
    Paths.skep, Paths.skepctl, Paths.guests = map(os.path.abspath, (args.skep, args.skepctl, args.guests))
    Paths.engine = args.engine
    if args.engine == 'kvm':
        import run
        if 'kvm' not in run.kvm_words(args.probe, args.guests):
            print('SKIP: there is no KVM that works here')
            sys.exit(SKIP)
    unittest.main(argv=[sys.argv[0], *rest], verbosity=2)


def wait_for(condition, what):
    """Waits until condition() gives something true, and returns that."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        result = condition()
        if result:
            return result
        time.sleep(0.01)
    raise AssertionError(f'{what}: not within {WAIT} s')


class SkepTest(unittest.TestCase):
    """Each test has a directory of its own for control sockets and files."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix='skep-cli-')
        self.addCleanup(directory.cleanup)
        self.dir = pathlib.Path(directory.name)
        self.env = {**os.environ, 'XDG_RUNTIME_DIR': str(self.dir)}

    def skep(self, *args, **kwargs):
        """Runs skep to its end."""
        return subprocess.run([Paths.skep, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, timeout=WAIT, env=self.env, **kwargs)

    def skepctl(self, *args):
        return subprocess.run([Paths.skepctl, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, timeout=WAIT, env=self.env)

    def refused(self, args, wanted):
        """One line that says all of `wanted`, status 4, nothing started."""
        words = []
        for arg in args:
            words += ['--kernel', self.guest('hello.elf')] if arg is KERNEL else [arg]
        result = self.skep(*words)
        self.assertEqual(result.returncode, REFUSED, result.stderr)
        self.assertEqual(result.stdout, '')
        self.assertRegex(result.stderr, r'\Askep: [^\n]+\n\Z', 'one line, beginning with skep:')
        for text in wanted:
            self.assertIn(text, result.stderr)
        self.assertEqual(list(self.dir.glob('skep/*')), [], 'nothing is left behind')

    def guest(self, name):
        return f'{Paths.guests}/{name}'

    def start(self, *args, **kwargs):
        """Starts a VM; its output goes to pipes. It is killed at the end of the test."""
        kwargs.setdefault('stdin', subprocess.DEVNULL)
        kwargs.setdefault('stdout', subprocess.PIPE)
        vm = child.popen([Paths.skep, '-E', Paths.engine, '-m', '64M', *args], stderr=subprocess.PIPE,
                         env=self.env, **kwargs)

        def end():
            vm.kill()
            vm.wait()
            for pipe in (vm.stdout, vm.stderr):
                if pipe is not None:
                    pipe.close()
        self.addCleanup(end)
        return vm

    def start_idle(self, name='vm0', *args):
        """A VM that waits for its power button, and says so on the console."""
        vm = self.start('-l', 'com1,stdio', '-l', 'com2,null', '-l', 'pc-testdev', *args, '--kernel',
                        self.guest('pm.elf'), name)
        self.read_until(vm.stdout, b'ready for the power button')
        return vm

    def read_until(self, pipe, text):
        """Reads until `text` has come; returns all that came."""
        end = time.monotonic() + WAIT
        got = b''
        while text not in got:
            ready, _, _ = select.select([pipe], [], [], max(0, end - time.monotonic()))
            chunk = os.read(pipe.fileno(), 4096) if ready else b''
            if not chunk:
                raise AssertionError(f'{text!r} did not come; this did: {got!r}')
            got += chunk
        return got
