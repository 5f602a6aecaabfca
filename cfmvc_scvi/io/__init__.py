"""Saving and loading that an interruption cannot harm; nothing here knows of cells or of the model.

:mod:`.files` writes files that are there whole or not at all, :mod:`.codec` turns nested Python values into JSON and
arrays, :mod:`.archive` puts both together.
"""

from cfmvc_scvi.io.archive import ArchiveError, archive_exists, read_archive, write_archive
from cfmvc_scvi.io.files import atomic_write, require_space

__all__ = ["ArchiveError", "archive_exists", "atomic_write", "read_archive", "require_space", "write_archive"]
