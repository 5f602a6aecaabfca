"""Reading and writing that an interruption cannot harm; nothing here knows of cells."""
