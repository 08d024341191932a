"""Every file and folder this tool writes is made beside its target and renamed last: whole, or not there at all.

One writer for all: a full disk, a signal or a failed check leaves nothing behind, and an existing target keeps its
bytes until the new ones are complete. What a process that was killed has left is removed by the next run.
"""

from ensexport.staging.rooms import remove_room, remove_rooms, tell_folders
from ensexport.staging.staging import Staging
from ensexport.staging.system import writing

__all__ = ["Staging", "remove_room", "remove_rooms", "tell_folders", "writing"]
