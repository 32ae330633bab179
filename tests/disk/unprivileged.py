"""skep as a user without rights, also where the tests run as root: as nobody, from copies that nobody may read."""

import os
import pathlib
import shutil

NOBODY = 65534


def prepare(work, **files):
    """Copies files into a directory of the user's; where each of them is then. A program brings those beside it along."""
    work.chmod(0o755)
    places = {}
    for name, path in files.items():
        path = pathlib.Path(path)
        places[name] = work / path.name
        places[name].unlink(missing_ok=True)
        shutil.copy(path, places[name])
        places[name].chmod(0o755)
        slirp = path.with_name('skep-slirp')
        if name == 'skep' and slirp.exists():
            (work / slirp.name).unlink(missing_ok=True)
            shutil.copy(slirp, work)
    give(work)
    return places


def give(work):
    """Everything in the directory, and itself, to the user."""
    if os.geteuid() == 0:
        for path in (work, *work.rglob('*')):
            os.chown(path, NOBODY, NOBODY)


def popen():
    """Arguments for subprocess.Popen()."""
    environment = {k: v for k, v in os.environ.items() if k != 'XDG_RUNTIME_DIR'}
    return {'user': NOBODY, 'group': NOBODY, 'extra_groups': [], 'env': environment} if os.geteuid() == 0 else {}
