"""From what is asked for to an AnnData: conditions, cells, expression, support."""
