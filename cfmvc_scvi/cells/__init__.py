"""Cells as the networks read them, and the batches that both stages train on."""
