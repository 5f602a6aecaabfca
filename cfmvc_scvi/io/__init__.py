"""Saving and loading that an interruption cannot harm; nothing here knows of cells or of the model.

:mod:`.files` writes files that are there whole or not at all, :mod:`.codec` turns nested Python values into JSON and
arrays, :mod:`.archive` puts both together.
"""
