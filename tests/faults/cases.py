"""What is staged in these tests: files, folders, both; new ones and replaced ones; with and without renameat2."""

import os
import shutil
from dataclasses import dataclass

from ensexport.staging import Staging, system
from tests.faults.calls import without_renameat2
from tests.faults.packages import contents, files, package, write_both, write_files, write_package


def under(prefix, found):
    """The same contents in a folder."""
    return {f"{prefix}/{name}": data for name, data in found.items()}


def _seen(folder):
    return {name: data for name, data in contents(folder).items() if not name.startswith(".ensexport-")}


def _of(target, found):
    """A target with what belongs to it: the files in it, or beside it."""
    return {name: data for name, data in found.items() if name.startswith(target)}


NAMES = ("e.onnx", "e.onnx.data")


def package_in(folder, **options):
    return write_package(folder / "pkg", **options)


def files_in(folder, **options):
    return write_files(folder / "e.onnx", **options)


@dataclass(frozen=True)
class Case:
    """One kind of work.

    Attributes:
        write: Called as `write(folder, text=..., force=...)`.
        of: Given a text, what is in the folder then.
        is_replacing: There is something to replace, and `force` is given.
        is_bare: On a system without renameat2.
    """

    write: object
    of: object
    is_replacing: bool = False
    is_bare: bool = False

    @property
    def old(self):
        """What is in the folder before."""
        return self.of("old") if self.is_replacing else {}

    @property
    def new(self):
        """What is in the folder afterwards."""
        return self.of("new")

    @property
    def are_files(self):
        """A file with external data beside it: two renames, so that only the next run makes them fit again."""
        return self.write is files_in

    def prepare(self, folder):
        """Bring the folder into the state before."""
        for name in os.listdir(folder):
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self.is_replacing:
            self.write(folder, text="old")

    def work(self, folder, text="new"):
        """Do what is to be interrupted."""
        self.write(folder, text=text, force=self.is_replacing)

    def take_away(self, patch):
        """Make the system one without renameat2, if this case is about that."""
        if self.is_bare:
            patch.setattr(system, "_renameat2", without_renameat2)

    def is_whole(self, folder):
        """Whether all of the old or all of the new is there; what is hidden does not count."""
        return _seen(folder) in (self.old, self.new)

    def is_each_whole(self, folder, *, or_absent=False):
        """Whether each target by itself is the old or the new one, which is all that a kill leaves to promise."""
        seen = _seen(folder)
        return all(
            _of(target, seen) in ((_of(target, self.old), _of(target, self.new)) + (({},) if or_absent else ()))
            for target in ("pkg", "e.onnx")
        )

    def next_run_works(self, folder):
        """Whether the next run puts the targets in place, and nothing else is there then."""
        self.write(folder, text="newer", force=True)
        return contents(folder) == self.of("newer")

    def recovered(self, folder):
        """Let the next run begin, and come no further."""
        Staging([folder / "x"], force=False)


CASES = {
    "folder, new": Case(package_in, lambda text: under("pkg", package(text))),
    "folder, --force": Case(package_in, lambda text: under("pkg", package(text)), is_replacing=True),
    "folder, new, no renameat2": Case(package_in, lambda text: under("pkg", package(text)), is_bare=True),
    "folder, --force, no renameat2": Case(
        package_in, lambda text: under("pkg", package(text)), is_replacing=True, is_bare=True
    ),
    "files, new": Case(files_in, lambda text: files(text, NAMES)),
    "files, --force": Case(files_in, lambda text: files(text, NAMES), is_replacing=True),
    "folder and file, new": Case(write_both, lambda text: under("pkg", package(text)) | files(text, NAMES[:1])),
    "folder and file, --force": Case(
        write_both, lambda text: under("pkg", package(text)) | files(text, NAMES[:1]), is_replacing=True
    ),
}
