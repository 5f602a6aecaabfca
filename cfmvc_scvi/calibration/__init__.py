"""The mean effect on every gene, from the training populations, and the correction of decoded changes by it."""
