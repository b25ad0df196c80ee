"""The representations of a data set on disk: made in blocks by any number of ranks, and looked things up in."""
